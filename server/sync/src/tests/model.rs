//! Whatever happens, and whenever a client syncs meanwhile: in the end it knows what a new client is told.

use std::collections::{BTreeMap, BTreeSet};

use myelin_rooms::MembershipAction;
use myelin_store::testing::Fresh;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Person, World, filtered};
use crate::{Request, StateForm};

#[derive(Clone, Copy, Debug)]
enum Act {
    Say(usize),
    Topic(usize),
    Bob(usize, MembershipAction),
    Alice(usize, MembershipAction),
    CarolComes(usize),
    CarolGoes(usize),
    Sync,
}

const ROOMS: usize = 2;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    use MembershipAction::{Ban, Invite, Join, Kick, Leave, Unban};
    let room = 0..ROOMS;
    let act = prop_oneof![
        10 => room.clone().prop_map(Act::Say),
        4 => room.clone().prop_map(Act::Topic),
        3 => (room.clone(), prop_oneof![4 => Just(Join), 1 => Just(Leave)]).prop_map(|(room, act)| Act::Bob(room, act)),
        1 => (room.clone(), prop_oneof![Just(Invite), Just(Kick), Just(Ban), Just(Unban)])
            .prop_map(|(room, act)| Act::Alice(room, act)),
        1 => room.clone().prop_map(Act::CarolComes),
        1 => room.prop_map(Act::CarolGoes),
        3 => Just(Act::Sync),
    ];
    prop::collection::vec(act, 1..80)
}

/// What a client keeps.
#[derive(Debug, Default)]
struct Client {
    last: Option<Value>,
    /// By room: the state, by type and state key.
    joined: BTreeMap<String, BTreeMap<(String, String), String>>,
    invited: BTreeSet<String>,
    /// All events of timelines, to see that none comes twice while one stays in a room.
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl Client {
    async fn sync(&mut self, world: &World, bob: &Person, form: StateForm, lazy: bool) {
        let filter = json!({ "room": { "timeline": { "limit": 3 }, "state": { "lazy_load_members": lazy } } });
        let request = Request { state_form: form, ..filtered(bob, self.last.as_ref(), filter) };
        let answer = world.ask(request).await;
        for (room_id, room) in answer["rooms"]["leave"].as_object().into_iter().flatten() {
            assert!(room["timeline"]["events"].is_array());
            self.joined.remove(room_id);
            self.invited.remove(room_id);
            self.seen.remove(room_id);
        }
        for room_id in answer["rooms"]["invite"].as_object().into_iter().flatten().map(|(room_id, _)| room_id) {
            self.joined.remove(room_id);
            self.seen.remove(room_id);
            self.invited.insert(room_id.clone());
        }
        for (room_id, room) in answer["rooms"]["join"].as_object().into_iter().flatten() {
            self.invited.remove(room_id);
            let state = self.joined.entry(room_id.clone()).or_default();
            let beside = if form == StateForm::Before { "state" } else { "state_after" };
            let mut told: Vec<&Value> = room[beside]["events"].as_array().unwrap().iter().collect();
            if form == StateForm::Before {
                told.extend(room["timeline"]["events"].as_array().unwrap());
            }
            for event in told {
                if let Some(state_key) = event["state_key"].as_str() {
                    let key = (event["type"].as_str().unwrap().to_owned(), state_key.to_owned());
                    state.insert(key, event["event_id"].as_str().unwrap().to_owned());
                }
            }
            let seen = self.seen.entry(room_id.clone()).or_default();
            for event in room["timeline"]["events"].as_array().unwrap() {
                let event_id = event["event_id"].as_str().unwrap().to_owned();
                assert!(seen.insert(event_id), "an event came twice");
            }
        }
        self.last = Some(answer);
    }
}

async fn run(acts: Vec<Act>, form: StateForm, lazy: bool) {
    let fresh = Fresh::sqlite();
    let world = World::open(&fresh, false).await;
    let (alice, bob, carol) = (world.person("alice").await, world.person("bob").await, world.person("carol").await);
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        rooms.push(room);
    }
    let mut client = Client::default();
    for (count, act) in acts.into_iter().enumerate() {
        // What the rules of the room refuse has no effect, here as anywhere.
        let change = async |room: usize, sender: &Person, target: &Person, action| {
            drop(world.rooms.change_membership(&rooms[room], &sender.id, &target.id, action, None, false).await);
        };
        match act {
            Act::Say(room) => drop(world.say(&rooms[room], &alice, &count.to_string()).await),
            Act::Topic(room) => world.topic(&rooms[room], &alice, &count.to_string()).await,
            Act::Bob(room, action) => change(room, &bob, &bob, action).await,
            Act::Alice(room, action) => change(room, &alice, &bob, action).await,
            Act::CarolComes(room) => change(room, &carol, &carol, MembershipAction::Join).await,
            Act::CarolGoes(room) => change(room, &carol, &carol, MembershipAction::Leave).await,
            Act::Sync => client.sync(&world, &bob, form, lazy).await,
        }
    }
    client.sync(&world, &bob, form, lazy).await;

    let mut fresh_client = Client::default();
    fresh_client.sync(&world, &bob, form, false).await;
    assert_eq!(client.invited, fresh_client.invited);
    assert_eq!(client.joined.keys().collect::<Vec<_>>(), fresh_client.joined.keys().collect::<Vec<_>>());
    for (room_id, told) in &client.joined {
        let room = rooms.iter().find(|room| room.room_id == *room_id).unwrap();
        let root = world.rooms.store().head(room.nid).await.unwrap().state_root;
        let mut actual = BTreeMap::new();
        for event in world.rooms.store().all_state_events(root).await.unwrap() {
            let key = (event.event_type().to_owned(), event.state_key().unwrap().to_owned());
            actual.insert(key, event.event_id.to_string());
        }
        assert_eq!(fresh_client.joined[room_id], actual, "a new client's state is the room's");
        if lazy {
            // Members who say nothing may be missing, but none may be out of date.
            for (key, event_id) in told {
                assert_eq!(actual.get(key), Some(event_id), "{key:?}");
            }
            actual.retain(|(event_type, _), _| event_type != "m.room.member");
            for (key, event_id) in &actual {
                assert_eq!(told.get(key), Some(event_id), "{key:?}");
            }
        } else {
            assert_eq!(*told, actual);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() })]

    /// With the state before the timeline, and with the state after it; with all members, and with those needed.
    #[test]
    fn increments_add_up(acts in acts(), after in any::<bool>(), lazy in any::<bool>()) {
        let form = if after { StateForm::After } else { StateForm::Before };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(run(acts, form, lazy));
    }
}
