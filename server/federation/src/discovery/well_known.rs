//! `https://<hostname>/.well-known/matrix/server`

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use ::http::{HeaderMap, Request, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use myelin_process::metrics::{self, IntCounterVec};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::time::{self, Instant};

use super::{ip_literal, tls_name};
use crate::{
    http::{Budget, DialError, Dialer, Endpoint, Host, HttpError, RequestBody, USER_AGENT, read},
    options::Ports,
};

static LOOKUPS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_well_known_total",
    "Servers whose .well-known file was needed: remembered, or fetched and delegating, absent, or failed.",
    ["outcome"]
);

/// What is remembered.
const CACHE: usize = 10_000;
/// The time for one look at the file, redirects included. Shorter than the deadline of any request that waits for it,
/// so that what comes of it is remembered.
const DEADLINE: Duration = Duration::from_secs(8);
/// The bound on the file, in bytes.
const BYTES_MAX: usize = 50 * 1024;
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// How long a delegation is believed that says nothing about it.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time that a delegation is believed.
const KEEP_MAX: Duration = Duration::from_secs(48 * 60 * 60);
/// The shortest time: not every request may ask again.
const KEEP_MIN: Duration = Duration::from_secs(5 * 60);
/// The absence of the file is remembered for this long.
const KEEP_ABSENT: Duration = Duration::from_secs(60 * 60);
/// The first failure is remembered for this long, each further one twice as long, up to that of absence.
const KEEP_FAILURE: Duration = Duration::from_secs(2 * 60);

/// Why there is no delegation.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum WellKnownError {
    #[error("status {0}")]
    Status(StatusCode),
    #[error("{0} is no file that says {{\"m.server\": …}}: {1}")]
    Invalid(String, String),
    #[error("a redirect to {0:?} cannot be followed")]
    Redirect(String),
    #[error("more than {REDIRECTS_MAX} redirects")]
    Redirects,
    #[error(transparent)]
    Http(#[from] HttpError),
}

impl WellKnownError {
    /// Whether the server decidedly has no such file, as most have none.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Status(StatusCode::NOT_FOUND | StatusCode::GONE))
    }
}

/// A delegation, and how long it may be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delegation {
    pub(crate) server: OwnedServerName,
    pub(crate) keep: Duration,
}

/// What is known of a host's file.
#[derive(Clone)]
struct Known {
    delegate: Option<OwnedServerName>,
    /// When the delegation was read.
    read: Instant,
    /// When to ask again.
    until: Instant,
    /// Failures in a row.
    failures: u32,
}

/// The delegations of servers.
pub(crate) struct WellKnowns {
    dialer: Arc<Dialer>,
    config: Arc<ClientConfig>,
    ports: Ports,
    known: Cache<String, Known>,
}

impl WellKnowns {
    pub(super) fn new(dialer: Arc<Dialer>, config: Arc<ClientConfig>, ports: Ports) -> Self {
        Self { dialer, config, ports, known: Cache::new(CACHE) }
    }

    /// To whom a host delegates. The file is asked for once, however many want to know.
    pub(super) async fn delegate(&self, hostname: &str) -> Option<OwnedServerName> {
        let hostname = hostname.to_ascii_lowercase();
        let before = self.known.get(&hostname);
        if let Some(known) = &before
            && Instant::now() < known.until
        {
            LOOKUPS.with_label_values(&["remembered"]).inc();
            return known.delegate.clone();
        }
        // Not `remove`: that would also end the waiting for one who is asking just now.
        self.known.remove_if(&hostname, |known| known.until <= Instant::now());
        let fetching = async {
            let found = fetch(&self.dialer, &self.config, self.ports, &hostname).await;
            Ok::<_, std::convert::Infallible>(judge(&hostname, before, found))
        };
        match Box::pin(self.known.get_or_insert_async(&hostname, fetching)).await {
            Ok(known) => known.delegate,
            Err(never) => match never {},
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

/// What is to be believed after a look at the file.
fn judge(hostname: &str, before: Option<Known>, found: Result<Delegation, WellKnownError>) -> Known {
    let now = Instant::now();
    let outcome = match &found {
        Ok(_) => "delegates",
        Err(error) if error.is_absence() => "absent",
        Err(_) => "failed",
    };
    LOOKUPS.with_label_values(&[outcome]).inc();
    let error = match found {
        Ok(found) => return Known { delegate: Some(found.server), read: now, until: now + found.keep, failures: 0 },
        Err(error) if error.is_absence() => {
            return Known { delegate: None, read: now, until: now + KEEP_ABSENT, failures: 0 };
        }
        Err(error) => error,
    };
    tracing::debug!(%error, "the .well-known file of {hostname} cannot be used: {error}");
    let failures = before.as_ref().map_or(0, |known| known.failures);
    let keep = KEEP_ABSENT.min(KEEP_FAILURE.saturating_mul(1 << failures.min(10)));
    // A web server that fails for a while does not undo the delegation that it told of, as long as that may be believed.
    let old = before.filter(|known| known.delegate.is_some() && now.duration_since(known.read) < KEEP_MAX);
    let (delegate, read) = old.map_or((None, now), |known| (known.delegate, known.read));
    Known { delegate, read, until: now + keep, failures: failures.saturating_add(1) }
}

/// Reads the file, following redirects.
pub(crate) async fn fetch(
    dialer: &Dialer,
    config: &Arc<ClientConfig>,
    ports: Ports,
    hostname: &str,
) -> Result<Delegation, WellKnownError> {
    let port = if ports.https == 443 { String::new() } else { format!(":{}", ports.https) };
    let start = format!("https://{hostname}{port}/.well-known/matrix/server");
    let work = Box::pin(follow(dialer, config, ports, start));
    time::timeout(DEADLINE, work).await.map_err(|_| WellKnownError::Http(HttpError::Deadline(DEADLINE)))?
}

async fn follow(
    dialer: &Dialer,
    config: &Arc<ClientConfig>,
    ports: Ports,
    start: String,
) -> Result<Delegation, WellKnownError> {
    let mut uri: Uri = start.parse().map_err(|_| WellKnownError::Redirect(start))?;
    for _ in 0..=REDIRECTS_MAX {
        let (status, headers, body) = get(dialer, config, ports, &uri).await?;
        if status.is_redirection()
            && let Some(location) = headers.get(header::LOCATION)
        {
            uri = redirected(&uri, location.as_bytes())?;
            continue;
        }
        // "If the response is invalid (bad JSON, missing properties, non-200 response, etc), skip to step 4."
        if status != StatusCode::OK {
            return Err(WellKnownError::Status(status));
        }
        let server = parse(&body).map_err(|reason| WellKnownError::Invalid(uri.to_string(), reason))?;
        return Ok(Delegation { server, keep: keep(&headers, SystemTime::now()) });
    }
    Err(WellKnownError::Redirects)
}

fn redirected(from: &Uri, location: &[u8]) -> Result<Uri, WellKnownError> {
    let text = String::from_utf8_lossy(location).into_owned();
    let refused = || WellKnownError::Redirect(text.clone());
    let base = url::Url::parse(&from.to_string()).map_err(|_| refused())?;
    let mut to = base.join(&text).map_err(|_| refused())?;
    to.set_fragment(None);
    if to.scheme() != "https" {
        return Err(refused());
    }
    to.as_str().parse().map_err(|_| refused())
}

async fn get(
    dialer: &Dialer,
    config: &Arc<ClientConfig>,
    ports: Ports,
    uri: &Uri,
) -> Result<(StatusCode, HeaderMap, Vec<u8>), WellKnownError> {
    let refused = || WellKnownError::Redirect(uri.to_string());
    let authority = uri.authority().ok_or_else(refused)?;
    let name = <&ServerName>::try_from(authority.as_str()).map_err(|_| refused())?;
    let host = ip_literal(name).map_or_else(|| Host::Name(name.host().to_owned()), Host::Address);
    let endpoint = Endpoint { host, port: name.port().unwrap_or(ports.https) };
    let tls_name = tls_name(name).map_err(|_| refused())?;
    let stream = dialer.dial(&[endpoint], &tls_name, config).await.map_err(HttpError::from)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(HttpError::from)?;
    // The connection ends with its only handle.
    let driving = async {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a connection for a .well-known file ended");
        }
    };
    let asking = async {
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json")
            .body(RequestBody::default())
            .map_err(|_| refused())?;
        let (head, body) = sender.send_request(request).await.map_err(HttpError::from)?.into_parts();
        let (body, _) = read(body, BYTES_MAX, &Budget::default()).await?;
        Ok((head.status, head.headers, body))
    };
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        // An answer that came just before the end is still read.
        () = driving => asking.await,
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "m.server")]
    server: OwnedServerName,
}

fn parse(body: &[u8]) -> Result<OwnedServerName, String> {
    serde_json::from_slice::<File>(body).map(|file| file.server).map_err(|error| error.to_string())
}

/// How long an answer may be believed, by its headers, within our bounds.
fn keep(headers: &HeaderMap, now: SystemTime) -> Duration {
    by_cache_control(headers).or_else(|| by_expires(headers, now)).unwrap_or(KEEP).clamp(KEEP_MIN, KEEP_MAX)
}

fn by_cache_control(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in values.flat_map(|value| value.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if directive == "no-store" || directive == "no-cache" {
            return Some(Duration::ZERO);
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            // A number that cannot be read is a stale answer, RFC 9111 section 4.2.1.
            return Some(Duration::from_secs(seconds.trim_matches('"').parse().unwrap_or(0)));
        }
    }
    None
}

fn by_expires(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::EXPIRES)?;
    // A date that cannot be read is in the past, RFC 9111 section 5.3.
    let at = value.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok()).unwrap_or(now);
    Some(at.duration_since(now).unwrap_or(Duration::ZERO))
}

impl From<DialError> for WellKnownError {
    fn from(error: DialError) -> Self {
        Self::Http(error.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ::http::{HeaderMap, HeaderValue};
    use ruma::owned_server_name;
    use tokio::time::Instant;

    use super::{Delegation, HttpError, KEEP, KEEP_ABSENT, KEEP_FAILURE, KEEP_MAX, KEEP_MIN, WellKnownError, judge};

    fn keep(headers: &[(&'static str, &str)]) -> Duration {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        super::keep(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
    }

    /// Headers decide, within the bounds.
    #[test]
    fn caching_follows_the_headers() {
        let hour = Duration::from_secs(3600);
        assert_eq!(keep(&[]), KEEP);
        assert_eq!(keep(&[("cache-control", "public, max-age=3600")]), hour);
        assert_eq!(keep(&[("cache-control", "max-age=1")]), KEEP_MIN);
        assert_eq!(keep(&[("cache-control", "max-age=999999999999")]), KEEP_MAX);
        assert_eq!(keep(&[("cache-control", "max-age=many")]), KEEP_MIN);
        assert_eq!(keep(&[("cache-control", "No-Store")]), KEEP_MIN);
        assert_eq!(keep(&[("expires", "Sun, 06 Nov 1994 09:49:37 GMT")]), hour);
        assert_eq!(keep(&[("expires", "0")]), KEEP_MIN);
        let both = [("expires", "Sun, 06 Nov 1994 09:49:37 GMT"), ("cache-control", "max-age=7200")];
        assert_eq!(keep(&both), 2 * hour);
    }

    /// A failure is remembered longer each time, and does not undo a delegation that may still be believed.
    #[tokio::test(start_paused = true)]
    async fn failures_are_remembered() {
        let failed = || Err(WellKnownError::Http(HttpError::Stalled));
        let first = judge("a.example", None, failed());
        assert_eq!((first.delegate.clone(), first.until - Instant::now()), (None, KEEP_FAILURE));
        let second = judge("a.example", Some(first), failed());
        assert_eq!(second.until - Instant::now(), 2 * KEEP_FAILURE);
        let many = judge("a.example", Some(super::Known { failures: u32::MAX, ..second.clone() }), failed());
        assert_eq!(many.until - Instant::now(), KEEP_ABSENT);
        let found = Delegation { server: owned_server_name!("b.example"), keep: KEEP_MIN };
        let known = judge("a.example", Some(second), Ok(found));
        assert_eq!(known.failures, 0);
        tokio::time::advance(KEEP_MAX / 2).await;
        let kept = judge("a.example", Some(known), failed());
        assert_eq!(kept.delegate.as_deref(), Some("b.example".try_into().unwrap()));
        let absent = Err(WellKnownError::Status(::http::StatusCode::NOT_FOUND));
        assert_eq!(judge("a.example", Some(kept.clone()), absent).delegate, None);
        tokio::time::advance(KEEP_MAX).await;
        assert_eq!(judge("a.example", Some(kept), failed()).delegate, None);
    }

    /// Files that say nothing of use are refused.
    #[test]
    fn nonsense_is_refused() {
        assert_eq!(super::parse(br#"{"m.server": "b.example:443", "x": 1.5}"#).unwrap(), "b.example:443");
        for wrong in ["", "{}", "[]", "null", r#"{"m.server": 1}"#, r#"{"m.server": ""}"#, r#"{"m.server": "a b"}"#] {
            super::parse(wrong.as_bytes()).unwrap_err();
        }
        super::parse(&[b'{', 0xff, b'}']).unwrap_err();
    }
}
