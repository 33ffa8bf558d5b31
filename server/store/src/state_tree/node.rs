//! One node of a snapshot, and its stored form.
//!
//! ```text
//! version        one byte, 1
//! bitmap         two bytes, little endian: the slots that are nodes of their own
//! keys           varint: how many keys are below this node           (only if the bitmap is not 0)
//! entries        varint: how many keys are in this node
//! per entry      varint: the key, less the one before it             (zigzag for the first)
//!                varint: the event, less the one before it, zigzag
//! per child      varint: the node, less the one before it, zigzag
//! ```
//!
//! Every node has exactly one stored form; the decoder refuses all other bytes.

use super::{LEAF_KEYS_MAX, SLOT_KEYS_MAX, SLOTS};

const VERSION: u8 = 1;

// A node whose slots are all full but none too large holds more than a leaf.
const _: () = assert!(SLOTS * SLOT_KEYS_MAX >= LEAF_KEYS_MAX);

/// One node of a snapshot. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The keys in and below this node.
    keys: u32,
    /// The slots that are nodes of their own.
    bitmap: u16,
    /// The keys in this node and their events, by key.
    entries: Box<[(i64, i64)]>,
    /// The nodes of the slots in the bitmap, by slot.
    children: Box<[i64]>,
}

/// What is wrong with a stored node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CorruptNode {
    /// It was written by another release.
    #[error("its version {0} is unknown")]
    Version(u8),
    /// It ends too early.
    #[error("it is truncated")]
    Truncated,
    /// It goes on after its end.
    #[error("bytes follow its end")]
    Trailing,
    /// A number is not in its shortest form, or does not fit.
    #[error("a number in it is malformed")]
    Number,
    /// It has more keys than a node may have.
    #[error("it has too many keys")]
    Oversized,
    /// Its keys are not in ascending order.
    #[error("its keys are out of order")]
    Unsorted,
    /// A child has a number that no node has.
    #[error("it has an impossible child")]
    Child,
    /// Its number of keys contradicts what it holds.
    #[error("its keys are miscounted")]
    Count,
    /// It is further from the root than a tree is deep.
    #[error("it is too deep in the tree")]
    Depth,
}

impl Node {
    /// A node that holds all of its keys. `entries` are sorted and at most [`LEAF_KEYS_MAX`].
    pub(super) fn leaf(entries: Vec<(i64, i64)>) -> Self {
        debug_assert!(entries.len() <= LEAF_KEYS_MAX);
        Self { keys: entries.len() as u32, bitmap: 0, entries: entries.into(), children: Box::default() }
    }

    /// A node of `keys` keys, more than a leaf has. `entries` are sorted.
    pub(super) fn branch(keys: u32, bitmap: u16, entries: Vec<(i64, i64)>, children: Vec<i64>) -> Self {
        debug_assert_eq!(bitmap.count_ones() as usize, children.len());
        Self { keys, bitmap, entries: entries.into(), children: children.into() }
    }

    /// How many keys are in and below this node; of a root, in the snapshot.
    pub fn key_count(&self) -> u32 {
        self.keys
    }

    /// Bytes in memory.
    pub fn weight(&self) -> usize {
        // Two counters belong to the `Arc`.
        size_of::<Self>() + 2 * size_of::<usize>() + size_of_val(&*self.entries) + size_of_val(&*self.children)
    }

    /// The keys in this node and their events, by key.
    pub(super) fn entries(&self) -> &[(i64, i64)] {
        &self.entries
    }

    /// The slots that are nodes of their own.
    pub(super) fn bitmap(&self) -> u16 {
        self.bitmap
    }

    /// The nodes of the slots in the bitmap, by slot.
    pub(super) fn children(&self) -> &[i64] {
        &self.children
    }

    /// The node of a slot, if it is one of its own.
    pub(super) fn child(&self, slot: usize) -> Option<i64> {
        let bit = 1 << slot;
        let place = (self.bitmap & (bit - 1)).count_ones() as usize;
        (self.bitmap & bit != 0).then(|| self.children[place])
    }

    /// The event of a key that is in this node.
    pub(super) fn event(&self, key: i64) -> Option<i64> {
        self.entries.binary_search_by_key(&key, |entry| entry.0).ok().map(|place| self.entries[place].1)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + 8 * self.entries.len() + 5 * self.children.len());
        bytes.push(VERSION);
        bytes.extend(self.bitmap.to_le_bytes());
        if self.bitmap != 0 {
            write_varint(&mut bytes, self.keys.into());
        }
        write_varint(&mut bytes, self.entries.len() as u64);
        let mut before = None;
        for &(key, event) in &self.entries {
            match before {
                None => {
                    write_varint(&mut bytes, zigzag(key));
                    write_varint(&mut bytes, zigzag(event));
                }
                Some((last_key, last_event)) => {
                    write_varint(&mut bytes, key.wrapping_sub(last_key).cast_unsigned());
                    write_varint(&mut bytes, zigzag(event.wrapping_sub(last_event)));
                }
            }
            before = Some((key, event));
        }
        let mut before = 0i64;
        for &child in &self.children {
            write_varint(&mut bytes, zigzag(child.wrapping_sub(before)));
            before = child;
        }
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    ///
    /// [`CorruptNode`] for anything that [`Self::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptNode> {
        let mut bytes = Bytes(bytes);
        match bytes.byte()? {
            VERSION => {}
            version => return Err(CorruptNode::Version(version)),
        }
        let bitmap = u16::from_le_bytes([bytes.byte()?, bytes.byte()?]);
        let keys = if bitmap == 0 { None } else { Some(bytes.varint()?) };
        let child_count = bitmap.count_ones() as usize;
        let entries_max = (SLOTS - child_count) * SLOT_KEYS_MAX;
        let entry_count = usize::try_from(bytes.varint()?).ok().filter(|&count| count <= entries_max);
        let entry_count = entry_count.ok_or(CorruptNode::Oversized)?;
        let keys = match keys {
            None => entry_count as u32,
            Some(keys) => branch_keys(keys, entry_count, child_count)?,
        };
        let entries = bytes.entries(entry_count)?;
        let children = bytes.children(child_count)?;
        if !bytes.0.is_empty() {
            return Err(CorruptNode::Trailing);
        }
        Ok(Self { keys, bitmap, entries: entries.into(), children: children.into() })
    }
}

/// Each child of a branch has more keys than would stay in a slot, and all together more than would make a leaf.
fn branch_keys(keys: u64, entries: usize, children: usize) -> Result<u32, CorruptNode> {
    let least = (entries + children * (SLOT_KEYS_MAX + 1)).max(LEAF_KEYS_MAX + 1);
    u32::try_from(keys).ok().filter(|&keys| keys as usize >= least).ok_or(CorruptNode::Count)
}

/// What is still to be read.
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Result<u8, CorruptNode> {
        let (&first, rest) = self.0.split_first().ok_or(CorruptNode::Truncated)?;
        self.0 = rest;
        Ok(first)
    }

    fn varint(&mut self) -> Result<u64, CorruptNode> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if shift == 63 && bits > 1 {
                return Err(CorruptNode::Number);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // A zero at the end would be a second form of the same number.
                return if byte == 0 && shift > 0 { Err(CorruptNode::Number) } else { Ok(number) };
            }
        }
        Err(CorruptNode::Number)
    }

    fn entries(&mut self, count: usize) -> Result<Vec<(i64, i64)>, CorruptNode> {
        let mut entries: Vec<(i64, i64)> = Vec::with_capacity(count);
        for _ in 0..count {
            let (key, event) = match entries.last() {
                None => (unzigzag(self.varint()?), unzigzag(self.varint()?)),
                Some(&(last_key, last_event)) => {
                    let step = self.varint()?;
                    let key = last_key.checked_add_unsigned(step).filter(|&key| key != last_key);
                    (key.ok_or(CorruptNode::Unsorted)?, last_event.wrapping_add(unzigzag(self.varint()?)))
                }
            };
            entries.push((key, event));
        }
        Ok(entries)
    }

    fn children(&mut self, count: usize) -> Result<Vec<i64>, CorruptNode> {
        let mut children = Vec::with_capacity(count);
        let mut child = 0i64;
        for _ in 0..count {
            child = child.wrapping_add(unzigzag(self.varint()?));
            if child == super::EMPTY {
                return Err(CorruptNode::Child);
            }
            children.push(child);
        }
        Ok(children)
    }
}

fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}
