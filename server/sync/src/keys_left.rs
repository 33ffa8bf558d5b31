//! How many keys a device has left for others to claim, from memory: it is told in every answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

use crate::{Result, Sync, metrics::KEYS_LEFT_READS, response::KeysLeft};

/// Devices whose counts are kept.
const DEVICES: usize = 50_000;
/// How long counts are believed. Every replica is told of changes; this is for one that could not be.
const FRESH: Duration = Duration::from_secs(15 * 60);
/// The algorithm that clients ask for; they are told of it also where there is no key.
const ALGORITHM: &str = "signed_curve25519";

pub(crate) struct KeysLeftCache {
    known: Cache<i64, (Instant, Arc<KeysLeft>)>,
    /// Counts what was forgotten, so that what was read before that is not remembered after it.
    forgotten: AtomicU64,
}

impl KeysLeftCache {
    pub(crate) fn new() -> Self {
        Self { known: Cache::new(DEVICES), forgotten: AtomicU64::new(0) }
    }

    pub(crate) fn forget(&self, devices: &[i64]) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        for device_nid in devices {
            self.known.remove(device_nid);
        }
    }

    pub(crate) fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.known.clear();
    }
}

impl Sync {
    pub(crate) async fn keys_left(&self, device_nid: i64) -> Result<Arc<KeysLeft>> {
        let cache = &self.keys_left;
        if let Some((read_at, left)) = cache.known.get(&device_nid)
            && read_at.elapsed() < FRESH
        {
            return Ok(left);
        }
        KEYS_LEFT_READS.inc();
        let forgotten = cache.forgotten.load(Ordering::Acquire);
        let counts = Box::pin(self.store.key_counts(device_nid)).await?;
        let mut left = KeysLeft {
            device_one_time_keys_count: counts.one_time.into_iter().collect(),
            device_unused_fallback_key_types: counts.unused_fallback,
        };
        left.device_one_time_keys_count.entry(ALGORITHM.to_owned()).or_insert(0);
        let left = Arc::new(left);
        cache.known.insert(device_nid, (Instant::now(), left.clone()));
        if cache.forgotten.load(Ordering::Acquire) != forgotten {
            cache.known.remove(&device_nid);
        }
        Ok(left)
    }
}
