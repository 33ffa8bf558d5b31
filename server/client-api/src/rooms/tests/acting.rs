use http::StatusCode;
use serde_json::{Value, json};

use super::{Client, FORBIDDEN, refused, segment};
use crate::testing::{Server, on_both};

const BAD_JSON: (StatusCode, &str) = (StatusCode::BAD_REQUEST, "M_BAD_JSON");

/// A repeated transaction has no further effect; the same id at another place has.
#[tokio::test]
async fn transactions_are_idempotent() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create(json!({})).await;
        let send = async |path: &str| {
            let answer = alice.put(&format!("{room}/send/{path}"), json!({ "body": "x" })).await;
            alice.ok(answer)["event_id"].as_str().unwrap().to_owned()
        };
        let first = send("m.room.message/1").await;
        assert_eq!(send("m.room.message/1").await, first);
        assert_ne!(send("org.example.message/1").await, first);
        // The type is the client's to choose; it must not be taken for a part of the transaction's id.
        let odd = send("org%20example%2Fa%25/2%203").await;
        assert_eq!(send("org%20example%2Fa%25/2%203").await, odd);
        let events = alice.timeline(&room, "dir=b&limit=3").await;
        assert_eq!(events[0]["event_id"], odd.as_str());
        assert_eq!(events[0]["type"], "org example/a%");
        assert_eq!(events[0]["unsigned"]["transaction_id"], "2 3");
        assert_eq!(events[2]["event_id"], first.as_str());
        let redact = format!("{room}/redact/{}/1", segment(&first));
        let redaction = alice.ok(alice.put(&redact, json!({})).await);
        assert_eq!(alice.ok(alice.put(&redact, json!({})).await), redaction);
    })
    .await;
}

/// Redactions take the content away, by either endpoint and in old versions as in new ones.
#[tokio::test]
async fn redactions() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        for version in ["10", "12"] {
            let room = alice.create(json!({ "preset": "public_chat", "room_version": version })).await;
            bob.join(&room).await;
            let hers = alice.say(&room, "one").await;
            let his = bob.say(&room, "two").await;
            let redact = |event: &str, txn: &str| format!("{room}/redact/{}/{txn}", segment(event));
            refused(&bob.put(&redact(&hers, "1"), json!({})).await, FORBIDDEN);
            alice.ok(alice.put(&redact(&his, "1"), json!({ "reason": "rude" })).await);
            let by_send = json!({ "redacts": hers, "reason": "oops" });
            alice.ok(alice.put(&format!("{room}/send/m.room.redaction/2"), by_send).await);
            assert_eq!(alice.history(&room, 10).await, ["redacted", "redacted"], "version {version}");
            let event = alice.ok(alice.get(&format!("{room}/event/{}", segment(&his))).await);
            assert_eq!(event["content"], json!({}));
            assert_eq!(event["unsigned"]["redacted_because"]["content"]["reason"], "rude");
            let nothing = alice.put(&redact("$nothing", "3"), json!({})).await;
            refused(&nothing, (StatusCode::NOT_FOUND, "M_NOT_FOUND"));
            let missing = alice.put(&format!("{room}/send/m.room.redaction/4"), json!({})).await;
            refused(&missing, (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"));
        }
    })
    .await;
}

/// What an event may not be is refused with the errcode that says so, and is not in the room.
#[tokio::test]
async fn bad_events_are_refused() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create(json!({})).await;
        let before = alice.timeline(&room, "dir=b&limit=100").await.len();
        let send = async |body: Value| alice.put(&format!("{room}/send/m.room.message/t"), body).await;
        refused(&send(json!({ "n": 1.5 })).await, BAD_JSON);
        refused(&send(json!({ "n": 9_007_199_254_740_992_i64 })).await, BAD_JSON);
        refused(&send(json!([])).await, BAD_JSON);
        let large = send(json!({ "body": "x".repeat(66_000) })).await;
        refused(&large, (StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE"));
        let long = alice.put(&format!("{room}/send/{}/t", "x".repeat(256)), json!({})).await;
        assert!(long.status().is_client_error());
        refused(&alice.set(&room, "m.room.create", json!({})).await, FORBIDDEN);
        refused(&alice.put(&format!("{room}/send/m.room.member/t"), json!({})).await, BAD_JSON);
        assert_eq!(alice.timeline(&room, "dir=b&limit=100").await.len(), before);
    })
    .await;
}

/// Power levels hold, also for those who would raise their own.
#[tokio::test]
async fn power_levels_hold() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await;
        refused(&bob.set(&room, "m.room.name", json!({ "name": "x" })).await, FORBIDDEN);
        let mut levels = alice.ok(alice.get(&format!("{room}/state/m.room.power_levels")).await);
        levels["users"][&bob.user_id] = json!(100);
        refused(&bob.set(&room, "m.room.power_levels", levels.clone()).await, FORBIDDEN);
        levels["users"][&bob.user_id] = json!(50);
        alice.ok(alice.set(&room, "m.room.power_levels", levels).await);
        bob.ok(bob.set(&room, "m.room.name", json!({ "name": "x" })).await);
        refused(&bob.set(&room, "m.room.encryption", json!({})).await, FORBIDDEN);
    })
    .await;
}

/// State is set and read with the key, with an empty one, and without one; alone or as an event.
#[tokio::test]
async fn state_is_set_and_read() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create(json!({})).await;
        let topic = json!({ "topic": "a" });
        let first = alice.ok(alice.put(&format!("{room}/state/m.room.topic"), topic.clone()).await);
        let second = alice.ok(alice.put(&format!("{room}/state/m.room.topic/"), json!({ "topic": "b" })).await);
        assert_ne!(first, second);
        let same = alice.ok(alice.put(&format!("{room}/state/m.room.topic/"), json!({ "topic": "b" })).await);
        assert_eq!(same, second);
        for path in ["m.room.topic", "m.room.topic/", "m.room.topic?format=content"] {
            assert_eq!(alice.ok(alice.get(&format!("{room}/state/{path}")).await), json!({ "topic": "b" }));
        }
        let event = alice.ok(alice.get(&format!("{room}/state/m.room.topic/?format=event")).await);
        assert_eq!((&event["event_id"], &event["state_key"]), (&second["event_id"], &json!("")));
        assert_eq!(event["unsigned"]["prev_content"], topic);
        let keyed = format!("{room}/state/org.example/%C3%A9%2F%20");
        alice.ok(alice.put(&keyed, json!({ "n": 1 })).await);
        assert_eq!(alice.ok(alice.get(&keyed).await), json!({ "n": 1 }));
        let missing = alice.get(&format!("{room}/state/org.example/other")).await;
        refused(&missing, (StatusCode::NOT_FOUND, "M_NOT_FOUND"));
        let format = alice.get(&format!("{room}/state/m.room.topic?format=other")).await;
        refused(&format, (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"));
        let all = alice.ok(alice.get(&format!("{room}/state")).await);
        let found = all.as_array().unwrap().iter().find(|event| event["type"] == "m.room.topic").unwrap();
        assert_eq!(found["event_id"], second["event_id"]);
    })
    .await;
}

/// A room names only aliases that point to it, unless it named them before.
#[tokio::test]
async fn canonical_aliases_are_checked() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create(json!({ "room_alias_name": "here" })).await;
        alice.create(json!({ "room_alias_name": "there" })).await;
        let set = async |content| alice.set(&room, "m.room.canonical_alias", content).await;
        let bad_alias = (StatusCode::BAD_REQUEST, "M_BAD_ALIAS");
        refused(&set(json!({ "alias": "#there:example.org" })).await, bad_alias);
        refused(&set(json!({ "alt_aliases": ["#nowhere:example.org"] })).await, bad_alias);
        refused(&set(json!({ "alt_aliases": ["#here:elsewhere.example"] })).await, bad_alias);
        let invalid = (StatusCode::BAD_REQUEST, "M_INVALID_PARAM");
        refused(&set(json!({ "alias": "here" })).await, invalid);
        refused(&set(json!({ "alt_aliases": "#here:example.org" })).await, invalid);
        alice.ok(set(json!({ "alias": "#here:example.org", "alt_aliases": ["#here:example.org"] })).await);
        alice.ok(alice.delete("/directory/room/%23here%3Aexample.org").await);
        let left = alice.ok(alice.get(&format!("{room}/state/m.room.canonical_alias")).await);
        assert_eq!(left, json!({ "alt_aliases": [] }));
    })
    .await;
}

/// Nobody can tell a room that they are not in from one that does not exist.
#[tokio::test]
async fn outsiders_learn_nothing() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let mallory = Client::new(server, "mallory").await;
        let room = alice.create(json!({ "room_alias_name": "secret" })).await;
        let event = segment(&alice.say(&room, "secret").await);
        for path in [
            "/state",
            "/state/m.room.name",
            "/state/m.room.create/",
            "/members",
            "/joined_members",
            "/messages?dir=b",
            "/aliases",
            "/context/EVENT",
            "/event/EVENT",
        ] {
            let path = path.replace("EVENT", &event);
            let real = mallory.get(&format!("{room}{path}")).await;
            let unknown = mallory.get(&format!("/rooms/%21nowhere%3Aexample.org{path}")).await;
            assert_eq!(real.body(), unknown.body(), "{path}");
            let expected = if path.starts_with("/event/") { StatusCode::NOT_FOUND } else { StatusCode::FORBIDDEN };
            assert_eq!((real.status(), unknown.status()), (expected, expected), "{path}");
        }
        for (path, body) in [
            ("/send/m.room.message/1", json!({ "body": "x" })),
            ("/send/m.room.redaction/2", json!({ "redacts": "$nothing" })),
            ("/redact/EVENT/3", json!({})),
            ("/state/m.room.name", json!({ "name": "x" })),
            ("/state/m.room.canonical_alias", json!({ "alias": "#nowhere:example.org" })),
            ("/state/m.room.member/@mallory:example.org", json!({ "membership": "join" })),
        ] {
            let path = path.replace("EVENT", &event);
            let real = mallory.put(&format!("{room}{path}"), body.clone()).await;
            let unknown = mallory.put(&format!("/rooms/%21nowhere%3Aexample.org{path}"), body).await;
            assert_eq!(real.body(), unknown.body(), "{path}");
            assert_eq!((real.status(), unknown.status()), (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN), "{path}");
        }
        let someone = json!({ "user_id": "@alice:example.org" });
        for (path, body) in [
            ("/invite", someone.clone()),
            ("/kick", someone.clone()),
            ("/ban", someone.clone()),
            ("/unban", someone),
            ("/leave", json!({})),
            ("/forget", json!({})),
            ("/upgrade", json!({ "new_version": "12" })),
        ] {
            let real = mallory.post(&format!("{room}{path}"), body.clone()).await;
            let unknown = mallory.post(&format!("/rooms/%21nowhere%3Aexample.org{path}"), body).await;
            assert_eq!(real.body(), unknown.body(), "{path}");
            assert_eq!((real.status(), unknown.status()), (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN), "{path}");
        }
        assert_eq!(alice.history(&room, 10).await, ["secret"]);
    })
    .await;
}
