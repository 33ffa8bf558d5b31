//! [State resolution]: one state out of those of several branches, in every room version.
//!
//! What it costs follows from what the states differ in, not from the size of the room: what they share is read only
//! where the algorithm looks something up in it. Everything is gathered by number first ([`graph`], [`auth_graph`]);
//! the algorithms ([`v1`], [`v2`]) then do no I/O.
//!
//! [State resolution]: https://spec.matrix.org/v1.19/server-server-api/#room-state-resolution

mod auth_graph;
mod graph;
mod mainline;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
};

use myelin_store::state_tree;
use prometheus::{Histogram, IntCounter, register_histogram, register_int_counter};
use ruma::room_version_rules::{RoomVersionRules, StateResolutionVersion};

use self::{auth_graph::AuthGraph, graph::Graph};
use crate::{Error, Pdu, Result, Rooms};

static SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let buckets = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    register_histogram!("myelin_rooms_state_resolution_seconds", "Time to resolve the states of branches.", buckets)
        .expect("metric names are unique")
});
static CONFLICTS: LazyLock<Histogram> = LazyLock::new(|| {
    let buckets = vec![1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];
    register_histogram!("myelin_rooms_state_conflicts", "State keys in conflict at a resolution.", buckets)
        .expect("metric names are unique")
});
static FAILURES: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_rooms_state_resolution_failures_total", "Resolutions that ended with an error.")
        .expect("metric names are unique")
});

/// Events that are worked on at once; the work on more leaves the threads that serve all.
const AT_ONCE: usize = 32;

/// State events that are not stored yet, by number.
pub(crate) type Drafts = HashMap<i64, Draft>;

/// A state event that is not stored yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// The event.
    pub(crate) pdu: Arc<Pdu>,
    /// The numbers of its auth events.
    pub(crate) auth: Arc<[i64]>,
}

/// A resolved state: a snapshot, and what has to be changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// One of the snapshots that were resolved.
    pub(crate) base: i64,
    /// The keys' numbers with the events that they get, or lose. Empty if the snapshot is the answer. In order of keys.
    pub(crate) changes: Vec<(i64, Option<i64>)>,
}

/// Resolves the states of some snapshots of one room, at least one. They may hold state events that are not stored yet.
///
/// # Errors
///
/// [`Error::Store`], also as [`myelin_store::Error::Corrupt`] when the auth events of what is stored make no sense.
pub(crate) async fn resolve_with(
    rooms: &Rooms,
    rules: &RoomVersionRules,
    roots: &[i64],
    drafts: &Drafts,
) -> Result<Resolved> {
    let graph = Graph::new(&rooms.store, drafts);
    let Some(conflict) = Conflict::between(&graph, roots).await? else {
        let base = roots.iter().copied().min().unwrap_or(state_tree::EMPTY);
        return Ok(Resolved { base, changes: Vec::new() });
    };
    CONFLICTS.observe(conflict.keys.len() as f64);
    let timer = SECONDS.start_timer();
    let rules = Arc::new(rules.clone());
    // It is rare: whoever waits for a room does not carry it along.
    let resolved = match &rules.state_res {
        StateResolutionVersion::V1 => Box::pin(v1::resolve(&graph, &rules, &conflict)).await,
        StateResolutionVersion::V2(v2_rules) => Box::pin(v2::resolve(&graph, &rules, v2_rules, &conflict)).await,
        _ => Err(corrupt("room version")),
    };
    timer.observe_duration();
    match resolved {
        Ok(resolved) => Ok(conflict.cheapest(&resolved)),
        Err(error) => {
            FAILURES.inc();
            Err(error)
        }
    }
}

/// The full [auth chain] of some events: the numbers of all auth events, theirs, and so on, in ascending order. The
/// events themselves are in it only where another one reaches them.
///
/// [auth chain]: https://spec.matrix.org/v1.19/rooms/v2/#definitions
pub(crate) async fn auth_chain(rooms: &Rooms, event_nids: &[i64]) -> Result<Vec<i64>> {
    let drafts = Drafts::new();
    let graph = Graph::new(&rooms.store, &drafts);
    let mut chain = AuthGraph::from(&graph, event_nids).await?.chain(event_nids);
    chain.sort_unstable();
    Ok(chain)
}

/// What some snapshots differ in.
#[derive(Debug)]
struct Conflict {
    /// The snapshots, each once, in ascending order: the result must not depend on the order that they were given in.
    roots: Vec<i64>,
    /// The keys in conflict, with the event of each snapshot.
    keys: HashMap<i64, Vec<Option<i64>>>,
}

impl Conflict {
    /// `None` if the snapshots say the same.
    async fn between(graph: &Graph<'_>, roots: &[i64]) -> Result<Option<Self>> {
        let mut roots = roots.to_vec();
        roots.sort_unstable();
        roots.dedup();
        let Some((&base, others)) = roots.split_first() else { return Err(corrupt("set of states")) };
        let pairs: Vec<(i64, i64)> = others.iter().map(|&other| (base, other)).collect();
        let differences = state_tree::diff_many(graph.store, &pairs).await.map_err(myelin_store::Error::from)?;
        let mut keys: HashMap<i64, Vec<Option<i64>>> = HashMap::new();
        for (place, changes) in differences.into_iter().enumerate() {
            for change in changes {
                // Where nothing else is said, a snapshot has what the first one has.
                let events = keys.entry(change.key).or_insert_with(|| vec![change.old; roots.len()]);
                events[place + 1] = change.new;
            }
        }
        Ok((!keys.is_empty()).then_some(Self { roots, keys }))
    }

    /// The snapshot that everything outside the conflict is read from.
    fn base(&self) -> i64 {
        self.roots[0]
    }

    /// All events in conflict.
    fn events(&self) -> HashSet<i64> {
        self.keys.values().flatten().flatten().copied().collect()
    }

    /// The events in conflict of each snapshot.
    fn sets(&self) -> Vec<Vec<i64>> {
        (0..self.roots.len()).map(|place| self.keys.values().filter_map(|events| events[place]).collect()).collect()
    }

    /// The resolved state, made from the snapshot that has to change least for it.
    ///
    /// `resolved` has the keys in conflict that have an event in the end, and those that no snapshot has.
    fn cheapest(&self, resolved: &HashMap<i64, i64>) -> Resolved {
        let changes_from = |place: usize| {
            let lost_or_changed = self.keys.iter().filter_map(move |(key, events)| {
                let event = resolved.get(key).copied();
                (event != events[place]).then_some((*key, event))
            });
            let brought = resolved
                .iter()
                .filter(|(key, _)| !self.keys.contains_key(key))
                .map(|(key, event)| (*key, Some(*event)));
            lost_or_changed.chain(brought)
        };
        let place = (0..self.roots.len()).min_by_key(|&place| changes_from(place).count()).unwrap_or(0);
        let mut changes: Vec<_> = changes_from(place).collect();
        changes.sort_unstable();
        Resolved { base: self.roots[place], changes }
    }
}

/// Does work on some events, elsewhere if they are many.
async fn work<T: Send + 'static>(events: usize, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if events <= AT_ONCE {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime stops.
            Err(_) => Err(Error::Store(myelin_store::Error::Closed)),
        },
    }
}

fn corrupt(what: &'static str) -> Error {
    Error::Store(myelin_store::Error::Corrupt { what })
}
