//! What is read of the graph: chains, drafts, and graphs that are not what they should be.

use std::time::Duration;

use myelin_store::{
    state_tree,
    testing::{Fresh, on_both},
};
use ruma::RoomVersionId;
use serde_json::json;

use super::{ALICE, BOB, CAROL, New, Room, open};
use crate::resolve::{Resolved, auth_chain};

async fn room_with_bob(fresh: &Fresh, version: RoomVersionId) -> Room {
    let rooms = open(fresh).await;
    let mut room = Room::with_basics(&rooms, version, json!({ ALICE: 100, BOB: 50 })).await;
    room.member("bob", BOB, BOB, "join", &["power", "public"]).await;
    room
}

/// The chain of state events, and of messages, whose auth events are only in their JSON; with what one leads to of the
/// others.
#[tokio::test]
async fn auth_chains() {
    on_both(async |fresh: &Fresh| {
        for version in [RoomVersionId::V1, RoomVersionId::V10, RoomVersionId::V12] {
            let by_hash = version == RoomVersionId::V12;
            let mut room = room_with_bob(fresh, version).await;
            let message = New::state("message", BOB, "m.room.message", "", json!({}), &["power", "bob"]);
            room.add(New { state_key: None, ..message }).await;
            room.commit().await;
            let create: &[&str] = if by_hash { &[] } else { &["create"] };
            for (events, expected) in [
                (&["message"][..], &["alice", "bob", "power", "public"][..]),
                (&["bob"], &["alice", "power", "public"]),
                (&["bob", "power"], &["alice", "power", "public"]),
                (&["alice", "message"], &["alice", "bob", "power", "public"]),
                (&["alice"], &[]),
            ] {
                let nids: Vec<i64> = events.iter().map(|name| room.nid(name)).collect();
                let chain = auth_chain(&room.rooms, &nids).await.unwrap();
                assert!(chain.is_sorted());
                let mut expected = [expected, create].concat();
                expected.sort_unstable();
                assert_eq!(room.names(chain), expected, "below {events:?}");
            }
            assert!(auth_chain(&room.rooms, &[room.nid("create")]).await.unwrap().is_empty());
            assert!(auth_chain(&room.rooms, &[]).await.unwrap().is_empty());
            assert!(auth_chain(&room.rooms, &[i64::MAX]).await.is_err(), "there is no such event");
            room.rooms.store.close().await;
        }
    })
    .await;
}

/// One state, however often it is given, is the answer, and so are two that say the same.
#[tokio::test]
async fn nothing_to_resolve() {
    on_both(async |fresh: &Fresh| {
        let mut room = room_with_bob(fresh, RoomVersionId::V11).await;
        room.commit().await;
        let names = ["create", "alice", "power", "public", "bob"];
        let root = room.snapshot(&names).await;
        let same = room.snapshot(&names).await;
        assert_ne!(root, same);
        for roots in [&[root][..], &[root, root], &[root, same, root]] {
            assert_eq!(room.resolve(roots).await.unwrap(), Resolved { base: root, changes: Vec::new() });
        }
        assert!(room.resolve(&[]).await.is_err(), "there is no state of nothing");
        room.rooms.store.close().await;
    })
    .await;
}

/// The base is the state that has to change least.
#[tokio::test]
async fn the_nearest_state_is_changed() {
    on_both(async |fresh: &Fresh| {
        let mut room = room_with_bob(fresh, RoomVersionId::V11).await;
        room.topic("topic", ALICE, &["power", "alice"]).await;
        room.member("carol", CAROL, CAROL, "join", &["power", "public"]).await;
        room.commit().await;
        let rest = ["create", "alice", "power", "public", "bob"];
        let with = |names: &[&'static str]| [&rest[..], names].concat();
        let (none, one) = (room.snapshot(&rest).await, room.snapshot(&with(&["topic"])).await);
        let both = room.snapshot(&with(&["topic", "carol"])).await;
        assert_eq!(room.resolve(&[none, one]).await.unwrap(), Resolved { base: one, changes: vec![] });
        assert_eq!(room.resolve(&[none, both, one]).await.unwrap(), Resolved { base: both, changes: vec![] });
        let carol = room.snapshot(&with(&["carol"])).await;
        let resolved = room.resolve(&[none, one, carol]).await.unwrap();
        assert_eq!(resolved.changes.len(), 1, "{resolved:?}");
        assert_ne!(resolved.base, none);
        room.rooms.store.close().await;
    })
    .await;
}

/// Events that are queued to be stored are resolved like others.
#[tokio::test]
async fn drafts() {
    on_both(async |fresh: &Fresh| {
        for version in [RoomVersionId::V1, RoomVersionId::V11, RoomVersionId::V12] {
            let mut room = room_with_bob(fresh, version).await;
            room.commit().await;
            room.member("ban", ALICE, BOB, "ban", &["power", "alice", "bob"]).await;
            room.power("power2", BOB, json!({ ALICE: 100, BOB: 50, CAROL: 1 }), &["power", "bob"]).await;
            room.topic("topic", BOB, &["power2", "bob"]).await;
            room.draft();
            let expected: &[&str] = match room.version {
                // Bob's membership is in conflict, so that he is not there when power levels are resolved; and of one topic
                // there is nothing to resolve.
                RoomVersionId::V1 => &["create", "alice", "public", "power", "ban", "topic"],
                // Alice has more power: her ban comes first.
                _ => &["create", "alice", "public", "power", "ban"],
            };
            room.expect(
                &[
                    &["create", "alice", "power", "public", "ban"],
                    &["create", "alice", "power2", "public", "bob", "topic"],
                ],
                expected,
            )
            .await;
            room.rooms.store.close().await;
        }
    })
    .await;
}

/// Room versions 1 and 2 let servers choose identifiers, so that events could name each other in a circle. Such rooms
/// are refused, and hold up nobody.
#[tokio::test]
async fn circles_are_refused() {
    let fresh = Fresh::sqlite();
    for version in [RoomVersionId::V1, RoomVersionId::V2, RoomVersionId::V11] {
        let mut room = room_with_bob(&fresh, version.clone()).await;
        let levels = json!({ ALICE: 100, BOB: 100 });
        // The first one names the second one before there is one.
        room.power("p2", ALICE, levels.clone(), &["p3", "alice"]).await;
        let p3 = room.power("p3", BOB, levels, &["p2", "bob"]).await;
        let p2 = room.nid("p2");
        room.edges.iter_mut().filter(|(nid, _)| *nid == p2).for_each(|(_, auth)| auth.push(p3));
        room.topic("one", ALICE, &["p2", "alice"]).await;
        room.topic("other", BOB, &["p3", "bob"]).await;
        room.commit().await;
        let one = room.snapshot(&["create", "alice", "p2", "public", "bob", "one"]).await;
        let other = room.snapshot(&["create", "alice", "p3", "public", "bob", "other"]).await;
        let resolved = tokio::time::timeout(Duration::from_secs(20), room.resolve(&[one, other])).await.unwrap();
        // Version 1 follows no auth events.
        assert_eq!(resolved.is_ok(), version == RoomVersionId::V1, "{resolved:?}");
        let chain = tokio::time::timeout(Duration::from_secs(20), auth_chain(&room.rooms, &[p2])).await.unwrap();
        assert_eq!(room.names(chain.unwrap()), ["alice", "bob", "create", "p2", "p3", "power", "public"]);
        room.rooms.store.close().await;
    }
}

/// Auth events that we do not have, and auth events that are no state, are as good as not named.
#[tokio::test]
async fn auth_events_that_make_no_sense_are_left_out() {
    on_both(async |fresh: &Fresh| {
        for version in [RoomVersionId::V2, RoomVersionId::V12] {
            let mut room = room_with_bob(fresh, version).await;
            let message = New::state("message", BOB, "m.room.message", "", json!({}), &["power", "bob"]);
            room.add(New { state_key: None, ..message }).await;
            room.topic("one", ALICE, &["unknown", "power", "alice", "message"]).await;
            room.topic("other", BOB, &["power", "unknown", "bob"]).await;
            room.commit().await;
            let rest = ["create", "alice", "power", "public", "bob"];
            let with = |topic: &'static str| [&rest[..], &[topic]].concat();
            room.expect(&[&with("one"), &with("other")], &with("other")).await;
            room.rooms.store.close().await;
        }
    })
    .await;
}

/// An event of a snapshot that does not exist is an error.
#[tokio::test]
async fn missing_events_are_an_error() {
    let fresh = Fresh::sqlite();
    let mut room = room_with_bob(&fresh, RoomVersionId::V11).await;
    room.commit().await;
    let root = room.snapshot(&["create", "alice", "power", "public", "bob"]).await;
    let key = *room.entries(root).await.keys().next().unwrap();
    let (broken, _) = room.store().update_state(root, &[(key, Some(i64::MAX))]).await.unwrap();
    assert!(room.resolve(&[root, broken]).await.is_err());
    assert!(room.resolve(&[state_tree::EMPTY, root]).await.is_ok(), "an empty state is one, too");
    room.rooms.store.close().await;
}

/// A measurement: a conflict in a room of 5,000 members, where the auth difference is not empty and the whole state has
/// to be asked whether it leads there.
#[tokio::test]
#[ignore = "a measurement"]
async fn large_rooms() {
    let fresh = Fresh::sqlite();
    for version in [RoomVersionId::V1, RoomVersionId::V11, RoomVersionId::V12] {
        let mut room = room_with_bob(&fresh, version.clone()).await;
        let mut nids: Vec<i64> = ["create", "alice", "power", "public", "bob"].map(|name| room.nid(name)).into();
        for number in 0..5000 {
            let (name, user) = (format!("member{number}"), format!("@member{number}:example.org"));
            nids.push(room.member(&name, &user, &user, "join", &["power", "public"]).await);
        }
        room.member("invite", BOB, CAROL, "invite", &["power", "bob", "public"]).await;
        let joined = room.member("carol", CAROL, CAROL, "join", &["power", "invite", "public"]).await;
        let topic = room.topic("topic", BOB, &["power", "bob"]).await;
        room.commit().await;
        let one = room.snapshot_of(&[&nids[..], &[joined]].concat()).await;
        let other = room.snapshot_of(&[&nids[..], &[topic]].concat()).await;
        for run in 0..4 {
            let start = std::time::Instant::now();
            let resolved = room.resolve(&[one, other]).await.unwrap();
            assert_eq!(resolved.changes.len(), 1);
            eprintln!("version {version}, run {run}: {:?}", start.elapsed());
        }
        room.rooms.store.close().await;
    }
}
