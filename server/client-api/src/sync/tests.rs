//! The endpoints of this module over the whole router.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    account::tests::guest,
    testing::{Server, on_both},
};

async fn put(server: &Server, path: &str, token: &str, body: &Value) -> crate::testing::Answer {
    server.request(Method::PUT, path, Some(token), body).await
}

/// What one device stores, the other learns by sync; wrong requests get the errors of the specification.
#[tokio::test]
async fn account_data_and_tags() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let user = "/_matrix/client/v3/user/@alice:example.org";
        let first = server.get("/_matrix/client/v3/sync", Some(&token)).await.json(StatusCode::OK);
        let since = first["next_batch"].as_str().unwrap();
        let path = format!("{user}/account_data/org.example");
        assert_eq!(server.get(&path, Some(&token)).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        put(server, &path, &token, &json!({ "a": [1.5] })).await.json(StatusCode::OK);
        assert_eq!(server.get(&path, Some(&token)).await.json(StatusCode::OK), json!({ "a": [1.5] }));
        assert_eq!(put(server, &path, &token, &json!([])).await.errcode(StatusCode::BAD_REQUEST), "M_BAD_JSON");
        for managed in ["m.fully_read", "m.push_rules"] {
            let path = format!("{user}/account_data/{managed}");
            let refused = put(server, &path, &token, &json!({})).await;
            assert_eq!(refused.errcode(StatusCode::METHOD_NOT_ALLOWED), "M_BAD_JSON");
        }
        let other = "/_matrix/client/v3/user/@bob:example.org/account_data/org.example";
        assert_eq!(put(server, other, &token, &json!({})).await.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");

        let room = server.post("/_matrix/client/v3/createRoom", Some(&token), &json!({})).await.json(StatusCode::OK);
        let room = room["room_id"].as_str().unwrap();
        let tags = format!("{user}/rooms/{room}/tags");
        put(server, &format!("{tags}/m.favourite"), &token, &json!({ "order": 0.5 })).await.json(StatusCode::OK);
        let expected = json!({ "tags": { "m.favourite": { "order": 0.5 } } });
        assert_eq!(server.get(&tags, Some(&token)).await.json(StatusCode::OK), expected);
        let path = format!("/_matrix/client/v3/sync?since={since}");
        let next = server.get(&path, Some(&token)).await.json(StatusCode::OK);
        assert_eq!(next["account_data"]["events"][0]["content"], json!({ "a": [1.5] }));
        assert_eq!(next["rooms"]["join"][room]["account_data"]["events"][0]["content"], expected);
        let removed = server.request(Method::DELETE, &format!("{tags}/m.favourite"), Some(&token), &json!({})).await;
        removed.json(StatusCode::OK);
        assert_eq!(server.get(&tags, Some(&token)).await.json(StatusCode::OK), json!({ "tags": {} }));
    })
    .await;
}

/// Parameters of every form are understood, and none of them ends in a fault of ours.
#[tokio::test]
async fn sync_parameters() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let room = server.post("/_matrix/client/v3/createRoom", Some(&token), &json!({})).await.json(StatusCode::OK);
        let room = room["room_id"].as_str().unwrap();
        for bad in [
            "since=x",
            "since=s1",
            "filter=99",
            "filter=%7Bx",
            "filter=%7B%22room%22:1%7D",
            "timeout=x",
            "full_state=x",
        ] {
            let refused = server.get(&format!("/_matrix/client/v3/sync?{bad}"), Some(&token)).await;
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{bad}");
        }
        assert_eq!(
            server.get("/_matrix/client/v3/sync", None).await.errcode(StatusCode::UNAUTHORIZED),
            "M_MISSING_TOKEN"
        );
        let filter = json!({ "room": { "timeline": { "limit": 1 } } });
        let path = "/_matrix/client/v3/user/@alice:example.org/filter";
        let id = server.post(path, Some(&token), &filter).await.json(StatusCode::OK);
        let id = id["filter_id"].as_str().unwrap().to_owned();
        for filter in [id.as_str(), "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:1%7D%7D%7D"] {
            let path = format!("/_matrix/client/v3/sync?filter={filter}");
            let answer = server.get(&path, Some(&token)).await.json(StatusCode::OK);
            let part = &answer["rooms"]["join"][room];
            assert_eq!(part["timeline"]["events"].as_array().unwrap().len(), 1);
            assert!(part["state"]["events"].as_array().unwrap().len() > 3);
        }
        for (name, key) in [
            ("use_state_after", "state_after"),
            ("org.matrix.msc4222.use_state_after", "org.matrix.msc4222.state_after"),
        ] {
            let path = format!("/_matrix/client/v3/sync?{name}=true");
            let answer = server.get(&path, Some(&token)).await.json(StatusCode::OK);
            let part = &answer["rooms"]["join"][room];
            assert!(part[key].is_object() && part["state"].is_null(), "{name}");
        }
    })
    .await;
}

/// Receipts, markers, typing and presence by their endpoints; outsiders are refused.
#[tokio::test]
async fn ephemeral() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = server.post("/_matrix/client/v3/createRoom", Some(&alice), &json!({})).await.json(StatusCode::OK);
        let room = format!("/_matrix/client/v3/rooms/{}", room["room_id"].as_str().unwrap());
        let send = format!("{room}/send/m.room.message/1");
        let sent = put(server, &send, &alice, &json!({ "msgtype": "m.text", "body": "x" })).await.json(StatusCode::OK);
        let event = sent["event_id"].as_str().unwrap();
        let receipt = |kind: &str, event: &str| format!("{room}/receipt/{kind}/{event}");
        for kind in ["m.read", "m.read.private", "m.fully_read"] {
            server.post(&receipt(kind, event), Some(&alice), &json!({})).await.json(StatusCode::OK);
        }
        let thread = json!({ "thread_id": "" });
        for refused in [
            server.post(&receipt("m.unknown", event), Some(&alice), &json!({})).await,
            server.post(&receipt("m.read", event), Some(&alice), &thread).await,
            server.post(&receipt("m.fully_read", event), Some(&alice), &json!({ "thread_id": "main" })).await,
        ] {
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        }
        let refused = server.post(&receipt("m.read", event), Some(&bob), &json!({})).await;
        assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        let markers = json!({ "m.fully_read": event, "m.read": event });
        server.post(&format!("{room}/read_markers"), Some(&alice), &markers).await.json(StatusCode::OK);

        let typing = |name: &str| format!("{room}/typing/@{name}:example.org");
        let yes = json!({ "typing": true, "timeout": 30000 });
        put(server, &typing("alice"), &alice, &yes).await.json(StatusCode::OK);
        assert_eq!(put(server, &typing("bob"), &alice, &yes).await.status(), StatusCode::FORBIDDEN);
        assert_eq!(put(server, &typing("bob"), &bob, &yes).await.status(), StatusCode::FORBIDDEN);

        let presence = |name: &str| format!("/_matrix/client/v3/presence/@{name}:example.org/status");
        let state = json!({ "presence": "online", "status_msg": "here" });
        put(server, &presence("alice"), &alice, &state).await.json(StatusCode::OK);
        let shown = server.get(&presence("alice"), Some(&alice)).await.json(StatusCode::OK);
        assert_eq!((&shown["presence"], &shown["status_msg"]), (&json!("online"), &json!("here")));
        assert_eq!(server.get(&presence("alice"), Some(&bob)).await.status(), StatusCode::FORBIDDEN);
        let refused = put(server, &presence("alice"), &alice, &json!({ "presence": "asleep" })).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(put(server, &presence("bob"), &alice, &state).await.status(), StatusCode::FORBIDDEN);
    })
    .await;
}

/// Guests keep no data here.
#[tokio::test]
async fn guests_have_no_account_data() {
    on_both(async |server: &Server| {
        let guest = guest(server).await;
        let user = format!("/_matrix/client/v3/user/{}", guest.user_id);
        for path in [
            "account_data/org.example",
            "rooms/!a:example.org/account_data/org.example",
            "rooms/!a:example.org/tags/u.x",
        ] {
            let refused = put(server, &format!("{user}/{path}"), &guest.access_token, &json!({})).await;
            assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_GUEST_ACCESS_FORBIDDEN", "{path}");
        }
        for path in ["account_data/m.push_rules", "rooms/!a:example.org/tags"] {
            let refused = server.get(&format!("{user}/{path}"), Some(&guest.access_token)).await;
            assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_GUEST_ACCESS_FORBIDDEN", "{path}");
        }
        let filter = server.post(&format!("{user}/filter"), Some(&guest.access_token), &json!({})).await;
        filter.json(StatusCode::OK);
    })
    .await;
}

/// Of several read markers all are set, or none.
#[tokio::test]
async fn read_markers_stand_or_fall_together() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let made = server.post("/_matrix/client/v3/createRoom", Some(&token), &json!({})).await.json(StatusCode::OK);
        let id = made["room_id"].as_str().unwrap();
        let room = format!("/_matrix/client/v3/rooms/{id}");
        let sent = put(server, &format!("{room}/send/m.room.message/1"), &token, &json!({ "body": "x" })).await;
        let sent = sent.json(StatusCode::OK);
        let event = sent["event_id"].as_str().unwrap();
        let marker = format!("/_matrix/client/v3/user/@alice:example.org/rooms/{id}/account_data/m.fully_read");
        for unknown in ["m.read", "m.read.private"] {
            let markers = json!({ "m.fully_read": event, unknown: "$unknown" });
            let refused = server.post(&format!("{room}/read_markers"), Some(&token), &markers).await;
            assert_eq!(refused.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            assert_eq!(server.get(&marker, Some(&token)).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        }
        let markers = json!({ "m.fully_read": event, "m.read": event });
        server.post(&format!("{room}/read_markers"), Some(&token), &markers).await.json(StatusCode::OK);
        assert_eq!(server.get(&marker, Some(&token)).await.json(StatusCode::OK), json!({ "event_id": event }));
    })
    .await;
}

/// Whoever has no place in a room cannot find out by tags and account data whether it exists.
#[tokio::test]
async fn rooms_of_others_are_like_none() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let body = json!({ "preset": "public_chat" });
        let made = server.post("/_matrix/client/v3/createRoom", Some(&alice), &body).await.json(StatusCode::OK);
        let room = made["room_id"].as_str().unwrap();
        let ask = async |method: Method, room: &str, path: &str| {
            let path = format!("/_matrix/client/v3/user/@bob:example.org/rooms/{room}/{path}");
            let answer = server.request(method, &path, Some(&bob), &json!({})).await;
            (answer.status(), String::from_utf8_lossy(answer.body()).into_owned())
        };
        let all = [
            (Method::GET, "tags"),
            (Method::PUT, "tags/u.x"),
            (Method::DELETE, "tags/u.x"),
            (Method::PUT, "account_data/org.example"),
            (Method::GET, "account_data/org.example"),
        ];
        for (method, path) in all.clone() {
            let others = ask(method.clone(), room, path).await;
            assert!(others.0 == StatusCode::NOT_FOUND && others.1.contains("M_NOT_FOUND"), "{others:?}");
            assert_eq!(others, ask(method, "!none:example.org", path).await);
        }
        let join = format!("/_matrix/client/v3/rooms/{room}/join");
        server.post(&join, Some(&bob), &json!({})).await.json(StatusCode::OK);
        for (method, path) in all.clone() {
            assert_eq!(ask(method, room, path).await.0, StatusCode::OK, "{path}");
        }
        let leave = format!("/_matrix/client/v3/rooms/{room}/leave");
        server.post(&leave, Some(&bob), &json!({})).await.json(StatusCode::OK);
        for (method, path) in all {
            assert_eq!(ask(method, room, path).await.0, StatusCode::OK, "{path} of a room that was left");
        }
    })
    .await;
}
