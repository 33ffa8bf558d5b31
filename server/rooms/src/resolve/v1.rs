//! State resolution of [room version 1].
//!
//! [room version 1]: https://spec.matrix.org/v1.19/rooms/v1/#state-resolution

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    events::StateEventType,
    room_version_rules::{AuthorizationRules, RoomVersionRules},
};
use ruma_state_res::{Event as _, auth_types_for_event, check_state_dependent_auth_rules};
use sha1::{Digest as _, Sha1};

use super::{
    Conflict, corrupt,
    graph::{Graph, Key, Pdus, key_of},
    work,
};
use crate::{Pdu, Result};

/// A state as far as the authorisation rules ask for it.
type State = HashMap<Key, Arc<Pdu>>;

/// The events of the keys that the snapshots differ in.
pub(super) async fn resolve(
    graph: &Graph<'_>,
    rules: &Arc<RoomVersionRules>,
    conflict: &Conflict,
) -> Result<HashMap<i64, i64>> {
    // "A conflict occurs between states where those states have different event_ids for the same (event_type,
    // state_key)": a key that only some of them have is not in conflict.
    let mut settled = HashMap::new();
    let mut disputed = HashMap::new();
    for (&key_nid, events) in &conflict.keys {
        let mut events: Vec<i64> = events.iter().flatten().copied().collect();
        events.sort_unstable();
        events.dedup();
        match events[..] {
            [event] => drop(settled.insert(key_nid, event)),
            _ => drop(disputed.insert(key_nid, events)),
        }
    }
    if disputed.is_empty() {
        return Ok(settled);
    }

    let mut pdus = Pdus::new(rules.clone());
    pdus.load(graph, disputed.values().flatten().copied()).await?;
    let wanted: HashSet<Key> = pdus.all().flat_map(|pdu| auth_types(pdu, &rules.authorization)).collect();
    let wanted = graph.key_nids(wanted).await?;
    let (in_conflict, shared): (Vec<i64>, Vec<i64>) =
        wanted.values().partition(|key_nid| conflict.keys.contains_key(key_nid));
    let mut looked_up = graph.state(conflict.base(), &shared).await?;
    looked_up.extend(in_conflict.iter().filter_map(|key_nid| settled.get(key_nid)));
    pdus.load(graph, looked_up.iter().copied()).await?;

    let state: State = pdus.among(looked_up).filter_map(|pdu| Some((key_of(pdu)?, pdu.clone()))).collect();
    let mut disputes = Vec::with_capacity(disputed.len());
    for (key_nid, events) in disputed {
        let events: Vec<Arc<Pdu>> = pdus.among(events).cloned().collect();
        let key = events.first().and_then(|pdu| key_of(pdu)).ok_or_else(|| corrupt("state event"))?;
        disputes.push(Dispute { key_nid, key, events });
    }
    let rules = rules.clone();
    let events = disputes.iter().map(|dispute| dispute.events.len()).sum();
    settled.extend(work(events, move || Ok(settle(disputes, state, &rules.authorization))).await?);
    Ok(settled)
}

/// What an event's authorisation may ask for.
fn auth_types(pdu: &Pdu, rules: &AuthorizationRules) -> Vec<Key> {
    // An event that it fails for is refused by the rules too.
    auth_types_for_event(pdu.event_type(), pdu.sender(), pdu.state_key(), pdu.content(), rules).unwrap_or_default()
}

/// A key and its different events.
struct Dispute {
    key_nid: i64,
    key: Key,
    events: Vec<Arc<Pdu>>,
}

impl Dispute {
    /// Which pass it is resolved in.
    fn pass(&self) -> usize {
        match &self.key.0 {
            StateEventType::RoomPowerLevels if self.key.1.is_empty() => 0,
            StateEventType::RoomJoinRules if self.key.1.is_empty() => 1,
            StateEventType::RoomMember => 2,
            _ => 3,
        }
    }
}

/// Resolves pass by pass. `state` is the specification's *R*, as far as anything is looked up in it.
fn settle(disputes: Vec<Dispute>, mut state: State, rules: &AuthorizationRules) -> HashMap<i64, i64> {
    let mut passes: [Vec<Dispute>; 4] = Default::default();
    for dispute in disputes {
        passes[dispute.pass()].push(dispute);
    }
    let mut settled = HashMap::new();
    for (pass, disputes) in passes.into_iter().enumerate() {
        // No order is given for the keys of a pass: none of them sees what became of the others.
        let mut found = State::new();
        for mut dispute in disputes {
            // "Sort the list by ascending depth then descending sha1(event_id)."
            dispute
                .events
                .sort_by_cached_key(|pdu| (pdu.depth, Reverse(<[u8; 20]>::from(Sha1::digest(pdu.id().as_str())))));
            let winner = if pass < 3 {
                last_of_allowed_chain(&dispute, &mut state, rules)
            } else {
                highest_allowed(&dispute, &state, rules)
            };
            if let Some(winner) = winner {
                settled.insert(dispute.key_nid, winner.nid);
                found.insert(dispute.key, winner);
            }
        }
        state.extend(found);
    }
    settled
}

/// "Add the first event in the list to R. For each subsequent event in the list, check that the event would be allowed
/// by the authorisation rules for a room in state R. If the event would be allowed, then update R with the event and
/// continue with the next event in the list. If it would not be allowed, stop".
fn last_of_allowed_chain(dispute: &Dispute, state: &mut State, rules: &AuthorizationRules) -> Option<Arc<Pdu>> {
    let (first, rest) = dispute.events.split_first()?;
    state.insert(dispute.key.clone(), first.clone());
    for pdu in rest {
        if !is_allowed(pdu, state, rules) {
            break;
        }
        state.insert(dispute.key.clone(), pdu.clone());
    }
    state.remove(&dispute.key)
}

/// "Just pick the event with the highest depth and lowest sha1(event_id) that passes authentication in R".
///
/// Where none does, the specification is silent; the oldest then stays, so that no key is lost by a conflict.
fn highest_allowed(dispute: &Dispute, state: &State, rules: &AuthorizationRules) -> Option<Arc<Pdu>> {
    let allowed = dispute.events.iter().rev().find(|pdu| is_allowed(pdu, state, rules));
    allowed.or(dispute.events.first()).cloned()
}

fn is_allowed(pdu: &Arc<Pdu>, state: &State, rules: &AuthorizationRules) -> bool {
    let by_key =
        |event_type: &StateEventType, state_key: &str| state.get(&(event_type.clone(), state_key.to_owned())).cloned();
    check_state_dependent_auth_rules(rules, pdu.clone(), by_key).is_ok()
}
