//! HTTP/1.1 and HTTP/2 on a connection.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
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
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use crate::{
    RequestBody,
    accept::Entrance,
    admission::{Counted, Newcomer},
    linger::Lingering,
    manners,
    request_body::BodyRead,
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

/// Answers requests. A connection holds a clone, and each request has one.
pub trait Serve: Clone + Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Whether a connection may become another thing than HTTP, such as a WebSocket.
    const UPGRADES: bool = false;

    /// Answers one request, which comes from `client`.
    fn serve(
        self,
        request: Request<RequestBody>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Who is at the other end, and what may be asked of us there.
pub(crate) struct Conversation<S> {
    pub(crate) service: S,
    pub(crate) peer: SocketAddr,
    pub(crate) entrance: Arc<Entrance>,
    pub(crate) newcomer: Newcomer,
    /// Its address counts it.
    pub(crate) _counted: Counted,
}

/// A connection that speaks. It is on the heap, so that the task holds no more than one of the protocol that it is.
pub(crate) type Served = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

impl<S: Serve> Conversation<S> {
    pub(crate) fn http1<I>(self, io: I) -> Served
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (limits, shutdown) = (&self.entrance.door.limits, self.entrance.door.shutdown.clone());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(HTTP1_BUFFER_BYTES);
        let io = TokioIo::new(Lingering::new(io, shutdown.clone()));
        let conversation = Arc::new(self);
        let connection =
            builder.serve_connection(io, service_fn(move |request| Arc::clone(&conversation).call(request)));
        // In a box of its own: what a future is given and then keeps, it would hold twice.
        if S::UPGRADES {
            let connection = Box::pin(connection.with_upgrades());
            Box::pin(until_drained(connection, http1::UpgradeableConnection::graceful_shutdown, shutdown))
        } else {
            Box::pin(until_drained(Box::pin(connection), http1::Connection::graceful_shutdown, shutdown))
        }
    }

    pub(crate) fn http2<I>(self, io: I) -> Served
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (limits, shutdown) = (self.entrance.door.limits, self.entrance.door.shutdown.clone());
        let conversation = Arc::new(self);
        let activity = Arc::new(Activity::default());
        let at_work = Arc::clone(&activity);
        let service = service_fn(move |request| {
            let request_time = Activity::begin(&at_work);
            Arc::clone(&conversation).call(request).inspect(move |_| drop(request_time))
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
        let mut connection = Box::pin(connection);
        Box::pin(async move {
            tokio::select! {
                result = &mut connection => return result,
                () = shutdown.draining() => {}
                () = activity.idle(limits.head_time) => {}
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        })
    }

    /// Answers a request, or has it answered.
    ///
    /// A request is large, and an `async` function would hold it once for each hand that it goes through, for as long as
    /// a long poll waits. So this is none, and the request has gone on when the future begins.
    fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Call<S, impl Future<Output = Response<S::Body>> + Send + use<S>> {
        self.newcomer.settle();
        let manners = &self.entrance.manners;
        let host = if manners.headers.0.is_empty() { None } else { manners::host(&request) };
        let (version, (parts, body)) = (request.version(), request.into_parts());
        let (body, body_read) = RequestBody::new(body);
        let request = Request::from_parts(parts, body);
        let work = match manners.answer(&request) {
            Some(own) => Work::Own { answer: own },
            None => {
                let client = manners.client(self.peer, &request);
                Work::Service { answer: self.service.clone().serve(request, client) }
            }
        };
        Call { work, conversation: self, host, version, body_read }
    }

    /// What every answer gets.
    fn finish<B>(&self, host: Option<&str>, version: Version, body_read: &BodyRead, response: &mut Response<B>) {
        self.entrance.manners.headers.add(host, response);
        if version < Version::HTTP_2 && !body_read.is_whole() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Serves a connection, and asks it to end when the process drains.
async fn until_drained<C: Future>(
    mut connection: Pin<Box<C>>,
    ask_to_end: fn(Pin<&mut C>),
    shutdown: Shutdown,
) -> C::Output {
    tokio::select! {
        result = &mut connection => return result,
        () = shutdown.draining() => {}
    }
    ask_to_end(connection.as_mut());
    connection.await
}

type Answer<S> = Response<Either<Full<Bytes>, <S as Serve>::Body>>;

pin_project! {
    /// A request that is being answered.
    struct Call<S, F> {
        #[pin]
        work: Work<F>,
        conversation: Arc<Conversation<S>>,
        host: Option<String>,
        version: Version,
        body_read: BodyRead,
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        // By what belongs to the front door itself.
        Own {
            answer: BoxFuture<'static, Response<Full<Bytes>>>,
        },
        Service {
            #[pin]
            answer: F,
        },
    }
}

impl<S: Serve, F: Future<Output = Response<S::Body>>> Future for Call<S, F> {
    type Output = Result<Answer<S>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.work.project() {
            WorkProjection::Own { answer } => ready!(answer.as_mut().poll(context)).map(Either::Left),
            WorkProjection::Service { answer } => ready!(answer.poll(context)).map(Either::Right),
        };
        this.conversation.finish(this.host.as_deref(), *this.version, this.body_read, &mut response);
        Poll::Ready(Ok(response))
    }
}

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
