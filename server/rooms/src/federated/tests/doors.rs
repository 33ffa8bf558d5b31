//! Rooms that not everyone may enter: knocks, and joins by membership elsewhere.

use serde_json::json;

use super::*;

async fn close(network: &Network, room: &OwnedRoomId, owner: &UserId, rules: serde_json::Value) {
    network.send(0, room, Template::state(owner, "m.room.join_rules", "", content(rules))).await.unwrap();
    network.deliver().await;
}

/// Who knocks is heard by the room, and can be let in.
#[tokio::test]
async fn knocking() {
    let network = embedded(2).await;
    let (alice, bob) = (user("alice", 0), user("bob", 1));
    make_account(&network, 1, &bob).await;
    for version in [RoomVersionId::V7, RoomVersionId::V11, RoomVersionId::V12] {
        let room = network.create(0, &alice, version, Preset::PrivateChat).await;
        assert!(network.enter(1, &room, 0, &bob, Knock).await.is_err());
        close(&network, &room, &alice, json!({ "join_rule": "knock" })).await;
        assert!(network.enter(1, &room, 0, &bob, Join).await.is_err());
        network.enter(1, &room, 0, &bob, Knock).await.unwrap();
        assert_eq!(membership(&network, 0, &room, &bob).await, Some(Membership::Knock));
        assert_eq!(membership(&network, 1, &room, &bob).await, Some(Membership::Knock));
        network.change(0, &room, &alice, &bob, Invite).await.unwrap();
        network.deliver().await;
        network.enter(1, &room, 0, &bob, Join).await.unwrap();
        network.deliver().await;
        must_agree(&network, &room, &[0, 1]).await;
    }
}

/// The members of one room may join another one; the server that lets them in signs for it.
#[tokio::test]
async fn restricted_joins() {
    let network = embedded(3).await;
    let (alice, bob, carol) = (user("alice", 0), user("bob", 1), user("carol", 2));
    for version in [RoomVersionId::V8, RoomVersionId::V10, RoomVersionId::V12] {
        let club = network.create(0, &alice, version.clone(), Preset::PublicChat).await;
        let room = network.create(0, &alice, version, Preset::PrivateChat).await;
        let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
        close(&network, &room, &alice, json!({ "join_rule": "restricted", "allow": allow })).await;
        assert!(network.enter(1, &room, 0, &bob, Join).await.is_err(), "bob is not in the club");
        network.enter(1, &club, 0, &bob, Join).await.unwrap();
        network.deliver().await;
        network.enter(1, &room, 0, &bob, Join).await.unwrap();
        network.deliver().await;
        must_agree(&network, &room, &[0, 1]).await;
        // Bob's server is in both, but nobody there may invite.
        network.enter(2, &club, 1, &carol, Join).await.unwrap();
        network.deliver().await;
        network.enter(2, &room, 0, &carol, Join).await.unwrap();
        network.deliver().await;
        must_agree(&network, &room, &[0, 1, 2]).await;
    }
}

/// Redactions reach the other servers, also before what they redact.
#[tokio::test]
async fn redactions_cross_servers() {
    let network = embedded(2).await;
    let (alice, bob) = (user("alice", 0), user("bob", 1));
    for version in [RoomVersionId::V1, RoomVersionId::V6, RoomVersionId::V11] {
        let room_id = network.create(0, &alice, version, Preset::PublicChat).await;
        network.enter(1, &room_id, 0, &bob, Join).await.unwrap();
        network.deliver().await;
        let room = network.room(0, &room_id).await;
        let rooms = network.rooms(0);
        let said = rooms.send(&room, message(&alice, "oops"), None).await.unwrap();
        network.deliver().await;
        assert_eq!(bodies(&network, 1, &room_id, &bob, 10).await, ["oops"]);
        rooms.redact(&room, &alice, &said, CanonicalJsonObject::new(), None).await.unwrap();
        network.deliver().await;
        let kept = network.rooms(1).store().event_by_id(&said).await.unwrap().unwrap();
        assert_eq!(kept.content(), "{}");
        assert!(bodies(&network, 1, &room_id, &bob, 10).await.is_empty());
    }
}
