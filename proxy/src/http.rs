//! HTTP/1.1 and HTTP/2 on a connection.

use std::{convert::Infallible, net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use myelin_process::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Limits;

/// The most bytes of a request's head, and of what is buffered of a body.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of headers of an HTTP/2 request.
const HTTP2_HEADER_BYTES: u32 = 32 * 1024;
/// How often an HTTP/2 connection is asked for a sign of life, and how long it may take to give one.
const HTTP2_PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// Bytes of answers that an HTTP/2 stream may hold until the client takes them.
const HTTP2_SEND_BYTES: usize = 64 * 1024;
/// Streams that a client may reset before it was answered, until it is sent away for wasting our time.
const HTTP2_RESETS: usize = 32;

/// Answers requests. A connection holds a clone.
pub trait Serve: Clone + Send + Sync + 'static {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Answers one request, which comes from `client`.
    fn serve(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Who is at the other end, and what may be asked of us there.
pub(crate) struct Conversation<S> {
    pub(crate) service: S,
    pub(crate) peer: SocketAddr,
    pub(crate) shutdown: Shutdown,
}

impl<S: Serve> Conversation<S> {
    pub(crate) async fn http1<I>(self, io: I, limits: Limits) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { service, peer, shutdown } = self;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_time)
            .max_buf_size(HTTP1_BUFFER_BYTES)
            .serve_connection(TokioIo::new(io), service_fn(move |request| call(service.clone(), peer, request)));
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = shutdown.draining() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }

    pub(crate) async fn http2<I>(self, io: I, limits: Limits) -> hyper::Result<()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { service, peer, shutdown } = self;
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING.0)
            .keep_alive_timeout(HTTP2_PING.1)
            .max_concurrent_streams(limits.http2_streams)
            .max_pending_accept_reset_streams(HTTP2_RESETS)
            .max_header_list_size(HTTP2_HEADER_BYTES)
            .max_send_buf_size(HTTP2_SEND_BYTES)
            .serve_connection(TokioIo::new(io), service_fn(move |request| call(service.clone(), peer, request)));
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = shutdown.draining() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// Hands a request on, with the address that it came from.
async fn call<S: Serve>(
    service: S,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<S::Body>, Infallible> {
    Ok(service.serve(request, peer).await)
}
