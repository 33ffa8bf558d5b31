//! The part of a room's auth graph that lies below some events, by number and in memory.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use super::graph::Graph;
use crate::Result;

/// Events that are asked for at once.
const CHUNK: usize = 4096;

/// Some events and everything in their auth chains.
#[derive(Debug, Default)]
pub(super) struct AuthGraph {
    places: HashMap<i64, u32>,
    nids: Vec<i64>,
    /// The places of the auth events, by the event's place.
    auth: Vec<Vec<u32>>,
}

impl AuthGraph {
    /// Walks down from some events, a level at a time.
    pub(super) async fn from(graph: &Graph<'_>, starts: &[i64]) -> Result<Self> {
        let mut walked = Self::default();
        let mut level = Vec::new();
        for &nid in starts {
            walked.place(nid, &mut level);
        }
        while !level.is_empty() {
            let mut next = Vec::new();
            for chunk in level.chunks(CHUNK) {
                let edges = graph.edges(chunk).await?;
                for nid in chunk {
                    let from = walked.places[nid] as usize;
                    let below = edges.get(nid).into_iter().flat_map(|auth| auth.iter());
                    walked.auth[from] = below.map(|&auth| walked.place(auth, &mut next)).collect();
                }
            }
            level = next;
        }
        Ok(walked)
    }

    fn place(&mut self, nid: i64, new: &mut Vec<i64>) -> u32 {
        match self.places.entry(nid) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                // A room of four thousand million auth events does not fit in memory.
                let place = self.nids.len() as u32;
                vacant.insert(place);
                self.nids.push(nid);
                self.auth.push(Vec::new());
                new.push(nid);
                place
            }
        }
    }

    /// The auth events of an event.
    pub(super) fn auth_of(&self, nid: i64) -> impl Iterator<Item = i64> + '_ {
        let places = self.places.get(&nid).map(|&place| &self.auth[place as usize]);
        places.into_iter().flatten().map(|&place| self.nids[place as usize])
    }

    /// Everything that the edges lead to from some places, which are themselves in it only where edges lead to them.
    fn reached(edges: &[Vec<u32>], starts: impl Iterator<Item = u32>) -> Vec<bool> {
        let mut reached = vec![false; edges.len()];
        let mut todo: Vec<u32> = starts.collect();
        let mut is_done = vec![false; edges.len()];
        while let Some(place) = todo.pop() {
            if std::mem::replace(&mut is_done[place as usize], true) {
                continue;
            }
            for &below in &edges[place as usize] {
                reached[below as usize] = true;
                todo.push(below);
            }
        }
        reached
    }

    fn places<'a>(&'a self, nids: &'a [i64]) -> impl Iterator<Item = u32> + 'a {
        nids.iter().filter_map(|nid| self.places.get(nid).copied())
    }

    fn nids_where(&self, is_wanted: impl Fn(usize) -> bool) -> impl Iterator<Item = i64> {
        self.nids.iter().enumerate().filter(move |(place, _)| is_wanted(*place)).map(|(_, nid)| *nid)
    }

    /// The auth chain of some events.
    pub(super) fn chain(&self, nids: &[i64]) -> Vec<i64> {
        let reached = Self::reached(&self.auth, self.places(nids));
        self.nids_where(|place| reached[place]).collect()
    }

    /// What the auth chains of some sets of events have in common, and what is in some of them, but not in all.
    pub(super) fn shared_and_different(&self, sets: &[Vec<i64>]) -> (HashSet<i64>, HashSet<i64>) {
        let mut counts = vec![0; self.nids.len()];
        for set in sets {
            for (count, reached) in counts.iter_mut().zip(Self::reached(&self.auth, self.places(set))) {
                *count += usize::from(reached);
            }
        }
        let shared = self.nids_where(|place| counts[place] == sets.len()).collect();
        let different = self.nids_where(|place| (1..sets.len()).contains(&counts[place])).collect();
        (shared, different)
    }

    /// The [conflicted state subgraph]: what lies on paths from one of these events to another, them included.
    ///
    /// [conflicted state subgraph]: https://spec.matrix.org/v1.19/rooms/v12/#definitions
    pub(super) fn between(&self, nids: &[i64]) -> HashSet<i64> {
        let mut above = vec![Vec::new(); self.nids.len()];
        for (from, below) in (0..).zip(&self.auth) {
            for &to in below {
                above[to as usize].push(from);
            }
        }
        let is_below = Self::reached(&self.auth, self.places(nids));
        let is_above = Self::reached(&above, self.places(nids));
        let mut found: HashSet<i64> = self.nids_where(|place| is_below[place] && is_above[place]).collect();
        found.extend(nids);
        found
    }
}

/// Takes from `wanted` all that is in the auth chain of some events. Nothing below `shared` is wanted.
pub(super) async fn take_reached(
    graph: &Graph<'_>,
    starts: impl Iterator<Item = i64>,
    shared: &HashSet<i64>,
    wanted: &mut HashSet<i64>,
) -> Result<()> {
    let mut level: Vec<i64> = starts.filter(|nid| !shared.contains(nid)).collect();
    let mut seen: HashSet<i64> = level.iter().copied().collect();
    while !level.is_empty() {
        let mut next = Vec::new();
        for chunk in level.chunks(CHUNK) {
            for auth in graph.edges(chunk).await?.values().flat_map(|auth| auth.iter().copied()) {
                if wanted.remove(&auth) && wanted.is_empty() {
                    return Ok(());
                }
                if !shared.contains(&auth) && seen.insert(auth) {
                    next.push(auth);
                }
            }
            // The edges are in memory as a rule, and others have waited for a while.
            tokio::task::yield_now().await;
        }
        level = next;
    }
    Ok(())
}
