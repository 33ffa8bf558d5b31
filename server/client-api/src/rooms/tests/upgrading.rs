use std::time::Duration;

use futures_util::FutureExt as _;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Client, FORBIDDEN, refused, room_id, segment};
use crate::testing::{Server, on_both};

async fn upgrade(client: &Client<'_>, room: &str, body: Value) -> String {
    let answer = client.act(room, "upgrade", body).await;
    format!("/rooms/{}", segment(answer["replacement_room"].as_str().unwrap()))
}

/// An upgraded room hands its settings, aliases and place in the directory to the new one, and is closed.
#[tokio::test]
async fn settings_are_carried_over() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let carol = Client::new(server, "carol").await;
        let old = alice
            .create(json!({
                "room_version": "9",
                "preset": "public_chat",
                "visibility": "public",
                "room_alias_name": "tea",
                "name": "Tea",
                "topic": "Leaves",
                "creation_content": { "type": "m.space" },
                "initial_state": [{ "type": "org.example.own", "content": {} }],
                "power_level_content_override": {
                    "users": { "@alice:example.org": "100", "@bob:example.org": 60, "@carol:example.org": 100 },
                },
            }))
            .await;
        bob.join(&old).await;
        carol.join(&old).await;
        alice.ok(alice.put(&format!("{old}/state/m.room.avatar"), json!({ "url": "mxc://example.org/x" })).await);
        let last = alice.say(&old, "last").await;
        refused(&bob.post(&format!("{old}/upgrade"), json!({ "new_version": "12" })).await, FORBIDDEN);
        let unknown = alice.post(&format!("{old}/upgrade"), json!({ "new_version": "no" })).await;
        refused(&unknown, (StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION"));
        let missing = alice.post(&format!("{old}/upgrade"), json!({})).await;
        refused(&missing, (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"));
        assert_eq!(alice.history(&old, 1).await, ["last"]);

        let new = upgrade(&alice, &old, json!({ "new_version": "12", "additional_creators": [carol.user_id] })).await;
        let state = async |room: &str, path: &str| alice.get(&format!("{room}/state/{path}")).await;
        let content = async |room: &str, path: &str| alice.ok(state(room, path).await);
        let create = content(&new, "m.room.create").await;
        assert_eq!((&create["room_version"], &create["type"]), (&json!("12"), &json!("m.space")));
        assert_eq!(create["predecessor"], json!({ "room_id": room_id(&old), "event_id": last }));
        assert_eq!(create["additional_creators"], json!([carol.user_id]));
        for event_type in ["m.room.name", "m.room.topic", "m.room.avatar", "m.room.join_rules", "m.room.guest_access"] {
            assert_eq!(content(&new, event_type).await, content(&old, event_type).await, "{event_type}");
        }
        refused(&state(&new, "org.example.own").await, (StatusCode::NOT_FOUND, "M_NOT_FOUND"));
        let levels = content(&new, "m.room.power_levels").await;
        assert_eq!(levels["users"], json!({ "@bob:example.org": 60 }));
        assert_eq!(levels["events"]["m.room.tombstone"], 150);
        let resolved = alice.ok(alice.get("/directory/room/%23tea%3Aexample.org").await);
        assert_eq!(resolved["room_id"], room_id(&new).as_str());
        assert_eq!(content(&new, "m.room.canonical_alias").await, json!({ "alias": "#tea:example.org" }));
        assert_eq!(content(&old, "m.room.canonical_alias").await, json!({}));
        let listed = alice.ok(alice.get("/publicRooms").await);
        assert_eq!(listed["chunk"].as_array().unwrap().len(), 1);
        assert_eq!(listed["chunk"][0]["room_id"], room_id(&new).as_str());

        assert_eq!(content(&old, "m.room.tombstone").await["replacement_room"], room_id(&new).as_str());
        let dave = Client::new(server, "dave").await;
        dave.join(&old).await;
        refused(&dave.put(&format!("{old}/send/m.room.message/1"), json!({ "body": "x" })).await, FORBIDDEN);
    })
    .await;
}

/// Where the new version gives creators no power of their own, it is written down; other levels stay as they were.
#[tokio::test]
async fn creators_become_listed() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let old = alice.create(json!({ "preset": "public_chat" })).await;
        bob.join(&old).await;
        let mut levels = alice.ok(alice.get(&format!("{old}/state/m.room.power_levels")).await);
        levels["users"][&bob.user_id] = json!(75);
        alice.ok(alice.set(&old, "m.room.power_levels", levels).await);
        let new = upgrade(&alice, &old, json!({ "new_version": "11" })).await;
        let levels = alice.ok(alice.get(&format!("{new}/state/m.room.power_levels")).await);
        assert_eq!(levels["users"], json!({ "@alice:example.org": 150, "@bob:example.org": 75 }));
        alice.ok(alice.set(&new, "m.room.name", json!({ "name": "works" })).await);
    })
    .await;
}

/// One who may close a room, but do little else in it, can upgrade it, and gains nothing in the new one.
#[tokio::test]
async fn upgrading_gives_no_power() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let old = alice
            .create(json!({
                "room_version": "10",
                "preset": "public_chat",
                "power_level_content_override": {
                    "users": { "@alice:example.org": 100, "@bob:example.org": 20 },
                    "events": { "m.room.tombstone": 20 },
                },
            }))
            .await;
        bob.join(&old).await;
        let new = upgrade(&bob, &old, json!({ "new_version": "11" })).await;
        let levels = bob.ok(bob.get(&format!("{new}/state/m.room.power_levels")).await);
        assert_eq!(levels["users"], json!({ "@alice:example.org": 100, "@bob:example.org": 20 }));
        refused(&bob.set(&new, "m.room.name", json!({ "name": "x" })).await, FORBIDDEN);
    })
    .await;
}

/// An upgrade that nobody waits for any more is done to its end.
#[tokio::test]
async fn an_upgrade_is_not_left_half_done() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let old = alice.create(json!({ "room_alias_name": "tea", "preset": "public_chat" })).await;
        let rooms = &server.services.rooms;
        let name = rooms.room(&ruma::RoomId::parse(room_id(&old)).unwrap()).await.unwrap();
        let user_id = ruma::UserId::parse(&alice.user_id).unwrap();
        let upgrading = rooms.upgrade(&name, &user_id, &ruma::RoomVersionId::V11, &[]);
        assert!(upgrading.now_or_never().is_none(), "it takes some time");
        let closed = async {
            loop {
                if let Some(tombstone) = rooms.state_event(&name, "m.room.tombstone", "").await.unwrap() {
                    return serde_json::from_str::<Value>(tombstone.content()).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let tombstone = tokio::time::timeout(Duration::from_secs(10), closed).await.expect("the old room is closed");
        let resolved = alice.ok(alice.get("/directory/room/%23tea%3Aexample.org").await);
        assert_eq!(resolved["room_id"], tombstone["replacement_room"]);
    })
    .await;
}
