//! HTTP/1.1 and HTTP/2 on a connection.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header::CONNECTION};
use http_body_util::{Either, Full};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use myelin_process::shutdown::Shutdown;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use crate::{
    Limits, Manners, RequestBody,
    admission::{Counted, Newcomer},
    linger::Lingering,
    manners,
};

/// The most bytes of a request's head, and of what is buffered of a body.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of headers of an HTTP/2 request.
const HTTP2_HEADER_BYTES: u32 = 32 * 1024;
/// How often an HTTP/2 connection is asked for a sign of life, and how long it may take to give one.
const HTTP2_PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// Bytes of answers that an HTTP/2 stream may hold until the client takes them.
const HTTP2_SEND_BYTES: usize = 64 * 1024;
/// Streams that a client may reset before they were looked at, until it is sent away for wasting our time.
const HTTP2_RESETS: usize = 32;

/// Answers requests. A connection holds a clone.
pub trait Serve: Clone + Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Whether a connection may become another thing than HTTP, such as a WebSocket.
    const UPGRADES: bool = false;

    /// Answers one request, which comes from `client`.
    fn serve(
        &self,
        request: Request<RequestBody>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Who is at the other end, and what may be asked of us there.
pub(crate) struct Conversation<S> {
    pub(crate) service: S,
    pub(crate) peer: SocketAddr,
    pub(crate) manners: Arc<Manners>,
    pub(crate) limits: Limits,
    pub(crate) newcomer: Newcomer,
    pub(crate) shutdown: Shutdown,
    /// Its address counts it.
    pub(crate) _counted: Counted,
}

impl<S: Serve> Conversation<S> {
    pub(crate) async fn http1<I>(self, io: I) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (limits, shutdown) = (self.limits, self.shutdown.clone());
        let conversation = Arc::new(self);
        let io = Lingering::new(io, shutdown.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_time)
            .max_buf_size(HTTP1_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service_fn(move |request| Arc::clone(&conversation).call(request)));
        if S::UPGRADES {
            let mut connection = pin!(connection.with_upgrades());
            tokio::select! {
                result = connection.as_mut() => return result,
                () = shutdown.draining() => connection.as_mut().graceful_shutdown(),
            }
            return connection.await;
        }
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = shutdown.draining() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }

    pub(crate) async fn http2<I>(self, io: I) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (limits, shutdown) = (self.limits, self.shutdown.clone());
        let conversation = Arc::new(self);
        let activity = Arc::new(Activity::default());
        let at_work = Arc::clone(&activity);
        let service = service_fn(move |request| {
            let (conversation, request_time) = (Arc::clone(&conversation), Activity::begin(&at_work));
            async move {
                let answer = conversation.call(request).await;
                drop(request_time);
                answer
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING.0)
            .keep_alive_timeout(HTTP2_PING.1)
            .max_concurrent_streams(limits.http2_streams)
            .max_pending_accept_reset_streams(HTTP2_RESETS)
            .max_header_list_size(HTTP2_HEADER_BYTES)
            .max_send_buf_size(HTTP2_SEND_BYTES)
            .serve_connection(TokioIo::new(io), service);
        let mut connection: Pin<&mut _> = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = shutdown.draining() => {}
            () = activity.idle(limits.head_time) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }

    /// Answers a request, or has it answered.
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer<S>, Infallible> {
        self.newcomer.settle();
        let manners = &self.manners;
        // Its name is looked at before the request is given away.
        let host = if manners.headers.0.is_empty() { None } else { manners::host(&request) };
        let (version, (parts, body)) = (request.version(), request.into_parts());
        let (body, body_read) = RequestBody::new(body);
        let request = Request::from_parts(parts, body);
        let mut response = match manners.answer(&request).await {
            Some(own) => {
                drop(request);
                own.map(Either::Left)
            }
            None => {
                let client = manners.client(self.peer, &request);
                self.service.serve(request, client).await.map(Either::Right)
            }
        };
        manners.headers.add(host.as_deref(), &mut response);
        if version < Version::HTTP_2 && !body_read.is_whole() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

type Answer<S> = Response<Either<Full<Bytes>, <S as Serve>::Body>>;

/// Since when an HTTP/2 connection has had no request under way. Pings keep it open, and would do so for ever.
#[derive(Debug)]
struct Activity(Mutex<(usize, Instant)>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }
}

impl Activity {
    fn begin(this: &Arc<Self>) -> AtWork {
        this.0.lock().0 += 1;
        AtWork(Arc::clone(this))
    }

    /// Waits until there was nothing to do for `time`.
    async fn idle(&self, time: Duration) {
        loop {
            let (requests, since) = *self.0.lock();
            let now = Instant::now();
            if requests == 0 && since + time <= now {
                return;
            }
            sleep_until(if requests == 0 { since + time } else { now + time }).await;
        }
    }
}

/// A request under way.
struct AtWork(Arc<Activity>);

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut activity = self.0.0.lock();
        activity.0 -= 1;
        activity.1 = Instant::now();
    }
}
