//! Connections and certificates.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::CertificateError;
use rustls_pki_types::CertificateDer;
use tokio::{net::TcpStream, time};
use tokio_rustls::TlsConnector;
use x509_parser::parse_x509_certificate;

use super::{Doctor, Report, Verdict};
use crate::{discovery::Route, http::chain};

/// A certificate that ends sooner than this should have been renewed, in days.
const RENEWED_DAYS: i64 = 14;
const DAY_SECONDS: i64 = 24 * 60 * 60;

/// What a connection to one address came to.
enum Tried {
    /// When the certificate ends, in seconds since 1970, and the protocol's version.
    Good {
        until: Option<i64>,
        version: String,
    },
    Connect(String),
    Tls(io::Error),
}

impl Doctor {
    /// Connects to every address. True if one of them is good.
    pub(super) async fn tls(&self, route: &Route, report: &mut Report) -> bool {
        let mut is_any_good = false;
        for endpoint in &route.endpoints {
            for address in self.dialer.addresses(endpoint).await.unwrap_or_default() {
                let tried = self.try_address(address, route).await;
                is_any_good |= matches!(tried, Tried::Good { .. });
                tell(address, &tried, &route.tls_name.to_str(), report);
            }
        }
        is_any_good
    }

    async fn try_address(&self, address: SocketAddr, route: &Route) -> Tried {
        let limit = self.options.connect_timeout;
        let stream = match time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Tried::Connect(error.to_string()),
            Err(_) => return Tried::Connect(format!("no answer within {limit:?}")),
        };
        let connector = TlsConnector::from(Arc::clone(&self.tls.federation));
        let stream = match time::timeout(limit, connector.connect(route.tls_name.clone(), stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Tried::Tls(error),
            Err(_) => {
                return Tried::Tls(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")));
            }
        };
        let connection = stream.get_ref().1;
        let version = connection.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS").to_owned();
        let until = connection.peer_certificates().and_then(|chain| chain.first()).and_then(ends);
        Tried::Good { until, version }
    }
}

/// When a certificate ends, in seconds since 1970.
fn ends(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

fn tell(address: SocketAddr, tried: &Tried, name: &str, report: &mut Report) {
    match tried {
        Tried::Good { until, version } => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
            let days = until.map(|until| (until - now) / DAY_SECONDS);
            let ends = days.map_or_else(String::new, |days| format!(", for {days} more days"));
            let found = format!("{address}: {version}, a good certificate for {name}{ends}");
            if days.is_some_and(|days| days < RENEWED_DAYS) {
                report.advise("tls", Verdict::Warning, found, "Renew the certificate, and see why nothing did.");
            } else {
                report.add("tls", Verdict::Ok, found);
            }
        }
        Tried::Connect(reason) => {
            let advice = format!(
                "Let the server listen there, and the firewall let it through; or remove {} from the DNS.",
                address.ip()
            );
            report.advise("tls", Verdict::Bad, format!("{address}: {reason}"), advice);
        }
        Tried::Tls(error) => {
            report.advise("tls", Verdict::Bad, format!("{address}: {}", chain(error)), advice(error, name));
        }
    }
}

fn advice(error: &io::Error, name: &str) -> String {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(error)) = tls else {
        return "Something else than TLS answers there, or a TLS older than 1.2; or the server has no certificate for \
                this name (SNI)."
            .to_owned();
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "Renew the certificate, and let the server read the new one.".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "Look at the clock of this machine, and at the certificate's dates.".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("The certificate must be for {name}, whatever the name of the machine is.")
        }
        CertificateError::UnknownIssuer => {
            "Serve the whole chain (fullchain.pem), of an authority that others know; in a private federation set \
             federation.trusted_ca_file."
                .to_owned()
        }
        _ => "Get a new certificate from an authority that others know.".to_owned(),
    }
}
