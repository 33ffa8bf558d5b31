//! What one server asks others for on behalf of its users.

use myelin_store::Direction;
use serde_json::{Value, json};

use super::{policy::on_both, *};
use crate::{InitialState, serve::HierarchyRequest};

/// A profile is told by its server, and remembered; nobody is nobody, and a server that is away is not.
#[tokio::test]
async fn profiles_of_others() {
    on_both(2, async |network| {
        let bob = user("bob", 1);
        make_account(network, 1, &bob).await;
        let rooms = network.rooms(0);
        assert!(rooms.profile_elsewhere(&bob).await.unwrap().iter().next().is_none());
        network.cut(0, 1);
        rooms.profile_elsewhere(&bob).await.expect("it is remembered");
        assert!(matches!(rooms.profile_elsewhere(&user("nobody", 1)).await, Err(Error::Remote(_))));
        network.heal();
        for _ in 0..2 {
            assert!(matches!(rooms.profile_elsewhere(&user("nobody", 1)).await, Err(Error::NotFound(_))));
            network.cut(0, 1);
        }
    })
    .await;
}

async fn room(
    network: &Network,
    place: usize,
    owner: &UserId,
    name: &str,
    preset: Preset,
    children: &[(&OwnedRoomId, usize)],
) -> OwnedRoomId {
    let state = |event_type: &str, state_key: &str, value: Value| InitialState {
        event_type: event_type.to_owned(),
        state_key: state_key.to_owned(),
        content: content(value),
    };
    let mut initial_state = vec![state("m.room.name", "", json!({ "name": name }))];
    for (order, (child, via)) in children.iter().enumerate() {
        let content = json!({ "via": [super::name(*via)], "order": order.to_string() });
        initial_state.push(state("m.space.child", child.as_str(), content));
    }
    let creation_content = match children.is_empty() {
        true => CanonicalJsonObject::new(),
        false => content(json!({ "type": "m.space" })),
    };
    let wanted = crate::CreateRoom {
        creator: owner.to_owned(),
        version: RoomVersionId::V11,
        preset,
        is_public: false,
        is_direct: false,
        name: None,
        topic: None,
        alias: None,
        invite: Vec::new(),
        initial_state,
        creation_content,
        power_level_content_override: CanonicalJsonObject::new(),
    };
    network.rooms(place).create(wanted).await.unwrap().room_id.clone()
}

async fn walk(
    network: &Network,
    place: usize,
    space: &OwnedRoomId,
    reader: &UserId,
    limit: usize,
) -> Result<Vec<String>, Error> {
    let rooms = network.rooms(place);
    let user_nid = rooms.store().user_nid(reader).await.unwrap();
    let mut names = Vec::new();
    loop {
        let request = HierarchyRequest { suggested_only: false, max_depth: 9, skip: names.len(), limit };
        let page = rooms.hierarchy(space, user_nid, &request).await?;
        for room in &page.rooms {
            let json = serde_json::to_value(room).unwrap();
            let children = json["children_state"].as_array().unwrap().len();
            assert_eq!(json["room_type"] == "m.space", children > 0, "{json}");
            names.push(json["name"].as_str().unwrap().to_owned());
        }
        if page.is_last {
            return Ok(names);
        }
        assert!(!page.rooms.is_empty());
    }
}

/// The rooms of a space that others hold are described by them, in the space's order; those that are not open to the user,
/// or that nobody describes, are left out.
#[tokio::test]
async fn spaces_across_servers() {
    on_both(3, async |network| {
        let (alice, bob, carol) = (user("alice", 0), user("bob", 1), user("carol", 2));
        let open = room(network, 1, &bob, "open", Preset::PublicChat, &[]).await;
        let closed = room(network, 1, &bob, "closed", Preset::PrivateChat, &[]).await;
        let far = room(network, 2, &carol, "far", Preset::PublicChat, &[]).await;
        let inner = room(network, 1, &bob, "inner", Preset::PublicChat, &[(&open, 1), (&closed, 1), (&far, 2)]).await;
        let own = room(network, 0, &alice, "own", Preset::PublicChat, &[]).await;
        let nowhere: OwnedRoomId = "!nowhere:s1.test".try_into().unwrap();
        let children = [(&inner, 1), (&closed, 1), (&nowhere, 1), (&open, 1), (&own, 0)];
        let outer = room(network, 0, &alice, "outer", Preset::PublicChat, &children).await;

        for limit in [100, 2, 1] {
            let names = walk(network, 0, &outer, &alice, limit).await.unwrap();
            assert_eq!(names, ["outer", "inner", "open", "far", "own"], "{limit} at a time");
        }
        // It is remembered.
        network.cut(0, 1);
        assert_eq!(walk(network, 0, &outer, &alice, 100).await.unwrap().len(), 5);
        network.heal();
        // Whoever is not in a room asks for it by its name; a closed one does not show.
        let names = walk(network, 2, &inner, &carol, 100).await.unwrap();
        assert_eq!(names, ["inner", "open", "far"]);
        assert!(matches!(walk(network, 2, &closed, &carol, 100).await, Err(Error::Forbidden(_))));
        assert!(matches!(walk(network, 2, &nowhere, &carol, 100).await, Err(Error::Forbidden(_))));
    })
    .await;
}

/// A server that is away leaves its rooms out, and nothing else.
#[tokio::test]
async fn spaces_with_a_server_away() {
    on_both(2, async |network| {
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        let theirs = room(network, 1, &bob, "theirs", Preset::PublicChat, &[]).await;
        let own = room(network, 0, &alice, "own", Preset::PublicChat, &[]).await;
        let space = room(network, 0, &alice, "space", Preset::PublicChat, &[(&theirs, 1), (&own, 0)]).await;
        network.cut(0, 1);
        assert_eq!(walk(network, 0, &space, &alice, 100).await.unwrap(), ["space", "own"]);
        network.heal();
        assert_eq!(walk(network, 0, &space, &alice, 100).await.unwrap(), ["space", "theirs", "own"]);
    })
    .await;
}

/// A room is summed up for those who may see it, by whoever knows it; with what the user is in it.
#[tokio::test]
async fn rooms_are_summed_up() {
    on_both(2, async |network| {
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        let open = room(network, 0, &alice, "open", Preset::PublicChat, &[]).await;
        let closed = room(network, 0, &alice, "closed", Preset::PrivateChat, &[]).await;
        make_account(network, 1, &bob).await;
        let summary = async |place: usize, room_id: &OwnedRoomId, reader: Option<&UserId>| {
            let rooms = network.rooms(place);
            let user_nid = match reader {
                Some(reader) => Some(rooms.store().user_nid(reader).await.unwrap()),
                None => None,
            };
            let (summary, membership) = rooms.summary_of(room_id, &[name(0)], user_nid).await?;
            let name = serde_json::to_value(&summary).unwrap()["name"].as_str().unwrap().to_owned();
            Ok::<_, Error>((name, membership))
        };
        assert_eq!(summary(0, &open, Some(&alice)).await.unwrap(), ("open".into(), Some(Membership::Join)));
        assert_eq!(summary(0, &closed, Some(&alice)).await.unwrap(), ("closed".into(), Some(Membership::Join)));
        assert_eq!(summary(0, &open, None).await.unwrap(), ("open".into(), None));
        assert!(matches!(summary(0, &closed, None).await, Err(Error::NotFound(_))));
        assert_eq!(summary(1, &open, Some(&bob)).await.unwrap(), ("open".into(), Some(Membership::Leave)));
        assert!(
            matches!(summary(1, &open, None).await, Err(Error::NotFound(_))),
            "others are asked for our users alone"
        );
        assert!(matches!(summary(1, &closed, Some(&bob)).await, Err(Error::NotFound(_))));
        network.change(0, &closed, &alice, &bob, Invite).await.unwrap();
        // Its server says no for a while, as far as we remember; another one asks anew.
        assert_eq!(membership(network, 1, &closed, &bob).await, Some(Membership::Invite));
    })
    .await;
}

/// An event from before what a server has is found by the others, and fetched with what lies between.
#[tokio::test]
async fn events_by_time_from_others() {
    on_both(2, async |network| {
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        let room_id = network.create(0, &alice, RoomVersionId::V11, Preset::PublicChat).await;
        let start = crate::now_ms() - 1_000_000;
        for number in 0..150_u64 {
            let mut template = message(&alice, &number.to_string());
            template.timestamp_ms = Some(start + number * 1000);
            network.send(0, &room_id, template).await.unwrap();
        }
        network.forget(0, 1).await;
        network.enter(1, &room_id, 0, &bob, Join).await.unwrap();
        network.deliver().await;
        let rooms = network.rooms(1);
        let user_nid = rooms.store().user_nid(&bob).await.unwrap();
        let at = async |ts: u64, direction| {
            let reader = rooms.reader(&room_id, &bob, user_nid).await?;
            let event = rooms.event_at(&reader, ts, direction).await?;
            let content: Value = serde_json::from_str(event.content()).unwrap();
            Ok::<_, Error>(content["body"].as_str().unwrap_or("").to_owned())
        };
        network.cut(0, 1);
        assert!(
            matches!(at(start + 20_500, Direction::Backward).await, Err(Error::NotFound(_))),
            "nobody can be asked"
        );
        network.heal();
        assert_eq!(at(start + 20_500, Direction::Backward).await.unwrap(), "20");
        assert_eq!(at(start + 20_500, Direction::Forward).await.unwrap(), "21");
        network.cut(0, 1);
        assert_eq!(at(start + 70_000, Direction::Forward).await.unwrap(), "70", "it is here now");
        assert!(matches!(at(1, Direction::Backward).await, Err(Error::NotFound(_))));
    })
    .await;
}
