//! Making snapshots.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CorruptNode, EMPTY, Error, LEAF_KEYS_MAX, LEVELS, Node, NodeSource, Nodes, SLOT_KEYS_MAX, SLOTS, hash,
    read::within, slot,
};

/// A new snapshot.
#[derive(Clone, Debug)]
pub struct Update {
    /// The snapshot; the one that was changed, if nothing did change.
    pub root: i64,
    /// What must be stored for it, children before their parents.
    pub new_nodes: Vec<(i64, Arc<Node>)>,
}

/// The most nodes that an [`update`] by as many changes makes.
///
/// A change makes new nodes on its way down. Where it makes a leaf too large, the other keys of that leaf may fill a few
/// slots too.
pub const fn new_nodes_max(changes: usize) -> usize {
    changes * (LEVELS as usize + LEAF_KEYS_MAX / (SLOT_KEYS_MAX + 1))
}

/// Makes a snapshot from another one by setting (`Some`) or removing (`None`) keys; of two changes to one key the last
/// counts.
///
/// `alloc` hands out the numbers of new nodes: one for each, never [`EMPTY`].
///
/// # Errors
///
/// [`Error`] when a node cannot be loaded.
pub async fn update<S: NodeSource>(
    source: &S,
    root: i64,
    changes: &[(i64, Option<i64>)],
    alloc: &mut (impl FnMut() -> i64 + ?Sized),
) -> Result<Update, Error<S::Error>> {
    let changes: BTreeMap<i64, Option<i64>> = changes.iter().copied().collect();
    let changes: Vec<Set> = changes.into_iter().map(|(key, event)| Set { hash: hash(key), key, event }).collect();
    let mut nodes = Nodes::new(source);
    let tree = loop {
        let tree = match root {
            EMPTY => rebuild(&mut nodes, &Node::leaf(Vec::new()), EMPTY, 0, &changes)?,
            root => match nodes.at_hand(root) {
                Some(node) => rebuild(&mut nodes, &node, root, 0, &changes)?,
                None => Subtree::Kept(root),
            },
        };
        if nodes.wanted.is_empty() {
            break tree;
        }
        // What was made is incomplete. A node loaded takes the next attempt one level further.
        nodes.load().await?;
    };
    let mut new_nodes = Vec::new();
    let root = match tree {
        Subtree::Entries(entries) if entries.is_empty() => EMPTY,
        tree => number(tree, alloc, &mut new_nodes),
    };
    Ok(Update { root, new_nodes })
}

/// A key to set or to remove.
#[derive(Clone, Copy)]
struct Set {
    hash: u64,
    key: i64,
    event: Option<i64>,
}

/// A part of the new snapshot.
enum Subtree {
    /// A node of the old snapshot.
    Kept(i64),
    /// At most [`LEAF_KEYS_MAX`] keys, sorted.
    Entries(Vec<(i64, i64)>),
    Branch {
        keys: u32,
        entries: Vec<(i64, i64)>,
        children: Vec<(usize, Subtree)>,
    },
}

/// What becomes of a node by some changes, which are sorted by key.
///
/// When a node is missing, which the caller sees by what is wanted, the answer is of no use.
fn rebuild<S: NodeSource>(
    nodes: &mut Nodes<'_, S>,
    node: &Node,
    id: i64,
    depth: u32,
    changes: &[Set],
) -> Result<Subtree, Error<S::Error>> {
    let depth = within(depth, id)?;
    let (below, here): (Vec<Set>, Vec<Set>) =
        changes.iter().partition(|change| node.bitmap() & (1 << slot(change.hash, depth)) != 0);
    let mut entries = merge(node.entries(), &here);
    let mut changed = entries != node.entries();
    let mut keys = i64::from(node.key_count()) + entries.len() as i64 - node.entries().len() as i64;

    let mut children = Vec::with_capacity(node.children().len());
    let mut complete = true;
    for (at, changes) in by_slot(&below, depth, |change| change.hash).into_iter().enumerate() {
        let Some(child_id) = node.child(at) else { continue };
        if changes.is_empty() {
            children.push((at, Subtree::Kept(child_id)));
            continue;
        }
        let Some(child) = nodes.at_hand(child_id) else {
            complete = false;
            continue;
        };
        let subtree = rebuild(nodes, &child, child_id, depth + 1, &changes)?;
        let keys_after = match &subtree {
            Subtree::Kept(_) => child.key_count().into(),
            Subtree::Entries(entries) => entries.len() as i64,
            Subtree::Branch { keys, .. } => (*keys).into(),
        };
        changed |= !matches!(subtree, Subtree::Kept(_));
        keys += keys_after - i64::from(child.key_count());
        children.push((at, subtree));
    }
    if !complete || !changed && id != EMPTY {
        return Ok(Subtree::Kept(id));
    }

    let keys = u32::try_from(keys).map_err(|_| miscounted(id))?;
    if keys as usize <= LEAF_KEYS_MAX {
        return gather(nodes, entries, children, keys, id);
    }
    let children = spill(nodes, &mut entries, children, id, depth)?;
    Ok(Subtree::Branch { keys, entries, children })
}

/// Makes a leaf of a branch that has become small.
fn gather<S: NodeSource>(
    nodes: &mut Nodes<'_, S>,
    mut entries: Vec<(i64, i64)>,
    children: Vec<(usize, Subtree)>,
    keys: u32,
    id: i64,
) -> Result<Subtree, Error<S::Error>> {
    let mut complete = true;
    for (_, child) in children {
        match child {
            Subtree::Entries(of_child) => entries.extend(of_child),
            Subtree::Kept(child) => match nodes.at_hand(child) {
                Some(child) if child.children().is_empty() => entries.extend(child.entries()),
                Some(_) => return Err(miscounted(child)),
                None => complete = false,
            },
            Subtree::Branch { .. } => return Err(miscounted(id)),
        }
    }
    if complete && entries.len() != keys as usize {
        return Err(miscounted(id));
    }
    entries.sort_unstable();
    Ok(Subtree::Entries(entries))
}

/// Moves slots between a branch and its children by their size. Answers the children.
fn spill<S: NodeSource>(
    nodes: &mut Nodes<'_, S>,
    entries: &mut Vec<(i64, i64)>,
    children: Vec<(usize, Subtree)>,
    id: i64,
    depth: u32,
) -> Result<Vec<(usize, Subtree)>, Error<S::Error>> {
    let mut large = Vec::with_capacity(SLOTS);
    let by_slot = by_slot(entries, depth, |entry| hash(entry.0));
    entries.clear();
    for (at, of_slot) in by_slot.into_iter().enumerate() {
        if of_slot.len() <= SLOT_KEYS_MAX {
            entries.extend(of_slot);
        } else {
            let sets: Vec<Set> =
                of_slot.into_iter().map(|(key, event)| Set { hash: hash(key), key, event: Some(event) }).collect();
            large.push((at, rebuild(nodes, &Node::leaf(Vec::new()), EMPTY, depth + 1, &sets)?));
        }
    }
    for (at, child) in children {
        match child {
            Subtree::Entries(of_slot) if of_slot.len() <= SLOT_KEYS_MAX => entries.extend(of_slot),
            _ if large.iter().any(|(taken, _)| *taken == at) => return Err(miscounted(id)),
            child => large.push((at, child)),
        }
    }
    entries.sort_unstable();
    large.sort_unstable_by_key(|(at, _)| *at);
    Ok(large)
}

/// Gives the new nodes their numbers. Answers that of the whole.
fn number(tree: Subtree, alloc: &mut (impl FnMut() -> i64 + ?Sized), new_nodes: &mut Vec<(i64, Arc<Node>)>) -> i64 {
    let node = match tree {
        Subtree::Kept(id) => return id,
        Subtree::Entries(entries) => Node::leaf(entries),
        Subtree::Branch { keys, entries, children } => {
            let bitmap = children.iter().fold(0, |bitmap, (at, _)| bitmap | 1 << at);
            let children = children.into_iter().map(|(_, child)| number(child, alloc, new_nodes)).collect();
            Node::branch(keys, bitmap, entries, children)
        }
    };
    let id = alloc();
    new_nodes.push((id, Arc::new(node)));
    id
}

/// Entries after some changes; both sorted by key.
fn merge(entries: &[(i64, i64)], changes: &[Set]) -> Vec<(i64, i64)> {
    let mut merged = Vec::with_capacity(entries.len() + changes.len());
    let mut entries = entries.iter().copied().peekable();
    for change in changes {
        merged.extend(std::iter::from_fn(|| entries.next_if(|entry| entry.0 < change.key)));
        entries.next_if(|entry| entry.0 == change.key);
        merged.extend(change.event.map(|event| (change.key, event)));
    }
    merged.extend(entries);
    merged
}

/// Things by the slot of their hash, otherwise in the order that they had.
fn by_slot<T: Copy>(things: &[T], depth: u32, hash: impl Fn(&T) -> u64) -> [Vec<T>; SLOTS] {
    let mut slots = [const { Vec::new() }; SLOTS];
    for thing in things {
        slots[slot(hash(thing), depth)].push(*thing);
    }
    slots
}

fn miscounted<E>(id: i64) -> Error<E> {
    Error::Corrupt { id, cause: CorruptNode::Count }
}
