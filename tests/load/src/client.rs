//! A thin client of the client-server API: keep-alive HTTP/1.1, JSON in and out, a deadline on every request.

use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// What may stand in a path segment or a query value as it is (RFC 3986, "unreserved").
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// No whole answer came in time.
    #[error("{method} {path}: no answer within {} s", after.as_secs())]
    Timeout {
        /// The request's method.
        method: Method,
        /// The request's path, cut before ids.
        path: String,
        /// The deadline that passed.
        after: Duration,
    },
    /// The connection failed.
    #[error("{method} {path}: {reason}")]
    Connection {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// What failed, with its causes.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{method} {path}: {status} {errcode}")]
    Refused {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// The HTTP status.
        status: StatusCode,
        /// Matrix's code, or the empty string.
        errcode: String,
    },
    /// The answer was not the JSON that the specification describes.
    #[error("unexpected answer: {0}")]
    Form(#[from] serde_json::Error),
    /// The URL or a header cannot be sent.
    #[error("make a request: {0}")]
    Unsendable(#[from] http::Error),
}

/// A server's answer of any status.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The whole body.
    pub(crate) body: Bytes,
}

/// A homeserver, by URL. All users share its connections; each request in flight has one for itself.
#[derive(Debug)]
pub(crate) struct Homeserver {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    deadline: Duration,
    bytes_received: AtomicU64,
}

impl Homeserver {
    /// A homeserver at `base`, for example `http://127.0.0.1:8008`, that has `deadline` to answer a request, besides
    /// the time that a request asks it to wait.
    pub(crate) fn new(base: &str, deadline: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            http: Client::builder(TokioExecutor::new()).build(connector),
            base: base.trim_end_matches('/').to_owned(),
            deadline,
            bytes_received: AtomicU64::new(0),
        }
    }

    /// Bytes of all bodies received so far.
    pub(crate) fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Sends a request and returns the answer whatever its status. `wait` is how long the request asks the server to
    /// hold it.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        wait: Duration,
    ) -> Result<Answer, RequestError> {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let body = body.map(serde_json::to_vec).transpose()?.map(Bytes::from);
        self.exchange_bytes(method, path, authorization.as_deref(), body, wait).await
    }

    async fn exchange_bytes(
        &self,
        method: Method,
        path: &str,
        authorization: Option<&str>,
        body: Option<Bytes>,
        wait: Duration,
    ) -> Result<Answer, RequestError> {
        let mut request = Request::builder().method(&method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default()))?;
        let failed = |error: &dyn std::error::Error| RequestError::Connection {
            method: method.clone(),
            path: shape(path),
            reason: with_causes(error),
        };
        let whole = async {
            let answer = self.http.request(request).await.map_err(|error| failed(&error))?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
            self.bytes_received.fetch_add(body.len() as u64, Ordering::Relaxed);
            Ok(Answer { status, body })
        };
        let after = self.deadline + wait;
        tokio::time::timeout(after, whole)
            .await
            .unwrap_or_else(|_elapsed| Err(RequestError::Timeout { method: method.clone(), path: shape(path), after }))
    }

    /// Sends a request and returns the body of an answer of status 200; any other is an error.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        wait: Duration,
    ) -> Result<Bytes, RequestError> {
        let answer = self.exchange(method.clone(), path, token, body, wait).await?;
        accept(method, path, answer)
    }

    /// Sends what another server signed; any answer but one of status 200 is an error.
    pub(crate) async fn put_signed(&self, path: &str, authorization: &str, body: Bytes) -> Result<Bytes, RequestError> {
        let answer = self.exchange_bytes(Method::PUT, path, Some(authorization), Some(body), Duration::ZERO).await?;
        accept(Method::PUT, path, answer)
    }
}

/// The body of an answer of status 200.
fn accept(method: Method, path: &str, answer: Answer) -> Result<Bytes, RequestError> {
    #[derive(Deserialize)]
    struct Envelope {
        errcode: String,
    }
    if answer.status == StatusCode::OK {
        return Ok(answer.body);
    }
    // A proxy's error page has no errcode; the status tells enough.
    let errcode = serde_json::from_slice::<Envelope>(&answer.body).map(|envelope| envelope.errcode).unwrap_or_default();
    Err(RequestError::Refused { method, path: shape(path), status: answer.status, errcode })
}

/// A path without its query and ids, so that a thousand like failures read as one.
fn shape(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let mut shape = String::new();
    for segment in path.split('/').skip(1) {
        let is_id = segment.contains('%') || segment.len() > 24;
        // Writing to a string cannot fail.
        let _ = write!(shape, "/{}", if is_id { "…" } else { segment });
    }
    shape
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

/// Encodes one path segment or query value.
fn encode(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, RESERVED).into()
}

/// A logged-in device of a user.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The server that the device is logged in to.
    pub(crate) server: Arc<Homeserver>,
    /// The full user id.
    pub(crate) user_id: Arc<str>,
    /// The password, for logging in another device.
    pub(crate) password: Arc<str>,
    /// The access token.
    pub(crate) token: Arc<str>,
}

/// Whether a poll shows its user as online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// As clients do by default.
    Online,
    /// Polling without being seen.
    Offline,
}

/// A `/sync` request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyncRequest<'a> {
    /// The token of the answer before; none for an initial sync.
    pub(crate) since: Option<&'a str>,
    /// How long the server may wait for something new.
    pub(crate) wait: Duration,
    /// A filter as JSON.
    pub(crate) filter: &'a str,
    /// Whether the user is shown as online.
    pub(crate) presence: Presence,
}

/// An event as far as a load test looks at it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    /// The event's id.
    pub(crate) event_id: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

impl Event {
    /// Whether this is a message.
    pub(crate) fn is_message(&self) -> bool {
        self.kind == "m.room.message"
    }
}

/// A page of a room's history.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    /// The events in the order asked for.
    pub(crate) chunk: Vec<Event>,
    /// Where the next page begins; none at the end.
    pub(crate) end: Option<String>,
}

#[derive(Deserialize)]
struct EventId {
    event_id: String,
}

impl Session {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, RequestError> {
        self.server.call(method, path, Some(&self.token), body, Duration::ZERO).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, RequestError> {
        Ok(serde_json::from_slice(&self.call(method, path, body).await?)?)
    }

    /// Asks for a sliding sync on the path that clients and servers in use have in common.
    pub(crate) async fn sliding_sync(&self, pos: Option<&str>, body: &Value) -> Result<Bytes, RequestError> {
        let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
        let path = pos.map_or(path.to_owned(), |pos| format!("{path}&pos={}", encode(pos)));
        self.call(Method::POST, &path, Some(body)).await
    }

    /// Creates a room as `body` says and returns its id.
    pub(crate) async fn create_room(&self, body: &Value) -> Result<String, RequestError> {
        #[derive(Deserialize)]
        struct Created {
            room_id: String,
        }
        let created: Created = self.ask(Method::POST, "/_matrix/client/v3/createRoom", Some(body)).await?;
        Ok(created.room_id)
    }

    /// Joins a room by its id.
    pub(crate) async fn join(&self, room: &str) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/join/{}", encode(room));
        self.call(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// Joins a room through another server.
    pub(crate) async fn join_through(&self, room: &str, via: &str) -> Result<(), RequestError> {
        let via = encode(via);
        // Some servers only know the older name of the parameter.
        let path = format!("/_matrix/client/v3/join/{}?via={via}&server_name={via}", encode(room));
        self.call(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// The name of the server that the user is of.
    pub(crate) fn server_name(&self) -> &str {
        self.user_id.split_once(':').map_or("", |(_, name)| name)
    }

    /// Leaves a room.
    pub(crate) async fn leave(&self, room: &str) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/rooms/{}/leave", encode(room));
        self.call(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// Sends a text message and returns its event id.
    pub(crate) async fn send(&self, room: &str, transaction: &str, text: &str) -> Result<String, RequestError> {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{}", encode(room), encode(transaction));
        let body = json!({ "msgtype": "m.text", "body": text });
        let sent: EventId = self.ask(Method::PUT, &path, Some(&body)).await?;
        Ok(sent.event_id)
    }

    /// Sets a piece of a room's state.
    pub(crate) async fn set_state(
        &self,
        room: &str,
        kind: &str,
        key: &str,
        content: &Value,
    ) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/rooms/{}/state/{}/{}", encode(room), encode(kind), encode(key));
        self.ask::<EventId>(Method::PUT, &path, Some(content)).await.map(drop)
    }

    /// Starts or stops typing.
    pub(crate) async fn set_typing(&self, room: &str, typing: bool) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/rooms/{}/typing/{}", encode(room), encode(&self.user_id));
        let body = if typing { json!({ "typing": true, "timeout": 10_000 }) } else { json!({ "typing": false }) };
        self.call(Method::PUT, &path, Some(&body)).await.map(drop)
    }

    /// Marks an event as read.
    pub(crate) async fn mark_read(&self, room: &str, event: &str) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{}", encode(room), encode(event));
        self.call(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// Changes the display name.
    pub(crate) async fn set_display_name(&self, name: &str) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/profile/{}/displayname", encode(&self.user_id));
        self.call(Method::PUT, &path, Some(&json!({ "displayname": name }))).await.map(drop)
    }

    /// Asks for what is new; the body is unparsed.
    pub(crate) async fn sync(&self, request: SyncRequest<'_>) -> Result<Bytes, RequestError> {
        let mut path =
            format!("/_matrix/client/v3/sync?timeout={}&filter={}", request.wait.as_millis(), encode(request.filter));
        if let Some(since) = request.since {
            path.push_str("&since=");
            path.push_str(&encode(since));
        }
        if request.presence == Presence::Offline {
            path.push_str("&set_presence=offline");
        }
        self.server.call(Method::GET, &path, Some(&self.token), None, request.wait).await
    }

    /// One page of history. `from` is none for the newest (or oldest) page, `to` a token at which to stop.
    pub(crate) async fn messages(
        &self,
        room: &str,
        from: Option<&str>,
        to: Option<&str>,
        limit: usize,
    ) -> Result<Page, RequestError> {
        let mut path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit={limit}", encode(room));
        for (key, token) in [("from", from), ("to", to)] {
            if let Some(token) = token {
                let _ = write!(path, "&{key}={}", encode(token));
            }
        }
        self.ask(Method::GET, &path, None).await
    }

    /// The membership events of a room, whatever the membership; the body is unparsed.
    pub(crate) async fn members(&self, room: &str) -> Result<Bytes, RequestError> {
        let path = format!("/_matrix/client/v3/rooms/{}/members", encode(room));
        self.call(Method::GET, &path, None).await
    }

    /// The ids of the users who are joined to a room.
    pub(crate) async fn joined_members(&self, room: &str) -> Result<Vec<String>, RequestError> {
        #[derive(Deserialize)]
        struct Joined {
            joined: std::collections::HashMap<String, serde::de::IgnoredAny>,
        }
        let path = format!("/_matrix/client/v3/rooms/{}/joined_members", encode(room));
        let joined: Joined = self.ask(Method::GET, &path, None).await?;
        Ok(joined.joined.into_keys().collect())
    }

    /// The id of the device.
    pub(crate) async fn device_id(&self) -> Result<String, RequestError> {
        #[derive(Deserialize)]
        struct Whoami {
            device_id: String,
        }
        let whoami: Whoami = self.ask(Method::GET, "/_matrix/client/v3/account/whoami", None).await?;
        Ok(whoami.device_id)
    }

    /// Uploads keys of the device.
    pub(crate) async fn upload_keys(&self, keys: &Value) -> Result<(), RequestError> {
        self.call(Method::POST, "/_matrix/client/v3/keys/upload", Some(keys)).await.map(drop)
    }

    /// The keys that a question asks for; the body is unparsed.
    pub(crate) async fn keys(&self, question: &Value) -> Result<Bytes, RequestError> {
        self.call(Method::POST, "/_matrix/client/v3/keys/query", Some(question)).await
    }

    /// Sends messages to devices.
    pub(crate) async fn send_to_device(
        &self,
        kind: &str,
        transaction: &str,
        messages: &Value,
    ) -> Result<(), RequestError> {
        let path = format!("/_matrix/client/v3/sendToDevice/{}/{}", encode(kind), encode(transaction));
        self.call(Method::PUT, &path, Some(messages)).await.map(drop)
    }

    /// Logs in another device of the same user.
    pub(crate) async fn log_in_again(&self) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        struct LoggedIn {
            access_token: String,
        }
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": *self.user_id },
            "password": *self.password,
        });
        let answer =
            self.server.call(Method::POST, "/_matrix/client/v3/login", None, Some(&body), Duration::ZERO).await?;
        let logged_in: LoggedIn = serde_json::from_slice(&answer)?;
        Ok(Self { token: logged_in.access_token.into(), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failures are told apart by endpoint, not by room or event.
    #[test]
    fn a_shape_has_no_ids_and_no_query() {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&from=t1", encode("!room:example.org"));
        assert_eq!(shape(&path), "/_matrix/client/v3/rooms/…/messages");
    }

    /// Ids hold characters that would end a path or a query.
    #[test]
    fn ids_are_encoded_whole() {
        assert_eq!(encode("$a/b?c#d+e:f-g_h"), "%24a%2Fb%3Fc%23d%2Be%3Af-g_h");
    }
}
