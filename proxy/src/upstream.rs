//! Servers behind this one, to which requests are handed on.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, FORWARDED, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, Scheme},
};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as _, Incoming},
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use myelin_process::{
    metrics::{self, IntCounterVec, IntGaugeVec},
    shutdown::Shutdown,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};

use crate::{RequestBody, manners};

/// How long a connection to an upstream may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long an upstream may take to say that it is well.
const HEALTH_TIME: Duration = Duration::from_secs(3);
/// How often it is asked, and how long one that failed is left alone.
const HEALTH_PERIOD: Duration = Duration::from_secs(5);
/// Upstreams that a request is tried at.
const TRIES: usize = 3;
/// How long an unused connection to an upstream is kept: less than Myelin keeps it.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Unused connections to an upstream.
const IDLE_CONNECTIONS: usize = 64;

static HEALTHY: LazyLock<IntGaugeVec> =
    metrics::gauge!("myelin_proxy_upstream_healthy", "1 while requests are handed on to the server.", ["upstream"]);
static ANSWERS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_proxy_upstream_requests_total",
    "Requests that were handed on, by the outcome: answered, failed, timeout.",
    ["upstream", "outcome"]
);

/// What goes wrong with a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, BodyError>;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// `http://host:port`
    Http(Authority),
    /// `unix:/path`
    Unix(PathBuf),
}

/// A text that is no address of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be http://host:port or unix:/path")]
pub struct NotAnUpstream;

impl FromStr for UpstreamAddress {
    type Err = NotAnUpstream;

    fn from_str(text: &str) -> Result<Self, NotAnUpstream> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let authority = text.strip_prefix("http://").ok_or(NotAnUpstream)?;
        let authority: Authority = authority.trim_end_matches('/').parse().map_err(|_| NotAnUpstream)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(NotAnUpstream);
        }
        Ok(Self::Http(authority))
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One server.
struct Upstream {
    name: String,
    client: Client<Connector, AnswerBody>,
    healthy: AtomicBool,
    busy: AtomicUsize,
}

/// Servers that answer alike.
pub struct Upstreams {
    all: Vec<Upstream>,
    health: Option<String>,
    answer_time: Duration,
    turn: AtomicUsize,
    shutdown: Shutdown,
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|upstream| &upstream.name)).finish()
    }
}

impl Upstreams {
    /// Servers at `addresses`, which are well while they answer `health` with a success. They have `answer_time` to
    /// begin an answer.
    pub fn new(
        addresses: Vec<UpstreamAddress>,
        health: Option<String>,
        answer_time: Duration,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let upstream = |address: UpstreamAddress| {
            let name = address.to_string();
            HEALTHY.with_label_values(&[&name]).set(1);
            let client = Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE_TIME)
                .pool_timer(hyper_util::rt::TokioTimer::new())
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                // Whether a request is sent again is decided here.
                .retry_canceled_requests(true)
                .build(Connector(address));
            Upstream { name, client, healthy: AtomicBool::new(true), busy: AtomicUsize::new(0) }
        };
        let all = addresses.into_iter().map(upstream).collect();
        Arc::new(Self { all, health, answer_time, turn: AtomicUsize::new(0), shutdown })
    }

    /// Asks the servers how they are until the process stops.
    pub async fn look_after(self: Arc<Self>) {
        let Some(path) = self.health.clone() else { return };
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.look(&path) => {}
            }
        }
    }

    async fn look(&self, path: &str) {
        for upstream in &self.all {
            let Ok(request) = Request::get(format!("http://upstream{path}")).header(HOST, "localhost").body(empty())
            else {
                return;
            };
            let well = match timeout(HEALTH_TIME, upstream.client.request(request)).await {
                Ok(Ok(response)) => response.status().is_success(),
                Ok(Err(_)) | Err(_) => false,
            };
            upstream.set_healthy(well);
        }
        sleep(HEALTH_PERIOD).await;
    }

    /// The server that has least to do, in turns; one that is not well only if none is. None when all were `tried`.
    fn choose(&self, tried: &[usize]) -> Option<usize> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.all.len();
        (0..count).map(|step| (first + step) % count).filter(|number| !tried.contains(number)).min_by_key(|number| {
            let upstream = &self.all[*number];
            (!upstream.healthy.load(Ordering::Relaxed), upstream.busy.load(Ordering::Relaxed))
        })
    }

    /// Hands a request on and brings the answer back. `encrypted`: it came over TLS.
    pub async fn forward(
        &self,
        mut request: Request<RequestBody>,
        client: SocketAddr,
        encrypted: bool,
    ) -> Response<AnswerBody> {
        let tunnel = upgrade(&request);
        let own_side = tunnel.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        prepare(&mut parts, client, encrypted, tunnel);
        // What has a body is sent once: it is gone then.
        let again = body.is_end_stream() && matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let mut body = Some(body.map_err(Into::into).boxed_unsync());
        let mut tried = Vec::new();
        while let Some(number) = self.choose(&tried) {
            tried.push(number);
            let body = body.take().unwrap_or_else(empty);
            let upstream = &self.all[number];
            match upstream.ask(Request::from_parts(parts.clone(), body), self.answer_time).await {
                Ok(response) => return self.bring_back(response, own_side),
                Err(Failed::Late) => return refusal(StatusCode::GATEWAY_TIMEOUT, "The server behind is too slow."),
                Err(Failed::Broken) if again && tried.len() < TRIES => {}
                Err(Failed::Broken) => break,
            }
        }
        refusal(StatusCode::BAD_GATEWAY, "The server behind cannot be reached.")
    }

    fn bring_back(
        &self,
        mut response: Response<Incoming>,
        own_side: Option<hyper::upgrade::OnUpgrade>,
    ) -> Response<AnswerBody> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            remove_hops(response.headers_mut());
            *response.version_mut() = Version::HTTP_11;
            return response.map(|body| body.map_err(Into::into).boxed_unsync());
        }
        let Some(own_side) = own_side else {
            return refusal(StatusCode::BAD_GATEWAY, "The server behind changed the protocol without being asked.");
        };
        let other_side = hyper::upgrade::on(&mut response);
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn_connection(async move {
            let tunnel = async {
                let (own, other) = tokio::try_join!(own_side, other_side)?;
                tokio::io::copy_bidirectional(&mut TokioIo::new(own), &mut TokioIo::new(other)).await?;
                Ok::<_, BodyError>(())
            };
            tokio::select! {
                () = shutdown.draining() => {}
                ended = tunnel => if let Err(error) = ended {
                    tracing::debug!(error, "a tunnel ended early");
                }
            }
        });
        response.map(|_| empty())
    }
}

/// Why there is no answer.
enum Failed {
    Late,
    Broken,
}

impl Upstream {
    async fn ask(&self, request: Request<AnswerBody>, time: Duration) -> Result<Response<Incoming>, Failed> {
        let _busy = Busy::new(&self.busy);
        let (outcome, label) = match timeout(time, self.client.request(request)).await {
            Ok(Ok(response)) => (Ok(response), "answered"),
            Ok(Err(error)) => {
                tracing::debug!(upstream = self.name, %error, "a request could not be handed on");
                if error.is_connect() {
                    self.set_healthy(false);
                }
                (Err(Failed::Broken), "failed")
            }
            Err(_) => (Err(Failed::Late), "timeout"),
        };
        if outcome.is_ok() {
            self.set_healthy(true);
        }
        ANSWERS.with_label_values(&[&self.name, label]).inc();
        outcome
    }

    fn set_healthy(&self, well: bool) {
        if self.healthy.swap(well, Ordering::Relaxed) != well {
            HEALTHY.with_label_values(&[&self.name]).set(i64::from(well));
            if well {
                tracing::info!(upstream = self.name, "{} is well again", self.name);
            } else {
                tracing::error!(upstream = self.name, "{} is not well", self.name);
            }
        }
    }
}

/// A request under way.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The protocol that a client asks to change to.
fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let asks = request.headers().get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    let asks = asks.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    if request.version() != Version::HTTP_11 || !asks {
        return None;
    }
    request.headers().get(UPGRADE).cloned()
}

/// Makes the head of a request one for the next server: RFC 9110, section 7.6.
fn prepare(parts: &mut http::request::Parts, client: SocketAddr, encrypted: bool, tunnel: Option<HeaderValue>) {
    const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    let authority = parts.uri.authority().cloned();
    let headers = &mut parts.headers;
    remove_hops(headers);
    if let Some(protocol) = tunnel {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    if let Some(host) = authority.and_then(|authority| HeaderValue::try_from(authority.as_str()).ok()) {
        headers.insert(HOST, host);
    }
    // What the client wrote about itself is not handed on.
    headers.remove(FORWARDED);
    if let Ok(address) = HeaderValue::try_from(client.ip().to_canonical().to_string()) {
        headers.insert(FOR, address);
    }
    headers.insert(PROTO, HeaderValue::from_static(if encrypted { "https" } else { "http" }));
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    // The connector knows where to connect.
    uri.authority = Some(Authority::from_static("upstream"));
    uri.path_and_query = Some(uri.path_and_query.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
    parts.version = Version::HTTP_11;
}

/// Removes what is between two neighbours only.
fn remove_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // A client must not take away what it is not asked about.
    for name in named.into_iter().filter(|name| *name != HOST && !name.as_str().starts_with("x-forwarded-")) {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"] {
        headers.remove(name);
    }
}

pub(crate) fn empty() -> AnswerBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn refusal(status: StatusCode, text: &'static str) -> Response<AnswerBody> {
    manners::text(status, text).map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

/// Connects to one server, whatever the URI says.
#[derive(Clone)]
struct Connector(UpstreamAddress);

impl tower::Service<Uri> for Connector {
    type Response = Wire;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Wire>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0.clone();
        Box::pin(async move {
            let connecting = async {
                Ok(match address {
                    UpstreamAddress::Http(authority) => {
                        let host = authority.host().trim_matches(['[', ']']);
                        let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
                        stream.set_nodelay(true)?;
                        Wire::Tcp(TokioIo::new(stream))
                    }
                    UpstreamAddress::Unix(path) => Wire::Unix(TokioIo::new(UnixStream::connect(path).await?)),
                })
            };
            timeout(CONNECT_TIME, connecting).await?
        })
    }
}

/// A connection to a server.
enum Wire {
    Tcp(TokioIo<TcpStream>),
    Unix(TokioIo<UnixStream>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
