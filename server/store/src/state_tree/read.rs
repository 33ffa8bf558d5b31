//! Reading snapshots.
//!
//! Each walk goes as far as it can with the nodes in memory, then asks for all that it lacks at once.

use std::{ops::Range, sync::Arc};

use super::{CorruptNode, EMPTY, Error, LEVELS, Node, NodeSource, Nodes, SLOTS, hash, slot};

/// A key that differs between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The number of the state key.
    pub key: i64,
    /// Its event in the first snapshot.
    pub old: Option<i64>,
    /// Its event in the second snapshot.
    pub new: Option<i64>,
}

/// The event of a key.
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn get<S: NodeSource>(source: &S, root: i64, key: i64) -> Result<Option<i64>, Error<S::Error>> {
    let hash = hash(key);
    let mut id = root;
    for depth in 0..LEVELS {
        if id == EMPTY {
            return Ok(None);
        }
        let node = match source.cached(id) {
            Some(node) => node,
            None => source.nodes(&[id]).await.map_err(Error::Source)?.pop().ok_or(Error::Missing { id })?,
        };
        match node.child(slot(hash, depth)) {
            Some(child) => id = child,
            None => return Ok(node.event(key)),
        }
    }
    Err(too_deep(id))
}

/// The events of some keys, in the order asked.
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn get_many<S: NodeSource>(source: &S, root: i64, keys: &[i64]) -> Result<Vec<Option<i64>>, Error<S::Error>> {
    struct Place {
        id: i64,
        depth: u32,
        /// The keys below it, which are neighbours once sorted by hash.
        wanted: Range<usize>,
    }

    let mut found = vec![None; keys.len()];
    if root == EMPTY || keys.is_empty() {
        return Ok(found);
    }
    let mut wanted: Vec<(u64, usize)> = keys.iter().enumerate().map(|(place, &key)| (hash(key), place)).collect();
    wanted.sort_unstable();
    walk(source, vec![Place { id: root, depth: 0, wanted: 0..keys.len() }], |nodes, place, work| {
        let Some(node) = nodes.at_hand(place.id) else { return Ok(Some(place)) };
        let depth = within(place.depth, place.id)?;
        let mut start = place.wanted.start;
        for group in wanted[place.wanted].chunk_by(|a, b| slot(a.0, depth) == slot(b.0, depth)) {
            let end = start + group.len();
            match node.child(slot(group[0].0, depth)) {
                Some(id) => work.push(Place { id, depth: depth + 1, wanted: start..end }),
                None => group.iter().for_each(|&(_, place)| found[place] = node.event(keys[place])),
            }
            start = end;
        }
        Ok(None)
    })
    .await?;
    Ok(found)
}

/// The events of some keys in each of some snapshots, in the order asked. Nodes are loaded for all of them at once.
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn get_each<S: NodeSource>(
    source: &S,
    asked: &[(i64, &[i64])],
) -> Result<Vec<Vec<Option<i64>>>, Error<S::Error>> {
    struct Place {
        id: i64,
        depth: u32,
        snapshot: usize,
        /// Which of the snapshot's keys.
        key: usize,
    }

    let mut found: Vec<Vec<Option<i64>>> = asked.iter().map(|(_, keys)| vec![None; keys.len()]).collect();
    let work = asked.iter().enumerate().filter(|(_, (root, _))| *root != EMPTY).flat_map(|(snapshot, (root, keys))| {
        (0..keys.len()).map(move |key| Place { id: *root, depth: 0, snapshot, key })
    });
    walk(source, work.collect(), |nodes, place: Place, work| {
        let Some(node) = nodes.at_hand(place.id) else { return Ok(Some(place)) };
        let depth = within(place.depth, place.id)?;
        let key = asked[place.snapshot].1[place.key];
        match node.child(slot(hash(key), depth)) {
            Some(id) => work.push(Place { id, depth: depth + 1, ..place }),
            None => found[place.snapshot][place.key] = node.event(key),
        }
        Ok(None)
    })
    .await?;
    Ok(found)
}

/// All keys and events of some snapshots, in no particular order. What the snapshots share is loaded once.
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn entries<S: NodeSource>(source: &S, roots: &[i64]) -> Result<Vec<Vec<(i64, i64)>>, Error<S::Error>> {
    struct Place {
        id: i64,
        depth: u32,
        snapshot: usize,
    }

    let mut found = vec![Vec::new(); roots.len()];
    let work = roots.iter().enumerate().filter(|(_, root)| **root != EMPTY);
    let work = work.map(|(snapshot, &id)| Place { id, depth: 0, snapshot }).collect();
    walk(source, work, |nodes, place: Place, work| {
        let Some(node) = nodes.at_hand(place.id) else { return Ok(Some(place)) };
        let depth = within(place.depth, place.id)?;
        found[place.snapshot].extend_from_slice(node.entries());
        work.extend(node.children().iter().map(|&id| Place { id, depth: depth + 1, ..place }));
        Ok(None)
    })
    .await?;
    Ok(found)
}

/// What is different in snapshot `new` from snapshot `old`, in no particular order.
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn diff<S: NodeSource>(source: &S, old: i64, new: i64) -> Result<Vec<Change>, Error<S::Error>> {
    Ok(diff_many(source, &[(old, new)]).await?.pop().unwrap_or_default())
}

/// What is different in the second snapshot of each pair from the first, in no particular order.
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn diff_many<S: NodeSource>(source: &S, pairs: &[(i64, i64)]) -> Result<Vec<Vec<Change>>, Error<S::Error>> {
    let mut found = vec![Vec::new(); pairs.len()];
    let work = pairs.iter().enumerate().filter(|(_, (old, new))| old != new);
    let work = work
        .map(|(pair, &(old, new))| Comparison { pair, depth: 0, old: Side::root(old), new: Side::root(new) })
        .collect();
    walk(source, work, |nodes, comparison: Comparison, work| {
        // Ask for both sides before waiting for either.
        let old = comparison.old.at_hand(nodes);
        let new = comparison.new.at_hand(nodes);
        let (Some(old), Some(new)) = (old, new) else { return Ok(Some(comparison)) };
        let id = if comparison.new.id() == EMPTY { comparison.old.id() } else { comparison.new.id() };
        let depth = within(comparison.depth, id)?;
        compare(&old, &new, depth, comparison.pair, &mut found[comparison.pair], work);
        Ok(None)
    })
    .await?;
    Ok(found)
}

/// The same part of two snapshots.
struct Comparison {
    pair: usize,
    depth: u32,
    old: Side,
    new: Side,
}

/// A part of a snapshot: a node, or a slot of one.
enum Side {
    Node(i64),
    Slot(Vec<(i64, i64)>),
}

impl Side {
    fn root(id: i64) -> Self {
        if id == EMPTY { Self::Slot(Vec::new()) } else { Self::Node(id) }
    }

    fn id(&self) -> i64 {
        match self {
            Self::Node(id) => *id,
            Self::Slot(_) => EMPTY,
        }
    }

    fn at_hand<S: NodeSource>(&self, nodes: &mut Nodes<'_, S>) -> Option<Part<'_>> {
        match self {
            Self::Node(id) => nodes.at_hand(*id).map(Part::Node),
            Self::Slot(entries) => Some(Part::Slot(entries)),
        }
    }
}

/// A [`Side`] that is in memory.
enum Part<'a> {
    Node(Arc<Node>),
    Slot(&'a [(i64, i64)]),
}

impl Part<'_> {
    fn entries(&self) -> &[(i64, i64)] {
        match self {
            Self::Node(node) => node.entries(),
            Self::Slot(entries) => entries,
        }
    }

    fn bitmap(&self) -> u16 {
        match self {
            Self::Node(node) => node.bitmap(),
            Self::Slot(_) => 0,
        }
    }

    fn side(&self, wanted: usize, depth: u32) -> Side {
        if let Self::Node(node) = self
            && let Some(id) = node.child(wanted)
        {
            return Side::Node(id);
        }
        let in_slot = self.entries().iter().filter(|entry| slot(hash(entry.0), depth) == wanted);
        Side::Slot(in_slot.copied().collect())
    }
}

/// Compares what both parts hold themselves, and leaves the slots that are a node on either side for later.
fn compare(
    old: &Part<'_>,
    new: &Part<'_>,
    depth: u32,
    pair: usize,
    found: &mut Vec<Change>,
    work: &mut Vec<Comparison>,
) {
    let below = old.bitmap() | new.bitmap();
    let here = |entry: &&(i64, i64)| below == 0 || below & (1 << slot(hash(entry.0), depth)) == 0;
    let mut old_entries = old.entries().iter().filter(here).peekable();
    let mut new_entries = new.entries().iter().filter(here).peekable();
    loop {
        let next = match (old_entries.peek(), new_entries.peek()) {
            (None, None) => break,
            (Some(old), Some(new)) => old.0.min(new.0),
            (Some(entry), None) | (None, Some(entry)) => entry.0,
        };
        let old = old_entries.next_if(|entry| entry.0 == next).map(|entry| entry.1);
        let new = new_entries.next_if(|entry| entry.0 == next).map(|entry| entry.1);
        if old != new {
            found.push(Change { key: next, old, new });
        }
    }
    for slot in (0..SLOTS).filter(|slot| below & (1 << slot) != 0) {
        let (old, new) = (old.side(slot, depth), new.side(slot, depth));
        // The same node: nothing below it differs.
        if old.id() == EMPTY || old.id() != new.id() {
            work.push(Comparison { pair, depth: depth + 1, old, new });
        }
    }
}

/// Does all work, loading nodes for as much of it as possible at once.
///
/// A step either does its piece, perhaps leaving more work, or hands it back because a node is not at hand.
async fn walk<S: NodeSource, W>(
    source: &S,
    mut work: Vec<W>,
    mut step: impl FnMut(&mut Nodes<'_, S>, W, &mut Vec<W>) -> Result<Option<W>, Error<S::Error>>,
) -> Result<(), Error<S::Error>> {
    let mut nodes = Nodes::new(source);
    let mut waiting = Vec::new();
    loop {
        while let Some(piece) = work.pop() {
            waiting.extend(step(&mut nodes, piece, &mut work)?);
        }
        if waiting.is_empty() {
            return Ok(());
        }
        nodes.load().await?;
        std::mem::swap(&mut work, &mut waiting);
    }
}

/// The depth, unless nodes refer to each other in a circle.
pub(super) fn within<E>(depth: u32, id: i64) -> Result<u32, Error<E>> {
    if depth < LEVELS { Ok(depth) } else { Err(too_deep(id)) }
}

fn too_deep<E>(id: i64) -> Error<E> {
    Error::Corrupt { id, cause: CorruptNode::Depth }
}
