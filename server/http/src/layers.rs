//! What surrounds every handler, in one layer: a long poll carries each of these for as long as it waits.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request},
    response::{IntoResponse as _, Response},
    routing::Route,
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use pin_project_lite::pin_project;
use ruma::api::error::ErrorCode;
use tokio::time::Sleep;
use tower::{Layer, Service};
use tracing::Span;

use crate::{
    ApiError, RequestContext, RequestId,
    metrics::{DURATION, IN_FLIGHT, REQUESTS},
    panics,
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The route of requests that no route matched.
const UNMATCHED: &str = "unmatched";
/// The status that counts a request whose client left before the answer.
const CLIENT_LEFT: &str = "499";

/// The address of rendezvous sessions, which clients in browsers use by conditional requests.
///
/// <https://github.com/matrix-org/matrix-spec-proposals/pull/4108>
pub const RENDEZVOUS_PATH: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";

/// The bounds that [`layers_with`] sets on every request.
#[derive(Clone, Copy, Debug)]
pub struct LayerOptions {
    /// A handler that has not answered by then is stopped and answered for with 503. Long polls have no deadline.
    pub deadline: Duration,
    /// A request that took longer is named in the log. Long polls are not.
    pub slow: Duration,
    /// How many bytes of JSON a request may bring, unless its route says otherwise.
    pub json_body_bytes_max: usize,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60), slow: Duration::from_secs(1), json_body_bytes_max: 1024 * 1024 }
    }
}

/// Closes a router that has all its routes: see [`layers_with`].
pub fn layers<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    layers_with(router, LayerOptions::default())
}

/// Closes a router that has all its routes, with the fallbacks of the specification (404 and 405 `M_UNRECOGNIZED`),
/// CORS headers on every answer and an answer to every `OPTIONS`, a request id, metrics, a deadline, and a 500 in
/// place of a panic.
///
/// The first call wraps the process's panic hook, so that a handler's panic is logged once; a hook that is installed
/// later is called as well.
pub fn layers_with<S: Clone + Send + Sync + 'static>(router: Router<S>, options: LayerOptions) -> Router<S> {
    panics::install_hook();
    router
        .fallback(async || ApiError::unrecognized())
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(Surround { options })
}

#[derive(Clone, Copy)]
struct Surround {
    options: LayerOptions,
}

impl Layer<Route> for Surround {
    type Service = Surrounded<Route>;

    fn layer(&self, inner: Route) -> Self::Service {
        Surrounded { inner, options: self.options }
    }
}

#[derive(Clone)]
struct Surrounded<S> {
    inner: S,
    options: LayerOptions,
}

impl<S: Service<Request, Response = Response, Error = Infallible>> Service<Request> for Surrounded<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let context =
            Arc::new(RequestContext::new(RequestId::next(), self.options.deadline, self.options.json_body_bytes_max));
        let record = Record::start(&request);
        let span = tracing::info_span!(
            "request",
            request.id = %context.id(),
            http.method = record.method,
            http.route = record.route(),
        );
        // A preflight asks for the headers alone: "the server MUST NOT perform any logic defined for the endpoints
        // when approached with an OPTIONS request".
        let handler = (request.method() != Method::OPTIONS).then(|| {
            request.extensions_mut().insert(Arc::clone(&context));
            self.inner.call(request)
        });
        Answering { handler, deadline: None, context, record, span, slow: self.options.slow }
    }
}

pin_project! {
    /// A request on its way to its answer.
    struct Answering<F> {
        // `None` for a preflight.
        #[pin]
        handler: Option<F>,
        // Made when the handler first has to wait: most never do.
        deadline: Option<Pin<Box<Sleep>>>,
        context: Arc<RequestContext>,
        record: Record,
        span: Span,
        slow: Duration,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answering<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _entered = this.span.enter();

        let mut response = match this.handler.as_mut().as_pin_mut() {
            None => preflight(),
            Some(handler) => match panics::catch(|| handler.poll(cx)) {
                Ok(Poll::Ready(Ok(response))) => response,
                Ok(Poll::Ready(Err(never))) => match never {},
                Ok(Poll::Pending) if !is_late(this.context, this.record.started, this.deadline, cx) => {
                    return Poll::Pending;
                }
                Ok(Poll::Pending) => {
                    this.handler.set(None);
                    let route = this.record.route();
                    tracing::warn!("{route} gave no answer in {} s and was stopped", this.record.seconds());
                    let message = "The server did not answer in time";
                    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unknown, message).into_response()
                }
                Err(panic) => {
                    let (route, message, location) = (this.record.route(), panic.message, panic.location);
                    tracing::error!(panic.location = %location, "{route} panicked at {location}: {message}");
                    ApiError::unknown_logged().into_response()
                }
            },
        };

        finish(&mut response, this.context, this.record.route());
        this.record.finish(response.status());
        if !this.context.is_long_poll() && this.record.started.elapsed() >= *this.slow {
            let (route, seconds) = (this.record.route(), this.record.seconds());
            let status = response.status().as_u16();
            tracing::warn!(http.status = status, duration_s = seconds, "slow request: {route} took {seconds} s");
        }
        Poll::Ready(Ok(response))
    }
}

/// Whether a handler that waits has waited long enough. Otherwise its task is woken at the deadline.
fn is_late(
    context: &RequestContext,
    started: Instant,
    deadline: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> bool {
    let Some(after) = context.deadline() else {
        *deadline = None;
        return false;
    };
    let at = tokio::time::Instant::from_std(started + after);
    let sleep = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
    if sleep.deadline() != at {
        sleep.as_mut().reset(at);
    }
    sleep.as_mut().poll(cx).is_ready()
}

fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

/// Adds the headers that every answer has.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#web-browser-clients>
fn finish(response: &mut Response, context: &RequestContext, route: &str) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS"));
    let mut allowed = "X-Requested-With, Content-Type, Authorization";
    if route.starts_with(RENDEZVOUS_PATH) {
        allowed = "X-Requested-With, Content-Type, Authorization, If-Match, If-None-Match";
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag"));
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    if let Ok(id) = HeaderValue::try_from(context.id().to_string()) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// Measures one request. Its path is known by its route alone: a path names rooms and people, a query may hold a token.
struct Record {
    route: Option<MatchedPath>,
    method: &'static str,
    started: Instant,
    finished: bool,
}

impl Record {
    fn start(request: &Request) -> Self {
        IN_FLIGHT.inc();
        Self {
            route: request.extensions().get::<MatchedPath>().cloned(),
            method: method_name(request.method()),
            started: Instant::now(),
            finished: false,
        }
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
    }

    /// The time so far, in seconds, to the millisecond.
    fn seconds(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }

    fn finish(&mut self, status: StatusCode) {
        self.finished = true;
        REQUESTS.with_label_values(&[self.route(), self.method, status.as_str()]).inc();
        DURATION.with_label_values(&[self.route(), self.method]).observe(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        IN_FLIGHT.dec();
        if !self.finished {
            REQUESTS.with_label_values(&[self.route(), self.method, CLIENT_LEFT]).inc();
        }
    }
}

/// A label with a bounded number of values: a client may name any method.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}
