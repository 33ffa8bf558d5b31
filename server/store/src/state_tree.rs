//! Room state as immutable snapshots that share structure.
//!
//! A snapshot is a map from a state key's number (an interned `(type, state_key)`) to an event's number. It is named
//! by the number of its root [`Node`]; [`EMPTY`] is the snapshot without keys. Nodes never change: a new snapshot
//! writes the nodes between its root and the changed key, and shares the rest with the one it was made from.
//!
//! # Shape
//!
//! The map is a trie over a hash of the key, sixteen ways a level.
//!
//! - A node of at most [`LEAF_KEYS_MAX`] keys holds all of them: a small room is one node.
//! - A larger one has sixteen slots. A slot of at most [`SLOT_KEYS_MAX`] keys stays in the node, a larger one becomes a
//!   node of its own. So nodes split and merge one slot at a time, and no single change has to write many of them.
//!
//! The shape follows from the keys alone, whatever the history that led to them, so snapshots cannot degrade.
//!
//! # Cost
//!
//! Loading a key, finding what differs between two snapshots, and making one from another cost the depth of the tree
//! (about four nodes in a room of 10,000 keys) for each key concerned, never the size of the room. Nodes that are not in
//! memory are asked of the [`NodeSource`] together: once a level, not once a node.

use std::{collections::HashMap, future::Future, sync::Arc};

mod node;
mod read;
#[cfg(test)]
mod tests;
mod update;

pub use self::{
    node::{CorruptNode, Node},
    read::{Change, diff, diff_many, entries, get, get_each, get_many},
    update::{Update, new_nodes_max, update},
};

/// The snapshot without keys. No node has this number.
pub const EMPTY: i64 = 0;

/// A node of at most as many keys holds them all. Part of the stored format.
pub const LEAF_KEYS_MAX: usize = 24;

/// A slot of at most as many keys stays in its node. Part of the stored format.
///
/// More make fewer rows but larger changes. Measured at 10,000 to 25,000 keys, rows counted with 60 bytes of overhead:
/// 2 make 2,100 to 4,100 rows, 4 make 700 to 3,300 and changes of at most 840 bytes, 8 make changes of 1,270.
pub const SLOT_KEYS_MAX: usize = 4;

/// Slots of a node.
const SLOTS: usize = 16;

/// Four bits of the hash a level.
const LEVELS: u32 = 16;

/// Where nodes are kept.
pub trait NodeSource: Sync {
    /// Why nodes could not be loaded.
    type Error: Send;

    /// Loads nodes, in the order asked. A source that lacks one answers its own error, or the nodes before it.
    fn nodes(&self, ids: &[i64]) -> impl Future<Output = Result<Vec<Arc<Node>>, Self::Error>> + Send;

    /// A node, if it is in memory.
    fn cached(&self, id: i64) -> Option<Arc<Node>>;
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The source failed.
    #[error("load state nodes")]
    Source(#[source] E),
    /// A node contradicts its place in the tree.
    #[error("the state node {id} is corrupt")]
    Corrupt {
        /// The node, or the one above it.
        id: i64,
        /// What is wrong.
        #[source]
        cause: CorruptNode,
    },
    /// A snapshot refers to a node that does not exist.
    #[error("there is no state node {id}")]
    Missing {
        /// The node.
        id: i64,
    },
}

/// The nodes that one operation has at hand, and those it waits for.
struct Nodes<'s, S> {
    source: &'s S,
    loaded: HashMap<i64, Arc<Node>>,
    wanted: Vec<i64>,
}

impl<'s, S: NodeSource> Nodes<'s, S> {
    fn new(source: &'s S) -> Self {
        Self { source, loaded: HashMap::new(), wanted: Vec::new() }
    }

    /// A node at hand. Otherwise it is put down for the next [`Self::load`].
    fn at_hand(&mut self, id: i64) -> Option<Arc<Node>> {
        let node = self.loaded.get(&id).cloned().or_else(|| self.source.cached(id));
        if node.is_none() {
            self.wanted.push(id);
        }
        node
    }

    /// Loads all that was put down, by one call to the source.
    async fn load(&mut self) -> Result<(), Error<S::Error>> {
        self.wanted.sort_unstable();
        self.wanted.dedup();
        let nodes = self.source.nodes(&self.wanted).await.map_err(Error::Source)?;
        if let Some(&id) = self.wanted.get(nodes.len()) {
            return Err(Error::Missing { id });
        }
        self.loaded.extend(self.wanted.drain(..).zip(nodes));
        Ok(())
    }
}

/// Spreads numbers that were handed out one after another over the whole tree: the finaliser of SplitMix64.
///
/// It is one to one, so that two keys always part on some level.
fn hash(key: i64) -> u64 {
    let mut hash = key.cast_unsigned().wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The slot of a hash in a node `depth` levels below the root. `depth` is below [`LEVELS`].
fn slot(hash: u64, depth: u32) -> usize {
    (hash >> (4 * (LEVELS - 1 - depth)) & 0xf) as usize
}
