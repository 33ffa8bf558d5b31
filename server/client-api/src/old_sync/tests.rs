//! What old clients and previews are told.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    account::tests::guest,
    testing::{Server, on_both},
};

const V3: &str = "/_matrix/client/v3";

async fn create(server: &Server, token: &str, wanted: Value) -> String {
    let made = server.post(&format!("{V3}/createRoom"), Some(token), &wanted).await.json(StatusCode::OK);
    made["room_id"].as_str().unwrap().to_owned()
}

async fn say(server: &Server, token: &str, room: &str, text: &str) -> String {
    let path = format!("{V3}/rooms/{room}/send/m.room.message/{text}");
    let body = json!({ "msgtype": "m.text", "body": text });
    let said = server.request(Method::PUT, &path, Some(token), &body).await.json(StatusCode::OK);
    said["event_id"].as_str().unwrap().to_owned()
}

fn bodies(chunk: &Value) -> Vec<&str> {
    chunk.as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

/// A room is shown to its members, and to guests if everyone may read it; to nobody else.
#[tokio::test]
async fn rooms_are_previewed() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let guest = guest(server).await.access_token;
        let readable = json!([{
            "type": "m.room.history_visibility", "content": { "history_visibility": "world_readable" },
        }]);
        let open = create(server, &alice, json!({ "preset": "public_chat", "initial_state": readable })).await;
        let closed = create(server, &alice, json!({})).await;
        for text in ["one", "two", "three"] {
            say(server, &alice, &open, text).await;
        }
        let path = format!("{V3}/rooms/{open}/initialSync?limit=2");
        let shown = server.get(&path, Some(&alice)).await.json(StatusCode::OK);
        assert_eq!((&shown["room_id"], &shown["membership"]), (&json!(open), &json!("join")));
        assert_eq!(bodies(&shown["messages"]["chunk"]), ["two", "three"]);
        assert!(shown["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
        let start = shown["messages"]["start"].as_str().unwrap();
        let page = format!("{V3}/rooms/{open}/messages?dir=b&limit=1&from={start}");
        assert_eq!(bodies(&server.get(&page, Some(&alice)).await.json(StatusCode::OK)["chunk"]), ["one"]);

        let shown = server.get(&path, Some(&guest)).await.json(StatusCode::OK);
        assert!(shown.get("membership").is_none());
        assert_eq!(bodies(&shown["messages"]["chunk"]), ["two", "three"]);
        let end = shown["messages"]["end"].as_str().unwrap().to_owned();
        for room in [closed.as_str(), "!other:example.org"] {
            for rest in [format!("rooms/{room}/initialSync"), format!("events?room_id={room}")] {
                let refused = server.get(&format!("{V3}/{rest}"), Some(&bob)).await;
                assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN", "{rest}");
            }
        }

        // News of the room, as it comes, for those who look on.
        let path = format!("{V3}/events?room_id={open}&from={end}&timeout=15000");
        let (news, _) = tokio::join!(server.get(&path, Some(&guest)), say(server, &alice, &open, "four"));
        let news = news.json(StatusCode::OK);
        assert_eq!((&news["start"], bodies(&news["chunk"])), (&json!(end), vec!["four"]));
        assert_eq!(news["chunk"][0]["room_id"], *open);
        let end = news["end"].as_str().unwrap();
        let none = server.get(&format!("{V3}/events?room_id={open}&from={end}"), Some(&guest)).await;
        assert_eq!(none.json(StatusCode::OK)["chunk"], json!([]));
        let refused = server.get(&format!("{V3}/events?room_id={open}&from=x"), Some(&guest)).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        let refused = server.get(&format!("{V3}/events"), Some(&guest)).await;
        assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_GUEST_ACCESS_FORBIDDEN");
    })
    .await;
}

/// An old client gets its rooms, then what happens in them, and single events; of other rooms nothing.
#[tokio::test]
async fn old_clients_are_served() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = create(server, &alice, json!({ "preset": "public_chat" })).await;
        let invited = create(server, &bob, json!({ "invite": ["@alice:example.org"] })).await;
        let left = create(server, &alice, json!({})).await;
        let foreign = create(server, &bob, json!({})).await;
        server.post(&format!("{V3}/rooms/{left}/leave"), Some(&alice), &json!({})).await.json(StatusCode::OK);
        let hello = say(server, &alice, &room, "hello").await;
        let secret = say(server, &bob, &foreign, "secret").await;
        let data = format!("{V3}/user/@alice:example.org/account_data/org.example");
        server.request(Method::PUT, &data, Some(&alice), &json!({ "a": 1 })).await.json(StatusCode::OK);

        let first = server.get(&format!("{V3}/initialSync?limit=1"), Some(&alice)).await.json(StatusCode::OK);
        let find = |answer: &Value, room: &str| {
            answer["rooms"].as_array().unwrap().iter().find(|info| info["room_id"] == *room).cloned()
        };
        let info = find(&first, &room).unwrap();
        assert_eq!((&info["membership"], &info["visibility"]), (&json!("join"), &json!("private")));
        assert_eq!(bodies(&info["messages"]["chunk"]), ["hello"]);
        let create_event = info["state"].as_array().unwrap().iter().find(|event| event["type"] == "m.room.create");
        assert_eq!(create_event.unwrap()["room_id"], *room);
        let info = find(&first, &invited).unwrap();
        assert_eq!(
            (&info["membership"], &info["invite"]["content"]["membership"]),
            (&json!("invite"), &json!("invite"))
        );
        assert!(find(&first, &left).is_none() && find(&first, &foreign).is_none());
        assert!(first["presence"].is_array());
        assert!(first["account_data"].as_array().unwrap().iter().any(|data| data["type"] == "org.example"));
        let archived = server.get(&format!("{V3}/initialSync?archived=true"), Some(&alice)).await.json(StatusCode::OK);
        assert_eq!(find(&archived, &left).unwrap()["membership"], "leave");

        let end = first["end"].as_str().unwrap();
        let path = format!("{V3}/events?from={end}&timeout=15000");
        let (news, _) = tokio::join!(server.get(&path, Some(&alice)), async {
            say(server, &bob, &foreign, "aside").await;
            say(server, &alice, &room, "news").await;
        });
        let news = news.json(StatusCode::OK);
        assert_eq!(bodies(&news["chunk"]), ["news"]);
        assert_eq!((&news["start"], &news["chunk"][0]["room_id"]), (&json!(end), &json!(room)));
        let none = server.get(&format!("{V3}/events?from={}", news["end"].as_str().unwrap()), Some(&alice)).await;
        assert_eq!(none.json(StatusCode::OK)["chunk"], json!([]));

        let one = server.get(&format!("{V3}/events/{hello}"), Some(&alice)).await.json(StatusCode::OK);
        assert_eq!((&one["content"]["body"], &one["room_id"]), (&json!("hello"), &json!(room)));
        for event in [secret.as_str(), "$other"] {
            let hidden = server.get(&format!("{V3}/events/{event}"), Some(&alice)).await;
            assert_eq!(hidden.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        }
        for rest in ["initialSync", "events", "events/$x"] {
            let refused = server.get(&format!("{V3}/{rest}"), None).await;
            assert_eq!(refused.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        }
    })
    .await;
}
