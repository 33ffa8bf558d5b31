//! The front door, as the configuration wants it.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use axum::{Router, body::Body, extract::ConnectInfo};
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, header::STRICT_TRANSPORT_SECURITY};
use myelin_process::{
    config::{Config, Listener, Network, Problem, Severity, TlsMode},
    shutdown::Shutdown,
};
use myelin_proxy::{
    Certificate, Certificates, FrontDoor, HostHeaders, Limits, Listening, Manners, RequestBody, Serve, Tls,
    TrustedProxies,
    acme::Challenges,
    certificate_files::{self, CertificateFiles, FilesError},
};
use tokio::net::TcpListener;
use tower::Service as _;

use crate::{
    acme,
    exit::{Exit, Failure},
    parts::Parts,
};

/// A certificate that ends sooner than this is worth a warning at start.
const DAYS_LEFT_MIN: u64 = 14;

/// The share of all connections that may be open without having asked for anything.
const NEWCOMERS_SHARE: usize = 4;

/// A router behind the front door.
#[derive(Clone)]
pub(crate) struct Routes(pub(crate) Router);

impl Serve for Routes {
    type Body = Body;

    fn serve(
        mut self,
        mut request: Request<RequestBody>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send {
        request.extensions_mut().insert(ConnectInfo(client));
        self.0.call(request).map(|answered| match answered {
            Ok(response) => response,
            Err(never) => match never {},
        })
    }
}

/// The front door with the bounds of the configuration.
pub(crate) fn open(config: &Config, connections: usize, shutdown: &Shutdown) -> FrontDoor {
    let per_address = usize::try_from(config.limits.max_connections_per_address).unwrap_or(usize::MAX);
    let limits = Limits {
        connections,
        connections_per_address: per_address,
        newcomers: connections / NEWCOMERS_SHARE,
        ..Limits::default()
    };
    let own: [Network; 2] = ["127.0.0.0/8", "::1"].map(|network| network.parse().expect("it is written correctly"));
    let proxies = config.listeners.iter().flat_map(|listener| listener.trusted_proxies.iter().copied());
    FrontDoor::new(limits, own.into_iter().chain(proxies).collect(), shutdown.clone())
}

/// How a listener takes connections and requests.
pub(crate) fn listening(
    config: &Config,
    settings: &Listener,
    socket: TcpListener,
    encryption: &Encryption,
) -> Listening {
    let seconds = config.tls.strict_transport_security_seconds;
    let mut headers = HostHeaders::default();
    if settings.tls && seconds > 0 {
        let value = HeaderValue::try_from(format!("max-age={seconds}")).expect("a number is a header's value");
        headers.0.push((None, STRICT_TRANSPORT_SECURITY, value));
    }
    let trusted = TrustedProxies { networks: settings.trusted_proxies.clone(), header: settings.client_address_header };
    let https_port = match config.client_baseurl() {
        url if url.scheme() == "https" => url.port().unwrap_or(443),
        _ => 443,
    };
    Listening {
        socket,
        tls: encryption.tls.clone().filter(|_| settings.tls),
        proxy_protocol: settings.proxy_protocol,
        manners: Manners {
            trusted,
            redirect_to_https: settings.redirect_to_https.then_some(https_port),
            headers,
            challenges: encryption.challenges.clone(),
        },
    }
}

/// What encrypts the listeners, and what certificate authorities are shown.
#[derive(Default)]
pub(crate) struct Encryption {
    /// None if no listener wants it.
    pub(crate) tls: Option<Tls>,
    /// None unless certificates are asked for.
    pub(crate) challenges: Option<Arc<dyn Challenges>>,
}

/// Begins to look after the certificate, if a listener needs one.
pub(crate) async fn encryption(config: &Config, parts: &Parts, shutdown: &Shutdown) -> Result<Encryption, Failure> {
    if !config.listeners.iter().any(|listener| listener.tls) {
        return Ok(Encryption::default());
    }
    if config.tls.mode == TlsMode::Acme {
        let (tls, challenges) = acme::start(config, Arc::clone(&parts.store), shutdown).await?;
        return Ok(Encryption { tls: Some(tls), challenges: Some(challenges) });
    }
    let first = match certificate_in_files(config)? {
        Some(certificate) => certificate,
        None => Certificate::self_signed(&config.acme_names()).map_err(|error| Failure::new(Exit::Config, error))?,
    };
    tracing::info!(tls.names = ?first.names(), "the certificate is for {}", first.names().join(", "));
    let certificates = Certificates::new(first);
    if let Some(files) = files(config) {
        shutdown.spawn(certificate_files::watch(files, Arc::clone(&certificates), shutdown.clone()));
    }
    let tls = Tls::new(certificates).map_err(|error| Failure::new(Exit::Software, error))?;
    Ok(Encryption { tls: Some(tls), challenges: None })
}

/// The certificate in the files of the configuration, if it names some.
pub(crate) fn certificate_in_files(config: &Config) -> Result<Option<Certificate>, Failure> {
    let certificate = files(config).map(|files| files.load()).transpose();
    certificate.map_err(|error| Failure::new(Exit::Config, error))
}

/// What is wrong with the certificate that the configuration names.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    if !config.listeners.iter().any(|listener| listener.tls) {
        return Vec::new();
    }
    let Some(files) = files(config) else { return Vec::new() };
    match files.load() {
        Ok(certificate) => certificate_problems(config, &certificate),
        // That a file cannot be read is found by the configuration itself.
        Err(FilesError::Read { .. }) => Vec::new(),
        Err(error @ FilesError::Certificate { .. }) => {
            let FilesError::Certificate { path, .. } = &error else { return Vec::new() };
            let key = if *path == files.private_key { "tls.private_key" } else { "tls.certificate" };
            vec![problem(Severity::Error, key, error.to_string())]
        }
    }
}

fn certificate_problems(config: &Config, certificate: &Certificate) -> Vec<Problem> {
    let mut found = Vec::new();
    let now = SystemTime::now();
    let mut warn = |message: String| found.push(problem(Severity::Warning, "tls.certificate", message));
    match certificate.remaining(now).map(|left| left.as_secs() / 86400) {
        None => warn("it is expired: clients and other servers refuse it".to_owned()),
        Some(days) if days < DAYS_LEFT_MIN => warn(format!("it expires in {days} days")),
        Some(_) => {}
    }
    if certificate.valid_from() > now {
        warn("it is not valid yet, or the clock of this machine is wrong".to_owned());
    }
    let missing: Vec<_> = config.acme_names().into_iter().filter(|name| !certificate.is_for(name)).collect();
    if missing.len() == config.acme_names().len() {
        warn(format!("it is for {}, and not for {}", certificate.names().join(", "), missing.join(" or ")));
    }
    found
}

fn problem(severity: Severity, key: &str, message: String) -> Problem {
    Problem { severity, key: key.to_owned(), source: None, message }
}

/// The certificate files of the configuration.
fn files(config: &Config) -> Option<CertificateFiles> {
    if config.tls.mode != TlsMode::Files {
        return None;
    }
    let (certificate, private_key) = (config.tls.certificate.clone()?, config.tls.private_key.clone()?);
    Some(CertificateFiles { certificate, private_key })
}
