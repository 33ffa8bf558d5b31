//! What version 2.1 of the state resolution, that of room version 12, decides in another way than version 2.
//!
//! The two problems are those that [MSC4297] explains the changes by.
//!
//! [MSC4297]: https://github.com/matrix-org/matrix-spec-proposals/pull/4297

use myelin_store::testing::{Fresh, on_both};
use ruma::RoomVersionId;
use serde_json::json;

use super::{ALICE, BOB, CAROL, DAVE, New, Room, open};

/// Problem A. Both branches agree that Bob has left, and one has an outdated join rule of his. From the unconflicted
/// state on, both rules fail, since he is not there; from an empty state on, each is judged by its own auth events.
#[tokio::test]
async fn it_starts_from_an_empty_state() {
    on_both(async |fresh: &Fresh| {
        let rooms = open(fresh).await;
        for version in [RoomVersionId::V11, RoomVersionId::V12] {
            let mut room = Room::with_basics(&rooms, version.clone(), json!({ ALICE: 100, BOB: 100 })).await;
            room.member("bob", BOB, BOB, "join", &["power", "public"]).await;
            room.join_rule("knock", BOB, "knock", &["power", "bob"]).await;
            room.join_rule("invite", BOB, "invite", &["power", "bob"]).await;
            room.member("left", BOB, BOB, "leave", &["power", "bob"]).await;
            room.commit().await;
            let states: [&[&str]; 2] =
                [&["create", "alice", "power", "left", "knock"], &["create", "alice", "power", "left", "invite"]];
            let expected: &[&str] = match version {
                RoomVersionId::V12 => &["create", "alice", "power", "left", "invite"],
                _ => &["create", "alice", "power", "left"],
            };
            room.expect(&states, expected).await;
        }
        rooms.store.close().await;
    })
    .await;
}

/// Problem B. Alice promotes Bob, who promotes Carol; one branch has the power levels before both, and all know of both
/// by what Dave's membership names. Bob's promotion is in no difference, and without it he cannot promote Carol.
#[tokio::test]
async fn what_lies_between_conflicting_events_is_replayed() {
    on_both(async |fresh: &Fresh| {
        let rooms = open(fresh).await;
        for version in [RoomVersionId::V2, RoomVersionId::V11, RoomVersionId::V12] {
            let mut room = Room::with_basics(&rooms, version.clone(), json!({ ALICE: 100 })).await;
            room.member("bob", BOB, BOB, "join", &["power", "public"]).await;
            room.member("carol", CAROL, CAROL, "join", &["power", "public"]).await;
            room.power("promote_bob", ALICE, json!({ ALICE: 100, BOB: 50 }), &["power", "alice"]).await;
            let levels = json!({ ALICE: 100, BOB: 50, CAROL: 50 });
            room.power("promote_carol", BOB, levels, &["promote_bob", "bob"]).await;
            room.member("dave", DAVE, DAVE, "join", &["promote_carol", "public"]).await;
            room.commit().await;
            let rest = ["create", "alice", "public", "bob", "carol", "dave"];
            let with = |power: &'static str| [&rest[..], &[power]].concat();
            let expected = match version {
                RoomVersionId::V12 => "promote_carol",
                _ => "power",
            };
            room.expect(&[&with("power"), &with("promote_carol")], &with(expected)).await;
        }
        rooms.store.close().await;
    })
    .await;
}

/// Only what is on a path from one event in conflict to another is replayed, not all that lies below them.
#[tokio::test]
async fn the_subgraph_is_what_lies_between() {
    let fresh = Fresh::sqlite();
    let rooms = open(&fresh).await;
    let mut room = Room::with_basics(&rooms, RoomVersionId::V12, json!({ ALICE: 100 })).await;
    room.member("bob", BOB, BOB, "join", &["power", "public"]).await;
    room.power("p2", ALICE, json!({ BOB: 100 }), &["power", "alice"]).await;
    room.power("p3", BOB, json!({ BOB: 100, CAROL: 1 }), &["p2", "bob"]).await;
    room.power("p4", ALICE, json!({ BOB: 100, CAROL: 2 }), &["p3", "alice"]).await;
    room.commit().await;
    let drafts = super::Drafts::new();
    let graph = super::super::graph::Graph::new(&rooms.store, &drafts);
    for (conflicted, expected) in [
        (&["p4", "p2"][..], &["p2", "p3", "p4"][..]),
        (&["p4", "power"], &["bob", "p2", "p3", "p4", "power", "public"]),
        (&["p4", "bob"], &["bob", "p3", "p4"]),
        (&["bob", "p2"], &["bob", "p2"]),
        (&["p4"], &["p4"]),
    ] {
        let nids: Vec<i64> = conflicted.iter().map(|name| room.nid(name)).collect();
        let below = super::super::auth_graph::AuthGraph::from(&graph, &nids).await.unwrap();
        assert_eq!(room.names(below.between(&nids)), expected, "between {conflicted:?}");
    }
    rooms.store.close().await;
}

/// Where no power levels are in conflict, the partially resolved state has none: there is no mainline, and time decides.
#[tokio::test]
async fn without_conflicting_power_levels_there_is_no_mainline() {
    on_both(async |fresh: &Fresh| {
        let rooms = open(fresh).await;
        for (version, expected) in [(RoomVersionId::V11, "new"), (RoomVersionId::V12, "old")] {
            let mut room = Room::with_basics(&rooms, version, json!({ ALICE: 100, BOB: 50 })).await;
            room.member("bob", BOB, BOB, "join", &["power", "public"]).await;
            room.power("power2", ALICE, json!({ ALICE: 100, BOB: 60 }), &["power", "alice"]).await;
            room.member("carol", CAROL, CAROL, "join", &["power2", "public"]).await;
            room.add(New::topic("old", BOB, &["power", "bob"]).at(900)).await;
            room.add(New::topic("new", BOB, &["power2", "bob"]).at(100)).await;
            room.commit().await;
            let rest = ["create", "alice", "power2", "public", "bob", "carol"];
            let with = |topic: &'static str| [&rest[..], &[topic]].concat();
            room.expect(&[&with("old"), &with("new")], &with(expected)).await;
        }
        rooms.store.close().await;
    })
    .await;
}
