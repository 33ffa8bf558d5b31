use std::{fmt::Write as _, ops::Deref, time::Duration};

use bytes::Bytes;
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

/// Longer than any answer may take, a long poll included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// An HTTP client to be made, which goes to no proxy and waits for long polls.
pub fn http() -> reqwest::ClientBuilder {
    // Where another test has chosen already, it was the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT)
}

/// Asks a homeserver and shows what it answered, without interpreting it.
///
/// Paths are those of the client-server API behind `/_matrix/client/v3/`, or whole when they begin with `/`.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Api {
    /// A client of the homeserver at `base`, such as `http://127.0.0.1:8008`, that has not logged in.
    pub fn new(base: impl Into<String>) -> Self {
        Self::by(http().build().expect("make an HTTP client"), base)
    }

    /// The same with an HTTP client of the test's own.
    pub fn by(http: reqwest::Client, base: impl Into<String>) -> Self {
        Self { http, base: base.into(), token: None }
    }

    /// Where the homeserver is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same client with another access token.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The same client without an access token.
    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// The access token, if there is one.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.must(Method::GET, path, None).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.must(Method::DELETE, path, None).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.must(Method::POST, path, Some(body)).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.must(Method::PUT, path, Some(body)).await
    }

    /// Any method with any bytes as the body, which need not be JSON.
    ///
    /// # Errors
    ///
    /// When no answer came, because the server was not there or went away.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> reqwest::Result<Answer> {
        let url = match path.starts_with('/') {
            true => format!("{}{path}", self.base),
            false => format!("{}/_matrix/client/v3/{path}", self.base),
        };
        let mut request = self.http.request(method.clone(), url);
        let body = body.into();
        if !body.is_empty() {
            request = request.header("content-type", "application/json").body(body);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await?;
        Ok(Answer {
            asked: format!("{method} {path}"),
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await?,
        })
    }

    /// [`Self::send`] with a JSON body.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub async fn send_json(&self, method: Method, path: &str, body: &Value) -> reqwest::Result<Answer> {
        self.send(method, path, body.to_string()).await
    }

    async fn must(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let asked = format!("{method} {path}");
        self.send(method, path, body).await.unwrap_or_else(|error| panic!("{asked}: no answer: {error:?}"))
    }
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    asked: String,
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body of an answer that must be a success.
    ///
    /// # Panics
    ///
    /// When it is none, or its body is not JSON.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self}");
        self.json()
    }

    /// The body of an answer that must be a refusal with this status and this `errcode`, which web clients may read.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub fn refused(&self, status: u16, errcode: &str) -> Value {
        let body = self.json();
        assert_eq!((self.status, body["errcode"].as_str()), (status, Some(errcode)), "{self}");
        assert!(body["error"].is_string(), "an error says something to people: {self}");
        let origin = self.headers.get("access-control-allow-origin").map(|value| value.as_bytes());
        assert_eq!(origin, Some(&b"*"[..]), "web clients may read every answer: {self}");
        body
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.text().chars().take(2000).collect();
        write!(formatter, "{} answered {} {body}", self.asked, self.status)
    }
}

/// Somebody who is logged in, and the client they use.
#[derive(Clone, Debug)]
pub struct Person {
    api: Api,
    name: String,
    user_id: String,
    device_id: String,
}

impl Person {
    /// The password of everybody.
    pub const PASSWORD: &str = "a long pass phrase for everybody";

    /// Registers an account by the dummy stage.
    ///
    /// # Panics
    ///
    /// When the homeserver does not let them.
    pub async fn register(api: &Api, name: &str) -> Self {
        let api = api.without_token();
        let mut request = json!({ "username": name, "password": Self::PASSWORD });
        let stages = api.post("register", request.clone()).await;
        assert_eq!(stages.status, 401, "registration asks for the dummy stage first: {stages}");
        request["auth"] = json!({ "type": "m.login.dummy", "session": stages.json()["session"] });
        Self::from_session(&api, name, &api.post("register", request).await.ok())
    }

    /// Logs in again, as another device.
    pub async fn log_in(&self) -> Self {
        let request = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": self.name },
            "password": Self::PASSWORD,
        });
        let session = self.api.without_token().post("login", request).await.ok();
        Self::from_session(&self.api, &self.name, &session)
    }

    fn from_session(api: &Api, name: &str, session: &Value) -> Self {
        Self {
            api: api.with_token(text(&session["access_token"])),
            name: name.to_owned(),
            user_id: text(&session["user_id"]),
            device_id: text(&session["device_id"]),
        }
    }

    /// The same session at another replica.
    pub fn at(&self, base: impl Into<String>) -> Self {
        Self { api: Api { base: base.into(), ..self.api.clone() }, ..self.clone() }
    }

    /// The full user id.
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// The device that this session belongs to.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// Creates a room and returns its id.
    pub async fn create_room(&self, request: Value) -> String {
        text(&self.post("createRoom", request).await.ok()["room_id"])
    }

    /// Creates a room that anybody may join and returns its id.
    pub async fn create_public_room(&self) -> String {
        self.create_room(json!({ "preset": "public_chat" })).await
    }

    /// Joins a room.
    pub async fn join(&self, room: &str) {
        self.post(&format!("rooms/{room}/join"), json!({})).await.ok();
    }

    /// Sends a text message and returns its event id.
    pub async fn say(&self, room: &str, transaction: &str, words: &str) -> String {
        let path = format!("rooms/{room}/send/m.room.message/{transaction}");
        let content = json!({ "msgtype": "m.text", "body": words });
        text(&self.put(&path, content).await.ok()["event_id"])
    }

    /// Syncs with a filter, from a token on or from nothing, and returns without waiting.
    pub async fn sync(&self, since: Option<&str>, filter: &Value) -> Value {
        let mut path = format!("sync?timeout=0&filter={}", encode(&filter.to_string()));
        if let Some(since) = since {
            path.push_str("&since=");
            path.push_str(&encode(since));
        }
        self.get(&path).await.ok()
    }
}

impl Deref for Person {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string where {value} is")).to_owned()
}

/// Percent-encodes a word for use in a path or a query.
pub fn encode(word: &str) -> String {
    let mut encoded = String::with_capacity(word.len());
    for byte in word.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => write!(encoded, "%{byte:02X}").expect("a string can be written to"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has a meaning in an address loses it.
    #[test]
    fn reserved_and_foreign_characters_are_encoded() {
        assert_eq!(encode("#a room:ex.org/ä?"), "%23a%20room%3Aex.org%2F%C3%A4%3F");
        assert_eq!(encode("a-b_c.d~e"), "a-b_c.d~e");
    }
}
