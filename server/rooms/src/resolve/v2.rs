//! State resolution of [room version 2] and that of [room version 12], version 2.1 of the same.
//!
//! The algorithm itself is ruma's. Here is found what it has to be given: of the states what they differ in and what is
//! looked up in them, of the auth chains their difference.
//!
//! [room version 2]: https://spec.matrix.org/v1.19/rooms/v2/#state-resolution
//! [room version 12]: https://spec.matrix.org/v1.19/rooms/v12/#state-resolution

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::state_tree;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{AuthorizationRules, RoomVersionRules, StateResolutionV2Rules},
};
use ruma_state_res::{Event, StateMap, auth_types_for_event, utils::event_id_set::EventIdSet};
use serde_json::value::RawValue;

use super::{
    Conflict,
    auth_graph::{AuthGraph, take_reached},
    corrupt,
    graph::{Graph, Key, Pdus, key_of},
    mainline::{self, is_power_levels},
    work,
};
use crate::{Pdu, Result};

/// The events of the keys that the snapshots differ in, and of those that none of them has and the result has.
pub(super) async fn resolve(
    graph: &Graph<'_>,
    rules: &Arc<RoomVersionRules>,
    v2_rules: &StateResolutionV2Rules,
    conflict: &Conflict,
) -> Result<HashMap<i64, i64>> {
    let conflicted: Vec<i64> = conflict.events().into_iter().collect();
    let below = AuthGraph::from(graph, &conflicted).await?;
    let subgraph = match v2_rules.consider_conflicted_state_subgraph {
        true => below.between(&conflicted),
        false => HashSet::new(),
    };
    let mut full: HashSet<i64> = conflicted.iter().copied().collect();
    full.extend(&subgraph);
    let difference = auth_difference(graph, conflict, &below, &full).await?;
    full.extend(&difference);

    let mut pdus = Pdus::new(rules.clone());
    pdus.load(graph, full.iter().copied()).await?;
    // What is no state event would fail everything. No event that names one is accepted.
    full.retain(|&nid| pdus.get(nid).is_some_and(|pdu| pdu.state_key().is_some()));
    pdus.load(graph, full.iter().flat_map(|&nid| below.auth_of(nid))).await?;
    let keys = graph.key_nids(looked_up(pdus.among(full.iter().copied()), &rules.authorization)).await?;
    let shared_keys: Vec<i64> = keys.values().copied().filter(|nid| !conflict.keys.contains_key(nid)).collect();
    let shared = graph.state(conflict.base(), &shared_keys).await?;
    pdus.load(graph, shared.iter().copied()).await?;

    let based_on = full.iter().chain(&shared).flat_map(|&nid| [nid].into_iter().chain(below.auth_of(nid)));
    let based_on: Vec<i64> = pdus.among(based_on).filter(|pdu| is_power_levels(pdu)).map(|pdu| pdu.nid).collect();
    let parents = mainline::follow(graph, &mut pdus, based_on).await?;

    let names =
        |nids: &HashSet<i64>| pdus.among(nids.intersection(&full).copied()).map(|pdu| pdu.id().clone()).collect();
    let problem = Problem {
        rules: rules.clone(),
        v2_rules: *v2_rules,
        states: states(&pdus, conflict, &shared)?,
        difference: names(&difference),
        subgraph: names(&subgraph),
        nodes: nodes(&pdus, &full, &parents),
    };
    let resolved = work(full.len(), move || problem.solve()).await?;

    let shared: HashSet<i64> = shared.into_iter().collect();
    let resolved = resolved.into_iter().filter(|(_, nid)| !shared.contains(nid));
    resolved.map(|(key, nid)| Ok((*keys.get(&key).ok_or_else(|| corrupt("state key"))?, nid))).collect()
}

/// The [auth difference], without `known`, which is in the full conflicted set in any case.
///
/// What the snapshots share is in all of them, hence its auth chain in all of theirs: the difference is what the chains
/// of the events in conflict differ in, less what the shared state leads to.
///
/// [auth difference]: https://spec.matrix.org/v1.19/rooms/v2/#definitions
async fn auth_difference(
    graph: &Graph<'_>,
    conflict: &Conflict,
    below: &AuthGraph,
    known: &HashSet<i64>,
) -> Result<HashSet<i64>> {
    let (shared, mut difference) = below.shared_and_different(&conflict.sets());
    difference.retain(|nid| !known.contains(nid));
    if difference.is_empty() {
        return Ok(difference);
    }
    let state = state_tree::entries(graph.store, &[conflict.base()]).await.map_err(myelin_store::Error::from)?;
    let unconflicted = state.into_iter().flatten().filter(|(key, _)| !conflict.keys.contains_key(key));
    take_reached(graph, unconflicted.map(|(_, event)| event), &shared, &mut difference).await?;
    Ok(difference)
}

/// The keys that the algorithm looks up in the states, or replaces in the end.
fn looked_up<'a>(full: impl Iterator<Item = &'a Arc<Pdu>>, rules: &AuthorizationRules) -> HashSet<Key> {
    // The create event is found by the room's id from room version 12 on.
    let always = [StateEventType::RoomCreate, StateEventType::RoomPowerLevels].map(|kind| (kind, String::new()));
    let mut keys = HashSet::from(always);
    for pdu in full {
        keys.extend(key_of(pdu));
        // An event that this fails for is left out by the algorithm too.
        keys.extend(
            auth_types_for_event(pdu.event_type(), pdu.sender(), pdu.state_key(), pdu.content(), rules)
                .unwrap_or_default(),
        );
    }
    keys
}

/// Of each snapshot the events in conflict, and what is looked up.
fn states(pdus: &Pdus, conflict: &Conflict, shared: &[i64]) -> Result<Vec<StateMap<OwnedEventId>>> {
    let entry = |nid: i64| {
        let pdu = pdus.get(nid)?;
        Some((key_of(pdu)?, pdu.id().clone()))
    };
    let state = |set: Vec<i64>| {
        let events = set.into_iter().chain(shared.iter().copied());
        events.map(|nid| entry(nid).ok_or_else(|| corrupt("state event"))).collect()
    };
    conflict.sets().into_iter().map(state).collect()
}

/// All that the algorithm may fetch: of the full conflicted set with all auth events, of the mainline with the power
/// levels among them, of the rest with none.
fn nodes(pdus: &Pdus, full: &HashSet<i64>, parents: &HashMap<i64, i64>) -> HashMap<OwnedEventId, Node> {
    let known: HashSet<&EventId> = pdus.all().filter(|pdu| pdu.state_key().is_some()).map(|pdu| &**pdu.id()).collect();
    let node = |pdu: &Arc<Pdu>| {
        let auth = if full.contains(&pdu.nid) {
            pdu.auth_events().filter(|event_id| known.contains(&***event_id)).cloned().collect()
        } else {
            pdus.among(parents.get(&pdu.nid).copied()).map(|parent| parent.id().clone()).collect()
        };
        (pdu.id().clone(), Node { pdu: pdu.clone(), auth })
    };
    pdus.all().map(node).collect()
}

/// Everything that decides.
struct Problem {
    rules: Arc<RoomVersionRules>,
    v2_rules: StateResolutionV2Rules,
    states: Vec<StateMap<OwnedEventId>>,
    difference: EventIdSet<OwnedEventId>,
    subgraph: EventIdSet<OwnedEventId>,
    nodes: HashMap<OwnedEventId, Node>,
}

impl Problem {
    fn solve(self) -> Result<HashMap<Key, i64>> {
        if has_circle(&self.nodes) {
            return Err(corrupt("circle of auth events"));
        }
        let fetch = |event_id: &EventId| self.nodes.get(event_id);
        // Two chains, of which one has nothing: what they differ in is the difference.
        let chains = vec![EventIdSet::new(), self.difference];
        let (rules, subgraph) = (&self.rules.authorization, self.subgraph);
        let resolved =
            ruma_state_res::resolve(rules, &self.v2_rules, &self.states, chains, fetch, |_| Some(subgraph.clone()));
        let resolved = resolved.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "states of branches could not be resolved");
            corrupt("state of branches")
        })?;
        let number = |event_id: OwnedEventId| fetch(&event_id).map(|node| node.pdu.nid);
        Ok(resolved.into_iter().filter_map(|(key, event_id)| Some((key, number(event_id)?))).collect())
    }
}

/// Whether some power levels were built on themselves. The algorithm would follow them for ever.
///
/// An event's hash makes it impossible, except in room versions 1 and 2, where servers choose its identifier.
fn has_circle(nodes: &HashMap<OwnedEventId, Node>) -> bool {
    let parent = |event_id: &EventId| {
        let below = nodes.get(event_id)?.auth.iter();
        below.filter_map(|auth| nodes.get(auth)).find(|node| is_power_levels(&node.pdu)).map(|node| &**node.pdu.id())
    };
    let mut is_clear: HashSet<&EventId> = HashSet::new();
    for start in nodes.keys() {
        let mut path: HashSet<&EventId> = HashSet::new();
        let mut next = Some(&**start);
        while let Some(event_id) = next.filter(|event_id| !is_clear.contains(event_id)) {
            if !path.insert(event_id) {
                return true;
            }
            next = parent(event_id);
        }
        is_clear.extend(path);
    }
    false
}

/// An event with those of its auth events that matter here.
#[derive(Debug)]
struct Node {
    pdu: Arc<Pdu>,
    auth: Vec<OwnedEventId>,
}

impl Event for Node {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        self.pdu.event_id()
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.pdu.room_id()
    }

    fn sender(&self) -> &UserId {
        self.pdu.sender()
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.pdu.origin_server_ts()
    }

    fn event_type(&self) -> &TimelineEventType {
        self.pdu.event_type()
    }

    fn content(&self) -> &RawValue {
        self.pdu.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.pdu.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        self.pdu.prev_events()
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.pdu.redacts()
    }

    fn rejected(&self) -> bool {
        self.pdu.rejected()
    }
}
