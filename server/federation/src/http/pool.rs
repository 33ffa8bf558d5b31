//! Connections that stay for the next request, bounded for each server and for all.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, Response, Uri, header, uri::Authority};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use myelin_process::metrics::{self, IntGauge};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use rustls::ClientConfig;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, Instant},
};
use tokio_rustls::client::TlsStream;

use super::{Answer, Budget, Dialer, HttpError, Limits, RequestBody, read};
use crate::discovery::Route;

static OPEN: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_connections", "Connections to other servers that are open.");

/// No new request goes over a connection that is older: where a server is may change.
const AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// A connection is cut after this, whatever happens on it.
const LIFE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long a connection that was left behind has to become ready again.
const READY: Duration = Duration::from_secs(1);
/// Requests that wait for their turn at one server.
const WAITING_MAX: usize = 1024;
/// The bound on an answer's headers, in bytes.
const HEADERS_MAX: usize = 64 * 1024;
/// The bound on the number of an answer's headers.
const HEADERS_COUNT_MAX: usize = 128;
/// A silent HTTP/2 connection is probed after this.
const PROBE: Duration = Duration::from_secs(20);
/// A probe is answered within this.
const PROBE_ANSWER: Duration = Duration::from_secs(10);

/// The connections.
pub(crate) struct Pool {
    dialer: Arc<Dialer>,
    config: Arc<ClientConfig>,
    budget: Budget,
    slots: Arc<Semaphore>,
    per_server: usize,
    idle_max: Duration,
    servers: Mutex<HashMap<OwnedServerName, Arc<Connections>>>,
}

/// The connections to one server.
struct Connections {
    turns: Semaphore,
    waiting: AtomicUsize,
    idle: Mutex<Vec<Idle>>,
}

/// A connection that nobody uses, or, by HTTP/2, that more can use.
struct Idle {
    connection: Connection,
    since: Instant,
}

struct Connection {
    protocol: Protocol,
    made: Instant,
    authority: Authority,
}

enum Protocol {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// Whether a failed request may be repeated on another connection.
enum Failure {
    /// There was no answer at all.
    Unanswered(HttpError),
    /// There was a part of an answer.
    Broken(HttpError),
}

impl Pool {
    pub(crate) fn new(
        dialer: Arc<Dialer>,
        config: Arc<ClientConfig>,
        connections_max: usize,
        per_server: usize,
        idle_max: Duration,
    ) -> Self {
        Self {
            dialer,
            config,
            budget: Budget::default(),
            slots: Arc::new(Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS))),
            per_server: per_server.max(1),
            idle_max,
            servers: Mutex::default(),
        }
    }

    /// Sends a request, whose URI is a path, and reads the answer. `route` is asked where the server is if there is no
    /// connection yet.
    pub(crate) async fn request<R, F>(
        &self,
        server: &ServerName,
        request: Request<bytes::Bytes>,
        limits: Limits,
        route: R,
    ) -> Result<Answer, HttpError>
    where
        R: Fn() -> F,
        F: Future<Output = Result<Arc<Route>, HttpError>>,
    {
        let connections = self.connections(server);
        let deadline = limits.deadline;
        let work = Box::pin(self.request_in_turn(&connections, request, limits, route));
        time::timeout(deadline, work).await.map_err(|_| HttpError::Deadline(deadline))?
    }

    async fn request_in_turn<R, F>(
        &self,
        connections: &Connections,
        request: Request<bytes::Bytes>,
        limits: Limits,
        route: R,
    ) -> Result<Answer, HttpError>
    where
        R: Fn() -> F,
        F: Future<Output = Result<Arc<Route>, HttpError>>,
    {
        let _turn = connections.turn().await?;
        while let Some(connection) = connections.take().await {
            match self.exchange(connections, connection, &request, limits).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Broken(error)) => return Err(error),
                // The server closed it while nobody used it. Requests of federation may be repeated.
                Err(Failure::Unanswered(error)) => tracing::trace!(%error, "a kept connection had ended"),
            }
        }
        let route = route().await?;
        let connection = self.connect(&route).await?;
        self.exchange(connections, connection, &request, limits).await.map_err(|failure| match failure {
            Failure::Unanswered(error) | Failure::Broken(error) => error,
        })
    }

    /// One request and its answer on one connection, which stays if it can be used again.
    async fn exchange(
        &self,
        connections: &Connections,
        mut connection: Connection,
        request: &Request<bytes::Bytes>,
        limits: Limits,
    ) -> Result<Answer, Failure> {
        if let Protocol::Http2(sender) = &connection.protocol {
            // Others may use it meanwhile.
            let protocol = Protocol::Http2(sender.clone());
            let (made, authority) = (connection.made, connection.authority.clone());
            connections.put(Connection { protocol, made, authority });
        }
        let response = connection.send(request).await.map_err(|error| Failure::Unanswered(error.into()))?;
        let (head, body) = response.into_parts();
        let (body, share) = read(body, limits.answer_bytes_max, &self.budget).await.map_err(Failure::Broken)?;
        if matches!(connection.protocol, Protocol::Http1(_)) {
            connections.put(connection);
        }
        Ok(Answer { status: head.status, headers: head.headers, body, _share: share })
    }

    async fn connect(&self, route: &Route) -> Result<Connection, HttpError> {
        let slot = self.slot().await?;
        let stream = self.dialer.dial(&route.endpoints, &route.tls_name, &self.config).await?;
        let authority = route.host.parse().map_err(|_| super::DialError::NoService)?;
        Ok(Connection { protocol: handshake(stream, slot).await?, made: Instant::now(), authority })
    }

    /// Room for one more connection; one that nobody uses goes for it.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, HttpError> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        self.drop_oldest_idle();
        // The semaphore is never closed.
        Arc::clone(&self.slots).acquire_owned().await.map_err(|_| HttpError::Crowded)
    }

    fn drop_oldest_idle(&self) {
        let servers = self.servers.lock();
        let oldest =
            servers.values().filter_map(|connections| connections.idle.lock().first().map(|idle| idle.since)).min();
        let Some(oldest) = oldest else { return };
        for connections in servers.values() {
            let mut idle = connections.idle.lock();
            if idle.first().is_some_and(|idle| idle.since == oldest) {
                idle.remove(0);
                return;
            }
        }
    }

    fn connections(&self, server: &ServerName) -> Arc<Connections> {
        let mut servers = self.servers.lock();
        if let Some(connections) = servers.get(server) {
            return Arc::clone(connections);
        }
        let connections = Arc::new(Connections {
            turns: Semaphore::new(self.per_server),
            waiting: AtomicUsize::new(0),
            idle: Mutex::default(),
        });
        servers.insert(server.to_owned(), Arc::clone(&connections));
        connections
    }

    /// Closes what was not used for long, and forgets servers without connections.
    pub(crate) fn sweep(&self) {
        let mut servers = self.servers.lock();
        servers.retain(|_, connections| {
            let mut idle = connections.idle.lock();
            idle.retain(|idle| idle.since.elapsed() < self.idle_max && idle.connection.is_usable());
            !idle.is_empty() || Arc::strong_count(connections) > 1
        });
    }

    /// How many servers there are connections to.
    pub(crate) fn servers(&self) -> usize {
        self.servers.lock().len()
    }
}

impl Connections {
    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, HttpError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= WAITING_MAX {
            return Err(HttpError::Crowded);
        }
        // The semaphore is never closed.
        self.turns.acquire().await.map_err(|_| HttpError::Crowded)
    }

    /// A connection that can be used, the one used last first.
    async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().pop()?.connection;
            if connection.is_usable() && connection.is_ready().await {
                return Some(connection);
            }
        }
    }

    fn put(&self, connection: Connection) {
        if connection.is_usable() {
            self.idle.lock().push(Idle { connection, since: Instant::now() });
        }
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        let is_closed = match &self.protocol {
            Protocol::Http1(sender) => sender.is_closed(),
            Protocol::Http2(sender) => sender.is_closed(),
        };
        !is_closed && self.made.elapsed() < AGE_MAX
    }

    async fn is_ready(&mut self) -> bool {
        let ready = async {
            match &mut self.protocol {
                Protocol::Http1(sender) => sender.ready().await,
                Protocol::Http2(sender) => sender.ready().await,
            }
        };
        matches!(time::timeout(READY, ready).await, Ok(Ok(())))
    }

    async fn send(&mut self, request: &Request<bytes::Bytes>) -> hyper::Result<Response<Incoming>> {
        let mut sent = Request::new(RequestBody::new(request.body().clone()));
        *sent.method_mut() = request.method().clone();
        *sent.headers_mut() = request.headers().clone();
        match &mut self.protocol {
            Protocol::Http1(sender) => {
                *sent.uri_mut() = request.uri().clone();
                // An authority is visible ASCII, which every header may hold.
                if let Ok(host) = HeaderValue::from_str(self.authority.as_str()) {
                    sent.headers_mut().insert(header::HOST, host);
                }
                sender.send_request(sent).await
            }
            Protocol::Http2(sender) => {
                let mut parts = request.uri().clone().into_parts();
                parts.scheme = Some(http::uri::Scheme::HTTPS);
                parts.authority = Some(self.authority.clone());
                if let Ok(uri) = Uri::from_parts(parts) {
                    *sent.uri_mut() = uri;
                }
                sender.send_request(sent).await
            }
        }
    }
}

/// Agrees on the protocol; the connection lives in a task of its own, which holds its slot, until nobody has a handle
/// of it or its time is over.
async fn handshake(stream: TlsStream<TcpStream>, slot: OwnedSemaphorePermit) -> Result<Protocol, HttpError> {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE_ANSWER)
            .max_header_list_size(HEADERS_MAX as u32);
        let (sender, connection) = builder.handshake(stream).await?;
        tokio::spawn(drive(connection, slot));
        return Ok(Protocol::Http2(sender));
    }
    let mut builder = http1::Builder::new();
    builder.max_header_size(HEADERS_MAX).max_headers(HEADERS_COUNT_MAX);
    let (sender, connection) = builder.handshake(stream).await?;
    tokio::spawn(drive(connection, slot));
    Ok(Protocol::Http1(sender))
}

async fn drive(connection: impl Future<Output = hyper::Result<()>>, slot: OwnedSemaphorePermit) {
    OPEN.inc();
    match time::timeout(LIFE_MAX, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::trace!(%error, "a connection to another server ended"),
    }
    OPEN.dec();
    drop(slot);
}
