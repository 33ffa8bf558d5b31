//! State resolution of room version 1.

use myelin_store::testing::{Fresh, on_both};
use ruma::RoomVersionId;
use serde_json::json;
use sha1::{Digest as _, Sha1};

use super::{ALICE, BOB, CAROL, DAVE, New, Room, open};

/// Runs a test in a room of version 1.
async fn in_version_1(test: impl AsyncFn(&mut Room)) {
    on_both(async |fresh: &Fresh| {
        let rooms = open(fresh).await;
        let levels = json!({ ALICE: 100, BOB: 50 });
        let mut room = Room::with_basics(&rooms, RoomVersionId::V1, levels).await;
        for (name, user) in [("bob", BOB), ("carol", CAROL)] {
            room.member(name, user, user, "join", &["power", "public"]).await;
        }
        Box::pin(test(&mut room)).await;
        rooms.store.close().await;
    })
    .await;
}

const REST: [&str; 5] = ["create", "alice", "public", "carol", "power"];

fn with(names: &[&'static str]) -> Vec<&'static str> {
    [&REST[..], names].concat()
}

/// "Start by setting R to the union of the states": what only one state has is not in conflict and is not checked.
#[tokio::test]
async fn the_union_without_conflicts() {
    in_version_1(async |room| {
        room.topic("topic", CAROL, &["power", "carol"]).await;
        room.commit().await;
        room.expect(&[&with(&["bob"]), &with(&["topic"])], &with(&["bob", "topic"])).await;
    })
    .await;
}

/// Power levels: "ascending depth"; the first is taken as it is, each later one if it is allowed by the one before, and
/// the first that is not ends it.
#[tokio::test]
async fn power_levels_by_depth() {
    in_version_1(async |room| {
        let rest = ["create", "alice", "public", "carol", "bob"];
        let with = |power: &'static str| [&rest[..], &[power]].concat();
        // Alice demotes Bob; Bob, on another branch, promotes Carol. The deeper one comes later.
        let demoted = json!({ ALICE: 100 });
        let promoted = json!({ ALICE: 100, BOB: 50, CAROL: 50 });
        room.add(New::power("demoted10", ALICE, demoted.clone(), &["power", "alice"]).deep(10)).await;
        room.add(New::power("promoted9", BOB, promoted.clone(), &["power", "bob"]).deep(9)).await;
        room.add(New::power("promoted11", BOB, promoted, &["power", "bob"]).deep(11)).await;
        room.add(New::power("demoted12", ALICE, demoted, &["power", "alice"]).deep(12)).await;
        room.commit().await;
        // Bob may not change anything after Alice.
        room.expect(&[&with("demoted10"), &with("promoted11")], &with("demoted10")).await;
        // Alice may after Bob.
        room.expect(&[&with("demoted10"), &with("promoted9")], &with("demoted10")).await;
        // It ends with Bob's, which is not allowed: Alice's later one is not looked at.
        room.expect(&[&with("demoted10"), &with("promoted11"), &with("demoted12")], &with("demoted10")).await;
        // Older ones come first.
        room.expect(&[&with("power"), &with("promoted9")], &with("promoted9")).await;
    })
    .await;
}

/// "Then descending sha1(event_id)": at one depth, the lowest hash comes last and stays.
#[tokio::test]
async fn at_one_depth_hashes_decide() {
    in_version_1(async |room| {
        for name in ["x", "y", "z"] {
            room.add(New::power(name, ALICE, json!({ ALICE: 100, DAVE: 1 }), &["power", "alice"]).deep(20)).await;
            let topic = format!("topic_{name}");
            room.add(New::topic(&topic, ALICE, &["power", "alice"]).deep(20)).await;
        }
        room.commit().await;
        let hash = |name: &str| {
            let event_id = format!("${}{name}", room.mark);
            Sha1::digest(event_id).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let lowest = |names: [&'static str; 3]| names.into_iter().min_by_key(|name| hash(name)).unwrap();
        let rest = ["create", "alice", "public", "carol", "bob"];
        let with = |power: &'static str, topic: &'static str| [&rest[..], &[power, topic]].concat();
        // "Highest depth and lowest sha1(event_id)" decides about the rest, which comes to the same.
        let expected = with(lowest(["x", "y", "z"]), lowest(["topic_x", "topic_y", "topic_z"]));
        room.expect(&[&with("x", "topic_x"), &with("y", "topic_y"), &with("z", "topic_z")], &expected).await;
    })
    .await;
}

/// Join rules come after power levels, and members after both.
#[tokio::test]
async fn the_passes_follow_each_other() {
    in_version_1(async |room| {
        // Alice demotes Bob. His rule is deeper than the one before, but not allowed any more.
        room.power("demoted", ALICE, json!({ ALICE: 100 }), &["power", "alice"]).await;
        room.join_rule("invite_only", BOB, "invite", &["power", "bob"]).await;
        // Dave left and joined again, which the rule that remains allows.
        room.member("dave", DAVE, DAVE, "leave", &["power", "public"]).await;
        room.member("dave_again", DAVE, DAVE, "join", &["power", "public", "dave"]).await;
        // Bob banned Carol, which he may not either.
        room.member("carols_ban", BOB, CAROL, "ban", &["power", "bob", "carol"]).await;
        room.commit().await;
        room.expect(
            &[
                &["create", "alice", "bob", "power", "public", "carol", "dave"],
                &["create", "alice", "bob", "demoted", "public", "carol", "dave_again"],
                &["create", "alice", "bob", "power", "invite_only", "carols_ban", "dave"],
            ],
            &["create", "alice", "bob", "demoted", "public", "carol", "dave_again"],
        )
        .await;
    })
    .await;
}

/// "For all other conflicts, just pick the event with the highest depth […] that passes authentication in R".
#[tokio::test]
async fn the_deepest_that_is_allowed() {
    in_version_1(async |room| {
        room.topic("first", ALICE, &["power", "alice"]).await;
        room.topic("second", ALICE, &["power", "alice"]).await;
        room.topic("by_bob", BOB, &["power", "bob"]).await;
        room.topic("by_bob_too", BOB, &["power", "bob"]).await;
        room.member("ban", ALICE, BOB, "ban", &["power", "alice", "bob"]).await;
        room.commit().await;
        // Nobody was banned: the deepest.
        room.expect(&[&with(&["bob", "first"]), &with(&["bob", "by_bob"])], &with(&["bob", "by_bob"])).await;
        // Bob was, on one of the branches.
        room.expect(
            &[&with(&["ban", "second"]), &with(&["bob", "first"]), &with(&["bob", "by_bob"])],
            &with(&["ban", "second"]),
        )
        .await;
        // None is allowed: the oldest stays.
        room.expect(&[&with(&["ban", "by_bob"]), &with(&["bob", "by_bob_too"])], &with(&["ban", "by_bob"])).await;
    })
    .await;
}
