//! A connection for one file.

use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use myelin_media::BoxError;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;
use url::{Host as UrlHost, Url};

use crate::http::{DialError, Dialer, Endpoint, Host, HttpError, RequestBody, USER_AGENT};

/// The bound on an answer's headers, in bytes.
const HEADERS_MAX: usize = 64 * 1024;

/// A content in pieces.
pub(crate) type Content = BoxStream<'static, Result<Bytes, BoxError>>;

/// An answer whose body is still to be read.
pub(crate) struct Opened {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    connection: Connection,
}

/// Keeps the connection open.
pub(crate) struct Connection {
    _sender: SendRequest<RequestBody>,
    _task: AbortOnDropHandle<()>,
}

impl Opened {
    /// The length of the body, as far as the headers tell.
    pub(crate) fn length(&self) -> u64 {
        self.body.size_hint().lower()
    }

    pub(crate) fn into_body(self) -> (Incoming, Connection) {
        (self.body, self.connection)
    }

    pub(crate) fn into_stream(self) -> Content {
        let pieces = stream::unfold(self.into_body(), |(mut body, connection)| async move {
            loop {
                let frame = match body.frame().await? {
                    Ok(frame) => frame,
                    Err(error) => return Some((Err(error.into()), (body, connection))),
                };
                // Trailers are of no interest.
                if let Ok(piece) = frame.into_data() {
                    return Some((Ok(piece), (body, connection)));
                }
            }
        });
        pieces.boxed()
    }
}

/// Whether an address without TLS may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    Allowed,
    Refused,
}

/// Asks, and reads the head of the answer.
pub(crate) async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    request: Request<()>,
) -> Result<Opened, HttpError> {
    let mut builder = http1::Builder::new();
    builder.max_header_size(HEADERS_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a connection for a file ended");
        }
    }));
    let mut request = request.map(|()| RequestBody::default());
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(host).map_err(|_| DialError::NoService)?;
    headers.insert(header::HOST, host);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let connection = Connection { _sender: sender, _task: task };
    Ok(Opened { status: head.status, headers: head.headers, body, connection })
}

/// The same for any address; the dialer sees to it that it is a public one.
pub(crate) async fn open_url(
    dialer: &Dialer,
    tls: &Arc<ClientConfig>,
    url: &Url,
    request: Request<()>,
    plain: Plain,
) -> Result<Opened, HttpError> {
    let refused = || DialError::NoService;
    let is_tls = match url.scheme() {
        "https" => true,
        "http" if plain == Plain::Allowed => false,
        _ => return Err(refused().into()),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused().into());
    }
    let host = match url.host().ok_or_else(refused)? {
        UrlHost::Domain(name) => Host::Name(name.to_owned()),
        UrlHost::Ipv4(address) => Host::Address(address.into()),
        UrlHost::Ipv6(address) => Host::Address(address.into()),
    };
    let authority = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let endpoint = Endpoint { port: url.port_or_known_default().ok_or_else(refused)?, host };
    if !is_tls {
        return open(dialer.dial_plain(&endpoint).await?, &authority, request).await;
    }
    let tls_name = match &endpoint.host {
        Host::Address(address) => ServerName::IpAddress((*address).into()),
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| refused())?,
    };
    open(dialer.dial(&[endpoint], &tls_name, tls).await?, &authority, request).await
}
