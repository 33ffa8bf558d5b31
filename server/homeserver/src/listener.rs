//! Connections: accepted, told apart as HTTP/1.1 or HTTP/2, served, and drained at the end.
//!
//! Most connections of a homeserver wait in a long poll, so what one costs while it waits is kept small: hyper's
//! smallest buffers, no wrapper around the socket, no timer while a handler works.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo, response::Response};
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use myelin_process::{
    metrics::{self, IntCounterVec, IntGauge},
    shutdown::Shutdown,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tower::Service as _;

/// How long a connection may be silent between requests, and how long the head of a request may take. Longer than
/// proxies keep a connection that they might use again (a minute, mostly), so that they never send into a closed one.
const HEAD_TIME: Duration = Duration::from_secs(120);
/// How long a new connection may take to show which protocol it speaks.
const FIRST_BYTES_TIME: Duration = Duration::from_secs(30);
/// The most bytes of a request's head, and of what is buffered of a body.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of headers of an HTTP/2 request.
const HTTP2_HEADER_BYTES: u32 = 32 * 1024;
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 256;
/// How often an HTTP/2 connection is asked for a sign of life, and how long it may take to give one.
const HTTP2_PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// Connections that the operating system keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after a failure to accept that the next attempt would only repeat, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

static OPEN: LazyLock<IntGauge> = metrics::gauge!("myelin_connections", "Connections that are open.");
static ACCEPTED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_connections_total",
    "Connections by their protocol; none if they never said.",
    ["protocol"]
);

/// Takes the address, and tells the operating system to queue connections.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the last connections of the old process to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections and serves them by `router` until the process drains; those under way then finish their
/// request. `room` bounds the connections of all listeners together: further ones wait in the system's queue.
pub(crate) async fn accept(listener: TcpListener, router: Router, room: Arc<Semaphore>, shutdown: Shutdown) {
    let mut draining = pin!(shutdown.draining());
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut draining => return,
            next = next => next,
        };
        let Ok(permit) = permit else { return };
        match accepted {
            Ok((stream, peer)) => {
                shutdown.spawn_connection(connection(stream, peer, router.clone(), permit, shutdown.clone()));
            }
            Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "a connection was gone too soon"),
            Err(error) => {
                tracing::error!(%error, "cannot accept connections: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Counts a connection while it is open.
struct Open {
    _permit: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.dec();
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    permit: OwnedSemaphorePermit,
    shutdown: Shutdown,
) {
    let _open = Open { _permit: permit };
    OPEN.inc();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection is gone already");
        return;
    }
    let protocol = tokio::select! {
        () = shutdown.draining() => return,
        protocol = timeout(FIRST_BYTES_TIME, protocol(&stream)) => protocol,
    };
    let Ok(Ok(Some(protocol))) = protocol else {
        ACCEPTED.with_label_values(&["none"]).inc();
        return;
    };
    ACCEPTED.with_label_values(&[protocol.name()]).inc();
    // The connection's future is on the heap, so that this one stays as small as a connection of the protocol it is.
    let served: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> = match protocol {
        Protocol::Http1 => Box::pin(serve_http1(stream, peer, router, shutdown)),
        Protocol::Http2 => Box::pin(serve_http2(stream, peer, router, shutdown)),
    };
    if let Err(error) = served.await {
        // Peers go away as they please.
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// Looks at the first bytes without taking them; none if the peer closed before it said anything.
async fn protocol(stream: &TcpStream) -> io::Result<Option<Protocol>> {
    let mut seen = [0; HTTP2_PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        match &seen[..count] {
            [] => return Ok(None),
            bytes if !HTTP2_PREFACE.starts_with(bytes) => return Ok(Some(Protocol::Http1)),
            bytes if bytes.len() == HTTP2_PREFACE.len() => return Ok(Some(Protocol::Http2)),
            // The beginning of the preface, and readable at once again: wait a little for the rest.
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn serve_http1(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: Shutdown) -> hyper::Result<()> {
    let service = service_fn(move |request| call(router.clone(), peer, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = shutdown.draining() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn serve_http2(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: Shutdown) -> hyper::Result<()> {
    let service = service_fn(move |request| call(router.clone(), peer, request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING.0)
        .keep_alive_timeout(HTTP2_PING.1)
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HTTP2_HEADER_BYTES)
        .max_send_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = shutdown.draining() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Hands a request on, with the address that it came from.
async fn call(mut router: Router, peer: SocketAddr, mut request: Request<Incoming>) -> Result<Response, Infallible> {
    request.extensions_mut().insert(ConnectInfo(peer));
    router.call(request).await
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use axum::{Router, extract::ConnectInfo, routing::get};
    use myelin_process::shutdown::Shutdown;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::Semaphore,
    };

    struct Server {
        address: SocketAddr,
        shutdown: Shutdown,
    }

    fn start(router: Router, room: usize) -> Server {
        let shutdown = Shutdown::new();
        let listener = super::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let room = Arc::new(Semaphore::new(room));
        shutdown.spawn_connection(super::accept(listener, router, room, shutdown.clone()));
        Server { address, shutdown }
    }

    async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn rest(mut stream: TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
        bytes
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    /// Handlers know who asks, for the limits on addresses.
    #[tokio::test]
    async fn passes_the_peer_on() {
        let router =
            Router::new().route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }));
        let server = start(router, 10);
        let stream = send(server.address, REQUEST).await;
        let own = stream.local_addr().unwrap().to_string();
        let answer = String::from_utf8(rest(stream).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&own), "{answer}");
    }

    /// A request under way is answered when the server stops; a silent connection is closed, a new one refused.
    #[tokio::test]
    async fn drains() {
        let begun = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&begun);
        let router = Router::new().route(
            "/",
            get(async move || {
                told.notify_one();
                tokio::time::sleep(Duration::from_millis(200)).await;
                "done"
            }),
        );
        let server = start(router, 10);
        let silent = TcpStream::connect(server.address).await.unwrap();
        let asking = send(server.address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        begun.notified().await;
        server.shutdown.close(Duration::from_secs(10)).await.unwrap();
        let answer = String::from_utf8(rest(asking).await).unwrap();
        assert!(answer.ends_with("done"), "{answer}");
        assert!(rest(silent).await.is_empty());
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    /// The preface of HTTP/2 gets HTTP/2's settings for an answer, in one piece or in two; other bytes get HTTP/1.1.
    #[tokio::test]
    async fn tells_protocols_apart() {
        let server = start(Router::new(), 10);
        let mut stream = send(server.address, &super::HTTP2_PREFACE[..9]).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.write_all(&super::HTTP2_PREFACE[9..]).await.unwrap();
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut frame = [0; 9];
        tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut frame)).await.unwrap().unwrap();
        assert_eq!(frame[3], 4, "a SETTINGS frame: {frame:?}");
        let answer = rest(send(server.address, b"PRINT / NONSENSE\r\n\r\n").await).await;
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }

    /// More connections than there is room for wait, and are served when there is.
    #[tokio::test]
    async fn connections_are_bounded() {
        let server = start(Router::new().route("/", get(|| async { "done" })), 1);
        let first = TcpStream::connect(server.address).await.unwrap();
        // The first connection is let in before the second one comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut second = send(server.address, REQUEST).await;
        let mut byte = [0; 1];
        let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
        assert!(early.is_err(), "it was answered while there was no room");
        drop(first);
        assert!(rest(second).await.ends_with(b"done"));
    }
}
