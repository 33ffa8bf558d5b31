use http::StatusCode;
use serde_json::{Value, json};

use super::{Client, FORBIDDEN, refused, segment};
use crate::testing::{Answer, Server, on_both};

const INVALID: (StatusCode, &str) = (StatusCode::BAD_REQUEST, "M_INVALID_PARAM");
const NOT_FOUND: (StatusCode, &str) = (StatusCode::NOT_FOUND, "M_NOT_FOUND");

async fn get_v1(client: &Client<'_>, path: &str) -> Answer {
    client.server.get(&format!("/_matrix/client/v1{path}"), Some(&client.token)).await
}

async fn space(client: &Client<'_>, name: &str, children: &[&str]) -> String {
    let creation = json!({ "type": "m.space" });
    let room = client.create(json!({ "preset": "public_chat", "name": name, "creation_content": creation })).await;
    for (order, child) in children.iter().enumerate() {
        let child = child.trim_start_matches("/rooms/");
        let path = format!("{room}/state/m.space.child/{child}");
        client.ok(client.put(&path, json!({ "via": ["example.org"], "order": order.to_string() })).await);
    }
    room
}

fn rooms(answer: &Value) -> Vec<&str> {
    answer["rooms"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap()).collect()
}

/// A space is walked depth first, in pages that fit together; who may not see it is refused.
#[tokio::test]
async fn a_space_in_pages() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let open = alice.create(json!({ "preset": "public_chat", "name": "open" })).await;
        let closed = alice.create(json!({ "preset": "private_chat", "name": "closed" })).await;
        let inner = space(&alice, "inner", &[&open]).await;
        let outer = space(&alice, "outer", &[&inner, &closed, &open]).await;

        let whole = alice.ok(get_v1(&alice, &format!("{outer}/hierarchy")).await);
        assert_eq!(rooms(&whole), ["outer", "inner", "open", "closed"]);
        assert!(whole.get("next_batch").is_none());
        let first = &whole["rooms"][0];
        assert_eq!(first["room_type"], "m.space");
        assert_eq!(first["num_joined_members"], 1);
        assert_eq!(first["children_state"].as_array().unwrap().len(), 3);
        assert_eq!(first["children_state"][0]["content"]["via"], json!(["example.org"]));
        assert!(first["children_state"][0]["origin_server_ts"].is_u64());
        assert_eq!(whole["rooms"][2]["children_state"], json!([]));
        let seen = bob.ok(get_v1(&bob, &format!("{outer}/hierarchy")).await);
        assert_eq!(rooms(&seen), ["outer", "inner", "open"]);
        let shallow = bob.ok(get_v1(&bob, &format!("{outer}/hierarchy?max_depth=0")).await);
        assert_eq!(rooms(&shallow), ["outer"]);
        let suggested = bob.ok(get_v1(&bob, &format!("{outer}/hierarchy?suggested_only=true")).await);
        assert_eq!(rooms(&suggested), ["outer"]);

        let mut paged = Vec::new();
        let mut from = String::new();
        loop {
            let page = alice.ok(get_v1(&alice, &format!("{outer}/hierarchy?limit=3{from}")).await);
            paged.extend(rooms(&page).into_iter().map(str::to_owned));
            let Some(token) = page["next_batch"].as_str() else { break };
            from = format!("&from={token}");
        }
        assert_eq!(paged, ["outer", "inner", "open", "closed"]);
        let page = alice.ok(get_v1(&alice, &format!("{outer}/hierarchy?limit=1&max_depth=2")).await);
        let token = page["next_batch"].as_str().unwrap();
        for changed in ["&max_depth=1", "&suggested_only=true&max_depth=2"] {
            refused(&get_v1(&alice, &format!("{outer}/hierarchy?from={token}{changed}")).await, INVALID);
        }
        for wrong in ["from=nonsense", "from=h1_1", "from=h1_99999_0", "from=h1_1_0_0", "limit=0"] {
            refused(&get_v1(&alice, &format!("{outer}/hierarchy?{wrong}")).await, INVALID);
        }
        refused(&get_v1(&bob, &format!("{closed}/hierarchy")).await, FORBIDDEN);
        refused(&get_v1(&bob, &format!("/rooms/{}/hierarchy", segment("!none:example.org"))).await, FORBIDDEN);
    })
    .await;
}

/// The event nearest to a time, for members only.
#[tokio::test]
async fn events_by_time() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("joined").await;
        let said = alice.say(&room, "hello").await;
        let path = |ts: u64, dir: &str| format!("{room}/timestamp_to_event?ts={ts}&dir={dir}");
        let found = alice.ok(get_v1(&alice, &path(9_000_000_000_000, "b")).await);
        assert_eq!(found["event_id"], said);
        let ts = found["origin_server_ts"].as_u64().unwrap();
        assert_eq!(alice.ok(get_v1(&alice, &path(ts, "f")).await)["origin_server_ts"], ts);
        refused(&get_v1(&alice, &path(9_000_000_000_000, "f")).await, NOT_FOUND);
        refused(&get_v1(&alice, &path(1, "b")).await, NOT_FOUND);
        refused(&get_v1(&bob, &path(1, "f")).await, FORBIDDEN);
        bob.join(&room).await;
        let next = bob.ok(get_v1(&bob, &path(ts, "f")).await);
        assert_ne!(next["event_id"], said, "what was said before is not to be seen");
    })
    .await;
}
