use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    convert::Infallible,
    sync::Mutex,
};

use futures_util::FutureExt as _;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

/// What a row costs besides its bytes: header, key, index entry.
const ROW_OVERHEAD: usize = 60;

/// Keeps nodes in their stored form and counts what is asked of it.
#[derive(Default)]
struct Rows {
    rows: HashMap<i64, Vec<u8>>,
    cache: Option<HashMap<i64, Arc<Node>>>,
    calls: Mutex<Vec<usize>>,
    last_id: i64,
}

impl NodeSource for Rows {
    type Error = Infallible;

    async fn nodes(&self, ids: &[i64]) -> Result<Vec<Arc<Node>>, Infallible> {
        self.calls.lock().unwrap().push(ids.len());
        let found = ids.iter().map_while(|id| self.rows.get(id));
        Ok(found.map(|bytes| Arc::new(Node::decode(bytes).unwrap())).collect())
    }

    fn cached(&self, id: i64) -> Option<Arc<Node>> {
        self.cache.as_ref()?.get(&id).cloned()
    }
}

impl Rows {
    fn cached() -> Self {
        Self { cache: Some(HashMap::new()), ..Self::default() }
    }

    /// Makes and stores a snapshot. Answers its root and the bytes that it cost.
    fn update(&mut self, root: i64, changes: &[(i64, Option<i64>)]) -> (i64, usize) {
        let mut last_id = self.last_id;
        let mut alloc = || {
            last_id += 1;
            last_id
        };
        let update = now(update(self, root, changes, &mut alloc));
        assert!(update.new_nodes.len() <= new_nodes_max(changes.len()));
        assert_eq!(last_id - self.last_id, update.new_nodes.len() as i64, "every number is used");
        self.last_id = last_id;
        let mut cost = 0;
        for (id, node) in update.new_nodes {
            let bytes = node.encode();
            cost += bytes.len() + ROW_OVERHEAD;
            assert_eq!(Node::decode(&bytes).as_ref(), Ok(&*node), "every node can be stored");
            self.rows.insert(id, bytes);
            self.cache.iter_mut().for_each(|cache| drop(cache.insert(id, node.clone())));
        }
        (update.root, cost)
    }

    fn entries(&self, root: i64) -> BTreeMap<i64, i64> {
        let entries = now(entries(self, &[root])).pop().unwrap();
        let count = entries.len();
        let map: BTreeMap<i64, i64> = entries.into_iter().collect();
        assert_eq!(map.len(), count, "no key is there twice");
        map
    }

    fn shape(&self, root: i64) -> Option<Shape> {
        let node = Node::decode(self.rows.get(&root)?).unwrap();
        Some(Shape {
            keys: node.key_count(),
            bitmap: node.bitmap(),
            entries: node.entries().to_vec(),
            children: node.children().iter().map(|id| self.shape(*id).unwrap()).collect(),
        })
    }

    fn calls(&self) -> Vec<usize> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

/// The nodes of a snapshot without their numbers.
#[derive(Debug, PartialEq)]
struct Shape {
    keys: u32,
    bitmap: u16,
    entries: Vec<(i64, i64)>,
    children: Vec<Shape>,
}

/// The result of a future that never waits, and could be spawned.
fn now<T, E: std::fmt::Debug>(future: impl Future<Output = Result<T, E>> + Send) -> T {
    future.now_or_never().expect("nothing waits here").expect("nothing fails here")
}

fn map_diff(old: &BTreeMap<i64, i64>, new: &BTreeMap<i64, i64>) -> Vec<Change> {
    let keys: BTreeSet<i64> = old.keys().chain(new.keys()).copied().collect();
    let changes = keys.into_iter().map(|key| Change { key, old: old.get(&key).copied(), new: new.get(&key).copied() });
    changes.filter(|change| change.old != change.new).collect()
}

fn sorted<T: Ord>(mut things: Vec<T>) -> Vec<T> {
    things.sort();
    things
}

type Batch = Vec<(i64, Option<i64>)>;

/// Batches of changes whose keys come from a space of some size, so that small ones hit keys that are there.
fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let keys = prop_oneof![
        (0..6i64).boxed(),
        (0..40i64).boxed(),
        (0..400i64).boxed(),
        (0..20_000i64).boxed(),
        any::<i64>().boxed()
    ];
    let size = prop_oneof![4 => 0..4usize, 2 => 0..40usize, 1 => 0..600usize];
    (keys_of(keys.boxed()), size).prop_flat_map(|(keys, size)| {
        let event = prop_oneof![3 => (1..50i64).prop_map(Some), 1 => any::<i64>().prop_map(Some), 3 => Just(None)];
        let batch = prop::collection::vec((prop::sample::select(keys), event), 0..size + 1);
        prop::collection::vec(batch, 1..24)
    })
}

fn keys_of(key: BoxedStrategy<i64>) -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(key, 1..700)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// A snapshot is what the same changes make of a plain map, whatever is cached.
    #[test]
    fn a_snapshot_is_a_map(batches in batches(), cached in any::<bool>()) {
        let mut rows = if cached { Rows::cached() } else { Rows::default() };
        let mut history = vec![(EMPTY, BTreeMap::new())];
        for batch in &batches {
            let (root, mut map) = history.last().cloned().unwrap();
            let (root, _) = rows.update(root, batch);
            for (key, event) in batch {
                match event {
                    Some(event) => map.insert(*key, *event),
                    None => map.remove(key),
                };
            }
            prop_assert_eq!(&rows.entries(root), &map);
            prop_assert_eq!(root == EMPTY, map.is_empty());
            if let Some(bytes) = rows.rows.get(&root) {
                prop_assert_eq!(Node::decode(bytes).unwrap().key_count() as usize, map.len());
            }
            let asked: Vec<i64> = batch.iter().map(|change| change.0).chain([7, -7]).collect();
            let expected: Vec<Option<i64>> = asked.iter().map(|key| map.get(key).copied()).collect();
            prop_assert_eq!(now(get_many(&rows, root, &asked)), expected.clone());
            prop_assert_eq!(&now(get_each(&rows, &[(EMPTY, &asked), (root, &asked)]))[1], &expected);
            for (key, event) in asked.iter().zip(expected).take(3) {
                prop_assert_eq!(now(get(&rows, root, *key)), event);
            }
            history.push((root, map));
        }

        // All snapshots are still what they were.
        let roots: Vec<i64> = history.iter().map(|(root, _)| *root).collect();
        for (found, (_, map)) in now(entries(&rows, &roots)).into_iter().zip(&history) {
            prop_assert_eq!(sorted(found), map.iter().map(|(key, event)| (*key, *event)).collect::<Vec<_>>());
        }
        let mut pairs = Vec::new();
        let mut expected = Vec::new();
        for (old, new) in (0..history.len()).flat_map(|old| [(old, 0), (0, old), (old, history.len() - 1)]) {
            pairs.push((history[old].0, history[new].0));
            expected.push(map_diff(&history[old].1, &history[new].1));
        }
        let found: Vec<Vec<Change>> = now(diff_many(&rows, &pairs)).into_iter().map(sorted).collect();
        prop_assert_eq!(found, expected);
    }

    /// The same keys and events make the same tree, whatever happened before.
    #[test]
    fn the_shape_has_no_history(batches in batches()) {
        let mut rows = Rows::default();
        let root = batches.iter().fold(EMPTY, |root, batch| rows.update(root, batch).0);
        let all: Batch = rows.entries(root).into_iter().map(|(key, event)| (key, Some(event))).collect();
        let (at_once, _) = rows.update(EMPTY, &all);
        prop_assert_eq!(rows.shape(root), rows.shape(at_once));
        let (again, cost) = rows.update(root, &all);
        prop_assert_eq!((again, cost), (root, 0), "setting what is set makes nothing");
    }

    /// Outside bytes are refused or understood, and what is understood has this one form.
    #[test]
    fn any_bytes_are_refused_or_are_a_node(mut bytes in prop::collection::vec(any::<u8>(), 0..200), leaf in any::<bool>()) {
        let _ = Node::decode(&bytes);
        // Get past the version to the rest, and to a plausible count.
        if bytes.len() > 4 {
            bytes[0] = 1;
            if leaf {
                (bytes[1], bytes[2]) = (0, 0);
            }
            bytes[3] %= 70;
            bytes.iter_mut().skip(4).step_by(2).for_each(|byte| *byte &= 0x7f);
        }
        for end in 0..=bytes.len() {
            if let Ok(node) = Node::decode(&bytes[..end]) {
                prop_assert_eq!(node.encode(), &bytes[..end]);
            }
        }
    }
}

/// Nodes merge as they split: a room that empties passes through the shapes of one that fills.
#[test]
fn a_room_that_empties_has_the_shapes_of_one_that_fills() {
    for cached in [true, false] {
        let mut rows = if cached { Rows::cached() } else { Rows::default() };
        let mut shapes = vec![None];
        let mut root = EMPTY;
        for key in 1..=400 {
            root = rows.update(root, &[(key, Some(-key))]).0;
            shapes.push(rows.shape(root));
        }
        for key in (1..=400).rev() {
            root = rows.update(root, &[(key, None)]).0;
            shapes.truncate(key as usize);
            assert_eq!(rows.shape(root), shapes[shapes.len() - 1], "{key} keys less one");
        }
        assert_eq!(root, EMPTY);
    }
}

/// Numbers as a server of some years has them: keys among ten million, events and nodes among billions.
struct OldServer {
    rng: StdRng,
    rows: Rows,
    keys: Vec<i64>,
    used: HashSet<i64>,
    last_event: i64,
}

impl OldServer {
    fn new(seed: u64) -> Self {
        let rows = Rows { last_id: 3_000_000_000, ..Rows::cached() };
        Self {
            rng: StdRng::seed_from_u64(seed),
            rows,
            keys: Vec::new(),
            used: HashSet::new(),
            last_event: 5_000_000_000,
        }
    }

    fn new_key(&mut self) -> i64 {
        loop {
            let key = self.rng.random_range(1..10_000_000);
            if self.used.insert(key) {
                self.keys.push(key);
                return key;
            }
        }
    }

    /// Other rooms have events and nodes, too.
    fn new_event(&mut self) -> i64 {
        self.last_event += self.rng.random_range(1..100_000);
        self.rows.last_id += self.rng.random_range(1..100_000);
        self.last_event
    }

    fn grow_to(&mut self, root: i64, count: usize) -> i64 {
        let mut batch = Vec::new();
        while self.keys.len() < count {
            batch.push((self.new_key(), Some(self.new_event())));
        }
        self.rows.update(root, &batch).0
    }

    /// A key is new, or goes, or its event changes. The room stays near its size.
    fn change(&mut self, root: i64, size: usize) -> (i64, usize) {
        let event = self.new_event();
        if self.rng.random() {
            let place = self.rng.random_range(0..self.keys.len());
            return self.rows.update(root, &[(self.keys[place], Some(event))]);
        }
        let middle = self.keys.len() as f64 / size as f64 / 2.0;
        if self.rng.random_bool(middle.clamp(0.0, 1.0)) {
            let place = self.rng.random_range(0..self.keys.len());
            let key = self.keys.swap_remove(place);
            self.rows.update(root, &[(key, None)])
        } else {
            let key = self.new_key();
            self.rows.update(root, &[(key, Some(event))])
        }
    }

    /// The worst and the mean cost of a change.
    fn costs(&mut self, mut root: i64, changes: usize) -> (usize, usize) {
        let (mut worst, mut sum) = (0, 0);
        let size = self.keys.len();
        for _ in 0..changes {
            let (next, cost) = self.change(root, size);
            worst = worst.max(cost);
            sum += cost;
            root = next;
            // Keeps the memory of the test small; old snapshots are not read again.
            if self.rows.rows.len() > 400_000 {
                let entries: Batch =
                    self.rows.entries(root).into_iter().map(|(key, event)| (key, Some(event))).collect();
                self.rows.rows.clear();
                self.rows.cache = Some(HashMap::new());
                root = self.rows.update(EMPTY, &entries).0;
            }
        }
        (worst, sum / changes)
    }
}

/// The promise of the design: a change in a room of 10,000 writes at most 1 KiB, however long the room lives.
#[test]
fn a_change_in_a_large_room_writes_at_most_a_kibibyte() {
    let mut server = OldServer::new(1);
    let root = server.grow_to(EMPTY, 10_000);
    let (worst, mean) = server.costs(root, 20_000);
    println!("10,000 keys: worst {worst} bytes, mean {mean}");
    assert!(worst <= 1024, "a change wrote {worst} bytes");
    assert!(mean <= 700, "changes wrote {mean} bytes on average");
}

/// No size of a room is much worse than its neighbours: leaves that fill up are not split all at once.
#[test]
fn no_size_of_a_room_is_a_cliff() {
    for count in [24, 25, 60, 100, 300, 1_000, 1_600, 3_000, 16_000, 25_000, 100_000] {
        let mut server = OldServer::new(2);
        let root = server.grow_to(EMPTY, count);
        let (worst, mean) = server.costs(root, 1_000);
        println!("{count} keys: worst {worst} bytes, mean {mean}");
        assert!(worst <= 1024, "a change in a room of {count} wrote {worst} bytes");
    }
}

/// Small rooms are one node, one row.
#[test]
fn a_small_room_is_one_node() {
    let mut rows = Rows::default();
    let batch: Batch = (1..=LEAF_KEYS_MAX as i64).map(|key| (key, Some(key + 100))).collect();
    rows.update(EMPTY, &batch);
    assert_eq!(rows.rows.len(), 1);
}

/// What one change made different is found by loading two paths, a level at a time, not the room.
#[test]
fn a_diff_loads_only_what_differs() {
    let mut server = OldServer::new(3);
    let root = server.grow_to(EMPTY, 10_000);
    server.rows.cache = None;
    for place in (0..10_000).step_by(97) {
        let (changed, _) = server.rows.update(root, &[(server.keys[place], Some(1))]);
        server.rows.calls();
        assert_eq!(now(diff(&server.rows, root, changed)).len(), 1);
        let calls = server.rows.calls();
        assert!(calls.len() <= 6, "one call a level: {calls:?}");
        assert!(calls.iter().all(|ids| *ids <= 2), "the changed node of both a level: {calls:?}");
        assert!(now(diff(&server.rows, changed, changed)).is_empty());
        assert!(server.rows.calls().is_empty(), "a snapshot does not differ from itself");
    }
}

/// Nodes are asked for together, and shared ones once.
#[test]
fn loads_are_batched_by_level() {
    let mut server = OldServer::new(4);
    let root = server.grow_to(EMPTY, 10_000);
    let (other, _) = server.rows.update(root, &[(server.keys[0], Some(1))]);
    server.rows.cache = None;

    now(get_many(&server.rows, root, &server.keys));
    let calls = server.rows.calls();
    assert!(calls.len() <= 6 && calls[..3] == [1, 16, 256], "{calls:?}");

    let one: usize = calls.iter().sum();
    now(entries(&server.rows, &[root, other, root, EMPTY]));
    let calls = server.rows.calls();
    assert!(calls.len() <= 6 && calls[..3] == [2, 17, 257], "{calls:?}");
    assert!(calls.iter().sum::<usize>() <= one + 6, "{calls:?}");

    let changes: Batch = server.keys.iter().map(|key| (*key, Some(2))).collect();
    server.rows.update(root, &changes);
    let calls = server.rows.calls();
    assert!(calls.len() <= 6 && calls[..3] == [1, 16, 256], "{calls:?}");
}

/// Of two changes to one key the last counts, and nothing is made by changes that change nothing.
#[test]
fn changes_count_in_order() {
    let mut rows = Rows::default();
    let (root, _) = rows.update(EMPTY, &[(1, Some(2)), (1, None), (1, Some(3)), (4, Some(5)), (4, None)]);
    assert_eq!(rows.entries(root), BTreeMap::from([(1, 3)]));
    assert_eq!(rows.update(root, &[(1, Some(9)), (1, Some(3)), (8, None)]), (root, 0));
    assert_eq!(rows.update(root, &[]), (root, 0));
    assert_eq!(rows.update(root, &[(1, None)]), (EMPTY, 0));
    assert_eq!(rows.update(EMPTY, &[(1, None)]), (EMPTY, 0));
    assert_eq!(now(get(&rows, EMPTY, 1)), None);
}

/// Each way to be corrupt is refused by its name.
#[test]
fn corrupt_bytes_are_refused() {
    let leaf = Node::leaf(vec![(3, 300), (5, 200)]);
    let bytes = leaf.encode();
    assert_eq!(Node::decode(&bytes), Ok(leaf));
    assert_eq!(Node::decode(&[]), Err(CorruptNode::Truncated));
    for end in 0..bytes.len() {
        assert_eq!(Node::decode(&bytes[..end]), Err(CorruptNode::Truncated));
    }
    assert_eq!(Node::decode(&[2, 0, 0, 0]), Err(CorruptNode::Version(2)));
    assert_eq!(Node::decode(&[1, 0, 0, 0]), Ok(Node::leaf(vec![])));
    assert_eq!(Node::decode(&[1, 0, 0, 0, 0]), Err(CorruptNode::Trailing));
    assert_eq!(Node::decode(&[1, 0, 0, 0x80, 0]), Err(CorruptNode::Number), "not the shortest form");
    assert_eq!(Node::decode(&[1, 0, 0, 64]), Err(CorruptNode::Truncated));
    assert_eq!(Node::decode(&[1, 0, 0, 65]), Err(CorruptNode::Oversized));
    assert_eq!(Node::decode(&[1, 1, 0, 70, 61]), Err(CorruptNode::Oversized), "one slot is a child");
    assert_eq!(Node::decode(&[1, 0, 0, 2, 2, 2, 0, 2]), Err(CorruptNode::Unsorted), "the same key twice");
    let mut wraps = vec![1, 0, 0, 2];
    wraps.extend([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 1, 2]);
    assert_eq!(Node::decode(&wraps), Err(CorruptNode::Unsorted), "a key beyond the last");
    assert_eq!(Node::decode(&[1, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]), Err(CorruptNode::Number));
    assert_eq!(Node::decode(&[1, 1, 0, 24, 0, 2]), Err(CorruptNode::Count), "would be a leaf");
    assert_eq!(Node::decode(&[1, 255, 255, 79, 0]), Err(CorruptNode::Count), "fewer than its children");
    assert_eq!(Node::decode(&[1, 1, 0, 25, 0, 0]), Err(CorruptNode::Child));
    assert_eq!(Node::decode(&[1, 1, 0, 25, 0, 2]), Ok(Node::branch(25, 1, vec![], vec![1])));
}

/// A snapshot that cannot be read is an error that names the node, not a room without state.
#[test]
fn broken_trees_are_errors() {
    let mut rows = Rows::default();
    let node = |rows: &mut Rows, id, node: Node| drop(rows.rows.insert(id, node.encode()));
    // A circle.
    node(&mut rows, 1, Node::branch(100, u16::MAX, vec![], vec![1; 16]));
    let failed = get(&rows, 1, 5).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Corrupt { id: 1, cause: CorruptNode::Depth })));
    let failed = get_many(&rows, 1, &[5, 6]).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Corrupt { id: 1, cause: CorruptNode::Depth })));
    let failed = update(&rows, 1, &[(5, None)], &mut || 99).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Corrupt { id: 1, cause: CorruptNode::Depth })));
    let failed = entries(&rows, &[1]).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Corrupt { id: 1, .. })));
    let failed = diff(&rows, EMPTY, 1).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Corrupt { id: 1, .. })));

    // A child that is not there.
    node(&mut rows, 2, Node::branch(100, u16::MAX, vec![], vec![77; 16]));
    assert!(matches!(get(&rows, 2, 5).now_or_never().unwrap(), Err(Error::Missing { id: 77 })));
    assert!(matches!(entries(&rows, &[2]).now_or_never().unwrap(), Err(Error::Missing { id: 77 })));
    assert!(matches!(diff(&rows, 2, EMPTY).now_or_never().unwrap(), Err(Error::Missing { id: 77 })));
    let failed = update(&rows, 2, &[(5, Some(6))], &mut || 99).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Missing { id: 77 })));

    // A branch that says that it has more keys than it has.
    let key = (0..).find(|key| slot(hash(*key), 0) == 0).unwrap();
    node(&mut rows, 3, Node::leaf(vec![(key, 1)]));
    node(&mut rows, 4, Node::branch(25, 1, vec![], vec![3]));
    let failed = update(&rows, 4, &[(key, None)], &mut || 99).now_or_never().unwrap();
    assert!(matches!(failed, Err(Error::Corrupt { id: 4, cause: CorruptNode::Count })));
}
