//! Rooms on several servers: what one does, the others have.

mod asking;
mod doors;
mod network;
mod policy;
mod refusals;
mod ties;
mod tricks;

use myelin_store::{Membership, testing::Fresh};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, RoomVersionId, UserId};

use self::network::{Network, name, user};
use crate::{Error, MembershipAction::*, Preset, Template, history::PageRequest, room_versions};

async fn embedded(count: usize) -> std::sync::Arc<Network> {
    Network::new((0..count).map(|_| Fresh::sqlite()).collect()).await
}

fn message(sender: &UserId, text: &str) -> Template {
    Template::message(sender, "m.room.message", content(serde_json::json!({ "msgtype": "m.text", "body": text })))
}

fn content(value: serde_json::Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => object,
        _ => panic!("an object"),
    }
}

async fn must_agree(network: &Network, room_id: &OwnedRoomId, places: &[usize]) {
    let first = network.state(places[0], room_id).await;
    for place in &places[1..] {
        assert_eq!(first, network.state(*place, room_id).await, "s{} and s{place} differ", places[0]);
    }
}

async fn membership(network: &Network, place: usize, room_id: &OwnedRoomId, user: &UserId) -> Option<Membership> {
    let rooms = network.rooms(place);
    let room = rooms.store().room(room_id).await.unwrap()?;
    let user_nid = rooms.store().user_nid(user).await.unwrap();
    rooms.member(&room, user_nid).await.unwrap().map(|member| member.membership)
}

async fn bodies(network: &Network, place: usize, room_id: &OwnedRoomId, reader: &UserId, count: usize) -> Vec<String> {
    let rooms = network.rooms(place);
    let user_nid = rooms.store().user_nid(reader).await.unwrap();
    let reader = rooms.reader(room_id, reader, user_nid).await.unwrap();
    let filter = Default::default();
    let mut found = Vec::new();
    let mut from = None;
    loop {
        let request =
            PageRequest { direction: myelin_store::Direction::Backward, from, to: None, limit: 100, filter: &filter };
        let page = rooms.read_page(&reader, &request).await.unwrap();
        for event in &page.events {
            let content: serde_json::Value = serde_json::from_str(event.content()).unwrap();
            found.extend(content["body"].as_str().map(str::to_owned));
        }
        from = Some(page.end);
        if page.is_last || found.len() >= count {
            found.reverse();
            return found;
        }
    }
}

/// In a room of each version: others join by its server and by each other, everyone hears everyone.
#[tokio::test]
async fn rooms_of_every_version_are_shared() {
    let network = embedded(3).await;
    let (alice, bob, carol) = (user("alice", 0), user("bob", 1), user("carol", 2));
    for version in room_versions() {
        let room = network.create(0, &alice, version.clone(), Preset::PublicChat).await;
        network.enter(1, &room, 0, &bob, Join).await.unwrap_or_else(|error| panic!("{version}: {error}"));
        network.deliver().await;
        network.enter(2, &room, 1, &carol, Join).await.unwrap_or_else(|error| panic!("{version}: {error}"));
        network.deliver().await;
        for (place, sender) in [(0, &alice), (1, &bob), (2, &carol)] {
            network.send(place, &room, message(sender, &format!("from {place}"))).await.unwrap();
            network.deliver().await;
        }
        must_agree(&network, &room, &[0, 1, 2]).await;
        for (place, reader) in [(0, &alice), (1, &bob), (2, &carol)] {
            let heard = bodies(&network, place, &room, reader, 3).await;
            assert_eq!(heard, ["from 0", "from 1", "from 2"], "version {version} on s{place}");
        }
        network.change(1, &room, &bob, &bob, Leave).await.unwrap();
        network.deliver().await;
        assert_eq!(membership(&network, 0, &room, &bob).await, Some(Membership::Leave), "version {version}");
        must_agree(&network, &room, &[0, 2]).await;
    }
}

/// An invitation reaches a server that is not in the room; it is accepted, or declined.
#[tokio::test]
async fn invitations_cross_servers() {
    let network = embedded(2).await;
    let (alice, bob) = (user("alice", 0), user("bob", 1));
    for accept in [true, false] {
        // Only who has an account can be invited.
        make_account(&network, 1, &bob).await;
        let room = network.create(0, &alice, RoomVersionId::V11, Preset::PrivateChat).await;
        network.change(0, &room, &alice, &bob, Invite).await.unwrap();
        assert_eq!(membership(&network, 1, &room, &bob).await, Some(Membership::Invite));
        if accept {
            network.enter(1, &room, 0, &bob, Join).await.unwrap();
            network.deliver().await;
            must_agree(&network, &room, &[0, 1]).await;
        } else {
            network.change(1, &room, &bob, &bob, Leave).await.unwrap();
            assert_eq!(membership(&network, 1, &room, &bob).await, Some(Membership::Leave));
            assert_eq!(membership(&network, 0, &room, &bob).await, Some(Membership::Leave));
        }
    }
    // Nobody there.
    let room = network.create(0, &alice, RoomVersionId::V11, Preset::PrivateChat).await;
    assert!(network.change(0, &room, &alice, &user("nobody", 1), Invite).await.is_err());
    assert_eq!(membership(&network, 0, &room, &user("nobody", 1)).await, None);
    // Who is not invited does not get in.
    assert!(matches!(network.enter(1, &room, 0, &bob, Join).await, Err(Error::Forbidden(_))));
    // Nor is who wants no invitations invited.
    let store = network.rooms(1).store();
    let wish = myelin_store::AccountData {
        user_nid: store.user_nid(&bob).await.unwrap(),
        room_nid: 0,
        data_type: crate::INVITE_PERMISSION.into(),
        content: r#"{"default_action":"block"}"#.into(),
        pos: 0,
    };
    store.commit(myelin_store::Operation::AccountData(wish)).await.unwrap();
    assert!(network.change(0, &room, &alice, &bob, Invite).await.is_err());
    assert_eq!(membership(&network, 0, &room, &bob).await, None);
}

async fn make_account(network: &Network, place: usize, user: &UserId) {
    let new = myelin_store::NewAccount {
        user_id: user,
        password_hash: None,
        is_admin: false,
        is_guest: false,
        registration_token: None,
        now_ms: 1,
    };
    network.rooms(place).store().create_account(new).await.unwrap();
}

/// Who joins late reads what was said before, from the servers that were there.
#[tokio::test]
async fn history_is_fetched() {
    let network = embedded(2).await;
    let (alice, bob) = (user("alice", 0), user("bob", 1));
    let room = network.create(0, &alice, RoomVersionId::V12, Preset::PublicChat).await;
    let said: Vec<String> = (0..250).map(|number| format!("message {number}")).collect();
    for text in &said {
        network.send(0, &room, message(&alice, text)).await.unwrap();
    }
    network.enter(1, &room, 0, &bob, Join).await.unwrap();
    network.deliver().await;
    assert_eq!(bodies(&network, 1, &room, &bob, 1_000).await, said);
    must_agree(&network, &room, &[0, 1]).await;
}

/// Messages that were sent while a link was down arrive, also those that only the gap before a later one shows.
#[tokio::test]
async fn gaps_are_filled() {
    let network = embedded(2).await;
    let (alice, bob) = (user("alice", 0), user("bob", 1));
    let room = network.create(0, &alice, RoomVersionId::V10, Preset::PublicChat).await;
    network.enter(1, &room, 0, &bob, Join).await.unwrap();
    network.deliver().await;
    for number in 0..120 {
        network.send(0, &room, message(&alice, &format!("lost {number}"))).await.unwrap();
    }
    network.forget(0, 1).await;
    network.send(0, &room, message(&alice, "heard")).await.unwrap();
    network.deliver().await;
    let mut expected: Vec<String> = (0..120).map(|number| format!("lost {number}")).collect();
    expected.push("heard".into());
    assert_eq!(bodies(&network, 1, &room, &bob, 1_000).await, expected);
    must_agree(&network, &room, &[0, 1]).await;
}

/// A branch that leaves the room's graph before our join is not taken for news down to the room's beginning: what was
/// said before is history.
#[tokio::test]
async fn branches_from_before_our_join_stay_history() {
    let network = embedded(3).await;
    let (alice, bob, carol) = (user("alice", 0), user("bob", 1), user("carol", 2));
    let room = network.create(0, &alice, RoomVersionId::V11, Preset::PublicChat).await;
    network.enter(2, &room, 0, &carol, Join).await.unwrap();
    let old: Vec<String> = (0..30).map(|number| format!("old {number}")).collect();
    for text in &old {
        network.send(0, &room, message(&alice, text)).await.unwrap();
    }
    network.deliver().await;
    network.cut(0, 2);
    network.cut(1, 2);
    for number in 0..3 {
        network.send(2, &room, message(&carol, &format!("beside {number}"))).await.unwrap();
    }
    for number in 0..10 {
        network.send(0, &room, message(&alice, &format!("before {number}"))).await.unwrap();
    }
    network.enter(1, &room, 0, &bob, Join).await.unwrap();
    network.deliver().await;
    network.forget(2, 1).await;
    network.heal();
    let joined_at = network.rooms(1).store().position();
    network.send(2, &room, message(&carol, "news")).await.unwrap();
    network.deliver().await;
    network.send(0, &room, message(&alice, "both")).await.unwrap();
    network.deliver().await;
    must_agree(&network, &room, &[0, 1, 2]).await;
    let (store, known) = (network.rooms(1).store(), network.room(1, &room).await);
    let news = store.page(known.nid, myelin_store::Direction::Forward, joined_at, None, 100).await.unwrap();
    let news: Vec<_> = news.iter().filter(|event| event.event_type() == "m.room.message").collect();
    assert_eq!(news.len(), 2, "{news:?}");
    let heard = bodies(&network, 1, &room, &bob, 1_000).await;
    for text in &old {
        assert_eq!(heard.iter().filter(|body| *body == text).count(), 1, "{text}: {heard:?}");
    }
    assert_eq!(heard[heard.len() - 2..], ["news", "both"]);
}

/// Whatever three servers do while links are cut and healed, in the end they have one state.
#[tokio::test]
async fn servers_converge() {
    for (seed, version) in [
        (1, RoomVersionId::V6),
        (2, RoomVersionId::V10),
        (3, RoomVersionId::V11),
        (4, RoomVersionId::V12),
        (5, RoomVersionId::V12),
        (6, RoomVersionId::V2),
        (7, RoomVersionId::V1),
    ] {
        converge(seed, version).await;
    }
}

async fn converge(seed: u64, version: RoomVersionId) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut databases = vec![Fresh::sqlite(), Fresh::sqlite()];
    databases.insert(0, Fresh::postgres().await.unwrap_or_else(Fresh::sqlite));
    let network = Network::new(databases).await;
    let users: Vec<(usize, OwnedUserId)> =
        (0..3).flat_map(|place| [(place, user("a", place)), (place, user("b", place))]).collect();
    let room = network.create(0, &users[0].1, version.clone(), Preset::PublicChat).await;
    for (place, user) in &users[1..] {
        if *place > 0 {
            network.enter(*place, &room, 0, user, Join).await.unwrap();
        } else {
            network.change(0, &room, user, user, Join).await.unwrap();
        }
        network.deliver().await;
    }
    for step in 0..150 {
        let (place, actor) = users.choose(&mut rng).unwrap();
        // One of each server stays, so that all hear of everything.
        let target = &user("b", rng.random_range(0..3));
        let number = rng.random_range(0..100);
        let done = match number {
            0..25 => network.send(*place, &room, message(actor, &format!("{step}"))).await,
            25..40 => {
                let topic = content(serde_json::json!({ "topic": format!("{step}") }));
                network.send(*place, &room, Template::state(actor, "m.room.topic", "", topic)).await
            }
            40..50 => {
                let mut levels = serde_json::json!({ "users_default": 0, "state_default": rng.random_range(0..60) });
                let mut named = serde_json::Map::new();
                for (_, user) in &users {
                    // From version 12 on, the creator has no level.
                    if version != RoomVersionId::V12 || *user != users[0].1 {
                        named.insert(user.to_string(), rng.random_range(0..=100).into());
                    }
                }
                if version != RoomVersionId::V12 {
                    named.insert(users[0].1.to_string(), 100.into());
                }
                levels["users"] = named.into();
                network.send(*place, &room, Template::state(actor, "m.room.power_levels", "", content(levels))).await
            }
            50..58 => network.change(*place, &room, actor, target, Ban).await,
            58..66 => network.change(*place, &room, actor, target, Kick).await,
            66..72 => network.change(*place, &room, actor, target, Unban).await,
            72..80 => network.enter(*place, &room, 0, actor, Join).await,
            80..84 => network.change(*place, &room, &user("b", *place), &user("b", *place), Leave).await,
            84..90 => {
                network.cut(rng.random_range(0..3), rng.random_range(0..3));
                Ok(())
            }
            90..95 => {
                network.heal();
                Ok(())
            }
            _ => {
                network.deliver().await;
                Ok(())
            }
        };
        // Much of it is not allowed.
        drop(done);
    }
    network.heal();
    network.deliver().await;
    // One more word from each, so that every branch is followed.
    for (place, actor) in &users {
        drop(network.send(*place, &room, message(actor, "done")).await);
    }
    network.deliver().await;
    // Who is out of the room hears no more of it.
    let mut places = Vec::new();
    for place in 0..3 {
        let known = network.room(place, &room).await;
        if network.rooms(place).is_server_in(&known, &name(place)).await.unwrap() {
            places.push(place);
        }
    }
    assert_eq!(places, [0, 1, 2], "seed {seed}");
    must_agree(&network, &room, &places).await;
}
