//! Relations as they are kept, on both engines.

use std::collections::HashMap;

use ruma::{EventId, RoomId, RoomVersionId};
use serde_json::{Value, json};

use super::{BundledChild, Parent, RelatedQuery, Relation, ThreadQuery, ThreadView};
use crate::{
    Append, Direction, Event, EventParts, Head, NewRoom, Operation, Redaction, Store,
    database::Engine,
    flags,
    testing::{Fresh, on_both},
};

const ROOM: i64 = 1;
const ALICE: i64 = 1001;
const BOB: i64 = 1002;

fn id(nid: i64) -> String {
    format!("$event{nid}")
}

/// An event of one of the two.
fn event(nid: i64, sender_nid: i64, event_type: &str, content: &Value) -> Event {
    let parts = EventParts { nid, room_nid: ROOM, depth: 1, sender_nid, ..EventParts::default() };
    let json = json!({
        "type": event_type, "sender": "@a:example.org", "content": content, "origin_server_ts": 1000 + nid, "depth": 1,
    });
    Event::new(parts, EventId::parse(id(nid)).unwrap(), json.to_string().into()).unwrap()
}

fn relating(rel_type: &str, parent: i64) -> Value {
    let mut content = json!({ "m.relates_to": { "rel_type": rel_type, "event_id": id(parent) } });
    if rel_type == "m.replace" {
        content["m.new_content"] = json!({});
    }
    content
}

fn message(nid: i64, sender_nid: i64, content: &Value) -> Event {
    event(nid, sender_nid, "m.room.message", content)
}

/// Writes events at the end of the room, each in a commit of its own.
async fn write(store: &Store, events: Vec<Event>) {
    for event in events {
        let expected_version = store.head(ROOM).await.map_or(0, |head| head.version);
        append(store, Append { events: vec![event], expected_version, ..Append::default() }).await;
    }
}

async fn append(store: &Store, append: Append) {
    let last = append.events.iter().chain(&append.history).map(|event| event.nid).max().unwrap_or_default();
    let version = last.max(append.expected_version) + 1;
    let new = || NewRoom {
        room_id: RoomId::parse("!room:example.org").unwrap(),
        version: RoomVersionId::V12,
        is_public: false,
        alias: None,
    };
    let create = (append.expected_version == 0).then(new);
    let head = Head { version, last_pos: 0, depth: 1, extremities: vec![last], state_root: 0 };
    let append = Append { room_nid: ROOM, create, head, ..append };
    store.commit(Operation::Append(Box::new(append))).await.unwrap();
}

async fn redact(store: &Store, target: i64, by: i64) {
    let target = store.event(target).await.unwrap();
    let json = event(target.nid, target.sender_nid, target.event_type(), &json!({})).json().into();
    let redaction = Redaction { target, by, json };
    let expected_version = store.head(ROOM).await.unwrap().version;
    let events = vec![event(by, ALICE, "m.room.redaction", &json!({}))];
    append(store, Append { events, expected_version, redactions: vec![redaction], ..Append::default() }).await;
}

fn query(parent_id: &EventId) -> RelatedQuery<'_> {
    RelatedQuery { room_nid: ROOM, parent_id, rel_type: None, event_type: None, recurse: false }
}

/// What relates to an event, oldest first.
async fn related(store: &Store, query: &RelatedQuery<'_>) -> Vec<i64> {
    let all = (i64::MIN, i64::MAX);
    let forward = store.related(query, Direction::Forward, all, 100).await.unwrap();
    let mut backward = store.related(query, Direction::Backward, (i64::MAX, i64::MIN), 100).await.unwrap();
    backward.reverse();
    assert_eq!(forward, backward);
    forward.into_iter().map(|(nid, _)| nid).collect()
}

/// What is told together with an event.
async fn bundled(store: &Store, nid: i64) -> Vec<BundledChild> {
    let event = store.event(nid).await.unwrap();
    let parent = Parent { event: &event, end: i64::MAX };
    store.bundled_children(&[parent]).await.unwrap().remove(&nid).unwrap_or_default()
}

async fn thread(store: &Store, nid: i64, end: i64, user_nid: i64, ignored: &[i64]) -> ThreadView {
    let event = store.event(nid).await.unwrap();
    let count = bundled(store, nid).await.iter().find_map(|child| match child {
        BundledChild::Thread(count) => Some(*count),
        _ => None,
    });
    let query = ThreadQuery { root: Parent { event: &event, end }, count: count.unwrap_or_default() };
    store.thread_views(&[query], 2, user_nid, ignored).await.unwrap().remove(0)
}

/// Only what names another event and how it relates to it is a relation, however it is written.
#[test]
fn relations_are_read() {
    let of = |content: Value| {
        let event = message(1, ALICE, &content);
        Relation::of(&event).map(|found| (found.rel_type.into_owned(), found.key.map(|key| key.into_owned())))
    };
    let thread = |event_id: &str| json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": event_id } });
    assert_eq!(of(thread("$a")), Some(("m.thread".into(), None)));
    let reaction = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": "$a", "key": "\u{1f44d}\"" } });
    assert_eq!(of(reaction), Some(("m.annotation".into(), Some("\u{1f44d}\"".into()))));
    for none in [
        json!({}),
        json!({ "body": "m.relates_to" }),
        json!({ "m.relates_to": "$a" }),
        json!({ "m.relates_to": { "m.in_reply_to": { "event_id": "$a" } } }),
        json!({ "m.relates_to": { "rel_type": 5, "event_id": "$a" } }),
        thread("a"),
        thread(&format!("${}", "a".repeat(255))),
        thread("$a\0"),
        json!({ "m.relates_to": { "rel_type": "\0", "event_id": "$a" } }),
    ] {
        assert_eq!(of(none.clone()), None, "{none}");
    }
    let escaped = r#"{"type":"m","sender":"@a:b","origin_server_ts":1,
        "content":{"m.relat\u0065s_to":{"rel_type":"m.thre\u0061d","event_id":"$a"}}}"#;
    let escaped = Event::new(EventParts::default(), EventId::parse("$1").unwrap(), escaped.into()).unwrap();
    assert_eq!(Relation::of(&escaped).unwrap().rel_type, "m.thread");
    let edit = |event_type, content: Value| Relation::of(&event(1, ALICE, event_type, &content)).unwrap().is_edit;
    assert!(edit("m.room.message", relating("m.replace", 2)));
    assert!(!edit("m.room.message", relating("m.thread", 2)));
    assert!(edit("m.room.encrypted", relating("m.thread", 2)), "what it has cannot be seen");
}

/// Relations are found by parent, by how they relate and by type, page by page, also those that came before their
/// parent, and those of relations; an event of another room has none of them.
#[tokio::test]
async fn relations_are_found() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let early = message(10, BOB, &relating("m.reference", 11));
        let reaction = event(13, BOB, "m.reaction", &relating("m.annotation", 11));
        let of_reply = event(14, ALICE, "m.reaction", &relating("m.annotation", 12));
        let deep: Vec<Event> = (15..19).map(|nid| message(nid, BOB, &relating("m.reference", nid - 1))).collect();
        let mut all = vec![early, message(11, ALICE, &json!({})), message(12, BOB, &relating("m.thread", 11))];
        all.extend([reaction, of_reply]);
        all.extend(deep);
        let mut hidden = message(30, BOB, &relating("m.thread", 11));
        let mut parts = hidden.parts();
        parts.flags = flags::SOFT_FAILED;
        hidden = Event::new(parts, hidden.event_id.clone(), hidden.json().into()).unwrap();
        all.push(hidden);
        write(&store, all).await;

        let parent = EventId::parse(id(11)).unwrap();
        let asked = query(&parent);
        assert_eq!(related(&store, &asked).await, [10, 12, 13]);
        let annotations = RelatedQuery { rel_type: Some("m.annotation"), ..asked };
        assert_eq!(related(&store, &annotations).await, [13]);
        assert_eq!(related(&store, &RelatedQuery { event_type: Some("m.reaction"), ..annotations }).await, [13]);
        assert!(related(&store, &RelatedQuery { event_type: Some("m.sticker"), ..annotations }).await.is_empty());
        assert!(related(&store, &RelatedQuery { rel_type: Some("\0"), ..asked }).await.is_empty());
        assert!(related(&store, &RelatedQuery { room_nid: 2, ..asked }).await.is_empty());
        // 14 relates to 12, 15 to 14; 16 is too deep.
        assert_eq!(related(&store, &RelatedQuery { recurse: true, ..asked }).await, [10, 12, 13, 14, 15]);
        let deep_annotations = RelatedQuery { recurse: true, ..annotations };
        assert_eq!(related(&store, &deep_annotations).await, [13], "by way of what is left out itself");

        let first = store.related(&asked, Direction::Backward, (i64::MAX, i64::MIN), 2).await.unwrap();
        assert_eq!(first.iter().map(|(nid, _)| *nid).collect::<Vec<_>>(), [13, 12]);
        let rest = store.related(&asked, Direction::Backward, (first[1].1, i64::MIN), 2).await.unwrap();
        assert_eq!(rest.iter().map(|(nid, _)| *nid).collect::<Vec<_>>(), [10]);

        let by = async |sender, event_type| {
            store.relations_by(ROOM, parent.as_str(), sender, "m.annotation", event_type).await.unwrap()
        };
        assert_eq!(by(BOB, "m.reaction").await, [13]);
        assert!(by(ALICE, "m.reaction").await.is_empty() && by(BOB, "m.sticker").await.is_empty());
        store.close().await;
    })
    .await;
}

/// Of edits only those by the sender count, of the same type and with new content.
#[tokio::test]
async fn edits_are_told_of() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let without = json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": id(11) } });
        write(&store, vec![message(11, ALICE, &json!({}))]).await;
        assert!(bundled(&store, 11).await.is_empty());
        write(
            &store,
            vec![
                message(12, ALICE, &relating("m.replace", 11)),
                message(13, BOB, &relating("m.replace", 11)),
                event(14, ALICE, "m.sticker", &relating("m.replace", 11)),
                message(15, ALICE, &without),
                message(16, ALICE, &relating("m.replace", 11)),
            ],
        )
        .await;
        let mut edits = bundled(&store, 11).await;
        edits.sort_by_key(|child| matches!(child, BundledChild::Edit(16)));
        assert_eq!(edits, [BundledChild::Edit(12), BundledChild::Edit(16)], "also after nothing was found before");
        redact(&store, 16, 17).await;
        assert_eq!(bundled(&store, 11).await, [BundledChild::Edit(12)]);
        redact(&store, 12, 18).await;
        assert!(bundled(&store, 11).await.is_empty());
        store.close().await;
    })
    .await;
}

/// Threads are counted as their events come and go, and told of without those whom the user ignores.
#[tokio::test]
async fn threads_are_counted() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        write(&store, vec![message(11, ALICE, &json!({})), message(12, ALICE, &json!({}))]).await;
        let first = vec![message(13, BOB, &relating("m.thread", 11)), message(14, BOB, &relating("m.thread", 12))];
        write(&store, first).await;
        let expected_version = store.head(ROOM).await.unwrap().version;
        let together = vec![message(15, ALICE, &relating("m.thread", 11)), message(16, BOB, &relating("m.thread", 11))];
        let history = vec![message(17, BOB, &relating("m.thread", 11))];
        append(&store, Append { events: together, history, expected_version, ..Append::default() }).await;

        assert_eq!(bundled(&store, 11).await, [BundledChild::Thread(4)]);
        let all = i64::MAX;
        let view = |newest: &[i64], count, participated| ThreadView { newest: newest.to_vec(), count, participated };
        assert_eq!(thread(&store, 11, all, ALICE, &[]).await, view(&[16, 15], 4, true));
        assert_eq!(thread(&store, 11, all, 1003, &[BOB]).await, view(&[15], 1, false));
        let then = store.event(15).await.unwrap().pos.unwrap();
        assert_eq!(thread(&store, 11, then, ALICE, &[]).await, view(&[15, 13], 3, true));
        assert_eq!(thread(&store, 11, then, ALICE, &[BOB]).await, view(&[15], 1, true));

        let listed = async |up_to, user| -> Vec<(i64, bool)> {
            let listed = store.threads(ROOM, user, up_to, 10).await.unwrap();
            listed.into_iter().map(|thread| (thread.root_nid, thread.participated)).collect()
        };
        assert_eq!(listed(all, BOB).await, [(11, true), (12, true)]);
        assert_eq!(listed(all, 1003).await, [(11, false), (12, false)]);
        redact(&store, 16, 20).await;
        redact(&store, 15, 21).await;
        assert_eq!(listed(all, 1003).await, [(12, false), (11, false)], "the newest event is another one now");
        assert_eq!(listed(then - 2, 1003).await, [(11, false)]);
        assert_eq!(thread(&store, 11, all, ALICE, &[]).await, view(&[13, 17], 2, false));
        redact(&store, 14, 22).await;
        assert_eq!(listed(all, 1003).await, [(11, false)]);
        store.close().await;
    })
    .await;
}

/// A page of events of which nothing is to be told is asked for once, and what comes later is told of all the same.
#[tokio::test]
async fn what_has_no_relations_is_remembered() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        write(&store, vec![message(11, ALICE, &json!({})), message(12, ALICE, &json!({}))]).await;
        let first = store.event(11).await.unwrap();
        store.bundled_children(&[Parent { event: &first, end: 0 }]).await.unwrap();
        assert!(!store.childless.knows(&id(11)), "what is after it was not looked at");
        bundled(&store, 11).await;
        bundled(&store, 12).await;
        assert!(store.childless.knows(&id(11)) && store.childless.knows(&id(12)));
        let reaction = event(13, BOB, "m.reaction", &relating("m.annotation", 11));
        write(&store, vec![reaction]).await;
        assert!(store.childless.knows(&id(11)), "annotations are not told of");
        write(&store, vec![message(14, BOB, &relating("m.reference", 11))]).await;
        assert!(!store.childless.knows(&id(11)) && store.childless.knows(&id(12)));
        assert_eq!(bundled(&store, 11).await, [BundledChild::Reference(14)]);
        // What was read before a relation came is not believed.
        let mark = store.childless.mark();
        write(&store, vec![message(15, BOB, &relating("m.thread", 12))]).await;
        store.childless.remember(mark, [id(12).as_str()].into_iter());
        assert_eq!(bundled(&store, 12).await, [BundledChild::Thread(1)]);
        store.close().await;
    })
    .await;
}

/// The migration finds the relations of what was written before it.
#[tokio::test]
async fn a_migration_finds_what_is_there() {
    type Row = (i64, String, String, String, i64, i64, i64, bool);
    async fn table(store: &Store) -> (Vec<Row>, Vec<(String, i64, i64)>) {
        let mut reader = store.database.reader().await.unwrap();
        let relations = crate::sql::rows!(
            reader,
            "SELECT event_nid, parent_id, rel_type, event_type, sender_nid, ts, pos, is_edit FROM event_relations
             ORDER BY event_nid"
        );
        let threads = crate::sql::rows!(reader, "SELECT root_id, latest_pos, count FROM threads ORDER BY root_id");
        (relations.unwrap(), threads.unwrap())
    }
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let numbers: HashMap<i64, Value> = HashMap::from([
            (11, json!({})),
            (12, relating("m.thread", 11)),
            (13, relating("m.thread", 11)),
            (14, relating("m.replace", 11)),
            (15, json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": id(11) } })),
            (16, json!({ "m.relates_to": { "rel_type": ["m.thread"], "event_id": id(11) } })),
            (17, json!({ "m.relates_to": "m.thread" })),
            (18, json!({ "body": "m.relates_to" })),
            (19, json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": id(11), "key": "\u{1f44d}" } })),
            (20, relating("m.thread", 11)),
        ]);
        let mut nids: Vec<i64> = numbers.keys().copied().collect();
        nids.sort_unstable();
        write(&store, nids.iter().map(|nid| message(*nid, ALICE, &numbers[nid])).collect()).await;
        redact(&store, 20, 21).await;
        let nul = json!({ "body": "\0", "m.relates_to": { "rel_type": "m.thread", "event_id": id(11) } });
        write(&store, vec![message(22, ALICE, &nul)]).await;
        let written = table(&store).await;
        assert_eq!(written.0.iter().map(|row| row.0).collect::<Vec<_>>(), [12, 13, 14, 15, 19, 22]);

        let mut transaction = store.database.begin().await.unwrap();
        let drop = "DROP TABLE event_relations; DROP TABLE threads;";
        let is_postgres = match transaction.engine() {
            Engine::Sqlite(connection) => {
                sqlx::raw_sql(drop).execute(&mut *connection).await.unwrap();
                let migration = include_str!("../../migrations/sqlite/0011_relations.sql");
                sqlx::raw_sql(migration).execute(&mut *connection).await.unwrap();
                false
            }
            Engine::Postgres(connection) => {
                sqlx::raw_sql(drop).execute(&mut *connection).await.unwrap();
                let migration = include_str!("../../migrations/postgres/0011_relations.sql");
                sqlx::raw_sql(migration).execute(&mut *connection).await.unwrap();
                true
            }
        };
        transaction.commit().await.unwrap();
        let (mut relations, mut threads) = written;
        if is_postgres {
            // What PostgreSQL cannot read is left out.
            relations.pop();
            let latest = relations.iter().filter(|row| row.2 == "m.thread").map(|row| row.6).max().unwrap();
            threads[0] = (threads[0].0.clone(), latest, 2);
        }
        assert_eq!(table(&store).await, (relations, threads));
        store.close().await;
    })
    .await;
}
