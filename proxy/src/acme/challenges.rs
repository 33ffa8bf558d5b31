//! What a certificate authority asks to see that a name is ours.

use std::fmt;

use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{crypto::ring, sign::CertifiedKey};
use rustls_pki_types::PrivateKeyDer;

use crate::CertificateError;

/// The protocol of TLS-ALPN-01 (RFC 8737, section 3).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The proofs of the orders under way, of all replicas: the authority may ask any of them.
pub trait Challenges: fmt::Debug + Send + Sync {
    /// The key authorization for a token of HTTP-01.
    fn http_01<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Option<String>>;

    /// The digest of the key authorization for a name that is asked for by TLS-ALPN-01.
    fn tls_alpn_01<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<Vec<u8>>>;
}

/// The certificate that proves by TLS-ALPN-01 that `name` is ours: "a self-signed certificate" with the name and the
/// digest in the extension `acmeIdentifier`.
pub(crate) fn tls_alpn_certificate(name: &str, digest: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let make = || {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok((certificate.der().clone(), key))
    };
    let (certificate, key) = make().map_err(CertificateError::Make)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = ring::sign::any_supported_type(&key).map_err(CertificateError::Key)?;
    // What compares key and certificate does not take its critical extension.
    Ok(CertifiedKey::new(vec![certificate], key))
}
