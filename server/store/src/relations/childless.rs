//! Events of which it is known that there is nothing to tell with them: as good as all of a page of history.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::{IntCounter, register_int_counter};
use quick_cache::sync::Cache;

use super::Relation;
use crate::Event;

/// Events that are remembered at the most; some 40 bytes each.
const EVENTS: usize = 100_000;
/// How long one is believed. What another replica finds in a room's past is told to nobody.
const BELIEVED: Duration = Duration::from_secs(300);

static FROM_MEMORY: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_store_relations_spared_total",
        "Events shown of which it was in memory that no other relates to them."
    )
    .expect("metric names are unique")
});
static FROM_DATABASE: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_store_relations_looked_up_total",
        "Events shown for which the database was asked what relates to them."
    )
    .expect("metric names are unique")
});

/// Shows the metrics from the start on.
pub(crate) fn show_metrics() {
    LazyLock::force(&FROM_MEMORY);
    LazyLock::force(&FROM_DATABASE);
}

/// The events that no edit, reference or thread was found for.
///
/// By hashes of their identifiers, as relations name them so, with keys that nobody knows.
#[derive(Debug)]
pub(crate) struct Childless {
    hasher: RandomState,
    since: Cache<u64, u32>,
    started: Instant,
    /// How many relations have come: what was read before the last one is not kept.
    relations: Mutex<u64>,
}

impl Childless {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            since: Cache::new(EVENTS),
            started: Instant::now(),
            relations: Mutex::new(0),
        }
    }

    fn now(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether nothing is to be told with an event.
    pub(super) fn knows(&self, event_id: &str) -> bool {
        let since = self.since.get(&self.hasher.hash_one(event_id));
        let is_known = since.is_some_and(|since| u64::from(self.now().saturating_sub(since)) < BELIEVED.as_secs());
        let counter = if is_known { &FROM_MEMORY } else { &FROM_DATABASE };
        counter.inc();
        is_known
    }

    /// To be asked for before the database is read.
    pub(super) fn mark(&self) -> u64 {
        *self.relations.lock()
    }

    /// Remembers that nothing was found for some events, unless relations have come since the mark.
    pub(super) fn remember<'a>(&self, mark: u64, event_ids: impl Iterator<Item = &'a str>) {
        let now = self.now();
        let relations = self.relations.lock();
        if *relations == mark {
            for event_id in event_ids {
                self.since.insert(self.hasher.hash_one(event_id), now);
            }
        }
    }

    /// Takes note of an event that was committed.
    pub(crate) fn note(&self, event: &Event) {
        let Some(relation) = Relation::of(event).filter(Relation::is_bundled) else { return };
        let mut relations = self.relations.lock();
        *relations += 1;
        self.since.remove(&self.hasher.hash_one(&*relation.parent_id));
    }
}
