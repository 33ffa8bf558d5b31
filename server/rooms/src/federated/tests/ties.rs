//! Rooms with many forward extremities.

use myelin_store::Direction;
use serde_json::{Value, json};

use super::*;
use crate::receive::TIE;

/// Events that all follow the same one, as a server may send them that is slow, or wants to annoy.
async fn branches(network: &Network, room: &OwnedRoomId, count: usize) {
    let mut events = Vec::new();
    for number in 0..count {
        events.push(network.unasked(0, room, message(&user("alice", 0), &format!("branch {number}"))).await);
    }
    for (_, outcome) in network.rooms(1).receive(&name(0), events).await.unwrap() {
        outcome.unwrap();
    }
}

async fn extremities(network: &Network, place: usize, room: &OwnedRoomId) -> Vec<std::sync::Arc<myelin_store::Event>> {
    let store = network.rooms(place).store();
    let head = store.head(network.room(place, room).await.nid).await.unwrap();
    store.events(&head.extremities).await.unwrap()
}

async fn shared(levels: Value) -> (std::sync::Arc<Network>, OwnedRoomId) {
    let network = embedded(2).await;
    let (alice, bob) = (user("alice", 0), user("bob", 1));
    let room = network.create(0, &alice, RoomVersionId::V11, Preset::PublicChat).await;
    network.enter(1, &room, 0, &bob, Join).await.unwrap();
    let power = Template::state(&alice, "m.room.power_levels", "", content(levels));
    network.send(0, &room, power).await.unwrap();
    network.deliver().await;
    (network, room)
}

/// Many branches are tied together by an event that no client sees and no server is sent, unless it asks for what a later
/// event follows.
#[tokio::test]
async fn loose_ends_are_tied() {
    let (network, room) = shared(json!({ "users": { "@alice:s0.test": 100 } })).await;
    branches(&network, &room, 9).await;
    assert_eq!(extremities(&network, 1, &room).await.len(), 9, "a few are left for the next event");
    branches(&network, &room, 12).await;
    let [tie] = &extremities(&network, 1, &room).await[..] else { panic!("they are tied") };
    assert_eq!((tie.event_type(), tie.sender().as_str(), tie.pos), (TIE, "@bob:s1.test", None));
    let (store, known) = (network.rooms(1).store(), network.room(1, &room).await);
    let timeline = store.page(known.nid, Direction::Forward, i64::MIN, None, 1_000).await.unwrap();
    assert!(timeline.iter().all(|event| event.event_type() != TIE));
    assert!(!tie.is_shown());

    // Once a while is enough, whoever wants more.
    branches(&network, &room, 15).await;
    assert!(extremities(&network, 1, &room).await.len() > 1);
    network.send(1, &room, message(&user("bob", 1), "all heard")).await.unwrap();
    assert_eq!(extremities(&network, 1, &room).await.len(), 1);
    network.deliver().await;
    must_agree(&network, &room, &[0, 1]).await;
    let heard = bodies(&network, 0, &room, &user("alice", 0), 1_000).await;
    assert_eq!(heard.last().unwrap(), "all heard");
    network.send(0, &room, message(&user("alice", 0), "good")).await.unwrap();
    network.deliver().await;
    let heard = bodies(&network, 1, &room, &user("bob", 1), 1_000).await;
    assert_eq!(heard.last().unwrap(), "good");
}

/// Where none of our users may send events, the ends stay, and are bounded.
#[tokio::test]
async fn loose_ends_are_bounded() {
    let (network, room) = shared(json!({ "users": { "@alice:s0.test": 100 }, "events_default": 50 })).await;
    for _ in 0..3 {
        branches(&network, &room, 15).await;
    }
    let ends = extremities(&network, 1, &room).await;
    assert_eq!(ends.len(), crate::writer::PREV_EVENTS);
    assert!(ends.iter().all(|event| event.event_type() == "m.room.message"));
    network.send(0, &room, message(&user("alice", 0), "still here")).await.unwrap();
    network.deliver().await;
    must_agree(&network, &room, &[0, 1]).await;
}
