//! What other servers must not get away with: each is refused, and the room goes on.

use ruma::{CanonicalJsonValue, ServerName, signatures::hash_and_sign_event};
use serde_json::{Value, json};

use super::*;
use crate::{Outcome, writer::rules_of};

/// A room of one server that a user of another one, which may lie, is in.
pub(super) struct Scene {
    pub(super) network: std::sync::Arc<Network>,
    pub(super) room: OwnedRoomId,
    pub(super) alice: OwnedUserId,
    pub(super) bob: OwnedUserId,
}

impl Scene {
    pub(super) async fn new(version: RoomVersionId) -> Self {
        let network = embedded(3).await;
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        let room = network.create(0, &alice, version, Preset::PublicChat).await;
        network.enter(1, &room, 0, &bob, Join).await.unwrap();
        network.deliver().await;
        Self { network, room, alice, bob }
    }

    /// A message of bob's as his server would make it, to be changed and signed.
    pub(super) async fn draft(&self) -> CanonicalJsonObject {
        let rooms = self.network.rooms(1);
        let room = self.network.room(1, &self.room).await;
        let mut attempts = rooms.attempts(&room);
        let mut writer = attempts.open().await.unwrap();
        writer.propose(&message(&self.bob, "hello")).await.unwrap()
    }

    /// Signs by a server's key and sends it as that server, or as another one says it is.
    async fn offer(&self, object: CanonicalJsonObject, by: usize) -> Vec<Outcome> {
        self.send(&self.signed(object, by).await, &name(by)).await
    }

    /// An event signed by a server's key.
    pub(super) async fn signed(&self, mut object: CanonicalJsonObject, by: usize) -> Value {
        let rooms = self.network.rooms(by);
        let rules = rules_of(&self.network.room(1, &self.room).await.version).unwrap();
        hash_and_sign_event(name(by).as_str(), &rooms.key, &mut object, &rules.redaction).unwrap();
        serde_json::to_value(&object).unwrap()
    }

    async fn send(&self, event: &Value, origin: &ServerName) -> Vec<Outcome> {
        let pdu = serde_json::value::RawValue::from_string(event.to_string()).unwrap();
        self.network.rooms(0).receive(origin, vec![pdu]).await.unwrap()
    }

    /// After whatever was tried, the two still hear each other and agree.
    pub(super) async fn must_go_on(&self) {
        self.network.send(0, &self.room, message(&self.alice, "still here")).await.unwrap();
        self.network.send(1, &self.room, message(&self.bob, "so am I")).await.unwrap();
        self.network.deliver().await;
        must_agree(&self.network, &self.room, &[0, 1]).await;
        let heard = bodies(&self.network, 0, &self.room, &self.alice, 100).await;
        assert!(heard.contains(&"so am I".to_owned()), "{heard:?}");
        assert!(!heard.iter().any(|body| body == "hello"), "{heard:?}");
    }
}

pub(super) fn set(object: &mut CanonicalJsonObject, field: &str, value: Value) {
    object.insert(field.into(), CanonicalJsonValue::try_from(value).unwrap());
}

pub(super) fn refused(outcomes: &[Outcome], reason: &str) {
    let [(_, Err(error))] = outcomes else { panic!("{reason}: {outcomes:?}") };
    assert!(error.contains(reason), "{error:?} says nothing of {reason:?}");
}

/// Signed by another server than the sender's, or not at all.
#[tokio::test]
async fn signatures() {
    let scene = Scene::new(RoomVersionId::V11).await;
    refused(&scene.offer(scene.draft().await, 2).await, "signature");
    let mut unsigned = serde_json::to_value(scene.draft().await).unwrap();
    unsigned["hashes"] = json!({ "sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos" });
    unsigned["signatures"] = json!({});
    refused(&scene.send(&unsigned, &name(1)).await, "signature");
    scene.must_go_on().await;
}

/// An event whose content was changed after it was signed is kept without that content.
#[tokio::test]
async fn changed_contents_are_redacted() {
    let scene = Scene::new(RoomVersionId::V11).await;
    let mut object = scene.draft().await;
    let rules = rules_of(&RoomVersionId::V11).unwrap();
    let key = &scene.network.rooms(1).key;
    hash_and_sign_event("s1.test", key, &mut object, &rules.redaction).unwrap();
    let mut event = serde_json::to_value(&object).unwrap();
    event["content"]["body"] = json!("hello, changed");
    let outcomes = scene.send(&event, &name(1)).await;
    let [(event_id, Ok(()))] = &outcomes[..] else { panic!("{outcomes:?}") };
    let stored = scene.network.rooms(0).store().event_by_id(event_id).await.unwrap().unwrap();
    assert_eq!(stored.content(), "{}");
}

/// Events that claim a past that is none: another room's auth events, unknown predecessors, a depth beyond all.
#[tokio::test]
async fn impossible_places() {
    let scene = Scene::new(RoomVersionId::V10).await;
    let other = scene.network.create(0, &scene.alice, RoomVersionId::V10, Preset::PublicChat).await;
    let others: Vec<String> = scene.network.state(0, &other).await.into_values().collect();

    let mut object = scene.draft().await;
    set(&mut object, "auth_events", json!(others[..3]));
    refused(&scene.offer(object, 1).await, "");

    let mut object = scene.draft().await;
    set(&mut object, "prev_events", json!([format!("${}", "a".repeat(43))]));
    refused(&scene.offer(object, 1).await, "could not be had");

    let mut object = scene.draft().await;
    set(&mut object, "prev_events", json!(vec![format!("${}", "a".repeat(43)); 200]));
    assert!(matches!(scene.offer(object, 1).await[..], [] | [(_, Err(_))]), "far too many predecessors");

    let mut object = scene.draft().await;
    set(&mut object, "depth", json!((1_i64 << 53) - 1));
    set(&mut object, "content", json!({ "body": "deep" }));
    assert!(matches!(scene.offer(object, 1).await[..], [(_, Ok(()))]));
    scene.must_go_on().await;
}

/// What the rules of the room forbid is kept as rejected, and shown to nobody.
#[tokio::test]
async fn forbidden_events() {
    let scene = Scene::new(RoomVersionId::V12).await;
    // Not his to change.
    let mut object = scene.draft().await;
    set(&mut object, "type", json!("m.room.name"));
    set(&mut object, "state_key", json!(""));
    refused(&scene.offer(object, 1).await, "not allowed");
    // In the name of someone else.
    let mut object = scene.draft().await;
    set(&mut object, "sender", json!(scene.alice));
    refused(&scene.offer(object, 1).await, "signature");
    // A second beginning.
    let mut object = scene.draft().await;
    set(&mut object, "type", json!("m.room.create"));
    set(&mut object, "state_key", json!(""));
    assert!(matches!(scene.offer(object, 1).await[..], [] | [(_, Err(_))]));
    // A room that is not his, or none.
    let mut object = scene.draft().await;
    set(&mut object, "room_id", json!("!elsewhere:s0.test"));
    assert!(scene.offer(object, 1).await.is_empty());
    scene.must_go_on().await;
    let state = scene.network.state(0, &scene.room).await;
    assert!(!state.contains_key(&("m.room.name".to_owned(), String::new())));
}

/// Not canonical, too large, not an object: dropped without a trace.
#[tokio::test]
async fn malformed_events() {
    let scene = Scene::new(RoomVersionId::V11).await;
    let draft = serde_json::to_value(scene.draft().await).unwrap();
    let with = |field: &str, value: Value| {
        let mut event = draft.clone();
        event[field] = value;
        event
    };
    let events = [
        with("content", json!({ "body": 1.5 })),
        with("content", json!({ "body": 9_007_199_254_740_993_i64 })),
        with("content", json!({ "body": "x".repeat(70_000) })),
        with("content", json!("text")),
        with("depth", json!(-1)),
        with("type", json!(7)),
        with("sender", json!("bob")),
        with("origin_server_ts", json!("now")),
        json!({ "room_id": scene.room }),
        json!({ "room_id": 5 }),
        json!([]),
    ];
    for event in events {
        let outcomes = scene.send(&event, &name(1)).await;
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_err()), "{event}: {outcomes:?}");
    }
    scene.must_go_on().await;
}

/// A server that the room's access control list denies is not heard.
#[tokio::test]
async fn denied_servers() {
    let scene = Scene::new(RoomVersionId::V11).await;
    let acl = content(json!({ "allow": ["*"], "deny": ["s1.test"] }));
    scene.network.send(0, &scene.room, Template::state(&scene.alice, "m.room.server_acl", "", acl)).await.unwrap();
    refused(&scene.offer(scene.draft().await, 1).await, "");
    let denied = user("late", 1);
    assert!(scene.network.enter(1, &scene.room, 0, &denied, Leave).await.is_err());
    assert!(scene.network.rooms(0).make_join_for(&name(1), &scene.room, &denied, &room_versions()).await.is_err());
}

/// Whoever is not in the room, and was not let in, cannot put anything into it.
#[tokio::test]
async fn strangers() {
    let scene = Scene::new(RoomVersionId::V11).await;
    let mallory = user("mallory", 2);
    let mut object = scene.draft().await;
    set(&mut object, "sender", json!(mallory));
    refused(&scene.offer(object, 2).await, "");
    scene.must_go_on().await;
}
