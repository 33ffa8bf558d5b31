//! Other servers' files.
//!
//! <https://spec.matrix.org/v1.19/server-server-api/#content-repository>
//!
//! A file may be larger than the memory that an answer should take, so it comes over a connection of its own, in pieces,
//! as fast as they are written down.

pub(crate) mod connection;
mod multipart;

use std::{
    sync::LazyLock,
    time::{Duration, Instant as StdInstant},
};

use ::http::{HeaderMap, Request, StatusCode, header};
use futures_util::future::BoxFuture;
use myelin_media::{FetchError, RemoteFile, RemoteFiles};
use myelin_process::metrics::{self, IntCounterVec};
use ruma::{ServerName, http_headers::ContentDisposition};
use tokio::time::{self, Instant};

use self::{
    connection::{Opened, Plain, open, open_url},
    multipart::{Malformed, Multipart},
};
use crate::{
    Client,
    backoff::Patience,
    client::is_down,
    http::{Budget, HttpError, chain, read},
};

/// The time until a file begins to come, redirects included. A server waits for 20 seconds for one that is still to be
/// uploaded.
const BEGINNING_MAX: Duration = Duration::from_secs(60);
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 3;
/// The bound on a refusal, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// What an answer may have besides the file, in bytes.
const AROUND_MAX: u64 = 64 * 1024;
const ERRCODE_MAX: usize = 100;

static REQUESTS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_media_requests_total",
    "Requests for other servers' files, by endpoint (federation, deprecated, location) and outcome (ok, refused, failed).",
    ["endpoint", "outcome"]
);

impl RemoteFiles for Client {
    fn fetch<'a>(
        &'a self,
        server_name: &'a ServerName,
        media_id: &'a str,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<RemoteFile, FetchError>> {
        Box::pin(self.fetch_file(server_name, media_id, bytes_max))
    }
}

/// What an endpoint answered.
enum Answered {
    /// The file.
    File(RemoteFile),
    /// "a 404 M_UNRECOGNIZED error": an older server.
    Unrecognized,
}

impl Client {
    async fn fetch_file(&self, server: &ServerName, media_id: &str, bytes_max: u64) -> Result<RemoteFile, FetchError> {
        if !self.is_allowed(server) || server == self.options.server_name {
            return Err(FetchError::NotAllowed);
        }
        if let Some(wait) = self.backoff.wait(server, Patience::User) {
            return Err(FetchError::Unreachable(format!("{server} failed lately, and is asked again in {wait:?}")));
        }
        let beginning = self.begin(server, media_id, bytes_max);
        let late = |_| FetchError::Unreachable(format!("{server} did not begin to answer within {BEGINNING_MAX:?}"));
        let began = StdInstant::now();
        let file = time::timeout(BEGINNING_MAX, Box::pin(beginning)).await.map_err(late)?;
        tracing::debug!(server.name = %server, media.id = media_id, elapsed = ?began.elapsed(), "asked {server} for a file");
        file
    }

    /// "servers MUST try the endpoints described below before falling back to the deprecated /_matrix/media/* endpoints
    /// when they receive a 404 M_UNRECOGNIZED error."
    async fn begin(&self, server: &ServerName, media_id: &str, bytes_max: u64) -> Result<RemoteFile, FetchError> {
        let answered = self.by_federation(server, media_id, bytes_max).await;
        match count("federation", answered)? {
            Answered::File(file) => Ok(file),
            Answered::Unrecognized => count("deprecated", self.by_deprecated(server, media_id, bytes_max).await),
        }
    }

    /// `GET /_matrix/federation/v1/media/download/{mediaId}`
    async fn by_federation(&self, server: &ServerName, media_id: &str, bytes_max: u64) -> Result<Answered, FetchError> {
        let path = format!("/_matrix/federation/v1/media/download/{media_id}");
        let request = Request::get(path).body(Vec::new()).map_err(|error| nonsense(server, &error))?;
        let request = self.signed(server, request).map_err(|error| nonsense(server, &error))?;
        let opened = self.ask(server, request.map(|_| ())).await?;
        if !opened.status.is_success() {
            let refusal = refusal(opened).await;
            return if refusal.is_unrecognized() { Ok(Answered::Unrecognized) } else { Err(refusal.into_error()) };
        }
        check_length(&opened, bytes_max.saturating_add(AROUND_MAX))?;
        let malformed = |error: Malformed| FetchError::Nonsense(format!("the answer of {server}: {error}"));
        let boundary = multipart::boundary(&opened.headers).map_err(malformed)?;
        let mut parts = Multipart::new(opened.into_stream(), &boundary);
        // "The first part has a Content-Type header of application/json and describes the media's metadata".
        parts.next_part().await.map_err(malformed)?;
        let headers = parts.next_part().await.map_err(malformed)?;
        if let Some(location) = headers.get(header::LOCATION) {
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            return count("location", self.at_location(&location, bytes_max).await).map(Answered::File);
        }
        Ok(Answered::File(file(&headers, Box::pin(parts.into_content()))))
    }

    /// `GET /_matrix/media/v3/download/{serverName}/{mediaId}`: "When falling back, servers MUST be sure to set
    /// allow_remote to false."
    async fn by_deprecated(
        &self,
        server: &ServerName,
        media_id: &str,
        bytes_max: u64,
    ) -> Result<RemoteFile, FetchError> {
        let path = format!("/_matrix/media/v3/download/{server}/{media_id}?allow_remote=false&allow_redirect=true");
        let request = Request::get(path).body(()).map_err(|error| nonsense(server, &error))?;
        let opened = self.ask(server, request).await?;
        if opened.status.is_redirection()
            && let Some(location) = opened.headers.get(header::LOCATION)
        {
            let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
            return count("location", self.at_location(&location, bytes_max).await);
        }
        if !opened.status.is_success() {
            return Err(refusal(opened).await.into_error());
        }
        check_length(&opened, bytes_max)?;
        let headers = opened.headers.clone();
        Ok(file(&headers, Box::pin(opened.into_stream())))
    }

    /// What is behind the address that a server sends us to: over TLS, at a public address, as the dialer sees to it for
    /// each connection.
    async fn at_location(&self, location: &str, bytes_max: u64) -> Result<RemoteFile, FetchError> {
        let mut url = url::Url::parse(location).map_err(|_| bad_location(location))?;
        for _ in 0..=REDIRECTS_MAX {
            let request = Request::get(&url[url::Position::BeforePath..url::Position::AfterQuery]).body(());
            let request = request.map_err(|_| bad_location(location))?;
            let opened = open_url(&self.dialer, &self.files, &url, request, Plain::Refused).await;
            let opened = opened.map_err(|error| unreachable(url.as_str(), &error))?;
            if opened.status.is_redirection()
                && let Some(next) = opened.headers.get(header::LOCATION)
            {
                let next = String::from_utf8_lossy(next.as_bytes()).into_owned();
                url = url.join(&next).map_err(|_| bad_location(&next))?;
                continue;
            }
            if !opened.status.is_success() {
                return Err(refusal(opened).await.into_error());
            }
            check_length(&opened, bytes_max)?;
            let headers = opened.headers.clone();
            return Ok(file(&headers, Box::pin(opened.into_stream())));
        }
        Err(FetchError::Nonsense(format!("more than {REDIRECTS_MAX} redirects from {location}")))
    }

    async fn ask(&self, server: &ServerName, request: Request<()>) -> Result<Opened, FetchError> {
        let began = Instant::now();
        let opening = async {
            let route = self.route(server).await?;
            let stream = self.dialer.dial(&route.endpoints, &route.tls_name, &self.files).await?;
            open(stream, &route.host, request).await
        };
        let opened = opening.await.map_err(|error| {
            self.backoff.failed(server, began);
            unreachable(server.as_str(), &error)
        })?;
        // 504 is also what a server says that waits for a file.
        if is_down(opened.status) && opened.status != StatusCode::GATEWAY_TIMEOUT {
            self.backoff.failed(server, began);
        } else if self.backoff.succeeded(server) {
            self.heard_from(server);
        }
        Ok(opened)
    }
}

/// Why a server does not give a file.
struct Refusal {
    status: StatusCode,
    /// None if the answer is none of a Matrix server.
    errcode: Option<String>,
}

impl Refusal {
    fn is_unrecognized(&self) -> bool {
        match &self.errcode {
            Some(errcode) => errcode == "M_UNRECOGNIZED",
            // A proxy before an older server that knows its paths.
            None => self.status == StatusCode::NOT_FOUND,
        }
    }

    fn into_error(self) -> FetchError {
        match self.errcode.as_deref() {
            Some("M_NOT_YET_UPLOADED") => FetchError::NotYetUploaded,
            Some("M_TOO_LARGE") => FetchError::TooLarge,
            _ if self.status == StatusCode::NOT_FOUND => FetchError::NotFound,
            errcode => {
                let errcode = errcode.unwrap_or("M_UNKNOWN").chars().take(ERRCODE_MAX).collect();
                FetchError::Refused { status: self.status.as_u16(), errcode }
            }
        }
    }
}

async fn refusal(opened: Opened) -> Refusal {
    let status = opened.status;
    let (body, _connection) = opened.into_body();
    let body = read(body, REFUSAL_BYTES_MAX, &Budget::default()).await.ok();
    let body = body.and_then(|(body, _)| serde_json::from_slice::<serde_json::Value>(&body).ok());
    let errcode = body.and_then(|body| body.get("errcode")?.as_str().map(str::to_owned));
    Refusal { status, errcode }
}

fn check_length(opened: &Opened, bytes_max: u64) -> Result<(), FetchError> {
    if opened.length() > bytes_max { Err(FetchError::TooLarge) } else { Ok(()) }
}

fn file(headers: &HeaderMap, content: connection::Content) -> RemoteFile {
    let text = |name| headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let disposition = text(header::CONTENT_DISPOSITION).and_then(|text| text.parse::<ContentDisposition>().ok());
    RemoteFile {
        content_type: text(header::CONTENT_TYPE).map(str::to_owned),
        file_name: disposition.and_then(|disposition| disposition.filename),
        content,
    }
}

fn bad_location(location: &str) -> FetchError {
    FetchError::Nonsense(format!("a redirect to {location:?} cannot be followed"))
}

fn nonsense(server: &ServerName, error: &dyn std::error::Error) -> FetchError {
    FetchError::Nonsense(format!("the request to {server} cannot be written: {}", chain(error)))
}

fn unreachable(place: &str, error: &HttpError) -> FetchError {
    FetchError::Unreachable(format!("{place}: {error}"))
}

fn count<T>(endpoint: &str, answered: Result<T, FetchError>) -> Result<T, FetchError> {
    let outcome = match &answered {
        Ok(_) => "ok",
        Err(FetchError::Unreachable(_) | FetchError::Nonsense(_)) => "failed",
        Err(_) => "refused",
    };
    REQUESTS.with_label_values(&[endpoint, outcome]).inc();
    answered
}

#[cfg(test)]
mod tests;
