//! Random rooms: the result is the one that the whole states and whole auth chains give, in whatever order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use myelin_store::testing::{Fresh, on_both};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use ruma::{EventId, OwnedEventId, RoomVersionId, events::StateEventType};
use ruma_state_res::{Event as _, StateMap, check_state_dependent_auth_rules, utils::event_id_set::EventIdSet};
use serde_json::{Value, json};

use super::{ALICE, BOB, CAROL, DAVE, New, Room, open};
use crate::{Pdu, resolve::graph::key_of};

const USERS: [&str; 5] = [ALICE, BOB, CAROL, DAVE, "@eve:example.org"];

/// A state by names: the type and state key with the event.
type State = BTreeMap<(String, String), String>;

/// A room that grows in branches.
struct Growth {
    room: Room,
    rng: StdRng,
    states: Vec<State>,
    pdus: HashMap<OwnedEventId, Arc<Pdu>>,
}

impl Growth {
    async fn new(room: Room, seed: u64) -> Self {
        Self { room, rng: StdRng::seed_from_u64(seed), states: vec![State::new()], pdus: HashMap::new() }
    }

    /// An event of a user's, with a content that often is allowed.
    fn action(&mut self) -> (String, String, String, Value) {
        let sender = *USERS.choose(&mut self.rng).unwrap();
        let target = *USERS.choose(&mut self.rng).unwrap();
        let (event_type, state_key, content) = match self.rng.random_range(0..12) {
            0..3 => ("m.room.member", sender, json!({ "membership": "join" })),
            3 => ("m.room.member", sender, json!({ "membership": "leave" })),
            4 => ("m.room.member", target, json!({ "membership": "ban" })),
            5 => ("m.room.member", target, json!({ "membership": "leave" })),
            6 => ("m.room.member", target, json!({ "membership": "invite" })),
            7..9 => {
                let mut levels = self.room.levels(json!({ ALICE: 100 }));
                for user in &USERS[1..] {
                    if self.rng.random_bool(0.6) {
                        levels[user] = json!(self.rng.random_range(0..3) * 50);
                    }
                }
                ("m.room.power_levels", "", json!({ "users": levels }))
            }
            9 => {
                let rule = *["public", "public", "invite", "knock"].choose(&mut self.rng).unwrap();
                ("m.room.join_rules", "", json!({ "join_rule": rule }))
            }
            _ => ("m.room.topic", "", json!({ "topic": self.rng.random_range(0..100) })),
        };
        (sender.to_owned(), event_type.to_owned(), state_key.to_owned(), content)
    }

    /// The auth events that an event has by a state.
    fn auth(&self, state: &State, sender: &str, event_type: &str, state_key: &str, content: &Value) -> Vec<String> {
        let content = serde_json::value::to_raw_value(content).unwrap();
        let sender = <&ruma::UserId>::try_from(sender).unwrap();
        let types = ruma_state_res::auth_types_for_event(
            &event_type.into(),
            sender,
            Some(state_key),
            &content,
            &self.room.rules.authorization,
        );
        let found = types.unwrap().into_iter().map(|(kind, key)| state.get(&(kind.to_string(), key)).cloned());
        found.flatten().collect()
    }

    /// Another event on one of the branches, whatever is allowed there. Some have the auth events of another branch, and
    /// now and then a branch takes over a part of another one, as if a server had told so.
    async fn step(&mut self, number: usize) {
        let branch = self.rng.random_range(0..self.states.len());
        if self.states.len() > 3 && self.rng.random_bool(0.1) {
            let other = self.states[self.rng.random_range(0..self.states.len())].clone();
            for (key, event) in other {
                if self.rng.random_bool(0.3) {
                    self.states[branch].insert(key, event);
                }
            }
            return;
        }
        let (sender, event_type, state_key, content) = self.action();
        let source = if self.rng.random_bool(0.1) { self.rng.random_range(0..self.states.len()) } else { branch };
        let auth = self.auth(&self.states[source], &sender, &event_type, &state_key, &content);
        let auth: Vec<&str> = auth.iter().map(String::as_str).collect();
        let name = format!("e{:03}", self.rng.random_range(0..1000) * 1000 + number);
        let new = New::state(&name, &sender, &event_type, &state_key, content, &auth);
        let ts = self.rng.random_range(0..50);
        self.room.add(new.at(ts)).await;
        if !self.is_allowed(branch) && self.rng.random_bool(0.9) {
            return;
        }
        let mut state = self.states[branch].clone();
        state.insert((event_type, state_key), name);
        if self.rng.random_bool(0.3) && self.states.len() < 8 {
            self.states.push(state);
        } else {
            self.states[branch] = state;
        }
    }

    /// Whether the event that was made last is allowed on a branch.
    fn is_allowed(&mut self, branch: usize) -> bool {
        self.read();
        let pdu = &self.pdus[&self.room.events.last().unwrap().event_id];
        let state = &self.states[branch];
        let by_key = |kind: &StateEventType, key: &str| {
            let name = state.get(&(kind.to_string(), key.to_owned()))?;
            Some(self.pdus[&self.id(name)].clone())
        };
        check_state_dependent_auth_rules(&self.room.rules.authorization, pdu.clone(), by_key).is_ok()
    }

    /// Reads all events that were made since.
    fn read(&mut self) {
        for event in self.room.events.iter().skip(self.pdus.len()) {
            let pdu = Pdu::from_event(event, &self.room.rules).unwrap();
            self.pdus.insert(pdu.id().clone(), Arc::new(pdu));
        }
    }

    fn id(&self, name: &str) -> OwnedEventId {
        EventId::parse(format!("${}{name}", self.room.mark)).unwrap()
    }

    /// "The set containing all of E's auth events, all of their auth events, and so on recursively".
    fn chain(&self, event_ids: impl Iterator<Item = OwnedEventId>) -> EventIdSet<OwnedEventId> {
        let mut chain = EventIdSet::new();
        let mut todo: Vec<OwnedEventId> = event_ids.collect();
        while let Some(event_id) = todo.pop() {
            for auth in self.pdus[&event_id].auth_events() {
                if chain.insert(auth.clone()) {
                    todo.push(auth.clone());
                }
            }
        }
        chain
    }

    /// All events on all paths between two of these events.
    fn paths(&self, events: &HashSet<OwnedEventId>) -> EventIdSet<OwnedEventId> {
        let ends_there = |event_id: &OwnedEventId| {
            let chain = self.chain([event_id.clone()].into_iter());
            events.contains(event_id) || events.iter().any(|end| chain.contains(end))
        };
        let below = self.chain(events.iter().cloned());
        let between = below.into_iter().filter(ends_there);
        between.chain(events.iter().cloned()).collect()
    }

    /// ruma's algorithm, given everything.
    fn naive(&self, states: &[State]) -> BTreeMap<String, String> {
        let maps: Vec<StateMap<OwnedEventId>> = states
            .iter()
            .map(|state| {
                state.values().map(|name| (key_of(&self.pdus[&self.id(name)]).unwrap(), self.id(name))).collect()
            })
            .collect();
        let chains = maps.iter().map(|map| self.chain(map.values().cloned())).collect();
        let rules = &self.room.rules;
        let resolved = ruma_state_res::resolve(
            &rules.authorization,
            rules.state_res.v2_rules().unwrap(),
            &maps,
            chains,
            |event_id| self.pdus.get(event_id).cloned(),
            |conflicted| Some(self.paths(&conflicted.values().flatten().cloned().collect())),
        );
        let name = |event_id: OwnedEventId| event_id.as_str()[1 + self.room.mark.len()..].to_owned();
        resolved.unwrap().into_iter().map(|((kind, key), event_id)| (format!("{kind} {key}"), name(event_id))).collect()
    }

    /// Ours.
    async fn resolved(&self, states: &[State]) -> BTreeMap<String, String> {
        let mut roots = Vec::new();
        for state in states {
            let names: Vec<&str> = state.values().map(String::as_str).collect();
            roots.push(self.room.snapshot(&names).await);
        }
        let resolved = self.room.resolved(&roots).await;
        let named = resolved.into_values().map(|nid| {
            let name = self.room.name(nid);
            let (kind, key) = key_of(&self.pdus[&self.id(name)]).unwrap();
            (format!("{kind} {key}"), name.to_owned())
        });
        named.collect()
    }
}

async fn compare(fresh: &Fresh, seeds: std::ops::Range<u64>, versions: &[RoomVersionId]) {
    let rooms = open(fresh).await;
    let (mut conflicts, mut changed) = (0, 0);
    for seed in seeds {
        for version in versions {
            let room = Room::with_basics(&rooms, version.clone(), json!({ ALICE: 100, BOB: 50, CAROL: 100 })).await;
            let mut growth = Growth::new(room, seed).await;
            for (kind, key, name) in [
                ("m.room.create", "", "create"),
                ("m.room.member", ALICE, "alice"),
                ("m.room.power_levels", "", "power"),
                ("m.room.join_rules", "", "public"),
            ] {
                growth.states[0].insert((kind.to_owned(), key.to_owned()), name.to_owned());
            }
            for number in 0..80 {
                growth.step(number).await;
            }
            growth.read();
            growth.room.commit().await;
            for _ in 0..4 {
                let count = growth.rng.random_range(2..5);
                let states: Vec<State> =
                    (0..count).map(|_| growth.states.choose(&mut growth.rng).unwrap().clone()).collect();
                let resolved = growth.resolved(&states).await;
                if *version != RoomVersionId::V1 {
                    assert_eq!(resolved, growth.naive(&states), "seed {seed}, room version {version}");
                }
                conflicts += usize::from(states.iter().any(|state| *state != states[0]));
                let names: Vec<&String> = resolved.values().collect();
                changed += usize::from(
                    !states
                        .iter()
                        .any(|state| state.values().collect::<HashSet<_>>() == names.iter().copied().collect()),
                );
            }
        }
    }
    assert!(conflicts > 30 && changed > 10, "{conflicts} conflicts, {changed} with a state that was not there before");
    rooms.store.close().await;
}

/// Hundreds of random rooms of each algorithm.
#[tokio::test]
async fn random_rooms() {
    let versions = [RoomVersionId::V1, RoomVersionId::V6, RoomVersionId::V11, RoomVersionId::V12];
    compare(&Fresh::sqlite(), 0..25, &versions).await;
}

/// A few on each engine.
#[tokio::test]
async fn random_rooms_on_both_engines() {
    on_both(async |fresh: &Fresh| compare(fresh, 1000..1006, &[RoomVersionId::V10, RoomVersionId::V12]).await).await;
}
