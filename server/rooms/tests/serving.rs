//! What other servers may read of rooms, on both engines: what they are given, and what they are refused.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use myelin_rooms::{
    CreateRoom, Error, InitialState, MembershipAction, Preset, Rooms, Template, content,
    serve::{HierarchyRequest, MissingEvents},
};
use myelin_store::{
    Append, Direction, Event, EventParts, Operation, RoomName, Store, flags,
    testing::{Fresh, SERVER_NAME, on_both},
};
use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId, signatures::Ed25519KeyPair};
use serde_json::{Value, json, value::to_raw_value};

async fn rooms_on(store: &Arc<Store>) -> Arc<Rooms> {
    let (version, document) = store.signing_key().await.unwrap();
    let key = Ed25519KeyPair::from_der(&document, version).unwrap();
    Rooms::new(store.clone(), SERVER_NAME.try_into().unwrap(), key)
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:{SERVER_NAME}")).unwrap()
}

fn remote(name: &str, server: &ServerName) -> OwnedUserId {
    UserId::parse(format!("@{name}:{server}")).unwrap()
}

fn server(name: &str) -> &ServerName {
    name.try_into().unwrap()
}

fn id(name: &str) -> OwnedEventId {
    EventId::parse(name).unwrap()
}

fn wanted(creator: &UserId, version: &str) -> CreateRoom {
    CreateRoom {
        creator: creator.to_owned(),
        version: RoomVersionId::try_from(version).unwrap(),
        preset: Preset::PublicChat,
        is_public: false,
        alias: None,
        name: None,
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: Default::default(),
        initial_state: Vec::new(),
        power_level_content_override: Default::default(),
    }
}

fn initial(event_type: &str, state_key: &str, value: Value) -> InitialState {
    InitialState {
        event_type: event_type.to_owned(),
        state_key: state_key.to_owned(),
        content: content(&to_raw_value(&value).unwrap()).unwrap(),
    }
}

/// A room with this history visibility, which everyone may join.
async fn room_of(rooms: &Arc<Rooms>, creator: &UserId, visibility: &str) -> Arc<RoomName> {
    let mut wanted = wanted(creator, "11");
    let visibility = json!({ "history_visibility": visibility });
    wanted.initial_state.push(initial("m.room.history_visibility", "", visibility));
    rooms.create(wanted).await.unwrap()
}

async fn say(rooms: &Arc<Rooms>, room: &Arc<RoomName>, sender: &UserId, body: &str) -> OwnedEventId {
    let raw = to_raw_value(&json!({ "msgtype": "m.text", "body": body })).unwrap();
    rooms.send(room, Template::message(sender, "m.room.message", content(&raw).unwrap()), None).await.unwrap()
}

async fn set(rooms: &Arc<Rooms>, room: &Arc<RoomName>, sender: &UserId, kind: &str, value: Value) -> OwnedEventId {
    rooms.set_state(room, sender, kind, "", content(&to_raw_value(&value).unwrap()).unwrap()).await.unwrap()
}

async fn act(rooms: &Arc<Rooms>, room: &Arc<RoomName>, user: &UserId, action: MembershipAction) {
    rooms.change_membership(room, user, user, action, None, false).await.unwrap();
}

/// What an event says, or `None` if it was redacted.
fn body(event: &Event) -> Option<String> {
    let content: Value = serde_json::from_str(event.content()).unwrap();
    content["body"].as_str().map(str::to_owned)
}

fn names(events: &[Arc<Event>]) -> Vec<String> {
    events.iter().map(|event| event.event_id.to_string()).collect()
}

#[track_caller]
fn forbidden<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    assert!(matches!(outcome, Err(Error::Forbidden(_))), "{outcome:?}");
}

#[track_caller]
fn not_found<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    assert!(matches!(outcome, Err(Error::NotFound(_))), "{outcome:?}");
}

/// The state before an event, whole and as identifiers, with everything that allows it; nothing for strangers.
#[tokio::test(flavor = "multi_thread")]
async fn state_before_an_event() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, other, stranger) = (user("alice"), server("other.org"), server("stranger.org"));
        for version in ["1", "10", "12"] {
            let room = rooms.create(wanted(&alice, version)).await.unwrap();
            let room_id = &room.room_id;
            act(&rooms, &room, &remote("bob", other), MembershipAction::Join).await;
            let old = set(&rooms, &room, &alice, "m.room.topic", json!({ "topic": "old" })).await;
            let new = set(&rooms, &room, &alice, "m.room.topic", json!({ "topic": "new" })).await;
            let said = say(&rooms, &room, &alice, "hello").await;

            let before_new = rooms.serve_state_ids(other, room_id, &new).await.unwrap();
            assert!(before_new.pdu_ids.contains(&old) && !before_new.pdu_ids.contains(&new));
            let before_said = rooms.serve_state_ids(other, room_id, &said).await.unwrap();
            assert!(before_said.pdu_ids.contains(&new) && !before_said.pdu_ids.contains(&old));

            // Everything that the state refers to is there, and the events are those that were signed.
            let state: Value = serde_json::from_str(&rooms.serve_state(other, room_id, &said).await.unwrap()).unwrap();
            let chain = state["auth_chain"].as_array().unwrap();
            let chain_ids: HashSet<_> = before_said.auth_chain_ids.iter().map(|id| id.as_str()).collect();
            assert_eq!(chain.len(), chain_ids.len());
            assert_eq!(state["pdus"].as_array().unwrap().len(), before_said.pdu_ids.len());
            for pdu in state["pdus"].as_array().unwrap().iter().chain(chain) {
                assert!(pdu["signatures"][SERVER_NAME].is_object());
                for auth in pdu["auth_events"].as_array().unwrap() {
                    let auth = auth.as_str().or_else(|| auth[0].as_str()).unwrap();
                    assert!(chain_ids.contains(auth), "version {version}: {auth}");
                }
            }
            let first = store.page(room.nid, Direction::Forward, i64::MIN, None, 1).await.unwrap().remove(0);
            let nothing = rooms.serve_state_ids(other, room_id, &first.event_id).await.unwrap();
            assert!(nothing.pdu_ids.is_empty() && nothing.auth_chain_ids.is_empty());

            let auth: Value =
                serde_json::from_str(&rooms.serve_event_auth(other, room_id, &said).await.unwrap()).unwrap();
            let types: BTreeSet<_> =
                auth["auth_chain"].as_array().unwrap().iter().map(|pdu| pdu["type"].as_str().unwrap()).collect();
            assert!(types.contains("m.room.power_levels") && types.contains("m.room.member"));
            assert!(!types.contains("m.room.message") && !types.contains("m.room.topic"));

            let elsewhere = rooms.create(wanted(&alice, version)).await.unwrap();
            for wrong in [&id("$unknown:example.org"), &say(&rooms, &elsewhere, &alice, "elsewhere").await] {
                not_found(rooms.serve_state(other, room_id, wrong).await);
                not_found(rooms.serve_state_ids(other, room_id, wrong).await);
                not_found(rooms.serve_event_auth(other, room_id, wrong).await);
            }
            for (reader, id) in
                [(stranger, room_id), (other, &elsewhere.room_id), (other, &RoomId::parse("!a:b").unwrap())]
            {
                forbidden(rooms.serve_state(reader, id, &said).await);
                forbidden(rooms.serve_state_ids(reader, id, &said).await);
                forbidden(rooms.serve_event_auth(reader, id, &said).await);
            }
        }
        store.close().await;
    })
    .await;
}

/// A server gets what one of its users may see; of the rest it is told no more than a place in the graph, and that only
/// while it is in the room.
#[tokio::test(flavor = "multi_thread")]
async fn history_visibility_for_servers() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, stranger) = (user("alice"), server("stranger.org"));
        for (visibility, sees_early, sees_invited) in
            [("world_readable", true, true), ("shared", true, true), ("invited", false, true), ("joined", false, false)]
        {
            let other = server("other.org:8448");
            let (bob, bert) = (remote("bob", other), remote("bert", other));
            let room = room_of(&rooms, &alice, visibility).await;
            let early = say(&rooms, &room, &alice, "early").await;
            // The rules of this server invite only its own users: the event is what another server would have made.
            let invite = json!({ "membership": "invite" });
            let invite = content(&to_raw_value(&invite).unwrap()).unwrap();
            let invite = Template::state(&alice, "m.room.member", bob.as_str(), invite);
            rooms.send(&room, invite, None).await.unwrap();
            let invited = say(&rooms, &room, &alice, "invited").await;
            act(&rooms, &room, &bob, MembershipAction::Join).await;
            act(&rooms, &room, &bert, MembershipAction::Join).await;
            act(&rooms, &room, &bob, MembershipAction::Leave).await;
            let joined = say(&rooms, &room, &alice, "joined").await;

            let read = async |event_id: &EventId| body(&rooms.serve_event(other, event_id).await.unwrap());
            assert_eq!(read(&early).await.is_some(), sees_early, "{visibility}");
            assert_eq!(read(&invited).await.is_some(), sees_invited, "{visibility}");
            assert_eq!(read(&joined).await.as_deref(), Some("joined"));
            let history = rooms.serve_backfill(other, &room.room_id, std::slice::from_ref(&joined), 100).await.unwrap();
            let bodies: Vec<_> = history.iter().filter_map(|event| body(event)).collect();
            let expected = [Some("joined"), sees_invited.then_some("invited"), sees_early.then_some("early")];
            assert_eq!(bodies, expected.into_iter().flatten().collect::<Vec<_>>(), "{visibility}");
            assert!(history.iter().any(|event| event.event_id == early), "redacted, but there");

            act(&rooms, &room, &bert, MembershipAction::Leave).await;
            let late = say(&rooms, &room, &alice, "late").await;
            let is_open = visibility == "world_readable";
            match is_open {
                true => assert_eq!(read(&late).await.as_deref(), Some("late")),
                false => not_found(rooms.serve_event(other, &late).await),
            }
            match sees_early {
                true => assert_eq!(read(&early).await.as_deref(), Some("early")),
                false => not_found(rooms.serve_event(other, &early).await),
            }
            assert_eq!(read(&joined).await.as_deref(), Some("joined"));
            let history = rooms.serve_backfill(other, &room.room_id, std::slice::from_ref(&late), 100).await.unwrap();
            assert_eq!(history.iter().any(|event| event.event_id == late), is_open);
            assert_eq!(history.iter().any(|event| event.event_id == early), sees_early);
            assert!(rooms.serve_state_ids(other, &room.room_id, &joined).await.is_ok());
            if !is_open {
                forbidden(rooms.serve_state_ids(other, &room.room_id, &late).await);
            }

            match is_open {
                true => drop(rooms.serve_event(stranger, &early).await.unwrap()),
                false => {
                    not_found(rooms.serve_event(stranger, &early).await);
                    forbidden(rooms.serve_backfill(stranger, &room.room_id, &[late], 10).await);
                }
            }
        }
        store.close().await;
    })
    .await;
}

/// An event that nobody has sent, written as if it had been received.
struct Made<'a> {
    name: &'a str,
    prev: &'a [&'a str],
    depth: i64,
    flags: i64,
}

async fn put(store: &Arc<Store>, room: &RoomName, sender: &UserId, made: &[Made<'_>]) {
    let sender_nid = store.user_nid(sender).await.unwrap();
    let mut head = store.head(room.nid).await.unwrap();
    let expected_version = head.version;
    let nids = store.take_event_nids(made.len() as i64).await.unwrap();
    let mut append = Append { room_nid: room.nid, expected_version, ..Append::default() };
    for (made, nid) in made.iter().zip(nids) {
        let json = json!({
            "type": "m.room.message", "room_id": room.room_id, "sender": sender, "origin_server_ts": 1,
            "content": { "body": made.name }, "depth": made.depth, "prev_events": made.prev, "auth_events": [],
        });
        let is_outlier = made.flags & flags::OUTLIER != 0;
        let root = if is_outlier { 0 } else { head.state_root };
        let parts = EventParts {
            nid,
            room_nid: room.nid,
            depth: made.depth,
            sender_nid,
            state_before: root,
            room_state: root,
            flags: made.flags,
            ..EventParts::default()
        };
        let event = Event::new(parts, id(made.name), json.to_string().into()).unwrap();
        if is_outlier {
            append.outliers.push(event);
        } else {
            append.events.push(event);
        }
        head.version = nid;
        head.depth = head.depth.max(made.depth);
        head.extremities = vec![nid];
    }
    append.head = head;
    store.commit(Operation::Append(Box::new(append))).await.unwrap();
}

/// A graph with forks, walked back from several events: by depth, within bounds, through what is not given.
#[tokio::test(flavor = "multi_thread")]
async fn walks_through_forks() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, other) = (user("alice"), server("other.org"));
        let room = rooms.create(wanted(&alice, "11")).await.unwrap();
        act(&rooms, &room, &remote("bob", other), MembershipAction::Join).await;
        let start = say(&rooms, &room, &alice, "start").await;
        let start = start.as_str();
        let depth = store.head(room.nid).await.unwrap().depth;
        let made = |name, prev, above, flags| Made { name, prev, depth: depth + above, flags };
        put(
            &store,
            &room,
            &alice,
            &[
                made("$a1", &[start], 1, 0),
                made("$b1", &[start], 1, 0),
                made("$a2", &["$a1"], 2, 0),
                made("$soft", &["$a1"], 2, flags::SOFT_FAILED),
                made("$bad", &["$b1"], 2, flags::REJECTED),
                made("$far", &["$nowhere"], 9, flags::OUTLIER),
                made("$m", &["$a2", "$bad", "$far", "$missing"], 3, 0),
                made("$n", &["$soft", "$m"], 4, 0),
            ],
        )
        .await;
        let room_id = &room.room_id;
        let back = async |from: &[&str], limit| {
            let from: Vec<_> = from.iter().map(|name| id(name)).collect();
            names(&rooms.serve_backfill(other, room_id, &from, limit).await.unwrap())
        };
        // The rejected event is walked through; a soft-failed one is given since another event follows it.
        assert_eq!(back(&["$n"], 7).await, ["$n", "$m", "$a2", "$soft", "$b1", "$a1", start]);
        assert_eq!(back(&["$m"], 4).await, ["$m", "$a2", "$b1", "$a1"]);
        assert_eq!(back(&["$a2", "$b1"], 3).await, ["$a2", "$b1", "$a1"]);
        assert_eq!(back(&["$a2", "$a2", "$unknown"], 1).await, ["$a2"]);
        let whole = back(&["$n"], 100).await;
        assert_eq!(whole.iter().collect::<HashSet<_>>().len(), whole.len());
        let all = store.page(room.nid, Direction::Forward, i64::MIN, None, 1000).await.unwrap();
        assert_eq!(whole.len(), all.len() + 1, "the soft-failed one has no place in the timeline");
        not_found(rooms.serve_backfill(other, room_id, &[id("$unknown")], 5).await);
        not_found(rooms.serve_backfill(other, room_id, &[], 5).await);

        let between = async |earliest: &[&str], latest: &[&str], limit, min_depth| {
            let ids = |names: &[&str]| names.iter().map(|name| id(name)).collect();
            let wanted = MissingEvents { earliest: ids(earliest), latest: ids(latest), limit, min_depth };
            names(&rooms.serve_missing_events(other, room_id, &wanted).await.unwrap())
        };
        let lacking = between(&[start], &["$n"], 10, 0).await;
        assert_eq!(lacking, ["$a1", "$b1", "$a2", "$soft", "$m"]);
        assert_eq!(between(&[start], &["$n"], 2, 0).await, ["$soft", "$m"]);
        assert_eq!(between(&[start], &["$n"], 10, depth + 2).await, ["$a2", "$soft", "$m"]);
        assert_eq!(between(&["$a2", "$b1", "$soft"], &["$n"], 10, 0).await, ["$m"]);
        assert_eq!(between(&["$m", "$soft"], &["$n"], 10, 0).await, [] as [&str; 0]);
        assert_eq!(between(&[start], &["$unknown"], 10, 0).await, [] as [&str; 0]);
        forbidden(rooms.serve_missing_events(server("x.org"), room_id, &MissingEvents::default()).await);

        // What has no known place has no state, and what was rejected is not passed on.
        for event_id in ["$far", "$bad"] {
            not_found(rooms.serve_state(other, room_id, &id(event_id)).await);
            not_found(rooms.serve_state_ids(other, room_id, &id(event_id)).await);
        }
        assert!(rooms.serve_state_ids(other, room_id, &id("$soft")).await.is_ok());
        assert_eq!(rooms.serve_event(other, &id("$soft")).await.unwrap().event_id, "$soft");
        assert_eq!(rooms.serve_event(other, &id("$far")).await.unwrap().event_id, "$far");
        not_found(rooms.serve_event(other, &id("$bad")).await);
        store.close().await;
    })
    .await;
}

/// A long line is walked in few steps, and no further than the bound.
#[tokio::test(flavor = "multi_thread")]
async fn long_histories() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, other) = (user("alice"), server("other.org"));
        let room = rooms.create(wanted(&alice, "11")).await.unwrap();
        act(&rooms, &room, &remote("bob", other), MembershipAction::Join).await;
        let mut said = Vec::new();
        for number in 0..250 {
            said.push(say(&rooms, &room, &alice, &number.to_string()).await);
        }
        let last = said.last().unwrap().clone();
        let page = rooms.serve_backfill(other, &room.room_id, std::slice::from_ref(&last), usize::MAX).await.unwrap();
        let expected: Vec<_> = said.iter().rev().take(100).map(ToString::to_string).collect();
        assert_eq!(names(&page), expected);
        let wanted = MissingEvents { earliest: vec![said[0].clone()], latest: vec![last], limit: 20, min_depth: 0 };
        let lacking = rooms.serve_missing_events(other, &room.room_id, &wanted).await.unwrap();
        let expected: Vec<_> = said[229..249].iter().map(ToString::to_string).collect();
        assert_eq!(names(&lacking), expected);
        store.close().await;
    })
    .await;
}

/// A server that a room's list shuts out reads nothing of it, from the commit of the list on until it is changed.
#[tokio::test(flavor = "multi_thread")]
async fn access_control_lists() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, evil, good) = (user("alice"), server("sub.evil.org:8448"), server("good.org"));
        let room = rooms.create(wanted(&alice, "10")).await.unwrap();
        for reader in [evil, good] {
            act(&rooms, &room, &remote("bob", reader), MembershipAction::Join).await;
        }
        let said = say(&rooms, &room, &alice, "hello").await;
        let room_id = &room.room_id;
        rooms.check_acl(evil, room_id).await.unwrap();
        rooms.check_acl(evil, &RoomId::parse("!unknown:example.org").unwrap()).await.unwrap();
        let list =
            set(&rooms, &room, &alice, "m.room.server_acl", json!({ "allow": ["*"], "deny": ["*.EVIL.org"] })).await;
        forbidden(rooms.check_acl(evil, room_id).await);
        forbidden(rooms.serve_state(evil, room_id, &said).await);
        forbidden(rooms.serve_state_ids(evil, room_id, &said).await);
        forbidden(rooms.serve_event_auth(evil, room_id, &said).await);
        forbidden(rooms.serve_backfill(evil, room_id, std::slice::from_ref(&said), 10).await);
        forbidden(rooms.serve_missing_events(evil, room_id, &MissingEvents::default()).await);
        forbidden(rooms.serve_event_at(evil, room_id, 0, Direction::Forward).await);
        not_found(rooms.serve_event(evil, &said).await);
        rooms.check_acl(good, room_id).await.unwrap();
        rooms.serve_event(good, &said).await.unwrap();
        // Without its content the list allows nobody: the copy in memory is not believed any more.
        rooms.redact(&room, &alice, &list, Default::default(), None).await.unwrap();
        forbidden(rooms.check_acl(good, room_id).await);
        set(&rooms, &room, &alice, "m.room.server_acl", json!({ "allow": ["*"] })).await;
        rooms.check_acl(evil, room_id).await.unwrap();
        store.close().await;
    })
    .await;
}

/// The servers of a room follow its members; counted anew, they are the same.
#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_room() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, a, b) = (user("alice"), server("a.org"), server("b.org"));
        let room = rooms.create(wanted(&alice, "11")).await.unwrap();
        let check = async |expected: &[&str]| {
            assert_eq!(rooms.servers_in(&room).await.unwrap(), expected);
            assert_eq!(rooms_on(&store).await.servers_in(&room).await.unwrap(), expected);
        };
        check(&[SERVER_NAME]).await;
        act(&rooms, &room, &remote("one", b), MembershipAction::Join).await;
        act(&rooms, &room, &remote("two", b), MembershipAction::Join).await;
        act(&rooms, &room, &remote("one", a), MembershipAction::Join).await;
        check(&["a.org", "b.org", SERVER_NAME]).await;
        let then = rooms.state_root(&room).await.unwrap();
        act(&rooms, &room, &remote("one", a), MembershipAction::Leave).await;
        act(&rooms, &room, &remote("one", b), MembershipAction::Leave).await;
        check(&["b.org", SERVER_NAME]).await;
        act(&rooms, &room, &remote("two", b), MembershipAction::Leave).await;
        check(&[SERVER_NAME]).await;
        assert_eq!(rooms.servers_at(&room, then).await.unwrap(), ["a.org", "b.org", SERVER_NAME]);
        assert!(!rooms.is_server_in(&room, a).await.unwrap());
        store.close().await;
    })
    .await;
}

/// The event nearest to a time, on the side asked for; what may not be seen is passed over.
#[tokio::test(flavor = "multi_thread")]
async fn events_by_time() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, other) = (user("alice"), server("other.org"));
        let alice_nid = store.user_nid(&alice).await.unwrap();
        let room = room_of(&rooms, &alice, "joined").await;
        // Later than the room's making.
        let base = 4_000_000_000_000;
        let at = async |ts: u64| {
            let raw = to_raw_value(&json!({ "body": ts.to_string() })).unwrap();
            let mut template = Template::message(&alice, "m.room.message", content(&raw).unwrap());
            template.timestamp_ms = Some(base + ts);
            rooms.send(&room, template, None).await.unwrap()
        };
        let mut sent = Vec::new();
        // One came late, and two at the same time.
        for ts in [10, 20, 40, 30, 50, 50, 60] {
            sent.push(at(ts).await);
        }
        let reader = rooms.reader(&room.room_id, &alice, alice_nid).await.unwrap();
        let (forward, backward) = (Direction::Forward, Direction::Backward);
        for (ts, direction, expected) in [
            (0, forward, 0),
            (10, forward, 0),
            (11, forward, 1),
            (25, forward, 3),
            (35, forward, 2),
            (45, forward, 4),
            (60, forward, 6),
            (60, backward, 6),
            (99, backward, 6),
            (59, backward, 5),
            (35, backward, 3),
            (10, backward, 0),
        ] {
            let found = rooms.event_at(&reader, base + ts, direction).await.unwrap();
            assert_eq!(found.event_id, sent[expected], "{ts} {direction:?}");
        }
        not_found(rooms.event_at(&reader, base + 61, forward).await);
        not_found(rooms.event_at(&reader, 5, backward).await);

        forbidden(rooms.serve_event_at(other, &room.room_id, base, forward).await);
        act(&rooms, &room, &remote("bob", other), MembershipAction::Join).await;
        let heard = at(70).await;
        for (ts, direction) in [(65, forward), (75, backward)] {
            let found = rooms.serve_event_at(other, &room.room_id, base + ts, direction).await.unwrap();
            assert_eq!(found.event_id, heard);
        }
        assert_eq!(rooms.serve_event_at(other, &room.room_id, base, forward).await.unwrap().event_id, heard);
        store.close().await;
    })
    .await;
}

/// A space whose children differ in who may join them, for servers and for users.
#[tokio::test(flavor = "multi_thread")]
async fn hierarchies() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, carol, other) = (user("alice"), user("carol"), server("other.org"));
        let make = async |name: &str, is_space: bool, join_rules: Value| {
            let mut wanted = wanted(&alice, "11");
            wanted.name = Some(name.to_owned());
            if is_space {
                wanted.creation_content.insert("type".into(), "m.space".to_owned().into());
            }
            wanted.initial_state.push(initial("m.room.join_rules", "", join_rules));
            wanted.initial_state.push(initial(
                "m.room.history_visibility",
                "",
                json!({ "history_visibility": "shared" }),
            ));
            rooms.create(wanted).await.unwrap()
        };
        let (public, invite) = (json!({ "join_rule": "public" }), json!({ "join_rule": "invite" }));
        let space = make("space", true, public.clone()).await;
        let inner = make("inner", true, public.clone()).await;
        let open = make("open", false, public.clone()).await;
        let knock = make("knock", false, json!({ "join_rule": "knock" })).await;
        let closed = make("closed", false, invite).await;
        let allow = json!([{ "type": "m.room_membership", "room_id": open.room_id }]);
        let members = make("members", false, json!({ "join_rule": "restricted", "allow": allow })).await;
        let child = async |parent: &Arc<RoomName>, key: &RoomId, value: Value| {
            let value = content(&to_raw_value(&value).unwrap()).unwrap();
            rooms.set_state(parent, &alice, "m.space.child", key.as_str(), value).await.unwrap();
        };
        let via = json!([SERVER_NAME]);
        child(&space, &closed.room_id, json!({ "via": via })).await;
        child(&space, &members.room_id, json!({ "via": via, "order": "b" })).await;
        child(&space, &inner.room_id, json!({ "via": via, "order": "a", "suggested": true })).await;
        child(&space, &RoomId::parse("!far:away.org").unwrap(), json!({ "via": ["away.org"], "order": "0" })).await;
        child(&space, &open.room_id, json!({ "via": [] })).await;
        child(&inner, &open.room_id, json!({ "via": via, "order": "x" })).await;
        child(&inner, &knock.room_id, json!({ "via": via, "order": "not\u{1}valid" })).await;
        // A circle.
        child(&inner, &space.room_id, json!({ "via": via })).await;

        let served = rooms.serve_hierarchy(other, &space.room_id, false).await.unwrap();
        let ids = |list: &[myelin_rooms::serve::RoomSummary]| {
            list.iter().map(|room| room.room_id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(served.room.children_state.len(), 4);
        let first: Value = serde_json::from_str(served.room.children_state[0].get()).unwrap();
        assert_eq!(first["state_key"], "!far:away.org");
        assert!(first["origin_server_ts"].is_u64() && first.get("event_id").is_none());
        assert_eq!(ids(&served.children), std::slice::from_ref(&inner.room_id));
        let mut shut = served.inaccessible_children.clone();
        shut.sort();
        let mut expected = [closed.room_id.clone(), members.room_id.clone()];
        expected.sort();
        assert_eq!(shut, expected);
        let json = serde_json::to_value(&served).unwrap();
        assert_eq!(json["room"]["name"], "space");
        assert_eq!(json["room"]["room_type"], "m.space");
        assert_eq!(json["room"]["num_joined_members"], 1);
        assert_eq!(json["room"]["room_version"], "11");
        assert_eq!(json["children"][0]["join_rule"], "public");
        let suggested = rooms.serve_hierarchy(other, &space.room_id, true).await.unwrap();
        assert_eq!(suggested.room.children_state.len(), 1);
        // In the room that is named, its users may join the one that names it.
        act(&rooms, &open, &remote("bob", other), MembershipAction::Join).await;
        let served = rooms.serve_hierarchy(other, &space.room_id, false).await.unwrap();
        assert_eq!(ids(&served.children), [inner.room_id.clone(), members.room_id.clone()]);
        assert_eq!(serde_json::to_value(&served).unwrap()["children"][1]["allowed_room_ids"], json!([open.room_id]));
        not_found(rooms.serve_hierarchy(other, &closed.room_id, false).await);
        not_found(rooms.serve_hierarchy(other, &RoomId::parse("!far:away.org").unwrap(), false).await);
        set(&rooms, &inner, &alice, "m.room.server_acl", json!({ "allow": [SERVER_NAME] })).await;
        assert!(
            rooms
                .serve_hierarchy(other, &space.room_id, false)
                .await
                .unwrap()
                .inaccessible_children
                .contains(&inner.room_id)
        );
        not_found(rooms.serve_hierarchy(other, &inner.room_id, false).await);

        let walk = async |user: &UserId, request: &HierarchyRequest| {
            let user_nid = store.user_nid(user).await.unwrap();
            let page = rooms.hierarchy(&space.room_id, user_nid, request).await.unwrap();
            (page.rooms.iter().map(|room| room.summary.room_id.clone()).collect::<Vec<_>>(), page.is_last)
        };
        let all = [&space, &inner, &open, &knock, &members, &closed].map(|room| room.room_id.clone());
        let request =
            |suggested_only, max_depth, skip, limit| HierarchyRequest { suggested_only, max_depth, skip, limit };
        assert_eq!(walk(&alice, &request(false, 10, 0, 10)).await, (all.to_vec(), true));
        assert_eq!(walk(&alice, &request(false, 10, 0, 4)).await, (all[..4].to_vec(), false));
        assert_eq!(walk(&alice, &request(false, 10, 4, 4)).await, (all[4..].to_vec(), true));
        assert_eq!(walk(&alice, &request(false, 10, 9, 4)).await, (vec![], true));
        assert_eq!(walk(&alice, &request(false, 0, 0, 4)).await, (all[..1].to_vec(), true));
        assert_eq!(walk(&alice, &request(true, 10, 0, 10)).await, (all[..2].to_vec(), true));
        let shallow = [&space, &inner, &members, &closed].map(|room| room.room_id.clone());
        assert_eq!(walk(&alice, &request(false, 1, 0, 10)).await, (shallow.to_vec(), true));
        // Carol is in none of them, then in the one that lets its members into another.
        assert_eq!(walk(&carol, &request(false, 10, 0, 10)).await, (all[..4].to_vec(), true));
        act(&rooms, &open, &carol, MembershipAction::Join).await;
        assert_eq!(walk(&carol, &request(false, 10, 0, 10)).await, (all[..5].to_vec(), true));
        let carol_nid = store.user_nid(&carol).await.unwrap();
        forbidden(rooms.hierarchy(&closed.room_id, carol_nid, &request(false, 1, 0, 10)).await);
        forbidden(
            rooms.hierarchy(&RoomId::parse("!far:away.org").unwrap(), carol_nid, &request(false, 1, 0, 10)).await,
        );
        store.close().await;
    })
    .await;
}
