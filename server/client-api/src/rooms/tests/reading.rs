use http::StatusCode;
use serde_json::{Value, json};

use super::{Client, FORBIDDEN, refused, segment, text};
use crate::testing::{Server, on_both};

const INVALID: (StatusCode, &str) = (StatusCode::BAD_REQUEST, "M_INVALID_PARAM");

/// What someone who was invited, joined and left may read of a room, in each history visibility: never more than the
/// specification allows.
#[tokio::test]
async fn history_visibility() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        for (number, (visibility, as_member, as_former)) in [
            ("world_readable", vec!["4", "3", "2", "1"], vec!["6", "5", "4", "3", "2", "1"]),
            ("shared", vec!["4", "3", "2", "1"], vec!["4", "3", "2", "1"]),
            ("invited", vec!["4", "3", "2"], vec!["4", "3", "2"]),
            ("joined", vec!["4", "3"], vec!["4", "3"]),
        ]
        .into_iter()
        .enumerate()
        {
            let bob = Client::new(server, &format!("bob{number}")).await;
            let carol = Client::new(server, &format!("carol{number}")).await;
            let room = alice.create_public(visibility).await;
            let first = alice.say(&room, "1").await;
            alice.act(&room, "invite", json!({ "user_id": bob.user_id })).await;
            alice.say(&room, "2").await;
            let peeks = visibility == "world_readable";
            if !peeks {
                refused(&bob.get(&format!("{room}/messages?dir=b")).await, FORBIDDEN);
            }
            bob.join(&room).await;
            alice.say(&room, "3").await;
            alice.say(&room, "4").await;
            assert_eq!(bob.history(&room, 2).await, as_member, "{visibility}, in the room");
            bob.leave(&room).await;
            alice.say(&room, "5").await;
            let last = alice.say(&room, "6").await;
            alice.ok(alice.set(&room, "m.room.name", json!({ "name": "later" })).await);
            assert_eq!(bob.history(&room, 2).await, as_former, "{visibility}, after leaving");
            let event =
                async |client: &Client<'_>, id: &str| client.get(&format!("{room}/event/{}", segment(id))).await;
            let not_found = (StatusCode::NOT_FOUND, "M_NOT_FOUND");
            match visibility {
                "world_readable" => drop(bob.ok(event(&bob, &last).await)),
                _ => refused(&event(&bob, &last).await, not_found),
            }
            match visibility {
                "world_readable" | "shared" => drop(bob.ok(event(&bob, &first).await)),
                _ => refused(&event(&bob, &first).await, not_found),
            }
            // The state is that of leaving.
            refused(&bob.get(&format!("{room}/state/m.room.name")).await, not_found);
            if peeks {
                assert_eq!(carol.history(&room, 3).await, ["6", "5", "4", "3", "2", "1"]);
                carol.ok(carol.get(&format!("{room}/state/m.room.name")).await);
            } else {
                refused(&carol.get(&format!("{room}/messages?dir=b")).await, FORBIDDEN);
                refused(&carol.get(&format!("{room}/state/m.room.name")).await, FORBIDDEN);
            }
        }
    })
    .await;
}

/// A room that becomes readable for all does not open what was said before, nor does one that closes hide it.
#[tokio::test]
async fn visibility_is_that_of_the_time() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("joined").await;
        alice.say(&room, "1").await;
        let set = async |visibility: &str| {
            let content = json!({ "history_visibility": visibility });
            alice.ok(alice.set(&room, "m.room.history_visibility", content).await)
        };
        set("world_readable").await;
        alice.say(&room, "2").await;
        assert_eq!(bob.history(&room, 10).await, ["2"]);
        set("joined").await;
        alice.say(&room, "3").await;
        refused(&bob.get(&format!("{room}/messages?dir=b")).await, FORBIDDEN);
        bob.join(&room).await;
        assert_eq!(bob.history(&room, 10).await, ["2"]);
        // One whose invitation was refused was never in the room.
        let carol = Client::new(server, "carol").await;
        alice.act(&room, "invite", json!({ "user_id": carol.user_id })).await;
        carol.leave(&room).await;
        refused(&carol.get(&format!("{room}/messages?dir=b")).await, FORBIDDEN);
        refused(&carol.get(&format!("{room}/members")).await, FORBIDDEN);
    })
    .await;
}

/// Forward is backward reversed, whatever the size of the pages; tokens of one way are good for the other.
#[tokio::test]
async fn pages_are_complete() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let other = alice.create(json!({})).await;
        let room = alice.create(json!({})).await;
        for number in 0..23 {
            alice.say(&room, &number.to_string()).await;
            alice.say(&other, "elsewhere").await;
        }
        let ids =
            |events: &[Value]| -> Vec<String> { events.iter().map(|event| event["event_id"].to_string()).collect() };
        let whole = ids(&alice.timeline(&room, "dir=f&limit=1000").await);
        assert!(whole.len() > 23 + 5);
        for limit in [1, 2, 7, 50] {
            let forward = ids(&alice.timeline(&room, &format!("dir=f&limit={limit}")).await);
            let mut backward = ids(&alice.timeline(&room, &format!("dir=b&limit={limit}")).await);
            backward.reverse();
            assert_eq!(forward, whole, "pages of {limit}");
            assert_eq!(backward, whole, "pages of {limit}");
        }
        let page = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=5")).await);
        let (start, end) = (page["start"].as_str().unwrap(), page["end"].as_str().unwrap());
        let back = alice.ok(alice.get(&format!("{room}/messages?dir=f&limit=50&from={end}&to={start}")).await);
        let mut chunk = ids(page["chunk"].as_array().unwrap());
        chunk.reverse();
        assert_eq!(ids(back["chunk"].as_array().unwrap()), chunk);
        assert_eq!(back["start"], end);
        assert_eq!(back["end"], json!(null));
        let to = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=50&from={start}&to={end}")).await);
        assert_eq!(to["chunk"].as_array().unwrap().len(), 5);
    })
    .await;
}

/// A page that is asked for wrongly is refused; a limit out of bounds is brought into them.
#[tokio::test]
async fn bad_pages_are_refused() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create(json!({})).await;
        for query in ["dir=b&from=x", "dir=b&to=t1x", "dir=x", "dir=b&limit=-1", "dir=b&limit=x", "dir=b&filter=x"] {
            refused(&alice.get(&format!("{room}/messages?{query}")).await, INVALID);
        }
        let missing = alice.get(&format!("{room}/messages")).await;
        refused(&missing, (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"));
        let none = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=0")).await);
        assert_eq!(none["chunk"].as_array().unwrap().len(), 1);
        alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=999999999")).await);
        refused(&alice.get(&format!("{room}/members?at=x")).await, INVALID);
    })
    .await;
}

/// A filter lets through what it names, and lazily loaded members come along.
#[tokio::test]
async fn pages_are_filtered() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        for number in 0..150 {
            alice.say(&room, &format!("a{number}")).await;
        }
        bob.say(&room, "b").await;
        alice.ok(alice.put(&format!("{room}/send/m.room.message/u"), json!({ "url": "mxc://x/y", "body": "u" })).await);
        let filtered = async |filter: Value| {
            let query = format!("dir=b&limit=2&filter={}", segment(&filter.to_string()));
            alice.timeline(&room, &query).await
        };
        let texts = |events: Vec<Value>| -> Vec<String> { events.iter().filter_map(text).collect() };
        assert_eq!(texts(filtered(json!({ "senders": [bob.user_id], "types": ["m.room.mess*"] })).await), ["b"]);
        assert_eq!(texts(filtered(json!({ "contains_url": true })).await), ["u"]);
        assert_eq!(filtered(json!({ "types": [] })).await.len(), 0);
        assert_eq!(filtered(json!({ "not_rooms": [super::room_id(&room)] })).await.len(), 0);
        let creation = filtered(json!({ "not_types": ["m.room.message"], "types": ["m.room.create"] })).await;
        assert_eq!(creation.len(), 1);
        let lazy = segment(&json!({ "lazy_load_members": true }).to_string());
        let page = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=1&filter={lazy}")).await);
        let state = page["state"].as_array().unwrap();
        assert_eq!(state.len(), 1);
        assert_eq!((&state[0]["type"], &state[0]["state_key"]), (&json!("m.room.member"), &json!(alice.user_id)));
        let page = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=2&filter={lazy}")).await);
        assert_eq!(page["state"].as_array().unwrap().len(), 2);
    })
    .await;
}

/// The members are those of the time that is asked for, and of the memberships that are asked for.
#[tokio::test]
async fn members() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let carol = Client::new(server, "carol").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        let page = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=1")).await);
        let then = page["start"].as_str().unwrap();
        bob.leave(&room).await;
        alice.act(&room, "invite", json!({ "user_id": carol.user_id })).await;
        let read = async |client: &Client<'_>, query: &str| {
            let answer = client.ok(client.get(&format!("{room}/members{query}")).await);
            let mut found: Vec<String> = answer["chunk"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| {
                    assert_eq!(event["room_id"], super::room_id(&room).as_str());
                    let name = event["state_key"].as_str().unwrap().split(':').next().unwrap();
                    format!("{name} {}", event["content"]["membership"].as_str().unwrap())
                })
                .collect();
            found.sort();
            found
        };
        assert_eq!(read(&alice, "").await, ["@alice join", "@bob leave", "@carol invite"]);
        assert_eq!(read(&alice, "?membership=join").await, ["@alice join"]);
        assert_eq!(read(&alice, "?not_membership=leave").await, ["@alice join", "@carol invite"]);
        assert_eq!(read(&alice, "?membership=leave&not_membership=join").await, ["@bob leave", "@carol invite"]);
        assert_eq!(read(&alice, &format!("?at={then}")).await, ["@alice join", "@bob join"]);
        // Those who have left see the members as they were then.
        assert_eq!(read(&bob, "").await, ["@alice join", "@bob leave"]);
        assert_eq!(read(&bob, "?at=t999999").await, ["@alice join", "@bob leave"]);
        refused(&bob.get(&format!("{room}/joined_members")).await, FORBIDDEN);
        let joined = alice.ok(alice.get(&format!("{room}/joined_members")).await);
        assert_eq!(joined, json!({ "joined": { "@alice:example.org": {} } }));
    })
    .await;
}

/// Around an event is what came before and after it, and tokens to go on from.
#[tokio::test]
async fn context() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("joined").await;
        let hidden = alice.say(&room, "hidden").await;
        bob.join(&room).await;
        let mut ids = Vec::new();
        for number in 0..9 {
            ids.push(alice.say(&room, &number.to_string()).await);
        }
        let around = async |id: &str, query: &str| bob.get(&format!("{room}/context/{}{query}", segment(id))).await;
        let context = bob.ok(around(&ids[4], "?limit=4").await);
        let texts = |list: &Value| -> Vec<String> { list.as_array().unwrap().iter().filter_map(text).collect() };
        assert_eq!(texts(&context["events_before"]), ["3", "2"]);
        assert_eq!(text(&context["event"]).as_deref(), Some("4"));
        assert_eq!(texts(&context["events_after"]), ["5", "6"]);
        assert!(context["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
        let (start, end) = (context["start"].as_str().unwrap(), context["end"].as_str().unwrap());
        let before = bob.ok(bob.get(&format!("{room}/messages?dir=b&limit=1&from={start}")).await);
        assert_eq!(texts(&before["chunk"]), ["1"]);
        let after = bob.ok(bob.get(&format!("{room}/messages?dir=f&limit=1&from={end}")).await);
        assert_eq!(texts(&after["chunk"]), ["7"]);
        let alone = bob.ok(around(&ids[4], "?limit=0").await);
        assert_eq!((texts(&alone["events_before"]).len(), texts(&alone["events_after"]).len()), (0, 0));
        let lazy = segment(&json!({ "lazy_load_members": true, "types": ["m.room.member"] }).to_string());
        let lazy = bob.ok(around(&ids[4], &format!("?limit=0&filter={lazy}")).await);
        assert_eq!(lazy["state"].as_array().unwrap().len(), 1);
        assert_eq!(lazy["state"][0]["state_key"], alice.user_id.as_str());
        let not_found = (StatusCode::NOT_FOUND, "M_NOT_FOUND");
        refused(&around(&hidden, "").await, not_found);
        refused(&around("$nothing", "").await, not_found);
        let elsewhere = alice.create(json!({})).await;
        let foreign = alice.say(&elsewhere, "x").await;
        refused(&around(&foreign, "").await, not_found);
        refused(&bob.get(&format!("{room}/event/{}", segment(&foreign))).await, not_found);
    })
    .await;
}

/// What someone wrote whose account was erased is shown as it was to those who were there, and redacted to those who
/// came later; also by a server that was started since.
#[tokio::test]
async fn the_erased() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.ok(bob.put(&format!("/profile/{}/displayname", bob.user_id), json!({ "displayname": "Bobby" })).await);
        bob.join(&room).await;
        let secret = bob.say(&room, "a secret").await;
        alice.say(&room, "hers").await;
        let early = Client::new(server, "early").await;
        early.join(&room).await;
        assert_eq!(early.history(&room, 10).await, ["hers", "a secret"]);
        let auth = server.password_auth("bob");
        bob.ok(bob.post("/account/deactivate", json!({ "auth": auth, "erase": true })).await);

        let left = alice.ok(alice.get(&format!("{room}/state/m.room.member/{}", segment(&bob.user_id))).await);
        assert_eq!(left, json!({ "membership": "leave" }));
        assert_eq!(alice.history(&room, 10).await, ["hers", "a secret"]);
        let late = Client::new(server, "late").await;
        late.join(&room).await;
        assert_eq!(late.history(&room, 10).await, ["hers", "redacted"]);
        let all = late.timeline(&room, "dir=f&limit=100").await;
        assert!(!json!(all).to_string().contains("Bobby"));
        // Nor is the name in the state of that time.
        let lazy = segment(&json!({ "lazy_load_members": true }).to_string());
        for client in [&alice, &late] {
            let name = json!(bob.user_id);
            let context = client.get(&format!("{room}/context/{}?limit=0", segment(&secret))).await;
            let context = client.ok(context);
            let member = context["state"].as_array().unwrap().iter().find(|event| event["state_key"] == name);
            assert_eq!(member.unwrap()["content"].get("displayname").is_some(), client.user_id == alice.user_id);
            let page = client.ok(client.get(&format!("{room}/messages?dir=f&limit=10&filter={lazy}")).await);
            let member = page["state"].as_array().unwrap().iter().find(|event| event["state_key"] == name);
            assert_eq!(member.unwrap()["content"].get("displayname").is_some(), client.user_id == alice.user_id);
        }
        let event = format!("{room}/event/{}", segment(&secret));
        assert_eq!(late.ok(late.get(&event).await)["content"], json!({}));
        assert_eq!(alice.ok(alice.get(&event).await)["content"]["body"], "a secret");

        let store = &server.services.store;
        let (version, document) = store.signing_key().await.unwrap();
        let key = ruma::signatures::Ed25519KeyPair::from_der(&document, version).unwrap();
        let rooms = myelin_rooms::Rooms::new(store.clone(), server.services.rooms.server_name().clone(), key);
        let late_id = ruma::UserId::parse(&late.user_id).unwrap();
        let late_nid = store.user_nid(&late_id).await.unwrap();
        let room_id = ruma::RoomId::parse(super::room_id(&room)).unwrap();
        let reader = rooms.reader(&room_id, &late_id, late_nid).await.unwrap();
        let event = rooms.readable_event(&reader, &secret.as_str().try_into().unwrap()).await.unwrap();
        assert_eq!(event.content(), "{}");
    })
    .await;
}
