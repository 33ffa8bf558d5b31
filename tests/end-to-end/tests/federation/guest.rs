//! Somebody in a room that is held by several servers, and what they see of it.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use myelin_end_to_end::{Answer, Method, Peer, Person, encode, eventually};
use serde_json::{Value, json};

/// How long anything may take to reach another server, on a machine that has much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two questions, so that the servers that are asked get to their work.
const PAUSE: Duration = Duration::from_millis(40);

/// A user of one of the servers.
#[derive(Clone, Debug)]
pub(crate) struct Guest(Person);

impl Deref for Guest {
    type Target = Person;

    fn deref(&self) -> &Person {
        &self.0
    }
}

impl Guest {
    /// Registers somebody whose name nobody else has.
    pub(crate) async fn of(peer: &Peer, name: &str) -> Self {
        Self(peer.register(&format!("{name}-{}", next())).await)
    }

    /// Joins a room by its id or by an alias, through another server.
    pub(crate) async fn join_through(&self, room: &str, via: &Peer) -> Answer {
        let (room, via) = (encode(room), encode(via.name()));
        // Some servers only know the older name of the parameter.
        self.post(&format!("join/{room}?via={via}&server_name={via}"), json!({})).await
    }

    /// Says something and returns the event's id.
    pub(crate) async fn says(&self, room: &str, words: &str) -> String {
        self.sends(room, "m.room.message", json!({ "msgtype": "m.text", "body": words })).await
    }

    /// Sends an event and returns its id.
    pub(crate) async fn sends(&self, room: &str, kind: &str, content: Value) -> String {
        let path = format!("rooms/{}/send/{kind}/t{}", encode(room), next());
        event_id(&self.put(&path, content).await)
    }

    /// Answers an event with a reaction.
    pub(crate) async fn reacts(&self, room: &str, event: &str, key: &str) -> String {
        let relation = json!({ "rel_type": "m.annotation", "event_id": event, "key": key });
        self.sends(room, "m.reaction", json!({ "m.relates_to": relation })).await
    }

    /// Takes an event back.
    pub(crate) async fn redacts(&self, room: &str, event: &str) -> String {
        let path = format!("rooms/{}/redact/{}/t{}", encode(room), encode(event), next());
        event_id(&self.put(&path, json!({ "reason": "a test" })).await)
    }

    /// Changes a state event.
    pub(crate) async fn sets(&self, room: &str, kind: &str, key: &str, content: Value) -> Answer {
        self.put(&format!("rooms/{}/state/{kind}/{}", encode(room), encode(key)), content).await
    }

    /// Changes the membership of somebody by one of the endpoints `invite`, `kick`, `ban` and `unban`.
    pub(crate) async fn does(&self, what: &str, room: &str, whom: &Person) -> Answer {
        self.post(&format!("rooms/{}/{what}", encode(room)), json!({ "user_id": whom.user_id() })).await
    }

    /// Leaves a room, or refuses an invitation to it.
    pub(crate) async fn leaves(&self, room: &str) {
        self.post(&format!("rooms/{}/leave", encode(room)), json!({})).await.ok();
    }

    /// The content of a state event, if it is there and may be seen.
    pub(crate) async fn state(&self, room: &str, kind: &str, key: &str) -> Option<Value> {
        let path = format!("rooms/{}/state/{kind}/{}", encode(room), encode(key));
        let answer = self.get(&path).await;
        (answer.status == 200).then(|| answer.json())
    }

    /// Every state event's id, by type and key.
    pub(crate) async fn whole_state(&self, room: &str) -> BTreeMap<(String, String), String> {
        let state = self.get(&format!("rooms/{}/state", encode(room))).await.ok();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entry = |event: &Value| ((text(&event["type"]), text(&event["state_key"])), text(&event["event_id"]));
        state.as_array().unwrap().iter().map(entry).collect()
    }

    /// An event, if it is there and may be seen.
    pub(crate) async fn event(&self, room: &str, event: &str) -> Option<Value> {
        let answer = self.get(&format!("rooms/{}/event/{}", encode(room), encode(event))).await;
        (answer.status == 200).then(|| answer.json())
    }

    /// Waits until an event has come.
    pub(crate) async fn sees(&self, room: &str, event: &str) -> Value {
        let what = format!("{} sees {event}", self.user_id());
        wait(&what, async || self.event(room, event).await).await
    }

    /// Waits until an event has lost its content.
    pub(crate) async fn sees_redacted(&self, room: &str, event: &str) {
        let what = format!("{} sees {event} redacted", self.user_id());
        wait(&what, async || {
            let event = self.event(room, event).await?;
            event["content"].as_object()?.is_empty().then_some(())
        })
        .await;
    }

    /// Waits until somebody has a membership.
    pub(crate) async fn sees_member(&self, room: &str, whom: &Person, membership: &str) {
        let what = format!("{} sees {} as {membership}", self.user_id(), whom.user_id());
        wait(&what, async || {
            let member = self.state(room, "m.room.member", whom.user_id()).await?;
            (member["membership"] == membership).then_some(())
        })
        .await;
    }

    /// Waits until a state event has a value at a key of its content.
    pub(crate) async fn sees_state(&self, room: &str, kind: &str, pointer: &str, value: &Value) {
        let what = format!("{} sees {value} at {pointer} of {kind}", self.user_id());
        wait(&what, async || {
            let content = self.state(room, kind, "").await?;
            (content.pointer(pointer) == Some(value)).then_some(())
        })
        .await;
    }

    /// Waits until one's sync has the room in a section, such as `invite`, and returns what it says of it.
    pub(crate) async fn finds(&self, section: &str, room: &str) -> Value {
        let what = format!("{} finds {room} in {section}", self.user_id());
        wait(&what, async || self.everything().await["rooms"][section].get(room).cloned()).await
    }

    /// The answer to a sync from the beginning, with rooms that were left.
    pub(crate) async fn everything(&self) -> Value {
        // A filter that was never used before: some servers give an old answer to the same question.
        let new = json!([format!("org.example.{}", next())]);
        self.sync(None, &json!({ "presence": { "not_types": new }, "room": { "include_leave": true } })).await
    }

    /// The words of the whole history, oldest first.
    pub(crate) async fn history(&self, room: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut from = String::new();
        loop {
            let path = format!("rooms/{}/messages?dir=b&limit=100{from}", encode(room));
            let page = self.get(&path).await.ok();
            let chunk = page["chunk"].as_array().unwrap();
            let bodies = chunk.iter().filter(|event| event["type"] == "m.room.message");
            words.extend(bodies.filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned())));
            match page["end"].as_str() {
                Some(end) => from = format!("&from={}", encode(end)),
                None => break,
            }
        }
        words.reverse();
        words
    }

    /// Asks until the answer is a success, as a user does who tries again.
    pub(crate) async fn insists(&self, method: Method, path: &str, body: Value) -> Value {
        wait(&format!("{} succeeds with {path}", self.user_id()), async || {
            let answer = self.send_json(method.clone(), path, &body).await.ok()?;
            (answer.status == 200).then(|| answer.json())
        })
        .await
    }
}

/// The id of the event that a request made.
pub(crate) fn event_id(answer: &Answer) -> String {
    answer.ok()["event_id"].as_str().unwrap().to_owned()
}

/// Asks until there is an answer.
pub(crate) async fn wait<T>(what: &str, probe: impl AsyncFn() -> Option<T>) -> T {
    eventually(what, PATIENCE, || async {
        let found = probe().await;
        if found.is_none() {
            tokio::time::sleep(PAUSE).await;
        }
        found
    })
    .await
}

/// Waits until two servers, asked by a member each, have the same state of a room.
pub(crate) async fn agree(one: &Guest, other: &Guest, room: &str) {
    let states = async || (one.whole_state(room).await, other.whole_state(room).await);
    let so = async || {
        let (ours, theirs) = states().await;
        (ours == theirs).then_some(())
    };
    let told = tokio::time::timeout(PATIENCE, wait("the servers agree", so)).await;
    if told.is_err() {
        let (ours, theirs) = states().await;
        panic!("{room}: the servers do not agree: {ours:#?} {theirs:#?}");
    }
}

/// A number that no other caller has.
pub(crate) fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
