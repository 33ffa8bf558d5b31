//! Places where a new device and one that is logged in meet, to sign in by a QR code.
//!
//! POST /_matrix/client/unstable/org.matrix.msc4108/rendezvous makes one; GET, PUT and DELETE under its own address read,
//! write and end it. Nobody has logged in yet, so the address itself is the secret.
//!
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4108>

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    response::{IntoResponse as _, Response},
    routing,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, IF_MATCH, IF_NONE_MATCH, LAST_MODIFIED, PRAGMA},
};
use myelin_accounts::{RENDEZVOUS_BYTES_MAX, RendezvousError, RendezvousMark};
use myelin_http::{ApiError, ClientAddress, LimitKind, RENDEZVOUS_PATH, RawJson, read_body};
use ruma::api::error::ErrorCode;
use serde_json::json;

use crate::{
    Services,
    errors::{Refusal, Result, of_store},
};

/// The only type of a message.
const TEXT_PLAIN: &str = "text/plain";
/// When a client may come back that was told that there are too many.
const FULL: Duration = Duration::from_secs(60);

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .route(RENDEZVOUS_PATH, routing::post(create))
        .route(&format!("{RENDEZVOUS_PATH}/{{id}}"), routing::get(read).put(write).delete(end))
}

async fn create(
    State(services): State<Services>,
    ClientAddress(address): ClientAddress,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    services.rate_limiter.check_caller(LimitKind::Registration, None, address)?;
    let content = text(&headers, body).await?;
    let (id, mark) = services.accounts.create_rendezvous(&content).await?;
    let base = services.client_baseurl.trim_end_matches('/');
    let answer = RawJson(json!({ "url": format!("{base}{RENDEZVOUS_PATH}/{id}") }).to_string().into());
    marked(mark, (StatusCode::CREATED, answer).into_response())
}

async fn read(
    State(services): State<Services>,
    ClientAddress(address): ClientAddress,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response> {
    check_rate(&services, address)?;
    let message = services.accounts.rendezvous(&id).await?;
    let mark = message.mark;
    let response = if headers.get(IF_NONE_MATCH).is_some_and(|seen| *seen == etag(mark.version)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, TEXT_PLAIN)], message.content).into_response()
    };
    marked(mark, response)
}

async fn write(
    State(services): State<Services>,
    ClientAddress(address): ClientAddress,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    check_rate(&services, address)?;
    let seen = headers.get(IF_MATCH).ok_or_else(|| ApiError::missing_param("The If-Match header is missing"))?;
    let content = text(&headers, body).await?;
    // What is no mark of ours is one that nobody has seen.
    let seen = version(seen).unwrap_or(-1);
    match services.accounts.write_rendezvous(&id, seen, &content).await {
        Ok(mark) => marked(mark, StatusCode::ACCEPTED.into_response()),
        Err(error) => {
            let there = if let RendezvousError::Changed { version } = error { Some(etag(version)) } else { None };
            let mut response = Refusal::from(error).into_response();
            response.headers_mut().extend(there.map(|there| (ETAG, there)));
            Ok(response)
        }
    }
}

async fn end(
    State(services): State<Services>,
    ClientAddress(address): ClientAddress,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    check_rate(&services, address)?;
    services.accounts.delete_rendezvous(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn check_rate(services: &Services, address: IpAddr) -> Result<(), ApiError> {
    services.rate_limiter.check_caller(LimitKind::Other, None, address)
}

/// The message that a request brings.
async fn text(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let content_type =
        headers.get(CONTENT_TYPE).ok_or_else(|| ApiError::missing_param("The Content-Type header is missing"))?;
    let essence = content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(TEXT_PLAIN) {
        return Err(ApiError::invalid_param("The Content-Type has to be text/plain"));
    }
    read_body(headers, body, RENDEZVOUS_BYTES_MAX).await
}

/// The answer with the marks of the message that it is about. Nobody may keep it.
fn marked(mark: RendezvousMark, mut response: Response) -> Result<Response> {
    let date = |time: ruma::MilliSecondsSinceUnixEpoch| {
        let time = time.to_system_time().unwrap_or(SystemTime::UNIX_EPOCH);
        HeaderValue::try_from(httpdate::fmt_http_date(time)).map_err(ApiError::unknown)
    };
    let values: [(HeaderName, HeaderValue); 5] = [
        (ETAG, etag(mark.version)),
        (EXPIRES, date(mark.expires)?),
        (LAST_MODIFIED, date(mark.modified)?),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (PRAGMA, HeaderValue::from_static("no-cache")),
    ];
    response.headers_mut().extend(values);
    Ok(response)
}

fn etag(version: i64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

fn version(etag: &HeaderValue) -> Option<i64> {
    etag.to_str().ok()?.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

impl From<RendezvousError> for Refusal {
    fn from(error: RendezvousError) -> Self {
        let message = error.to_string();
        Self(match error {
            RendezvousError::Unknown => ApiError::not_found(message),
            RendezvousError::Changed { .. } => {
                ApiError::new(StatusCode::PRECONDITION_FAILED, ErrorCode::from("M_CONCURRENT_WRITE"), message)
            }
            RendezvousError::TooLarge => ApiError::too_large(message),
            RendezvousError::Full => ApiError::limit_exceeded(FULL),
            RendezvousError::Store(error) => of_store(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::{
        HeaderName, Method, StatusCode,
        header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH},
    };
    use myelin_http::RENDEZVOUS_PATH;

    use crate::testing::{Answer, Server, on_both};

    async fn send(server: &Server, method: Method, path: &str, headers: &[(HeaderName, &str)], body: &str) -> Answer {
        server.send(method, path, None, headers, body.as_bytes().to_vec()).await
    }

    /// Makes a place, and tells its path and the mark of what is there.
    async fn make(server: &Server, content: &str) -> (String, String) {
        let made = send(server, Method::POST, RENDEZVOUS_PATH, &[(CONTENT_TYPE, "text/plain")], content).await;
        assert_eq!(made.header("cache-control"), "no-store");
        assert!(!made.header("expires").is_empty() && !made.header("last-modified").is_empty());
        assert_eq!(made.header("access-control-expose-headers"), "ETag");
        let url = made.json(StatusCode::CREATED)["url"].as_str().unwrap().to_owned();
        let path = url.strip_prefix("https://matrix.example.org").unwrap().to_owned();
        (path, made.header(ETAG.as_str()).to_owned())
    }

    /// Two devices talk in turn; each waits for what it has not seen.
    #[tokio::test]
    async fn devices_talk_in_turn() {
        on_both(async |server: &Server| {
            let (path, first) = make(server, "").await;
            let unseen = send(server, Method::GET, &path, &[], "").await;
            assert_eq!(
                (unseen.status(), unseen.body(), unseen.header("content-type")),
                (StatusCode::OK, &b""[..], "text/plain")
            );
            assert_eq!(unseen.header("etag"), first);
            let same = send(server, Method::GET, &path, &[(IF_NONE_MATCH, &first)], "").await;
            assert_eq!((same.status(), same.header("etag")), (StatusCode::NOT_MODIFIED, first.as_str()));

            let headers = [(IF_MATCH, first.as_str()), (CONTENT_TYPE, "text/plain")];
            let written = send(server, Method::PUT, &path, &headers, "hello").await;
            assert_eq!(written.status(), StatusCode::ACCEPTED);
            let second = written.header("etag").to_owned();
            assert_ne!(second, first);
            let late = send(server, Method::PUT, &path, &headers, "hello too").await;
            assert_eq!(late.header("etag"), second);
            assert_eq!(late.errcode(StatusCode::PRECONDITION_FAILED), "M_CONCURRENT_WRITE");
            let read = send(server, Method::GET, &path, &[(IF_NONE_MATCH, &first)], "").await;
            assert_eq!((read.status(), read.body()), (StatusCode::OK, &b"hello"[..]));

            assert_eq!(send(server, Method::DELETE, &path, &[], "").await.status(), StatusCode::NO_CONTENT);
            for method in [Method::GET, Method::DELETE] {
                let gone = send(server, method, &path, &[], "").await;
                assert_eq!(gone.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            }
        })
        .await;
    }

    /// What is not a short text for a place that is there is refused, and changes nothing.
    #[tokio::test]
    async fn refuses_what_is_no_message() {
        on_both(async |server: &Server| {
            let (path, mark) = make(server, "first").await;
            let long = "x".repeat(4097);
            let plain = (CONTENT_TYPE, "text/plain");
            type Case<'a> = (&'a str, Vec<(HeaderName, &'a str)>, &'a str, u16, &'a str);
            let cases: [Case<'_>; 6] = [
                ("no type", vec![(IF_MATCH, &mark)], "x", 400, "M_MISSING_PARAM"),
                ("JSON", vec![(IF_MATCH, &mark), (CONTENT_TYPE, "application/json")], "{}", 400, "M_INVALID_PARAM"),
                ("no mark", vec![plain.clone()], "x", 400, "M_MISSING_PARAM"),
                ("no mark of ours", vec![(IF_MATCH, "abc"), plain.clone()], "x", 412, "M_CONCURRENT_WRITE"),
                ("any mark", vec![(IF_MATCH, "*"), plain.clone()], "x", 412, "M_CONCURRENT_WRITE"),
                ("too long", vec![(IF_MATCH, &mark), plain.clone()], &long, 413, "M_TOO_LARGE"),
            ];
            for (what, headers, body, status, errcode) in cases {
                let answer = send(server, Method::PUT, &path, &headers, body).await;
                assert_eq!(answer.errcode(StatusCode::from_u16(status).unwrap()), errcode, "{what}");
            }
            let long = send(server, Method::POST, RENDEZVOUS_PATH, std::slice::from_ref(&plain), &long).await;
            assert_eq!(long.errcode(StatusCode::PAYLOAD_TOO_LARGE), "M_TOO_LARGE");
            let headers = [(IF_MATCH, mark.as_str()), plain];
            let elsewhere = send(server, Method::PUT, &format!("{RENDEZVOUS_PATH}/other"), &headers, "x").await;
            assert_eq!(elsewhere.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            assert_eq!(send(server, Method::GET, &path, &[], "").await.body(), b"first");
            // Browsers ask whether they may send marks.
            let preflight = send(server, Method::OPTIONS, &path, &[], "").await;
            assert!(preflight.header("access-control-allow-headers").contains("If-None-Match"));
        })
        .await;
    }
}
