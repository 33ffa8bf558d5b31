//! Signed requests to other servers.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ::http::{HeaderValue, Request, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use myelin_process::metrics::{self, HistogramVec, IntCounterVec, IntGaugeVec};
use myelin_rooms::remote::{RemoteError, RemoteServers, VerifyKeys, WantedKeys};
use myelin_store::Store;
use ruma::{
    OwnedServerName, ServerName,
    api::{
        IncomingResponse, OutgoingBody as _, OutgoingRequest,
        federation::{
            authentication::{XMatrix, XMatrixSigningInput},
            transactions::send_transaction_message,
        },
        path_builder::PathBuilder,
    },
    signatures::Ed25519KeyPair,
};
use rustls::ClientConfig;
use tokio::{
    sync::broadcast,
    time::{self, Instant},
};

use crate::{
    backoff::{Backoff, Patience},
    discovery::{Discovery, Route},
    http::{Answer, Dialer, HttpError, Limits, Pool, USER_AGENT, chain},
    keys::Keys,
    kind::Kind,
    options::{ClientOptions, SetupError},
    tls::Tls,
};

static REQUESTS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_requests_total",
    "Requests to other servers, by kind and by what came of them.",
    ["kind", "outcome"]
);
static SECONDS: LazyLock<HistogramVec> =
    metrics::seconds!("myelin_federation_request_seconds", "Time of requests to other servers, by kind.", ["kind"]);
static CACHES: LazyLock<IntGaugeVec> = metrics::gauge!(
    "myelin_federation_cache_entries",
    "What is remembered of other servers: connected servers, .well-known files, servers' keys.",
    ["cache"]
);

/// Between two looks for what need not be kept.
const SWEEP: Duration = Duration::from_secs(30);
/// Sweeps from one look at our own key to the next: ten minutes.
const OWN_KEY_SWEEPS: u64 = 20;
/// Servers that were heard from and that an observer has not taken note of yet; beyond that it misses the oldest.
const HEARD: usize = 1024;
/// Answers larger than this are parsed off the threads that wait for others, in bytes.
const PARSE_HERE_MAX: usize = 128 * 1024;
/// The longest message of a refusal that is repeated, in characters.
const MESSAGE_MAX: usize = 300;
/// The longest error code that is repeated, in characters.
const ERRCODE_MAX: usize = 100;

/// Talks with other servers. One for a process.
pub struct Client {
    pub(crate) options: ClientOptions,
    pub(crate) key: Ed25519KeyPair,
    pub(crate) keys: Keys,
    pub(crate) store: Arc<Store>,
    /// Connects to where files are, which come over connections of their own.
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) files: Arc<ClientConfig>,
    pub(crate) backoff: Backoff,
    discovery: Discovery,
    pool: Pool,
    heard: broadcast::Sender<OwnedServerName>,
}

impl Client {
    /// Makes a client that signs with the store's key. Someone has to run [`keep_swept`](Self::keep_swept).
    ///
    /// # Errors
    ///
    /// If the certificate authorities, the resolver or the signing key cannot be had.
    pub async fn new(store: Arc<Store>, options: ClientOptions) -> Result<Arc<Self>, SetupError> {
        let (version, document) = store.signing_key().await?;
        let key = Ed25519KeyPair::from_der(&document, version.clone())
            .map_err(|error| SetupError::SigningKey { version, reason: error.to_string() })?;
        let keys = Keys::new(&options);
        let tls = Tls::new(&options)?;
        let dns = options.dns()?;
        let dialer = Arc::new(Dialer::new(Arc::clone(&dns), options.allow_private_addresses, options.connect_timeout));
        let discovery = Discovery::new(dns, Arc::clone(&dialer), Arc::clone(&tls.files), options.ports);
        let files = Arc::clone(&tls.files);
        let pool = Pool::new(
            Arc::clone(&dialer),
            tls.federation,
            options.connections_max,
            options.connections_per_server_max,
            options.idle_max,
        );
        let (heard, _) = broadcast::channel(HEARD);
        let backoff = Backoff::default();
        Ok(Arc::new(Self { options, key, keys, store, dialer, files, backoff, discovery, pool, heard }))
    }

    /// Our name.
    #[must_use]
    pub fn server_name(&self) -> &ServerName {
        &self.options.server_name
    }

    /// Whether the configuration lets us talk with a server, in either direction.
    #[must_use]
    pub fn is_allowed(&self, server: &ServerName) -> bool {
        self.options.enabled && self.options.allowed.contains(server)
    }

    /// Asks another server, within the bounds of such a request.
    ///
    /// # Errors
    ///
    /// All of [`RemoteError`]. A server that failed lately is not asked.
    pub async fn call<R>(&self, server: &ServerName, request: R) -> Result<R::IncomingResponse, RemoteError>
    where
        R: OutgoingRequest + Send,
        R::IncomingResponse: Send + 'static,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = ()>,
    {
        let request = http_request(server, request)?;
        let kind = Kind::of(request.uri().path());
        self.send::<R::IncomingResponse>(server, request, kind).await
    }

    /// The same within other bounds: media may be larger, and what a user waits for may be more urgent.
    ///
    /// # Errors
    ///
    /// Those of [`call`](Self::call).
    pub async fn call_within<R>(
        &self,
        server: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<R::IncomingResponse, RemoteError>
    where
        R: OutgoingRequest + Send,
        R::IncomingResponse: Send + 'static,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = ()>,
    {
        let request = http_request(server, request)?;
        let kind = Kind { limits, ..Kind::of(request.uri().path()) };
        self.send::<R::IncomingResponse>(server, request, kind).await
    }

    /// Sends a transaction. It is sent even if the server failed lately: the queues keep their own account of that.
    ///
    /// # Errors
    ///
    /// Those of [`call`](Self::call) but [`RemoteError::BackingOff`].
    pub async fn send_transaction(
        &self,
        server: &ServerName,
        transaction: send_transaction_message::v1::Request,
        deadline: Duration,
    ) -> Result<send_transaction_message::v1::Response, RemoteError> {
        let request = http_request(server, transaction)?;
        let kind = Kind::of(request.uri().path());
        let kind = Kind { limits: Limits { deadline, ..kind.limits }, patience: Patience::None, ..kind };
        self.send(server, request, kind).await
    }

    /// Notes that a server spoke to us, and proved to be itself: it can be reached again, most likely.
    pub fn heard_from(&self, server: &ServerName) {
        self.backoff.succeeded(server);
        // Nobody may be listening.
        let _ = self.heard.send(server.to_owned());
    }

    /// The servers that were heard from, from now on: those that spoke to us, and those that answered again after they
    /// had failed. Who does not keep up misses some.
    #[must_use]
    pub fn heard(&self) -> broadcast::Receiver<OwnedServerName> {
        self.heard.subscribe()
    }

    /// Closes connections that are not used, and forgets what is over, until it is dropped.
    pub async fn keep_swept(&self) {
        let mut interval = time::interval(SWEEP);
        interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        for sweep in 0_u64.. {
            interval.tick().await;
            if sweep % OWN_KEY_SWEEPS == OWN_KEY_SWEEPS - 1 {
                Box::pin(self.look_after_own_key()).await;
            }
            self.pool.sweep();
            self.backoff.sweep();
            self.keys.sweep();
            let sizes = [
                ("connected_servers", self.pool.servers()),
                ("well_known", self.discovery.well_knowns()),
                ("server_keys", self.keys.len()),
            ];
            for (cache, size) in sizes {
                CACHES.with_label_values(&[cache]).set(i64::try_from(size).unwrap_or(i64::MAX));
            }
        }
    }

    /// Where a server is. For the curious: requests find out themselves.
    pub(crate) async fn route(&self, server: &ServerName) -> Result<Arc<Route>, HttpError> {
        let found = self.discovery.find(server).await;
        found.map(Arc::new).map_err(|error| crate::http::DialError::NoAddress(error.to_string()).into())
    }

    async fn send<A>(&self, server: &ServerName, request: Request<Vec<u8>>, kind: Kind) -> Result<A, RemoteError>
    where
        A: IncomingResponse + Send + 'static,
    {
        let timer = SECONDS.with_label_values(&[kind.name]).start_timer();
        let result = Box::pin(self.send_unobserved(server, request, kind)).await;
        let outcome = outcome(&result);
        if matches!(outcome, "not_allowed" | "backing_off") {
            timer.stop_and_discard();
        } else {
            timer.observe_duration();
        }
        REQUESTS.with_label_values(&[kind.name, outcome]).inc();
        result
    }

    async fn send_unobserved<A>(
        &self,
        server: &ServerName,
        request: Request<Vec<u8>>,
        kind: Kind,
    ) -> Result<A, RemoteError>
    where
        A: IncomingResponse + Send + 'static,
    {
        if !self.is_allowed(server) || server == self.options.server_name {
            return Err(RemoteError::NotAllowed(server.to_owned()));
        }
        if let Some(wait) = self.backoff.wait(server, kind.patience) {
            return Err(RemoteError::BackingOff { server: server.to_owned(), wait });
        }
        let request = self.signed(server, request)?;
        let began = Instant::now();
        let answer = Box::pin(self.pool.request(server, request, kind.limits, || self.route(server))).await;
        let answer = answer.map_err(|error| {
            tracing::debug!(server.name = %server, %error, "{} of {server} failed: {error}", kind.name);
            // That we ask too much, or it answers too much, does not say that it is down.
            if !matches!(error, HttpError::Crowded | HttpError::TooLarge(_)) {
                self.backoff.failed(server, began);
            }
            unreachable(server, &error)
        })?;
        if is_down(answer.status) {
            self.backoff.failed(server, began);
        } else if self.backoff.succeeded(server) {
            let _ = self.heard.send(server.to_owned());
        }
        parsed(server, answer).await
    }

    /// Signs a request: <https://spec.matrix.org/v1.19/server-server-api/#request-authentication>.
    pub(crate) fn signed(&self, server: &ServerName, request: Request<Vec<u8>>) -> Result<Request<Bytes>, RemoteError> {
        let input = XMatrixSigningInput::new(self.options.server_name.clone(), server.to_owned(), &self.key);
        let authorization = XMatrix::sign_http_request(&request, input).map_err(|error| our_fault(server, &error))?;
        let mut request = request.map(Bytes::from);
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, HeaderValue::from(&authorization));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        Ok(request)
    }
}

impl RemoteServers for Client {
    fn verify_keys<'a>(&'a self, wanted: &'a BTreeMap<OwnedServerName, WantedKeys>) -> BoxFuture<'a, VerifyKeys> {
        Box::pin(self.verify_keys_of(wanted))
    }

    myelin_rooms::remote_requests_by_call!();
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server_name", &self.options.server_name).finish_non_exhaustive()
    }
}

/// The request as HTTP, with a path for its URI.
fn http_request<R>(server: &ServerName, request: R) -> Result<Request<Vec<u8>>, RemoteError>
where
    R: OutgoingRequest,
    for<'a> R::PathBuilder: PathBuilder<Input<'a> = ()>,
{
    let request = request.try_into_http_request_inner("", ()).map_err(|error| our_fault(server, &error))?;
    let (mut head, body) = request.into_parts();
    if let Some(content_type) = body.content_type() {
        head.headers.entry(header::CONTENT_TYPE).or_insert(content_type);
    }
    let body = body.try_into_buf().map_err(|error| our_fault(server, &error.into()))?;
    Ok(Request::from_parts(head, body))
}

/// A request that cannot be made of what we were told; it never leaves.
fn our_fault(server: &ServerName, error: &dyn std::error::Error) -> RemoteError {
    let reason = format!("the request cannot be written: {}", chain(error));
    RemoteError::Nonsense { server: server.to_owned(), reason }
}

pub(crate) fn unreachable(server: &ServerName, error: &HttpError) -> RemoteError {
    let server = server.to_owned();
    match error {
        HttpError::TooLarge(_) => RemoteError::Nonsense { server, reason: error.to_string() },
        _ => RemoteError::Unreachable { server, reason: error.to_string() },
    }
}

/// What a proxy says whose server is down.
pub(crate) fn is_down(status: ::http::StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504 | 520..=530)
}

async fn parsed<A: IncomingResponse + Send + 'static>(server: &ServerName, answer: Answer) -> Result<A, RemoteError> {
    if answer.body.len() <= PARSE_HERE_MAX {
        return parse(server, &answer);
    }
    let server = server.to_owned();
    let failed = RemoteError::Nonsense { server: server.clone(), reason: "its answer cannot be parsed".to_owned() };
    tokio::task::spawn_blocking(move || parse(&server, &answer)).await.unwrap_or(Err(failed))
}

fn parse<A: IncomingResponse>(server: &ServerName, answer: &Answer) -> Result<A, RemoteError> {
    if !answer.status.is_success() {
        return Err(refusal(server, answer));
    }
    let mut response = ::http::Response::new(answer.body.as_slice());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers.clone();
    A::try_from_http_response_inner(response)
        .map_err(|error| RemoteError::Nonsense { server: server.to_owned(), reason: chain(&error) })
}

fn refusal(server: &ServerName, answer: &Answer) -> RemoteError {
    let body = serde_json::from_slice::<serde_json::Map<_, _>>(&answer.body).ok();
    let text = |key: &str| body.as_ref().and_then(|body| body.get(key)).and_then(|value| value.as_str());
    let errcode = text("errcode").unwrap_or("M_UNKNOWN").chars().take(ERRCODE_MAX).collect();
    let message = text("error").unwrap_or("(no message)").chars().take(MESSAGE_MAX).collect();
    RemoteError::Refused { server: server.to_owned(), status: answer.status.as_u16(), errcode, message, body }
}

fn outcome<A>(result: &Result<A, RemoteError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(RemoteError::NotAllowed(_)) => "not_allowed",
        Err(RemoteError::BackingOff { .. }) => "backing_off",
        Err(RemoteError::Unreachable { .. }) => "unreachable",
        Err(RemoteError::Refused { .. }) => "refused",
        Err(RemoteError::Nonsense { .. }) => "nonsense",
    }
}

#[cfg(test)]
mod tests;
