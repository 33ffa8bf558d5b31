use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, StatusCode};
use myelin_http::{RateLimit, RateLimiter, RateLimits, layers};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{Client, FORBIDDEN, refused, room_id, segment};
use crate::testing::{Server, on_both};

const NOT_FOUND: (StatusCode, &str) = (StatusCode::NOT_FOUND, "M_NOT_FOUND");
const INVALID: (StatusCode, &str) = (StatusCode::BAD_REQUEST, "M_INVALID_PARAM");

fn alias(name: &str) -> String {
    format!("/directory/room/{}", segment(&format!("#{name}:example.org")))
}

/// Aliases are made by members, resolved by anyone, and deleted by those who may.
#[tokio::test]
async fn aliases() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let mallory = Client::new(server, "mallory").await;
        let room = alice.create(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await;
        let target = json!({ "room_id": room_id(&room) });
        alice.ok(alice.put(&alias("hers"), target.clone()).await);
        bob.ok(bob.put(&alias("his"), target.clone()).await);
        refused(&bob.put(&alias("hers"), target.clone()).await, (StatusCode::CONFLICT, "M_UNKNOWN"));
        refused(&mallory.put(&alias("mine"), target.clone()).await, FORBIDDEN);
        refused(&mallory.put(&alias("mine"), json!({ "room_id": "!nowhere:example.org" })).await, FORBIDDEN);
        let foreign = format!("/directory/room/{}", segment("#x:elsewhere.example"));
        refused(&alice.put(&foreign, target.clone()).await, INVALID);
        refused(&alice.put("/directory/room/nonsense", target.clone()).await, INVALID);
        refused(&alice.put(&alias("x"), json!({})).await, (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"));
        let resolved = server.get(&format!("/_matrix/client/v3{}", alias("his")), None).await;
        let expected = json!({ "room_id": room_id(&room), "servers": ["example.org"] });
        assert_eq!(resolved.json(StatusCode::OK), expected);
        refused(&alice.get(&alias("nothing")).await, NOT_FOUND);
        let listed = bob.ok(bob.get(&format!("{room}/aliases")).await);
        assert_eq!(listed, json!({ "aliases": ["#hers:example.org", "#his:example.org"] }));
        refused(&mallory.get(&format!("{room}/aliases")).await, FORBIDDEN);
        let joined = mallory.post(&format!("/join/{}", segment("#his:example.org")), json!({})).await;
        assert_eq!(joined.json(StatusCode::OK), target);
        refused(&bob.delete(&alias("hers")).await, FORBIDDEN);
        refused(&bob.delete(&alias("nothing")).await, NOT_FOUND);
        alice.ok(alice.delete(&alias("his")).await);
        refused(&bob.get(&alias("his")).await, NOT_FOUND);
        bob.ok(bob.put(&alias("his"), target).await);
        bob.ok(bob.delete(&alias("his")).await);
    })
    .await;
}

/// The directory has the rooms that were put there, the fullest first, page by page, and finds them by what they say.
#[tokio::test]
async fn public_rooms() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let mut rooms = Vec::new();
        for name in ["Tea", "Coffee", "Water"] {
            let content = if name == "Water" { json!({ "type": "m.space" }) } else { json!({}) };
            let wanted = json!({
                "visibility": "public", "name": name, "topic": format!("About {name}"), "creation_content": content,
            });
            rooms.push(alice.create(wanted).await);
        }
        alice.create(json!({ "name": "Hidden" })).await;
        bob.join(&rooms[1]).await;
        let names = |answer: &Value| -> Vec<String> {
            answer["chunk"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap().to_owned()).collect()
        };
        let all = server.get("/_matrix/client/v3/publicRooms", None).await.json(StatusCode::OK);
        assert_eq!(names(&all), ["Coffee", "Tea", "Water"]);
        assert_eq!(all["total_room_count_estimate"], 3);
        assert_eq!(
            all["chunk"][0],
            json!({
                "room_id": room_id(&rooms[1]), "name": "Coffee", "topic": "About Coffee", "num_joined_members": 2,
                "world_readable": false, "guest_can_join": false,
            })
        );
        let first = alice.ok(alice.get("/publicRooms?limit=2").await);
        assert_eq!((names(&first).len(), &first["prev_batch"]), (2, &json!(null)));
        let next = first["next_batch"].as_str().unwrap();
        let second = alice.ok(alice.get(&format!("/publicRooms?limit=2&since={next}")).await);
        assert_eq!(names(&second), ["Water"]);
        assert_eq!(second["next_batch"], json!(null));
        let back = second["prev_batch"].as_str().unwrap();
        assert_eq!(names(&alice.ok(alice.get(&format!("/publicRooms?limit=2&since={back}")).await)), names(&first));
        let search = async |body: Value| alice.post("/publicRooms", body).await;
        let by = async |filter: Value| names(&alice.ok(search(json!({ "filter": filter })).await));
        assert_eq!(by(json!({ "generic_search_term": "tea" })).await, ["Tea"]);
        assert_eq!(by(json!({ "generic_search_term": "ABOUT", "room_types": [null] })).await, ["Coffee", "Tea"]);
        assert_eq!(by(json!({ "room_types": ["m.space"] })).await, ["Water"]);
        assert_eq!(by(json!({ "generic_search_term": "hidden" })).await, [""; 0]);
        assert_eq!(names(&alice.ok(search(json!({ "third_party_instance_id": "irc" })).await)), [""; 0]);
        refused(&alice.get("/publicRooms?since=x").await, INVALID);
        refused(&alice.get("/publicRooms?server=elsewhere.example").await, FORBIDDEN);
        alice.ok(alice.get("/publicRooms?server=example.org").await);
        let nobody = server.post("/_matrix/client/v3/publicRooms", None, &json!({})).await;
        refused(&nobody, (StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN"));
        // What a room says of itself is as it is now.
        alice.ok(alice.set(&rooms[1], "m.room.name", json!({ "name": "Decaf" })).await);
        assert_eq!(by(json!({ "generic_search_term": "decaf" })).await, ["Decaf"]);
    })
    .await;
}

/// The rooms and their members are counted once in a few seconds, however many ask.
#[tokio::test]
async fn the_list_is_kept_for_a_while() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create(json!({ "visibility": "public", "preset": "public_chat", "name": "Tea" })).await;
        let list = async || server.get("/_matrix/client/v3/publicRooms", None).await.json(StatusCode::OK);
        assert_eq!(list().await["chunk"][0]["num_joined_members"], 1);
        bob.join(&room).await;
        assert_eq!(list().await["chunk"][0]["num_joined_members"], 1);
        let counted = async {
            while list().await["chunk"][0]["num_joined_members"] != 2 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), counted).await.expect("members are counted again");
        // What is said to change is changed at once.
        alice.ok(alice.set(&room, "m.room.name", json!({ "name": "Coffee" })).await);
        assert_eq!(list().await["chunk"][0]["name"], "Coffee");
        alice.create(json!({ "visibility": "public" })).await;
        assert_eq!(list().await["total_room_count_estimate"], 2);
        let path = format!("/directory/list{}", room.replace("/rooms/", "/room/"));
        alice.ok(alice.put(&path, json!({ "visibility": "private" })).await);
        assert_eq!(list().await["total_room_count_estimate"], 1);
    })
    .await;
}

/// Whoever asks for the directory again and again, without a session too, has to wait.
#[tokio::test]
async fn the_directory_is_rate_limited() {
    on_both(async |server: &Server| {
        let one = RateLimit { per_second: 0.001, burst: 2 };
        let limits = RateLimits { enabled: true, login: one, registration: one, joins: one, messages: one, other: one };
        let rate_limiter = Arc::new(RateLimiter::new(&limits).unwrap());
        let router = layers(crate::router(crate::Services { rate_limiter, ..server.services.clone() }));
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let request = Request::get("/_matrix/client/v3/publicRooms").body(Body::empty()).unwrap();
            statuses.push(router.clone().oneshot(request).await.unwrap().status());
        }
        assert_eq!(statuses, [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS]);
    })
    .await;
}

/// Who may speak for a room puts it into the directory and takes it out; others may not.
#[tokio::test]
async fn listing() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create(json!({ "preset": "public_chat" })).await;
        bob.join(&room).await;
        let path = format!("/directory/list{}", room.replace("/rooms/", "/room/"));
        let visibility = async || alice.ok(server.get(&format!("/_matrix/client/v3{path}"), None).await);
        assert_eq!(visibility().await, json!({ "visibility": "private" }));
        refused(&bob.put(&path, json!({ "visibility": "public" })).await, FORBIDDEN);
        refused(&alice.put(&path, json!({ "visibility": "secret" })).await, INVALID);
        alice.ok(alice.put(&path, json!({ "visibility": "public" })).await);
        assert_eq!(visibility().await, json!({ "visibility": "public" }));
        alice.ok(alice.put(&path, json!({ "visibility": "private" })).await);
        assert_eq!(visibility().await, json!({ "visibility": "private" }));
        let nowhere = "/directory/list/room/%21nowhere%3Aexample.org";
        refused(&alice.get(nowhere).await, NOT_FOUND);
        refused(&alice.put(nowhere, json!({ "visibility": "public" })).await, NOT_FOUND);
    })
    .await;
}
