use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use serde_json::{Value, json};

use super::{Client, FORBIDDEN, refused, segment};
use crate::testing::{Server, on_both};

const NOT_FOUND: (StatusCode, &str) = (StatusCode::NOT_FOUND, "M_NOT_FOUND");
const INVALID: (StatusCode, &str) = (StatusCode::BAD_REQUEST, "M_INVALID_PARAM");

impl Client<'_> {
    async fn get_v1(&self, path: &str) -> crate::testing::Answer {
        self.server.get(&format!("/_matrix/client/v1{path}"), Some(&self.token)).await
    }

    /// Sends an event that relates to another one.
    async fn try_relate(
        &self,
        room: &str,
        event_type: &str,
        rel_type: &str,
        parent: &str,
        more: Value,
    ) -> crate::testing::Answer {
        let mut content =
            json!({ "msgtype": "m.text", "body": "b", "m.relates_to": { "rel_type": rel_type, "event_id": parent } });
        for (name, value) in more.as_object().unwrap() {
            match name.as_str() {
                "key" => content["m.relates_to"]["key"] = value.clone(),
                _ => content[name] = value.clone(),
            }
        }
        let txn = fresh();
        self.put(&format!("{room}/send/{event_type}/{txn}"), content).await
    }

    async fn relate(&self, room: &str, event_type: &str, rel_type: &str, parent: &str, more: Value) -> String {
        let answer = self.try_relate(room, event_type, rel_type, parent, more).await;
        self.ok(answer)["event_id"].as_str().unwrap().to_owned()
    }

    async fn reply_in(&self, room: &str, root: &str) -> String {
        self.relate(room, "m.room.message", "m.thread", root, json!({})).await
    }

    async fn edit(&self, room: &str, event: &str, body: &str) -> String {
        self.relate(room, "m.room.message", "m.replace", event, json!({ "m.new_content": { "body": body } })).await
    }

    async fn react(&self, room: &str, event: &str, key: &str) -> String {
        self.relate(room, "m.reaction", "m.annotation", event, json!({ "key": key })).await
    }

    async fn redact(&self, room: &str, event: &str) {
        let path = format!("{room}/redact/{}/{}", segment(event), fresh());
        let answer = self.put(&path, json!({})).await;
        self.ok(answer);
    }

    async fn ignore(&self, user_id: &str) {
        let path = format!("/user/{}/account_data/m.ignored_user_list", segment(&self.user_id));
        let answer = self.put(&path, json!({ "ignored_users": { user_id: {} } })).await;
        self.ok(answer);
    }

    /// The identifiers of the events that relate to another one.
    async fn related(&self, room: &str, event: &str, rest: &str) -> Vec<String> {
        let answer = self.get_v1(&format!("{room}/relations/{}{rest}", segment(event))).await;
        ids(&self.ok(answer)["chunk"])
    }

    async fn threads(&self, room: &str, query: &str) -> Vec<String> {
        let answer = self.get_v1(&format!("{room}/threads{query}")).await;
        ids(&self.ok(answer)["chunk"])
    }

    /// What is told together with an event, which must be the same wherever it is told of.
    async fn bundle(&self, room: &str, event: &str) -> Value {
        let path = segment(event);
        let alone = self.ok(self.get(&format!("{room}/event/{path}")).await);
        let context = self.ok(self.get(&format!("{room}/context/{path}?limit=0")).await);
        let page = self.ok(self.get(&format!("{room}/messages?dir=b&limit=1000")).await);
        let in_page = page["chunk"].as_array().unwrap().iter().find(|one| one["event_id"] == event).unwrap();
        let relations = |event: &Value| without_age(event["unsigned"]["m.relations"].clone());
        assert_eq!(relations(&alone), relations(&context["event"]));
        assert_eq!(relations(&alone), relations(in_page));
        relations(&alone)
    }

    async fn sync(&self, query: &str) -> Value {
        self.ok(self.get(&format!("/sync?timeout=0{query}")).await)
    }
}

/// A transaction's identifier.
fn fresh() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// An answer without the ages of events, which pass.
fn without_age(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.remove("age");
                object.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value
}

fn ids(chunk: &Value) -> Vec<String> {
    chunk.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// What relates to an event is found in the three forms of the request, both ways, page by page and in depth; what was
/// redacted is not, nor what is of someone who is ignored.
#[tokio::test]
async fn relations_are_listed() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        let root = alice.say(&room, "root").await;
        assert!(alice.related(&room, &root, "").await.is_empty());
        let first = bob.reply_in(&room, &root).await;
        let reaction = bob.react(&room, &root, "\u{1f44d}").await;
        let sticker = alice.relate(&room, "m.sticker", "m.thread", &root, json!({})).await;
        let nested = bob.react(&room, &first, "x").await;
        let last = alice.reply_in(&room, &root).await;

        let all = [&last, &sticker, &reaction, &first].map(String::clone);
        assert_eq!(alice.related(&room, &root, "").await, all);
        let mut forward = alice.related(&room, &root, "?dir=f").await;
        forward.reverse();
        assert_eq!(forward, all);
        assert_eq!(alice.related(&room, &root, "/m.annotation").await, [reaction.as_str()]);
        assert_eq!(alice.related(&room, &root, "/m.thread").await, [last.clone(), sticker.clone(), first.clone()]);
        assert_eq!(alice.related(&room, &root, "/m.thread/m.sticker").await, [sticker.as_str()]);
        assert!(alice.related(&room, &root, "/m.thread/m.reaction").await.is_empty());
        let in_depth = alice.related(&room, &root, "?recurse=true").await;
        assert_eq!(in_depth, [&last, &nested, &sticker, &reaction, &first].map(String::clone));
        assert_eq!(alice.related(&room, &root, "/m.annotation?recurse=true").await, [reaction.as_str()]);

        for direction in ["b", "f"] {
            let (mut found, mut from) = (Vec::new(), String::new());
            loop {
                let path = format!("{room}/relations/{}?limit=3&recurse=true&dir={direction}{from}", segment(&root));
                let page = alice.ok(alice.get_v1(&path).await);
                assert_eq!(page["recursion_depth"], 3);
                assert_eq!(page["prev_batch"].is_null(), from.is_empty());
                found.extend(ids(&page["chunk"]));
                match page["next_batch"].as_str() {
                    Some(next) => from = format!("&from={next}"),
                    None => break,
                }
            }
            if direction == "f" {
                found.reverse();
            }
            assert_eq!(found, in_depth, "{direction}");
        }
        // Tokens of other answers are good here, and bound the page.
        let page = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=2")).await);
        let (start, end) = (page["start"].as_str().unwrap(), page["end"].as_str().unwrap());
        assert_eq!(alice.related(&room, &root, &format!("?from={start}&to={end}")).await, [last.as_str()]);
        assert!(alice.related(&room, &root, &format!("?from={end}&to={start}")).await.is_empty());
        let rest = alice.related(&room, &root, &format!("?from={end}")).await;
        assert_eq!(rest, [&sticker, &reaction, &first].map(String::clone));

        bob.redact(&room, &first).await;
        assert_eq!(alice.related(&room, &root, "/m.thread").await, [last.clone(), sticker.clone()]);
        alice.ignore(&bob.user_id).await;
        assert_eq!(alice.related(&room, &root, "").await, [last.clone(), sticker.clone()]);
        assert_eq!(bob.related(&room, &root, "").await, [last, sticker, reaction]);
    })
    .await;
}

/// Nobody learns by relations what they may not see.
#[tokio::test]
async fn relations_tell_nothing_else() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let carol = Client::new(server, "carol").await;
        let room = alice.create_public("joined").await;
        let early = alice.say(&room, "early").await;
        bob.join(&room).await;
        let root = alice.say(&room, "root").await;
        let seen = alice.reply_in(&room, &root).await;
        let edit = alice.edit(&room, &root, "one").await;
        bob.leave(&room).await;
        let unseen = alice.reply_in(&room, &root).await;
        let later = alice.edit(&room, &root, "two").await;
        alice.relate(&room, "m.room.message", "m.reference", &root, json!({})).await;
        let late = alice.say(&room, "late").await;
        let late_reply = alice.reply_in(&room, &late).await;

        let path = |event: &str| format!("{room}/relations/{}", segment(event));
        for event in [&early, &late, &late_reply, &"$unknown".to_owned()] {
            refused(&bob.get_v1(&path(event)).await, NOT_FOUND);
            refused(&bob.get_v1(&format!("{}/m.thread", path(event))).await, NOT_FOUND);
            refused(&bob.get_v1(&format!("{}/m.thread/m.room.message", path(event))).await, NOT_FOUND);
        }
        refused(&carol.get_v1(&path(&root)).await, NOT_FOUND);
        refused(&alice.get_v1(&path("$unknown")).await, NOT_FOUND);
        refused(&alice.get_v1("/rooms/!unknown:example.org/relations/$x").await, NOT_FOUND);
        let other = alice.create(json!({})).await;
        refused(&alice.get_v1(&format!("{other}/relations/{}", segment(&root))).await, NOT_FOUND);
        for query in ["from=x", "to=x", "dir=x", "limit=x", "recurse=x"] {
            let answer = alice.get_v1(&format!("{}?{query}", path(&root))).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{query}");
        }

        // Nor with a token of someone who sees more.
        let page = alice.ok(alice.get(&format!("{room}/messages?dir=b&limit=1")).await);
        let start = page["start"].as_str().unwrap();
        for rest in [String::new(), "?recurse=true".to_owned(), format!("?from={start}"), format!("?dir=f&to={start}")]
        {
            let mut found = bob.related(&room, &root, &rest).await;
            if rest.contains("dir=f") {
                found.reverse();
            }
            assert_eq!(found, [edit.clone(), seen.clone()], "{rest}");
        }
        let told = bob.bundle(&room, &root).await;
        assert_eq!(told["m.replace"]["event_id"], edit);
        assert_eq!(told["m.thread"]["latest_event"]["event_id"], seen);
        assert_eq!(told["m.thread"]["count"], 1);
        assert_eq!(told["m.reference"], Value::Null);
        assert_eq!(bob.threads(&room, "").await, [root.as_str()]);
        let told = alice.bundle(&room, &root).await;
        assert_eq!(told["m.replace"]["event_id"], later);
        assert_eq!(told["m.thread"]["latest_event"]["event_id"], unseen);
        // What was said while one was away is not the newest that one is told of.
        bob.join(&room).await;
        let told = bob.bundle(&room, &root).await;
        assert_eq!(told["m.thread"]["latest_event"]["event_id"], seen);
        assert_eq!(told["m.replace"]["event_id"], edit);
    })
    .await;
}

/// The newest valid edit is told with an event, until it is redacted, or the event is.
#[tokio::test]
async fn edits_are_bundled() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        let event = alice.say(&room, "original").await;
        assert_eq!(alice.bundle(&room, &event).await, Value::Null);
        let edit = alice.edit(&room, &event, "one").await;
        let told = bob.bundle(&room, &event).await;
        assert_eq!(told.as_object().unwrap().keys().collect::<Vec<_>>(), ["m.replace"]);
        let replace = &told["m.replace"];
        assert_eq!(replace["event_id"], edit);
        assert_eq!(replace["content"]["m.new_content"]["body"], "one");
        assert_eq!((&replace["sender"], &replace["type"]), (&json!(alice.user_id), &json!("m.room.message")));
        assert!(replace["origin_server_ts"].is_u64());
        // None of these is an edit: of another sender, of another type, without content, of an edit.
        bob.edit(&room, &event, "bob").await;
        alice.relate(&room, "m.sticker", "m.replace", &event, json!({ "m.new_content": {} })).await;
        alice.relate(&room, "m.room.message", "m.replace", &event, json!({})).await;
        alice.edit(&room, &edit, "edit of edit").await;
        assert_eq!(bob.bundle(&room, &event).await["m.replace"]["event_id"], edit);
        assert_eq!(bob.bundle(&room, &edit).await, Value::Null);
        let second = alice.edit(&room, &event, "two").await;
        assert_eq!(bob.bundle(&room, &event).await["m.replace"]["event_id"], second);
        alice.redact(&room, &second).await;
        assert_eq!(bob.bundle(&room, &event).await["m.replace"]["event_id"], edit);
        // An encrypted edit cannot be looked into.
        let secret = alice.relate(&room, "m.room.encrypted", "m.thread", &event, json!({})).await;
        let hidden = alice.relate(&room, "m.room.encrypted", "m.replace", &secret, json!({})).await;
        assert_eq!(bob.bundle(&room, &secret).await["m.replace"]["event_id"], hidden);
        // What relates to the newest event of a thread is told with it there.
        let thread = &bob.bundle(&room, &event).await["m.thread"];
        assert_eq!(thread["latest_event"]["unsigned"]["m.relations"]["m.replace"]["event_id"], hidden);
        // State is not edited, and a reaction is not bundled.
        let name = alice.ok(alice.set(&room, "m.room.name", json!({ "name": "n" })).await);
        let name = name["event_id"].as_str().unwrap();
        alice.relate(&room, "m.room.name", "m.replace", name, json!({ "m.new_content": {} })).await;
        alice.react(&room, name, "x").await;
        assert_eq!(bob.bundle(&room, name).await, Value::Null);
        alice.redact(&room, &event).await;
        let told = bob.bundle(&room, &event).await;
        assert_eq!(told.as_object().unwrap().keys().collect::<Vec<_>>(), ["m.thread"]);
    })
    .await;
}

/// References are told by their identifiers.
#[tokio::test]
async fn references_are_bundled() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        let event = alice.say(&room, "asks").await;
        let mut references = Vec::new();
        for client in [&alice, &bob, &alice] {
            references.push(client.relate(&room, "m.room.message", "m.reference", &event, json!({})).await);
        }
        let told = async |client: &Client<'_>| client.bundle(&room, &event).await["m.reference"]["chunk"].clone();
        let chunk = |ids: &[&String]| json!(ids.iter().map(|id| json!({ "event_id": id })).collect::<Vec<_>>());
        assert_eq!(told(&bob).await, chunk(&[&references[0], &references[1], &references[2]]));
        alice.ignore(&bob.user_id).await;
        assert_eq!(told(&alice).await, chunk(&[&references[0], &references[2]]));
        alice.redact(&room, &references[0]).await;
        assert_eq!(told(&bob).await, chunk(&[&references[1], &references[2]]));
    })
    .await;
}

/// Threads are told with what they start from, and listed by their newest events, as each user sees them.
#[tokio::test]
async fn threads_are_listed() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let carol = Client::new(server, "carol").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        carol.join(&room).await;
        let mut roots = Vec::new();
        for number in 0..5 {
            roots.push(alice.say(&room, &number.to_string()).await);
        }
        assert!(bob.threads(&room, "").await.is_empty());
        for root in roots.iter().take(4) {
            alice.reply_in(&room, root).await;
        }
        let latest = bob.reply_in(&room, &roots[1]).await;
        let order = [&roots[1], &roots[3], &roots[2], &roots[0]].map(String::clone);
        assert_eq!(bob.threads(&room, "").await, order);
        assert_eq!(bob.threads(&room, "?include=all").await, order);
        assert_eq!(bob.threads(&room, "?include=participated").await, [roots[1].as_str()]);
        assert_eq!(alice.threads(&room, "?include=participated").await, order);
        assert!(carol.threads(&room, "?include=participated").await.is_empty());
        for limit in [1, 2, 3, 4] {
            let (mut found, mut from) = (Vec::new(), String::new());
            loop {
                let page = bob.ok(bob.get_v1(&format!("{room}/threads?limit={limit}{from}")).await);
                found.extend(ids(&page["chunk"]));
                match page["next_batch"].as_str() {
                    Some(next) => from = format!("&from={next}"),
                    None => break,
                }
            }
            assert_eq!(found, order, "pages of {limit}");
        }
        let thread = async |client: &Client<'_>| client.bundle(&room, &roots[1]).await["m.thread"].clone();
        let told = thread(&bob).await;
        assert_eq!((&told["count"], &told["current_user_participated"]), (&json!(2), &json!(true)));
        assert_eq!(told["latest_event"]["event_id"], latest);
        assert_eq!(told["latest_event"]["room_id"], json!(super::room_id(&room)));
        assert_eq!(thread(&carol).await["current_user_participated"], false);
        assert_eq!(thread(&alice).await["current_user_participated"], true);
        let page = bob.ok(bob.get_v1(&format!("{room}/threads?limit=1")).await);
        assert_eq!(without_age(page["chunk"][0]["unsigned"]["m.relations"]["m.thread"].clone()), told);

        // Whom one ignores is not in the thread, nor is a thread of theirs alone; what it starts from is redacted.
        let of_bob = bob.say(&room, "bob").await;
        carol.reply_in(&room, &of_bob).await;
        bob.reply_in(&room, &roots[4]).await;
        carol.ignore(&bob.user_id).await;
        assert_eq!(thread(&carol).await["count"], 1);
        assert_ne!(thread(&carol).await["latest_event"]["event_id"], latest);
        let listed = carol.ok(carol.get_v1(&format!("{room}/threads")).await);
        let first = &listed["chunk"][0];
        assert_eq!((&first["event_id"], &first["content"]), (&json!(of_bob), &json!({})));
        assert!(!ids(&listed["chunk"]).contains(&roots[4]) && bob.threads(&room, "").await.contains(&roots[4]));
        // A thread whose events are redacted is none.
        bob.redact(&room, &latest).await;
        assert_eq!(thread(&bob).await["count"], 1);

        for query in ["from=x", "limit=0", "limit=-1", "include=some"] {
            refused(&alice.get_v1(&format!("{room}/threads?{query}")).await, INVALID);
        }
        let dave = Client::new(server, "dave").await;
        refused(&dave.get_v1(&format!("{room}/threads")).await, FORBIDDEN);
        refused(&dave.get_v1("/rooms/!unknown:example.org/threads").await, FORBIDDEN);
    })
    .await;
}

/// An annotation is sent once, and a thread starts only from what relates to nothing.
#[tokio::test]
async fn relations_are_checked() {
    on_both(async |server: &Server| {
        let duplicate = (StatusCode::BAD_REQUEST, "M_DUPLICATE_ANNOTATION");
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        let event = alice.say(&room, "root").await;
        let same = || alice.try_relate(&room, "m.reaction", "m.annotation", &event, json!({ "key": "x" }));
        let reaction = alice.react(&room, &event, "x").await;
        refused(&same().await, duplicate);
        // Of someone else, of another key or type, or once the first one is redacted, it is another one.
        bob.react(&room, &event, "x").await;
        alice.react(&room, &event, "y").await;
        alice.relate(&room, "m.other", "m.annotation", &event, json!({ "key": "x" })).await;
        alice.redact(&room, &reaction).await;
        alice.react(&room, &event, "x").await;
        refused(&same().await, duplicate);
        // At the same time, only one goes through; a repeated request is the same one.
        let two = || alice.try_relate(&room, "m.reaction", "m.annotation", &event, json!({ "key": "z" }));
        let (one, other) = tokio::join!(two(), two());
        let mut statuses = [one.status(), other.status()];
        statuses.sort_unstable();
        assert_eq!(statuses, [StatusCode::OK, StatusCode::BAD_REQUEST]);
        let again = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": event, "key": "w" } });
        let path = format!("{room}/send/m.reaction/again");
        let send = || alice.put(&path, again.clone());
        let (one, other) = tokio::join!(send(), send());
        assert_eq!(alice.ok(one), alice.ok(other));
        assert_eq!(alice.related(&room, &event, "/m.annotation/m.reaction").await.len(), 5);

        let reply = alice.reply_in(&room, &event).await;
        let unknown = (StatusCode::BAD_REQUEST, "M_UNKNOWN");
        let in_thread = |parent: String| {
            let (alice, room) = (&alice, &room);
            async move { alice.try_relate(room, "m.room.message", "m.thread", &parent, json!({})).await }
        };
        refused(&in_thread(reply.clone()).await, unknown);
        refused(&in_thread(alice.edit(&room, &event, "e").await).await, unknown);
        // A reply without a rel_type is no relation of this kind, and what is unknown may come.
        let rich = json!({ "body": "r", "m.relates_to": { "m.in_reply_to": { "event_id": event } } });
        let rich = alice.ok(alice.put(&format!("{room}/send/m.room.message/rich"), rich).await);
        alice.ok(in_thread(rich["event_id"].as_str().unwrap().to_owned()).await);
        alice.ok(in_thread("$unknown".to_owned()).await);
        // Who is not there is told no more than that.
        let carol = Client::new(server, "carol").await;
        let answer = carol.try_relate(&room, "m.room.message", "m.thread", &reply, json!({})).await;
        refused(&answer, FORBIDDEN);
    })
    .await;
}

/// A limited timeline is told with what relates to its events, one that only goes on without.
#[tokio::test]
async fn timelines_are_told_with_relations() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        let since = bob.sync("").await["next_batch"].as_str().unwrap().to_owned();
        let root = alice.say(&room, "root").await;
        let edit = alice.edit(&room, &root, "edited").await;
        let reply = alice.reply_in(&room, &root).await;
        let name = super::room_id(&room);
        let events = |answer: &Value| answer["rooms"]["join"][&name]["timeline"]["events"].as_array().unwrap().clone();
        let relations = |events: &[Value]| {
            let event = events.iter().find(|event| event["event_id"] == root).unwrap();
            without_age(event["unsigned"]["m.relations"].clone())
        };
        assert_eq!(relations(&events(&bob.sync(&format!("&since={since}")).await)), Value::Null);
        let filter = segment(&json!({ "room": { "timeline": { "limit": 3 } } }).to_string());
        let told = relations(&events(&bob.sync(&format!("&filter={filter}")).await));
        assert_eq!(told["m.replace"]["event_id"], edit);
        assert_eq!(told["m.thread"]["latest_event"]["event_id"], reply);
        assert_eq!(told["m.thread"]["latest_event"].get("room_id"), None, "as the event itself");

        let body = json!({ "lists": { "all": { "ranges": [[0, 9]], "timeline_limit": 3, "required_state": [] } } });
        let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
        let answer = bob.ok(server.post(path, Some(&bob.token), &body).await);
        let timeline = answer["rooms"][&name]["timeline"].as_array().unwrap().clone();
        assert_eq!(relations(&timeline), told);
    })
    .await;
}
