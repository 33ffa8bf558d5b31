//! Push gateways: requests to addresses that people have given, so that nothing about them is believed.

mod dial;
mod tls;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use myelin_process::config::Outbound;
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    task::AbortHandle,
    time::{self, Instant},
};
use url::Url;

use self::dial::Dialer;
pub use self::{dial::DialError, tls::SetupError};
use crate::metrics::CONNECTIONS;

/// What we call ourselves.
const USER_AGENT: &str = concat!("Myelin/", env!("CARGO_PKG_VERSION"));
/// The time for one request: connecting, asking, and reading the answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// The time that a request waits for its turn at a gateway that is busy with others.
const TURN: Duration = Duration::from_secs(60);
/// The bound on an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The bound on an answer's headers, in bytes.
const HEADERS_BYTES_MAX: usize = 32 * 1024;
/// The bound on the number of an answer's headers.
const HEADERS_MAX: usize = 100;
/// Requests to one gateway at once, and connections that are kept to it.
const TURNS: usize = 32;
/// Requests that wait for their turn at one gateway.
const WAITING_MAX: usize = 1_024;
/// How long a connection that nobody uses is kept.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long a connection may live: where a gateway is may change.
const LIFE_MAX: Duration = Duration::from_secs(10 * 60);
/// Gateways that are remembered.
const GATEWAYS_MAX: usize = 1_000;

/// Takes notifications.
pub trait Gateway: Send + Sync {
    /// Posts a notification to the address of a gateway, and answers what it says.
    fn notify<'a>(&'a self, url: &'a Url, body: Bytes) -> BoxFuture<'a, Result<Vec<u8>, GatewayError>>;
}

/// Why a gateway did not take a notification.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// There is no connection to it.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the connection failed")]
    Connection(#[from] hyper::Error),
    /// It answers with an error.
    #[error("status {0}")]
    Status(StatusCode),
    /// It takes too long.
    #[error("no answer within {DEADLINE:?}")]
    Deadline,
    /// Its answer is too large.
    #[error("its answer has more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    /// It has too much to do already.
    #[error("too many requests are on their way to it")]
    Crowded,
    /// The address cannot be asked.
    #[error("it is not the address of a gateway")]
    Address,
}

impl GatewayError {
    /// What it is called in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Dial(DialError::Private(_)) => "private_address",
            Self::Dial(_) => "unreachable",
            Self::Connection(_) => "broken",
            Self::Status(status) if status.is_client_error() => "refused",
            Self::Status(_) => "error",
            Self::Deadline => "timeout",
            Self::TooLarge => "too_large",
            Self::Crowded => "crowded",
            Self::Address => "address",
        }
    }
}

/// The gateways of the world.
pub struct HttpGateways {
    dialer: Dialer,
    known: Mutex<HashMap<Place, Arc<Gate>>>,
}

/// A machine's service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    is_tls: bool,
    host: String,
    port: u16,
}

/// The way to one gateway.
struct Gate {
    turns: Semaphore,
    waiting: AtomicUsize,
    idle: Mutex<Vec<Open>>,
}

/// A connection.
struct Open {
    sender: http1::SendRequest<Full<Bytes>>,
    made: Instant,
    used: Instant,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HttpGateways {
    /// A way to gateways, as the configuration allows.
    ///
    /// # Errors
    ///
    /// If TLS or the resolver of names cannot be set up.
    pub fn new(config: &Outbound) -> Result<Self, SetupError> {
        Ok(Self { dialer: Dialer::new(config)?, known: Mutex::default() })
    }

    fn gate(&self, place: &Place) -> Arc<Gate> {
        let mut known = self.known.lock();
        if known.len() >= GATEWAYS_MAX && !known.contains_key(place) {
            known.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        let gate = || Gate { turns: Semaphore::new(TURNS), waiting: AtomicUsize::new(0), idle: Mutex::new(Vec::new()) };
        known.entry(place.clone()).or_insert_with(|| Arc::new(gate())).clone()
    }

    async fn post(&self, url: &Url, body: Bytes) -> Result<Vec<u8>, GatewayError> {
        let place = place_of(url).ok_or(GatewayError::Address)?;
        let gate = self.gate(&place);
        let _turn = gate.turn().await?;
        let asking = async {
            let request = request(url, body)?;
            if let Some(open) = gate.take_idle()
                && let Some(answer) = gate.ask(open, request.clone(), true).await?
            {
                return Ok(answer);
            }
            let stream = self.dialer.dial(&place.host, place.port, place.is_tls).await?;
            let open = connect(stream).await?;
            gate.ask(open, request, false).await?.ok_or(GatewayError::Address)
        };
        time::timeout(DEADLINE, asking).await.map_err(|_| GatewayError::Deadline)?
    }
}

impl std::fmt::Debug for HttpGateways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpGateways").finish_non_exhaustive()
    }
}

impl Gateway for HttpGateways {
    fn notify<'a>(&'a self, url: &'a Url, body: Bytes) -> BoxFuture<'a, Result<Vec<u8>, GatewayError>> {
        Box::pin(self.post(url, body))
    }
}

impl Gate {
    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, GatewayError> {
        /// Counted while it waits, also when it is given up.
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        if waiting >= WAITING_MAX {
            return Err(GatewayError::Crowded);
        }
        // The semaphore is never closed.
        let turn = time::timeout(TURN, self.turns.acquire()).await.map_err(|_| GatewayError::Crowded)?;
        turn.map_err(|_| GatewayError::Crowded)
    }

    fn take_idle(&self) -> Option<Open> {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        idle.retain(|open| !open.sender.is_closed() && now - open.used < IDLE_MAX && now - open.made < LIFE_MAX);
        idle.pop()
    }

    /// Asks on a connection. `None` if it is one that was used before and that the gateway has closed meanwhile.
    async fn ask(
        &self,
        mut open: Open,
        request: Request<Full<Bytes>>,
        was_used: bool,
    ) -> Result<Option<Vec<u8>>, GatewayError> {
        if let Err(error) = open.sender.ready().await {
            return if was_used { Ok(None) } else { Err(error.into()) };
        }
        let response = match open.sender.send_request(request).await {
            Ok(response) => response,
            // A gateway knows a notification that it is sent twice by the event's identifier.
            Err(error) if was_used && (error.is_closed() || error.is_canceled() || error.is_incomplete_message()) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let status = response.status();
        let body = read(response.into_body()).await?;
        open.used = Instant::now();
        if !open.sender.is_closed() {
            self.idle.lock().push(open);
        }
        if !status.is_success() {
            return Err(GatewayError::Status(status));
        }
        Ok(Some(body))
    }
}

/// Where a gateway's address leads.
fn place_of(url: &Url) -> Option<Place> {
    let is_tls = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    Some(Place { is_tls, host: url.host_str()?.to_owned(), port: url.port_or_known_default()? })
}

fn request(url: &Url, body: Bytes) -> Result<Request<Full<Bytes>>, GatewayError> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => return Err(GatewayError::Address),
    };
    let target: Uri = target.parse().map_err(|_| GatewayError::Address)?;
    let host = HeaderValue::try_from(host).map_err(|_| GatewayError::Address)?;
    Request::post(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|_| GatewayError::Address)
}

async fn connect(stream: dial::Stream) -> Result<Open, GatewayError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEADERS_BYTES_MAX).max_headers(HEADERS_MAX);
    let (sender, connection) = builder.handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
    /// Counted as long as it is there, however it ends.
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            CONNECTIONS.dec();
        }
    }
    CONNECTIONS.inc();
    let counted = Counted;
    let task = tokio::spawn(async move {
        let _counted = counted;
        // How it ends is told to who asks on it.
        let _ = time::timeout(LIFE_MAX, connection).await;
    });
    let now = Instant::now();
    Ok(Open { sender, made: now, used: now, task: task.abort_handle() })
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, GatewayError> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if read.len() + data.len() > ANSWER_BYTES_MAX {
            return Err(GatewayError::TooLarge);
        }
        read.extend_from_slice(&data);
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
