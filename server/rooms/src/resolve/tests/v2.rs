//! State resolution of room versions 2 to 11. Where version 12 decides alike, it is tested with them.

use myelin_store::testing::{Fresh, on_both};
use ruma::RoomVersionId;
use serde_json::json;

use super::{ALICE, BOB, CAROL, DAVE, New, Room, open};

/// Runs a test in rooms of the oldest and the newest versions with either algorithm.
async fn in_versions(versions: &[RoomVersionId], test: impl AsyncFn(&mut Room)) {
    on_both(async |fresh: &Fresh| {
        let rooms = open(fresh).await;
        for version in versions {
            let levels = json!({ ALICE: 100, BOB: 50, CAROL: 100 });
            let mut room = Room::with_basics(&rooms, version.clone(), levels).await;
            for (name, user) in [("bob", BOB), ("carol", CAROL)] {
                room.member(name, user, user, "join", &["power", "public"]).await;
            }
            Box::pin(test(&mut room)).await;
        }
        rooms.store.close().await;
    })
    .await;
}

const ALL: [RoomVersionId; 5] =
    [RoomVersionId::V2, RoomVersionId::V3, RoomVersionId::V6, RoomVersionId::V11, RoomVersionId::V12];

/// What is banned on one branch does nothing on the other: bans are power events, which come first.
#[tokio::test]
async fn a_ban_comes_before_what_the_banned_do() {
    in_versions(&ALL, async |room| {
        room.topic("topic", BOB, &["power", "bob"]).await;
        room.member("ban", ALICE, BOB, "ban", &["power", "alice", "bob"]).await;
        room.commit().await;
        room.expect(
            &[
                &["create", "alice", "power", "public", "carol", "ban"],
                &["create", "alice", "power", "public", "carol", "bob", "topic"],
            ],
            &["create", "alice", "power", "public", "carol", "ban"],
        )
        .await;
    })
    .await;
}

/// "x's sender has greater power level than y's sender": Alice's 100 come before Bob's 50, although Bob was earlier.
/// After her demotion of him his event is not allowed.
#[tokio::test]
async fn the_greater_power_comes_first() {
    in_versions(&ALL, async |room| {
        let levels = room.levels(json!({ ALICE: 100, BOB: 50, CAROL: 100, DAVE: 50 }));
        room.add(New::power("by_bob", BOB, levels, &["power", "bob"]).at(1)).await;
        let levels = room.levels(json!({ ALICE: 100, CAROL: 100 }));
        room.add(New::power("by_alice", ALICE, levels, &["power", "alice"]).at(1000)).await;
        room.commit().await;
        room.expect(
            &[
                &["create", "alice", "by_bob", "public", "carol", "bob"],
                &["create", "alice", "by_alice", "public", "carol", "bob"],
            ],
            &["create", "alice", "by_alice", "public", "carol", "bob"],
        )
        .await;
    })
    .await;
}

/// With the same power "x's origin_server_ts is less than y's origin_server_ts"; and then the identifiers decide. What
/// comes last, stays. (Dave and Carol have 100 both: in version 12 Alice's power has no bound.)
#[tokio::test]
async fn with_the_same_power_the_earlier_comes_first() {
    for (first_ts, second_ts, expected) in [(10, 20, "y"), (20, 10, "x"), (10, 10, "y")] {
        in_versions(&ALL, async |room| {
            let levels = json!({ ALICE: 100, BOB: 50, CAROL: 100, DAVE: 100 });
            room.power("again", CAROL, levels.clone(), &["power", "carol"]).await;
            room.member("dave", DAVE, DAVE, "join", &["again", "public"]).await;
            let with = |user: &str| {
                let mut levels = room.levels(levels.clone());
                levels[user] = json!(1);
                levels
            };
            let (one, other) = (with("@one:example.org"), with("@other:example.org"));
            room.add(New::power("x", CAROL, one, &["again", "carol"]).at(first_ts)).await;
            room.add(New::power("y", DAVE, other, &["again", "dave"]).at(second_ts)).await;
            room.commit().await;
            room.expect(
                &[
                    &["create", "alice", "x", "public", "carol", "bob", "dave"],
                    &["create", "alice", "y", "public", "carol", "bob", "dave"],
                ],
                &["create", "alice", expected, "public", "carol", "bob", "dave"],
            )
            .await;
        })
        .await;
    }
}

/// Auth events come before the events that name them, even with a later time: else Dave, whom Alice promotes, would have
/// no power for his own change.
#[tokio::test]
async fn auth_events_come_first() {
    in_versions(&ALL, async |room| {
        room.member("dave", DAVE, DAVE, "join", &["power", "public"]).await;
        let levels = room.levels(json!({ ALICE: 100, BOB: 50, CAROL: 100, DAVE: 100 }));
        room.add(New::power("promote", ALICE, levels, &["power", "alice"]).at(900)).await;
        let levels = room.levels(json!({ ALICE: 100, BOB: 60, CAROL: 100, DAVE: 100 }));
        room.add(New::power("by_dave", DAVE, levels, &["promote", "dave"]).at(5)).await;
        room.commit().await;
        room.expect(
            &[
                &["create", "alice", "power", "public", "carol", "bob"],
                &["create", "alice", "by_dave", "public", "carol", "bob", "dave"],
            ],
            &["create", "alice", "by_dave", "public", "carol", "bob", "dave"],
        )
        .await;
    })
    .await;
}

/// "The mainline position of x is greater than the mainline position of y": what was built on older power levels comes
/// first, whatever its time, so that the other stays.
#[tokio::test]
async fn the_mainline_orders_the_rest() {
    let versions = [RoomVersionId::V2, RoomVersionId::V6, RoomVersionId::V11];
    in_versions(&versions, async |room| {
        let levels = json!({ ALICE: 100, BOB: 50, CAROL: 100, DAVE: 1 });
        room.power("power2", ALICE, levels, &["power", "alice"]).await;
        room.add(New::topic("old", BOB, &["power", "bob"]).at(900)).await;
        room.add(New::topic("new", BOB, &["power2", "bob"]).at(100)).await;
        room.add(New::topic("newer", BOB, &["power2", "bob"]).at(200)).await;
        room.add(New::topic("newest", BOB, &["power2", "bob"]).at(200)).await;
        // Carol's topic names no power levels at all, which is before all others.
        room.add(New::topic("none", CAROL, &["carol"]).at(999)).await;
        room.commit().await;
        let rest = ["create", "alice", "power2", "public", "carol", "bob"];
        let with = |topic: &'static str| [&rest[..], &[topic]].concat();
        for (one, other, expected) in [
            ("old", "new", "new"),
            ("new", "newer", "newer"),
            // The same position and time: "x's event_id is less than y's event_id".
            ("newer", "newest", "newest"),
            ("old", "none", "old"),
        ] {
            room.expect(&[&with(one), &with(other)], &with(expected)).await;
        }
        room.expect(&[&with("old"), &with("none"), &with("new")], &with("new")).await;
    })
    .await;
}

/// What was invited and joined on one branch while the other went on is there in the end, and so is what is said only on
/// one branch; the invite is found by the auth difference.
#[tokio::test]
async fn what_one_branch_adds_stays() {
    in_versions(&ALL, async |room| {
        room.join_rule("invite_only", ALICE, "invite", &["power", "alice"]).await;
        room.member("invite", BOB, DAVE, "invite", &["power", "bob", "invite_only"]).await;
        room.member("dave", DAVE, DAVE, "join", &["power", "invite", "invite_only"]).await;
        room.topic("topic", CAROL, &["power", "carol"]).await;
        room.commit().await;
        room.expect(
            &[
                &["create", "alice", "power", "invite_only", "carol", "bob", "dave"],
                &["create", "alice", "power", "invite_only", "carol", "bob", "topic"],
            ],
            &["create", "alice", "power", "invite_only", "carol", "bob", "dave", "topic"],
        )
        .await;
    })
    .await;
}

/// An event of the auth difference whose key no state has becomes part of the result.
#[tokio::test]
async fn a_lost_key_comes_back() {
    in_versions(&ALL, async |room| {
        // A key can be lost by an earlier resolution: here Carol's membership, that her topic names.
        room.topic("topic", CAROL, &["power", "carol"]).await;
        room.commit().await;
        room.expect(
            &[&["create", "alice", "power", "public", "bob"], &["create", "alice", "power", "public", "bob", "topic"]],
            &["create", "alice", "power", "public", "bob", "topic", "carol"],
        )
        .await;
    })
    .await;
}

/// "Events that have been rejected due to failing auth based on the state at the event are handled as usual", but
/// "rejected auth events are deliberately excluded from use in the iterative auth checks".
#[tokio::test]
async fn rejected_events() {
    in_versions(&ALL, async |room| {
        room.add(New::topic("rejected", BOB, &["power", "bob"]).rejected()).await;
        room.add(
            New::state("dave", DAVE, "m.room.member", DAVE, json!({ "membership": "join" }), &["power", "public"])
                .rejected(),
        )
        .await;
        let levels = room.levels(json!({ ALICE: 100, BOB: 50, CAROL: 100, DAVE: 100 }));
        room.add(New::power("daves_power", ALICE, levels, &["power", "alice"])).await;
        room.add(New::topic("by_dave", DAVE, &["daves_power", "dave"])).await;
        room.commit().await;
        let rest = ["create", "alice", "power", "public", "carol", "bob"];
        let with = |topic: &'static str| [&rest[..], &[topic]].concat();
        room.expect(&[&rest, &with("rejected")], &with("rejected")).await;
        // Dave's joining is in the auth difference, is allowed now, and then in the state; but as it was rejected, nothing
        // may be based on it.
        room.expect(&[&rest, &with("by_dave")], &[&rest[..], &["dave"]].concat()).await;
    })
    .await;
}
