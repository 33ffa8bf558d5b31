//! What rooms promise to clients, through the router.

mod acting;
mod creating;
mod directory;
mod elsewhere;
mod membership;
mod reading;
mod relating;
mod spaces;
mod upgrading;

use http::{Method, StatusCode};
use myelin_accounts::{Accounts, AccountsOptions};
use serde_json::{Value, json};

use crate::testing::{Answer, Server};

/// A user with a session.
struct Client<'a> {
    server: &'a Server,
    token: String,
    user_id: String,
}

/// Percent-encodes what a path's segment may not hold as it is.
fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

impl<'a> Client<'a> {
    async fn new(server: &'a Server, name: &str) -> Self {
        Self { server, token: server.user(name).await, user_id: format!("@{name}:example.org") }
    }

    async fn guest(server: &'a Server) -> Self {
        // The accounts of the server do not admit guests; these do, and are kept in the same place.
        let mut options = AccountsOptions::new(server.services.rooms.server_name().clone());
        options.guest_access = true;
        let accounts = Accounts::open(server.services.store.clone(), options).await.unwrap();
        let guest = accounts.register_guest(None).await.unwrap();
        accounts.close().await;
        Self { server, token: guest.access_token, user_id: guest.user_id.to_string() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.server.get(&format!("/_matrix/client/v3{path}"), Some(&self.token)).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.server.post(&format!("/_matrix/client/v3{path}"), Some(&self.token), &body).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.server.request(Method::PUT, &format!("/_matrix/client/v3{path}"), Some(&self.token), &body).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.server.request(Method::DELETE, &format!("/_matrix/client/v3{path}"), Some(&self.token), &json!({})).await
    }

    /// Makes a room; answers the path of it, `/rooms/…`.
    async fn create(&self, wanted: Value) -> String {
        let answer = self.post("/createRoom", wanted).await.json(StatusCode::OK);
        format!("/rooms/{}", segment(answer["room_id"].as_str().unwrap()))
    }

    /// Makes a room that everyone may join, with this history visibility.
    async fn create_public(&self, history_visibility: &str) -> String {
        let state = json!([{
            "type": "m.room.history_visibility",
            "content": { "history_visibility": history_visibility },
        }]);
        self.create(json!({ "preset": "public_chat", "initial_state": state })).await
    }

    #[track_caller]
    fn ok(&self, answer: Answer) -> Value {
        answer.json(StatusCode::OK)
    }

    async fn act(&self, room: &str, action: &str, body: Value) -> Value {
        let answer = self.post(&format!("{room}/{action}"), body).await;
        self.ok(answer)
    }

    async fn join(&self, room: &str) {
        self.act(room, "join", json!({})).await;
    }

    async fn leave(&self, room: &str) {
        self.act(room, "leave", json!({})).await;
    }

    /// Says something; answers the event's id.
    async fn say(&self, room: &str, text: &str) -> String {
        let path = format!("{room}/send/m.room.message/{}", segment(text));
        let answer = self.put(&path, json!({ "msgtype": "m.text", "body": text })).await;
        self.ok(answer)["event_id"].as_str().unwrap().to_owned()
    }

    /// Sets a piece of state with an empty key.
    async fn set(&self, room: &str, event_type: &str, content: Value) -> Answer {
        self.put(&format!("{room}/state/{event_type}"), content).await
    }

    /// The texts of all messages that the user may see, newest first, read page by page.
    async fn history(&self, room: &str, limit: usize) -> Vec<String> {
        self.timeline(room, &format!("dir=b&limit={limit}")).await.iter().filter_map(text).collect()
    }

    /// All events that the user may see, read page by page.
    async fn timeline(&self, room: &str, query: &str) -> Vec<Value> {
        let mut all = Vec::new();
        let mut from = String::new();
        loop {
            let page = self.ok(self.get(&format!("{room}/messages?{query}{from}")).await);
            all.extend(page["chunk"].as_array().unwrap().iter().cloned());
            match page["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None => return all,
            }
        }
    }
}

fn text(event: &Value) -> Option<String> {
    (event["type"] == "m.room.message").then(|| event["content"]["body"].as_str().unwrap_or("redacted").to_owned())
}

/// The room's id from its path.
fn room_id(room: &str) -> String {
    room.trim_start_matches("/rooms/").replace("%21", "!").replace("%3A", ":")
}

const FORBIDDEN: (StatusCode, &str) = (StatusCode::FORBIDDEN, "M_FORBIDDEN");

#[track_caller]
fn refused(answer: &Answer, (status, errcode): (StatusCode, &str)) {
    assert_eq!(answer.errcode(status), errcode);
}
