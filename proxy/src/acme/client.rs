//! Requests to an authority.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::AcmeError;

/// How long a request may take.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The longest time that an authority may ask us to stay away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Asks by HTTPS. A certificate takes a dozen of requests every few weeks, so each one has a connection of its own.
#[derive(Clone)]
pub(super) struct Client {
    tls: Arc<ClientConfig>,
    /// What the last request came to, where the library does not tell.
    pub(super) trouble: Arc<Mutex<Trouble>>,
}

/// What the authority said beside its answers.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// It could not be reached.
    pub(super) unreachable: Option<(String, String)>,
    /// It asks to be left alone until then.
    pub(super) retry_after: Option<SystemTime>,
}

impl Client {
    /// Trusts the authorities of the operating system, and `more`, in PEM.
    pub(super) fn new(more: Option<&[u8]>) -> Result<Self, AcmeError> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        for certificate in CertificateDer::pem_slice_iter(more.unwrap_or_default()) {
            let certificate = certificate.map_err(|error| AcmeError::Roots(error.to_string()))?;
            roots.add(certificate).map_err(|error| AcmeError::Roots(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(AcmeError::Roots("there is none".to_owned()));
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| AcmeError::Roots(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), trouble: Arc::default() })
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, Error> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answered = match timeout(REQUEST_TIME, self.exchange(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("no answer within {} seconds", REQUEST_TIME.as_secs()).into()),
        };
        let mut trouble = self.trouble.lock();
        match answered {
            Ok(response) => {
                let limited =
                    matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
                *trouble = Trouble {
                    unreachable: None,
                    retry_after: limited.then(|| retry_after(&response, SystemTime::now())).flatten(),
                };
                Ok(response)
            }
            Err(error) => {
                *trouble = Trouble { unreachable: Some((host, error.to_string())), retry_after: None };
                Err(Error::Other(error))
            }
        }
    }

    async fn exchange(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let uri = request.uri().clone();
        if uri.scheme_str() != Some("https") {
            return Err("the authority names an address that is not https://".into());
        }
        let authority = uri.authority().ok_or("the authority names an address without a host")?.clone();
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await?;
        let name = ServerName::try_from(host)?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let (mut parts, body) = request.into_parts();
        parts.uri = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        parts.headers.insert(http::header::HOST, authority.as_str().parse()?);
        let asked = async {
            let response = sender.send_request(Request::from_parts(parts, body)).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::from_parts(parts, Full::new(body)))
        };
        tokio::select! {
            biased;
            answered = asked => answered,
            ended = connection => {
                ended?;
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            }
        }
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move { client.ask(request).await.map(BytesResponse::from) })
    }
}

/// "Retry-After" in either of its forms, bounded.
fn retry_after<B>(response: &Response<B>, now: SystemTime) -> Option<SystemTime> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    let at = match value.parse::<u64>() {
        Ok(seconds) => now + Duration::from_secs(seconds).min(RETRY_AFTER_MAX),
        Err(_) => httpdate::parse_http_date(value).ok()?,
    };
    Some(at.min(now + RETRY_AFTER_MAX))
}
