use http::StatusCode;
use serde_json::json;

use super::{Client, refused};
use crate::testing::{Server, on_both};

const BAD_REQUEST: StatusCode = StatusCode::BAD_REQUEST;

/// Every setting of a new room is in its state, and the later steps take precedence over the earlier.
#[tokio::test]
async fn settings_become_state() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice
            .create(json!({
                "preset": "trusted_private_chat",
                "visibility": "public",
                "room_alias_name": "tea",
                "name": "Tea",
                "topic": "Leaves",
                "invite": [bob.user_id],
                "is_direct": true,
                "creation_content": { "type": "m.space", "creator": "@mallory:example.org" },
                "initial_state": [
                    { "type": "m.room.name", "content": { "name": "not this" } },
                    { "type": "m.room.guest_access", "content": { "guest_access": "forbidden" } },
                    { "type": "org.example.thing", "state_key": "a key", "content": { "n": 1 } },
                ],
                "power_level_content_override": { "invite": 30 },
            }))
            .await;
        let state = async |path: &str| alice.ok(alice.get(&format!("{room}/state/{path}")).await);
        let create = state("m.room.create").await;
        assert_eq!(create["room_version"], "12");
        assert_eq!(create["type"], "m.space");
        assert_eq!(create["creator"], json!(null));
        assert_eq!(create["additional_creators"], json!([bob.user_id]));
        assert_eq!(state("m.room.name").await, json!({ "name": "Tea" }));
        assert_eq!(state("m.room.topic/").await["topic"], "Leaves");
        assert_eq!(state("m.room.canonical_alias").await, json!({ "alias": "#tea:example.org" }));
        assert_eq!(state("m.room.join_rules").await["join_rule"], "invite");
        assert_eq!(state("m.room.guest_access").await["guest_access"], "forbidden");
        assert_eq!(state("org.example.thing/a%20key").await, json!({ "n": 1 }));
        let levels = state("m.room.power_levels").await;
        assert_eq!((&levels["invite"], &levels["users"]), (&json!(30), &json!({})));
        let invitation = state("m.room.member/@bob:example.org").await;
        assert_eq!((&invitation["membership"], &invitation["is_direct"]), (&json!("invite"), &json!(true)));
        let listed = alice.ok(alice.get("/publicRooms").await);
        assert_eq!(listed["chunk"][0]["canonical_alias"], "#tea:example.org");
        assert_eq!(listed["chunk"][0]["num_joined_members"], 1);
    })
    .await;
}

/// All versions that we say we know can be made, and work.
#[tokio::test]
async fn every_version_can_be_made() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        for version in 1..=12 {
            let room = alice.create(json!({ "room_version": version.to_string() })).await;
            alice.say(&room, "hello").await;
            assert_eq!(alice.history(&room, 5).await, ["hello"], "version {version}");
        }
    })
    .await;
}

/// A room that cannot be made is refused with the reason, and nothing is left of it.
#[tokio::test]
async fn bad_settings_are_refused() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        alice.create(json!({ "room_alias_name": "taken" })).await;
        let third_party = json!([{
            "id_server": "id.example.org", "id_access_token": "x", "medium": "email", "address": "a@example.org",
        }]);
        let weak = json!({ "events": { "m.room.name": 200 }, "users": { "@alice:example.org": 100 } });
        let named = json!([{ "type": "m.room.canonical_alias", "content": { "alias": "#taken:example.org" } }]);
        for (wanted, status, errcode) in [
            (json!({ "room_version": "no" }), BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION"),
            (json!({ "room_version": 1 }), BAD_REQUEST, "M_BAD_JSON"),
            (json!({ "room_alias_name": "taken" }), BAD_REQUEST, "M_ROOM_IN_USE"),
            (json!({ "room_alias_name": "#a:b" }), BAD_REQUEST, "M_INVALID_PARAM"),
            (json!({ "room_alias_name": "x".repeat(300) }), BAD_REQUEST, "M_INVALID_PARAM"),
            (json!({ "preset": "no" }), BAD_REQUEST, "M_INVALID_PARAM"),
            (json!({ "visibility": "no" }), BAD_REQUEST, "M_INVALID_PARAM"),
            (json!({ "invite": ["no"] }), BAD_REQUEST, "M_INVALID_PARAM"),
            (json!({ "invite": ["@bob:elsewhere.example"] }), StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            (json!({ "invite_3pid": third_party }), StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            (json!({ "initial_state": [{ "content": {} }] }), BAD_REQUEST, "M_BAD_JSON"),
            (json!({ "initial_state": [{ "type": "a", "content": 1 }] }), BAD_REQUEST, "M_BAD_JSON"),
            (json!({ "initial_state": [{ "type": "a", "content": { "n": 1.5 } }] }), BAD_REQUEST, "M_BAD_JSON"),
            (json!({ "initial_state": named }), BAD_REQUEST, "M_BAD_ALIAS"),
            (json!({ "name": "x".repeat(70_000) }), StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE"),
            (
                json!({ "room_version": "11", "name": "a", "power_level_content_override": weak }),
                BAD_REQUEST,
                "M_INVALID_ROOM_STATE",
            ),
        ] {
            let answer = alice.post("/createRoom", wanted.clone()).await;
            assert_eq!((answer.status(), answer.errcode(status).as_str()), (status, errcode), "{wanted}");
        }
        let joined = alice.ok(alice.get("/joined_rooms").await);
        assert_eq!(joined["joined_rooms"].as_array().unwrap().len(), 1);
        let guest = Client::guest(server).await;
        refused(&guest.post("/createRoom", json!({})).await, (StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN"));
        let nobody = server.post("/_matrix/client/v3/createRoom", None, &json!({})).await;
        refused(&nobody, (StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN"));
    })
    .await;
}
