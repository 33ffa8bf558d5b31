//! Rooms on both engines: created, written to by many, read, redacted, and found again after a restart.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use myelin_rooms::{
    CreateRoom, Error, MembershipAction, Preset, Rooms, Template, Transaction, content,
    present::{Form, present},
};
use myelin_store::{
    Direction, RoomName, Store,
    testing::{Fresh, SERVER_NAME, on_both},
};
use ruma::{OwnedUserId, RoomVersionId, UserId, signatures::Ed25519KeyPair};
use serde_json::value::RawValue;

async fn rooms_on(store: &Arc<Store>) -> Arc<Rooms> {
    let (version, document) = store.signing_key().await.unwrap();
    let key = Ed25519KeyPair::from_der(&document, version).unwrap();
    Rooms::new(store.clone(), SERVER_NAME.try_into().unwrap(), key)
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:{SERVER_NAME}")).unwrap()
}

fn wanted(creator: &UserId, version: &str, preset: Preset) -> CreateRoom {
    CreateRoom {
        creator: creator.to_owned(),
        version: RoomVersionId::try_from(version).unwrap(),
        preset,
        is_public: false,
        alias: None,
        name: Some("a room".into()),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: Default::default(),
        initial_state: Vec::new(),
        power_level_content_override: Default::default(),
    }
}

fn message(sender: &UserId, body: &str) -> Template {
    let raw = RawValue::from_string(serde_json::json!({"msgtype": "m.text", "body": body}).to_string()).unwrap();
    Template::message(sender, "m.room.message", content(&raw).unwrap())
}

async fn bodies(store: &Store, room: &RoomName) -> Vec<String> {
    let page = store.page(room.nid, Direction::Forward, i64::MIN, None, 10_000).await.unwrap();
    let text = |event: &Arc<myelin_store::Event>| {
        let content: serde_json::Value = serde_json::from_str(event.content()).unwrap();
        content["body"].as_str().map(str::to_owned)
    };
    page.iter().filter(|event| event.event_type() == "m.room.message").filter_map(text).collect()
}

async fn act(
    rooms: &Arc<Rooms>,
    room: &Arc<RoomName>,
    sender: &UserId,
    target: &UserId,
    action: MembershipAction,
) -> Result<(), Error> {
    rooms.change_membership(room, sender, target, action, None, false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_every_version_can_be_made_joined_and_written_to() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, bob) = (user("alice"), user("bob"));
        for version in 1..=12 {
            let room = rooms.create(wanted(&alice, &version.to_string(), Preset::PrivateChat)).await.unwrap();
            assert!(matches!(act(&rooms, &room, &bob, &bob, MembershipAction::Join).await, Err(Error::Forbidden(_))));
            act(&rooms, &room, &alice, &bob, MembershipAction::Invite).await.unwrap();
            act(&rooms, &room, &bob, &bob, MembershipAction::Join).await.unwrap();
            let sent = rooms.send(&room, message(&bob, "hello"), None).await.unwrap();
            let event = store.event_by_id(&sent).await.unwrap().unwrap();
            let json: serde_json::Value = serde_json::from_str(event.json()).unwrap();
            assert!(json["signatures"][SERVER_NAME].is_object(), "version {version}");
            assert_eq!(json["prev_events"].as_array().unwrap().len(), 1);
            assert_eq!(json["depth"], event.depth);
            // The member may not name the room; the creator may.
            let name = content(&RawValue::from_string(r#"{"name":"x"}"#.into()).unwrap()).unwrap();
            let refused = rooms.set_state(&room, &bob, "m.room.name", "", name.clone()).await;
            assert!(matches!(refused, Err(Error::Forbidden(_))), "version {version}");
            rooms.set_state(&room, &alice, "m.room.name", "", name).await.unwrap();
        }
        store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_room_lose_nothing_and_keep_one_line() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let alice = user("alice");
        let room = rooms.create(wanted(&alice, "12", Preset::PrivateChat)).await.unwrap();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (rooms, room, alice) = (rooms.clone(), room.clone(), alice.clone());
                tokio::spawn(async move {
                    for number in 0..25 {
                        rooms.send(&room, message(&alice, &format!("{writer} {number}")), None).await.unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let sent = bodies(&store, &room).await;
        assert_eq!(sent.len(), 200);
        for writer in 0..8 {
            let own: Vec<_> = sent.iter().filter(|body| body.starts_with(&format!("{writer} "))).collect();
            let expected: Vec<_> = (0..25).map(|number| format!("{writer} {number}")).collect();
            assert!(own.iter().map(|body| body.as_str()).eq(expected.iter().map(String::as_str)));
        }
        let page = store.page(room.nid, Direction::Forward, i64::MIN, None, 10_000).await.unwrap();
        for pair in page.windows(2) {
            assert_eq!(pair[1].depth, pair[0].depth + 1);
            let json: serde_json::Value = serde_json::from_str(pair[1].json()).unwrap();
            assert_eq!(json["prev_events"], serde_json::json!([pair[0].event_id]));
        }
        store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_write_to_one_room_and_each_follows_the_other() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let (first, second) = (fresh.open().await, fresh.open().await);
    let (here, there) = (rooms_on(&first).await, rooms_on(&second).await);
    let alice = user("alice");
    let room = here.create(wanted(&alice, "12", Preset::PrivateChat)).await.unwrap();
    let writers: Vec<_> = [here, there]
        .into_iter()
        .enumerate()
        .map(|(replica, rooms)| {
            let (room, alice) = (room.clone(), alice.clone());
            tokio::spawn(async move {
                for number in 0..40 {
                    loop {
                        match rooms.send(&room, message(&alice, &format!("{replica} {number}")), None).await {
                            Ok(_) => break,
                            Err(Error::Busy) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(bodies(&first, &room).await.len(), 80);
    let last = first.position().max(second.position());
    for store in [&first, &second] {
        let mut positions = store.positions();
        let reached = positions.wait_for(|pos| *pos >= last);
        tokio::time::timeout(std::time::Duration::from_secs(10), reached).await.unwrap().unwrap();
    }
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_makes_one_event_also_after_a_restart() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let alice = user("alice");
        let room = rooms.create(wanted(&alice, "12", Preset::PrivateChat)).await.unwrap();
        let transaction = Transaction { device_nid: 7, scope: "send".into(), id: "a b".into() };
        let once = rooms.send(&room, message(&alice, "once"), Some(&transaction)).await.unwrap();
        assert_eq!(rooms.send(&room, message(&alice, "once"), Some(&transaction)).await.unwrap(), once);
        store.close().await;

        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let room = rooms.room(&room.room_id).await.unwrap();
        // Beside it, others write: a repeated transaction must not make their writes fail.
        let others: Vec<_> = (0..8)
            .map(|number| {
                let (rooms, room, alice) = (rooms.clone(), room.clone(), alice.clone());
                tokio::spawn(async move { rooms.send(&room, message(&alice, &number.to_string()), None).await })
            })
            .collect();
        let again = rooms.send(&room, message(&alice, "once"), Some(&transaction)).await.unwrap();
        assert_eq!(again, once);
        let mut written = 0;
        for other in others {
            written += usize::from(other.await.unwrap().is_ok());
        }
        let bodies = bodies(&store, &room).await;
        assert_eq!(bodies.iter().filter(|body| *body == "once").count(), 1);
        assert_eq!(bodies.len(), written + 1);
        assert_eq!(written, 8, "writes beside a repeated transaction go through");
        let event = store.event_by_id(&once).await.unwrap().unwrap();
        let shown = present(&store, &[event], Form { device_nid: 7, room_id: None }).await.unwrap();
        assert!(shown[0].get().contains(r#""transaction_id":"a b""#));
        store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_message_has_lost_its_content_everywhere() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, bob) = (user("alice"), user("bob"));
        for version in ["1", "6", "11", "12"] {
            let room = rooms.create(wanted(&alice, version, Preset::PublicChat)).await.unwrap();
            act(&rooms, &room, &bob, &bob, MembershipAction::Join).await.unwrap();
            let sent = rooms.send(&room, message(&alice, "a secret"), None).await.unwrap();
            let refused = rooms.redact(&room, &bob, &sent, Default::default(), None).await;
            assert!(matches!(refused, Err(Error::Forbidden(_))), "version {version}");
            let reason = BTreeMap::from([("reason".to_owned(), "why".to_owned().into())]);
            let redaction = rooms.redact(&room, &alice, &sent, reason, None).await.unwrap();
            let event = store.event_by_id(&sent).await.unwrap().unwrap();
            assert_eq!(event.content(), "{}");
            assert_eq!(bodies(&store, &room).await, Vec::<String>::new());
            let newest = store.newest_events(room.nid, 0, i64::MAX, 50).await.unwrap();
            assert!(newest.iter().all(|event| !event.json().contains("a secret")));
            let shown = present(&store, &[event], Form::default()).await.unwrap();
            let shown: serde_json::Value = serde_json::from_str(shown[0].get()).unwrap();
            assert_eq!(shown["unsigned"]["redacted_because"]["event_id"], redaction.as_str());
            assert_eq!(shown["unsigned"]["redacted_because"]["redacts"], sent.as_str());
        }
        store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_refused_changes_nothing() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let rooms = rooms_on(&store).await;
        let (alice, bob) = (user("alice"), user("bob"));
        let room = rooms.create(wanted(&alice, "12", Preset::PrivateChat)).await.unwrap();
        let before = (store.head(room.nid).await.unwrap(), store.position());
        assert!(matches!(rooms.send(&room, message(&bob, "let me in"), None).await, Err(Error::Forbidden(_))));
        let large = message(&alice, &"x".repeat(70_000));
        assert!(matches!(rooms.send(&room, large, None).await, Err(Error::TooLarge)));
        let fraction = RawValue::from_string(r#"{"body":1.5}"#.into()).unwrap();
        assert!(matches!(content(&fraction), Err(Error::BadJson(_))));
        assert_eq!((store.head(room.nid).await.unwrap(), store.position()), before);
        store.close().await;
    })
    .await;
}

/// A room's identifier is its create event's hash; rooms made alike at the same moment, by two replicas too, are still
/// different ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rooms_made_alike_differ() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user("alice");
        let replicas = [rooms_on(&store).await, rooms_on(&store).await];
        let made = (0..40).map(|place| {
            let (rooms, wanted) = (replicas[place % 2].clone(), wanted(&alice, "12", Preset::PrivateChat));
            tokio::spawn(async move { rooms.create(wanted).await.unwrap().room_id.clone() })
        });
        let mut ids = BTreeSet::new();
        for room_id in made.collect::<Vec<_>>() {
            ids.insert(room_id.await.unwrap());
        }
        assert_eq!(ids.len(), 40);
        store.close().await;
    })
    .await;
}
