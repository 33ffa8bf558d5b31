//! What search and the user directory promise, through the router: with a worker that follows the stream as it does in a
//! server.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use myelin_rooms::search::{Indexer, IndexerOptions};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::testing::{Answer, Server, on_both};

const V3: &str = "/_matrix/client/v3";

/// A server with the worker that makes things findable.
struct Finding<'a> {
    server: &'a Server,
    indexer: Arc<Indexer>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl<'a> Finding<'a> {
    fn new(server: &'a Server) -> Self {
        let options = IndexerOptions { pause: Duration::ZERO, ..IndexerOptions::default() };
        let indexer = Indexer::new(server.services.rooms.clone(), options);
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(indexer.clone().run(stopped));
        Self { server, indexer, stop, running }
    }

    /// Waits until all that was written is indexed.
    async fn settle(&self) {
        let position = self.server.services.store.position();
        let mut indexed = self.indexer.indexed();
        let settled = indexed.wait_for(|indexed| *indexed >= position);
        tokio::time::timeout(Duration::from_secs(60), settled).await.expect("the index follows the stream").unwrap();
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.running.await.unwrap();
    }

    async fn post(&self, token: &str, path: &str, body: &Value) -> Answer {
        self.server.post(&format!("{V3}{path}"), Some(token), body).await
    }

    async fn put(&self, token: &str, path: &str, body: &Value) -> Value {
        self.server.request(Method::PUT, &format!("{V3}{path}"), Some(token), body).await.json(StatusCode::OK)
    }

    async fn create(&self, token: &str, wanted: Value) -> String {
        let made = self.post(token, "/createRoom", &wanted).await.json(StatusCode::OK);
        made["room_id"].as_str().unwrap().to_owned()
    }

    async fn say(&self, token: &str, room: &str, text: &str) -> String {
        let txn: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let path = format!("/rooms/{room}/send/m.room.message/{txn}");
        let said = self.put(token, &path, &json!({ "msgtype": "m.text", "body": text })).await;
        said["event_id"].as_str().unwrap().to_owned()
    }

    async fn search(&self, token: &str, criteria: Value) -> Value {
        self.search_from(token, criteria, "").await.json(StatusCode::OK)["search_categories"]["room_events"].clone()
    }

    async fn search_from(&self, token: &str, criteria: Value, query: &str) -> Answer {
        let body = json!({ "search_categories": { "room_events": criteria } });
        self.post(token, &format!("/search{query}"), &body).await
    }

    /// The texts that are found for a term, the newest first.
    async fn texts(&self, token: &str, term: &str) -> Vec<String> {
        texts(&self.search(token, json!({ "search_term": term, "order_by": "recent" })).await)
    }

    /// The users that are found for a term.
    async fn users(&self, token: &str, term: &str) -> Vec<String> {
        let answer = self.post(token, "/user_directory/search", &json!({ "search_term": term })).await;
        let answer = answer.json(StatusCode::OK);
        assert_eq!(answer["limited"], false);
        answer["results"].as_array().unwrap().iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect()
    }
}

fn texts(found: &Value) -> Vec<String> {
    let content = |found: &Value| {
        let content = &found["result"]["content"];
        ["body", "name", "topic"].iter().find_map(|key| content[key].as_str()).unwrap_or_default().to_owned()
    };
    found["results"].as_array().unwrap().iter().map(content).collect()
}

async fn on_both_finding(test: impl AsyncFn(&Finding<'_>)) {
    on_both(async |server: &Server| {
        let finding = Finding::new(server);
        Box::pin(test(&finding)).await;
        finding.end().await;
    })
    .await;
}

/// People find what they may read, where they are and were; not what came after they left, not what is encrypted, not
/// what was redacted, and never what others said where they are not.
#[tokio::test]
async fn only_what_one_may_read_is_found() {
    on_both_finding(async |on: &Finding<'_>| {
        let (alice, bob) = (on.server.user("alice").await, on.server.user("bob").await);
        let public = json!({ "preset": "public_chat", "name": "The heron marsh", "topic": "Birds of the reed" });
        let room = on.create(&alice, public).await;
        let private = on.create(&alice, json!({ "preset": "private_chat" })).await;
        on.say(&alice, &private, "the secret heron").await;
        let redacted = on.say(&alice, &room, "a heron of mistake").await;
        on.say(&alice, &room, "first Heron, well-known").await;
        let join = format!("/join/{room}");
        on.post(&bob, &join, &json!({})).await.json(StatusCode::OK);
        on.say(&bob, &room, "second heron").await;
        on.settle().await;
        let all = ["second heron", "first Heron, well-known", "a heron of mistake", "The heron marsh"];
        assert_eq!(on.texts(&bob, "heron").await, all);
        assert_eq!(on.texts(&bob, "HERON first").await, all[1..2]);
        assert_eq!(on.texts(&bob, "well-known").await, all[1..2]);
        assert_eq!(on.texts(&bob, "\"first heron\"").await, all[1..2]);
        assert!(on.texts(&bob, "\"heron first\"").await.is_empty());
        assert!(on.texts(&bob, "secret").await.is_empty());
        assert_eq!(on.texts(&alice, "secret").await, ["the secret heron"]);
        assert_eq!(on.texts(&bob, "reed").await, ["Birds of the reed"]);
        let named = on.search(&bob, json!({ "search_term": "heron", "keys": ["content.name"] })).await;
        assert_eq!(texts(&named), ["The heron marsh"]);

        let path = format!("/rooms/{room}/redact/{redacted}/1");
        on.put(&alice, &path, &json!({})).await;
        on.post(&bob, &format!("/rooms/{room}/leave"), &json!({})).await.json(StatusCode::OK);
        on.say(&alice, &room, "third heron").await;
        on.settle().await;
        let left = ["second heron", "first Heron, well-known", "The heron marsh"];
        assert_eq!(on.texts(&bob, "heron").await, left);
        assert!(on.texts(&alice, "mistake").await.is_empty());
        assert_eq!(on.texts(&alice, "heron").await[0], "third heron");
        on.post(&bob, &format!("/rooms/{room}/forget"), &json!({})).await.json(StatusCode::OK);
        assert!(on.texts(&bob, "heron").await.is_empty());

        let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        on.put(&alice, &format!("/rooms/{private}/state/m.room.encryption"), &encryption).await;
        on.say(&alice, &private, "another secret").await;
        on.settle().await;
        assert!(on.texts(&alice, "secret").await.is_empty());
    })
    .await;
}

/// Results come in pages, whole and in groups, in both orders; with what was said around them, and the rooms' state.
#[tokio::test]
async fn results_have_pages_groups_and_context() {
    on_both_finding(async |on: &Finding<'_>| {
        let (alice, bob) = (on.server.user("alice").await, on.server.user("bob").await);
        let named = json!({ "displayname": "Alice" });
        on.put(&alice, "/profile/@alice:example.org/displayname", &named).await;
        let mut rooms = Vec::new();
        for name in ["one", "two"] {
            let room = on.create(&alice, json!({ "preset": "public_chat", "name": name })).await;
            on.post(&bob, &format!("/join/{room}"), &json!({})).await.json(StatusCode::OK);
            rooms.push(room);
        }
        for number in 0..6 {
            let (token, room) = (if number % 3 == 0 { &bob } else { &alice }, &rooms[number % 2]);
            on.say(token, room, &format!("otter {number}{}", " otter".repeat(number))).await;
            on.say(token, room, &format!("aside {number}")).await;
        }
        on.settle().await;
        for order in ["recent", "rank"] {
            let criteria = json!({
                "search_term": "otter",
                "order_by": order,
                "filter": { "limit": 2 },
                "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
            });
            let first = on.search(&alice, criteria.clone()).await;
            assert_eq!((&first["count"], &first["highlights"]), (&json!(6), &json!(["otter"])));
            let (mut seen, mut page) = (texts(&first), first.clone());
            while let Some(next) = page["next_batch"].as_str() {
                let answer = on.search_from(&alice, criteria.clone(), &format!("?next_batch={next}")).await;
                page = answer.json(StatusCode::OK)["search_categories"]["room_events"].clone();
                seen.extend(texts(&page));
            }
            assert_eq!(seen.len(), 6, "{order}: {seen:?}");
            if order == "recent" {
                assert!(seen[0].starts_with("otter 5") && seen[5].starts_with("otter 0"), "{seen:?}");
            }
            // Going on in a group tells of nothing else.
            let group = &first["groups"]["room_id"][&rooms[1]];
            assert!(group["results"].as_array().unwrap().len() <= 2 && group["order"].as_u64().unwrap() >= 1);
            let next = group["next_batch"].as_str().unwrap();
            let answer = on.search_from(&alice, criteria.clone(), &format!("?next_batch={next}")).await;
            let within = answer.json(StatusCode::OK)["search_categories"]["room_events"].clone();
            let within = within["results"].as_array().unwrap().clone();
            assert!(!within.is_empty() && within.iter().all(|found| found["result"]["room_id"] == *rooms[1]));
        }

        let criteria = json!({
            "search_term": "\"otter 2\"",
            "include_state": true,
            "event_context": { "before_limit": 1, "after_limit": 2, "include_profile": true },
        });
        let found = on.search(&bob, criteria).await;
        let found_one = &found["results"][0];
        assert!(found_one["rank"].as_f64().is_some());
        let body = |event: &Value| event["content"]["body"].as_str().unwrap_or_default().to_owned();
        let context = &found_one["context"];
        let around: Vec<String> = ["events_before", "events_after"]
            .iter()
            .flat_map(|side| context[side].as_array().unwrap().iter().map(body))
            .collect();
        assert_eq!(around, ["aside 0", "aside 2", "otter 4 otter otter otter otter"]);
        assert_eq!(context["profile_info"]["@alice:example.org"]["displayname"], "Alice");
        let start = context["start"].as_str().unwrap();
        let path = format!("{V3}/rooms/{}/messages?dir=f&from={start}&limit=1", rooms[0]);
        let page = on.server.get(&path, Some(&bob)).await.json(StatusCode::OK);
        assert_eq!(body(&page["chunk"][0]), "aside 0");
        let state = found["state"][&rooms[0]].as_array().unwrap();
        assert!(state.iter().any(|event| event["type"] == "m.room.name"));
        assert_eq!(found["state"].as_object().unwrap().len(), 1);

        // Filters narrow what is found.
        for (filter, count) in [
            (json!({ "rooms": [rooms[0]] }), 3),
            (json!({ "not_rooms": [rooms[0]] }), 3),
            (json!({ "rooms": ["!other:example.org"] }), 0),
            (json!({ "senders": ["@bob:example.org"] }), 2),
            (json!({ "senders": ["@nobody:example.org"] }), 0),
            (json!({ "not_senders": ["@bob:example.org"] }), 4),
            (json!({ "types": ["m.room.name"] }), 0),
        ] {
            let found = on.search(&alice, json!({ "search_term": "otter", "filter": filter })).await;
            assert_eq!(found["results"].as_array().unwrap().len(), count, "{filter}");
        }
    })
    .await;
}

/// What cannot be understood is refused; what finds nothing is no error.
#[tokio::test]
async fn bad_searches() {
    on_both_finding(async |on: &Finding<'_>| {
        let alice = on.server.user("alice").await;
        let nothing = on.search(&alice, json!({ "search_term": "\"'* AND (" })).await;
        assert_eq!(nothing, json!({ "count": 0, "highlights": ["and"], "results": [] }));
        let empty = on.post(&alice, "/search", &json!({ "search_categories": {} })).await.json(StatusCode::OK);
        assert_eq!(empty, json!({ "search_categories": {} }));
        let good = json!({ "search_term": "x" });
        for (criteria, query, errcode) in [
            (json!({}), "", "M_MISSING_PARAM"),
            (json!({ "search_term": 7 }), "", "M_BAD_JSON"),
            (json!({ "search_term": "x", "keys": ["content.url"] }), "", "M_BAD_JSON"),
            (json!({ "search_term": "x", "order_by": "size" }), "", "M_BAD_JSON"),
            (good.clone(), "?next_batch=t5", "M_INVALID_PARAM"),
            (good.clone(), "?next_batch=n5", "M_INVALID_PARAM"),
        ] {
            let refused = on.search_from(&alice, criteria, query).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), errcode);
        }
        let guest = crate::account::tests::guest(on.server).await.access_token;
        let refused = on.search_from(&guest, good.clone(), "").await;
        assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_GUEST_ACCESS_FORBIDDEN");
        let body = json!({ "search_categories": { "room_events": good } });
        let refused = on.server.post(&format!("{V3}/search"), None, &body).await;
        assert_eq!(refused.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
    })
    .await;
}

/// People find those whom they share a room with, and those in public rooms, by the beginnings of the words of their names;
/// as names, memberships and rooms change.
#[tokio::test]
async fn users_are_found_by_those_who_may() {
    on_both_finding(async |on: &Finding<'_>| {
        let (alice, bob) = (on.server.user("alice").await, on.server.user("bob").await);
        let carol = on.server.user("carol.smith").await;
        let name = json!({ "displayname": "Robert Ångström" });
        on.put(&bob, "/profile/@bob:example.org/displayname", &name).await;
        on.settle().await;
        // Nobody is in a room.
        assert!(on.users(&alice, "bob").await.is_empty());

        let room = on.create(&alice, json!({ "preset": "private_chat", "invite": ["@bob:example.org"] })).await;
        on.settle().await;
        assert!(on.users(&alice, "bob").await.is_empty(), "invited is not there");
        on.post(&bob, &format!("/join/{room}"), &json!({})).await.json(StatusCode::OK);
        on.settle().await;
        let found = ["@bob:example.org"];
        for term in ["b", "BOB", "rob", "ång", "robert å", "@bob:example.org", "bob:exa", " bo rob "] {
            assert_eq!(on.users(&alice, term).await, found, "{term}");
            assert!(on.users(&carol, term).await.is_empty(), "{term}");
        }
        for term in ["", "ob", "bob x", "@bob:elsewhere", "\"'%_"] {
            assert!(on.users(&alice, term).await.is_empty(), "{term}");
        }
        let answer = on.post(&alice, "/user_directory/search", &json!({ "search_term": "bob" })).await;
        let expected = json!({
            "results": [{ "user_id": "@bob:example.org", "display_name": "Robert Ångström" }],
            "limited": false,
        });
        assert_eq!(answer.json(StatusCode::OK), expected);

        // Another name.
        let name = json!({ "displayname": "Zaphod" });
        on.put(&bob, "/profile/@bob:example.org/displayname", &name).await;
        on.settle().await;
        assert!(on.users(&alice, "robert").await.is_empty());
        assert_eq!(on.users(&alice, "zaph").await, found);

        // The room opens, and closes again.
        let path = format!("/rooms/{room}/state/m.room.join_rules");
        on.put(&alice, &path, &json!({ "join_rule": "public" })).await;
        on.settle().await;
        assert_eq!(on.users(&carol, "bob").await, found);
        on.put(&alice, &path, &json!({ "join_rule": "invite" })).await;
        on.settle().await;
        assert!(on.users(&carol, "bob").await.is_empty());
        assert_eq!(on.users(&alice, "bob").await, found);
        let visible = json!({ "history_visibility": "world_readable" });
        on.put(&alice, &format!("/rooms/{room}/state/m.room.history_visibility"), &visible).await;
        on.settle().await;
        assert_eq!(on.users(&carol, "bob").await, found);

        // Who leaves is found no more.
        on.post(&bob, &format!("/rooms/{room}/leave"), &json!({})).await.json(StatusCode::OK);
        on.settle().await;
        assert!(on.users(&carol, "bob").await.is_empty());
        assert!(on.users(&alice, "bob").await.is_empty());
        let refused = on.server.post(&format!("{V3}/user_directory/search"), None, &json!({})).await;
        assert_eq!(refused.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        let refused = on.post(&alice, "/user_directory/search", &json!({})).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
    })
    .await;
}

/// No more users than asked for, the closest first; and whether there are more.
#[tokio::test]
async fn found_users_are_limited() {
    on_both_finding(async |on: &Finding<'_>| {
        let alice = on.server.user("alice").await;
        let room = on.create(&alice, json!({ "preset": "public_chat" })).await;
        for name in ["sam", "samuel", "samantha", "samson"] {
            let token = on.server.user(name).await;
            on.post(&token, &format!("/join/{room}"), &json!({})).await.json(StatusCode::OK);
        }
        on.settle().await;
        let ask = async |limit: u32| {
            let body = json!({ "search_term": "sam", "limit": limit });
            on.post(&alice, "/user_directory/search", &body).await.json(StatusCode::OK)
        };
        for (limit, expected, limited) in [(1, 1, true), (3, 3, true), (4, 4, false), (100, 4, false), (0, 0, true)] {
            let found = ask(limit).await;
            assert_eq!(found["results"].as_array().unwrap().len(), expected, "{found}");
            assert_eq!(found["limited"], limited, "{limit}");
            if limit > 0 {
                assert_eq!(found["results"][0]["user_id"], "@sam:example.org");
            }
        }
    })
    .await;
}
