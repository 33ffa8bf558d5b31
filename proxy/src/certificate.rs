//! A certificate with its key, and the place where the current one is found.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use myelin_process::metrics::{self, IntGaugeVec};
use parking_lot::RwLock;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::{
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, oid_registry::OID_X509_COMMON_NAME, prelude::FromDer as _,
};

/// How long a certificate lives that the process makes for itself. It makes a new one at each start.
const SELF_SIGNED_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far behind a client's clock may be.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

static EXPIRY: LazyLock<IntGaugeVec> = metrics::gauge!(
    "myelin_tls_certificate_expiry_timestamp_seconds",
    "When the certificate in use ends, in seconds since 1970.",
    ["name"]
);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// There is no certificate in the PEM.
    #[error("there is no certificate in it (a PEM block `CERTIFICATE`)")]
    NoCertificate,
    /// There is no private key in the PEM.
    #[error("there is no private key in it (a PEM block `PRIVATE KEY`, not encrypted)")]
    NoKey,
    /// The PEM is damaged.
    #[error("read the PEM: {0}")]
    Pem(pem::Error),
    /// The certificate is damaged.
    #[error("read the certificate: {0}")]
    Parse(String),
    /// The key is of a kind that cannot sign.
    #[error("use the private key: {0}")]
    Key(rustls::Error),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the certificate (the first one in the file)")]
    Mismatch,
    /// The certificate ended.
    #[error("the certificate ended {} hours ago", .0.as_secs() / 3600)]
    Expired(Duration),
    /// A certificate could not be made.
    #[error("make a certificate")]
    Make(#[source] rcgen::Error),
}

/// A certificate with its chain and private key.
#[derive(Clone)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    valid_from: SystemTime,
    valid_until: SystemTime,
}

impl Certificate {
    /// Reads a chain, the server's own certificate first, and its key. An expired one is read as well.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(CertificateError::Pem)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => CertificateError::NoKey,
            error => CertificateError::Pem(error),
        })?;
        Self::from_der(chain, key)
    }

    /// The same, of what is decoded already.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let own = chain.first().ok_or(CertificateError::NoCertificate)?;
        let (names, valid_from, valid_until) = facts(own)?;
        let key = ring::sign::any_supported_type(&key).map_err(CertificateError::Key)?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
                return Err(CertificateError::Mismatch);
            }
            Err(error) => return Err(CertificateError::Parse(error.to_string())),
        }
        Ok(Self { key: Arc::new(key), names, valid_from, valid_until })
    }

    /// Makes a certificate that nobody vouches for.
    pub fn self_signed(names: &[String]) -> Result<Self, CertificateError> {
        let make = || {
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, "Myelin, self-signed");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let now = SystemTime::now();
            params.not_before = (now - CLOCK_SKEW).into();
            params.not_after = (now + SELF_SIGNED_TIME).into();
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            Ok((certificate.der().clone(), key))
        };
        let (certificate, key) = make().map_err(CertificateError::Make)?;
        Self::from_der(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// The DNS names and addresses that it is for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Since when it counts.
    pub fn valid_from(&self) -> SystemTime {
        self.valid_from
    }

    /// Until when it counts.
    pub fn valid_until(&self) -> SystemTime {
        self.valid_until
    }

    /// How long it still counts; none if it does not any more.
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        self.valid_until.duration_since(now).ok().filter(|left| !left.is_zero())
    }

    /// Whether it is for this DNS name, itself or by a wildcard.
    pub fn is_for(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        self.names.iter().any(|own| match own.strip_prefix("*.") {
            Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
            None => own.eq_ignore_ascii_case(name),
        })
    }

    /// The chain, the server's own certificate first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("valid_until", &self.valid_until)
            .finish_non_exhaustive()
    }
}

/// The names in a certificate, and from when to when it counts.
fn facts(certificate: &CertificateDer<'_>) -> Result<(Vec<String>, SystemTime, SystemTime), CertificateError> {
    let parse = |error: String| CertificateError::Parse(error);
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| parse(error.to_string()))?;
    let alternative = certificate.subject_alternative_name().map_err(|error| parse(error.to_string()))?;
    let mut names: Vec<String> =
        alternative.iter().flat_map(|found| &found.value.general_names).filter_map(name).collect();
    if names.is_empty() {
        // Old private authorities know nothing else. Browsers and other servers do not take it.
        let common = certificate.subject().iter_by_oid(&OID_X509_COMMON_NAME);
        names.extend(common.filter_map(|name| name.as_str().ok()).map(ToOwned::to_owned));
    }
    let time = |timestamp: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0));
    let validity = certificate.validity();
    Ok((names, time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The certificate that new connections get. It can be exchanged at any time; open connections keep theirs.
#[derive(Debug)]
pub struct Certificates {
    current: RwLock<Certificate>,
}

impl Certificates {
    /// Begins with `first`.
    pub fn new(first: Certificate) -> Arc<Self> {
        show(&first);
        Arc::new(Self { current: RwLock::new(first) })
    }

    /// Gives new connections another certificate from now on.
    pub fn replace(&self, new: Certificate) {
        let label = label(&new);
        show(&new);
        let old = std::mem::replace(&mut *self.current.write(), new);
        if self::label(&old) != label {
            // It was shown, or another one of that name is gone: nothing to do then.
            let _ = EXPIRY.remove_label_values(&[&self::label(&old)]);
        }
    }

    /// The current one.
    pub fn current(&self) -> Certificate {
        self.current.read().clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Whatever name was asked for: a client that wanted another one says so in words that people understand.
        Some(Arc::clone(&self.current.read().key))
    }
}

/// What a certificate is called in metrics.
fn label(certificate: &Certificate) -> String {
    certificate.names.first().cloned().unwrap_or_default()
}

fn show(certificate: &Certificate) {
    let seconds = certificate.valid_until.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    EXPIRY.with_label_values(&[&label(certificate)]).set(i64::try_from(seconds).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rcgen::{CertificateParams, KeyPair};

    use super::{Certificate, CertificateError};

    fn pem(names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Names and time are read from the certificate, wildcards and addresses included.
    #[test]
    fn reads_what_it_is_for() {
        let (chain, key) = pem(&["example.org", "*.matrix.example.org", "192.0.2.1", "2001:db8::1"]);
        let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(certificate.names(), ["example.org", "*.matrix.example.org", "192.0.2.1", "2001:db8::1"]);
        assert!(certificate.is_for("EXAMPLE.org") && certificate.is_for("a.matrix.example.org."));
        assert!(!certificate.is_for("matrix.example.org") && !certificate.is_for("a.b.matrix.example.org"));
        assert!(certificate.remaining(SystemTime::now()).is_some());
    }

    /// Files that do not fit, or are none, are told apart.
    #[test]
    fn refuses_what_does_not_fit() {
        let (chain, key) = pem(&["a.example"]);
        let (_, other) = pem(&["a.example"]);
        let read = |chain: &str, key: &str| Certificate::from_pem(chain.as_bytes(), key.as_bytes()).map(drop);
        assert!(matches!(read(&chain, &other), Err(CertificateError::Mismatch)));
        assert!(matches!(read(&key, &key), Err(CertificateError::NoCertificate)));
        assert!(matches!(read(&chain, &chain), Err(CertificateError::NoKey)));
        assert!(matches!(read("nonsense", "nonsense"), Err(CertificateError::NoKey | CertificateError::NoCertificate)));
        let damaged = chain.replacen("MII", "AAA", 1);
        assert!(matches!(read(&damaged, &key), Err(CertificateError::Parse(_))));
        read(&chain, &key).unwrap();
    }

    /// What the process makes for itself counts now, for the names that it was asked for.
    #[test]
    fn makes_its_own() {
        let certificate = Certificate::self_signed(&["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        assert!(certificate.is_for("localhost") && certificate.valid_from() < SystemTime::now());
        assert!(certificate.remaining(SystemTime::now()).is_some());
        assert!(Certificate::self_signed(&["ex ämple".to_owned()]).is_err());
    }
}
