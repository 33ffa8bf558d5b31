//! The keys of other servers, and our own.

mod attempts;
pub(crate) mod document;
mod fetch;
mod notary;
mod own;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

use futures_util::{StreamExt as _, stream};
use myelin_process::metrics::{self, IntCounterVec};
use myelin_rooms::remote::{VerifyKey, VerifyKeys, WantedKeys};
use myelin_store::ServerKey;
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedServerName, ServerName, serde::Base64};
use tokio::sync::Semaphore;

use self::{attempts::Attempts, document::Source};
pub use self::{notary::KeyQuery, own::OwnKeyError};
use crate::{Client, options::ClientOptions};

static FETCHES: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_key_fetches_total",
    "Documents of servers' keys that were asked for, by whom they came from and what came of it.",
    ["source", "outcome"]
);

/// Servers that are asked for their keys at once.
const FETCHES_MAX: usize = 64;
/// Servers that one batch asks at once.
const BATCH_PARALLEL: usize = 32;
/// Reads of the database that one batch does at once.
const READS_PARALLEL: usize = 4;
/// A batch with more servers asks the notaries first: of many servers many are gone.
const MANY: usize = 32;
/// A key need not be valid for longer than this from now on, in milliseconds: nobody promises the future.
const FUTURE_MS: u64 = 60 * 60 * 1000;

/// What is known of a server's keys, by their identifiers.
type Known = HashMap<String, ServerKey>;

/// What is remembered of keys.
pub(crate) struct Keys {
    known: Cache<OwnedServerName, Arc<Known>, ByWeight>,
    /// One at a time asks a server.
    flights: Mutex<HashMap<OwnedServerName, Arc<tokio::sync::Mutex<()>>>>,
    attempts: Attempts,
    fetches: Semaphore,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<OwnedServerName, Arc<Known>> for ByWeight {
    fn weight(&self, server: &OwnedServerName, known: &Arc<Known>) -> u64 {
        // Names, 32 bytes a key, and what the maps need around them.
        let keys: usize = known.keys().map(|key_id| key_id.len() * 2 + 200).sum();
        (server.as_str().len() + keys + 200) as u64
    }
}

impl Keys {
    pub(crate) fn new(options: &ClientOptions) -> Self {
        let bytes = options.key_cache_bytes;
        Self {
            known: Cache::with_weighter((bytes / 600) as usize, bytes, ByWeight),
            flights: Mutex::default(),
            attempts: Attempts::default(),
            fetches: Semaphore::new(FETCHES_MAX),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn sweep(&self) {
        self.attempts.sweep();
        self.flights.lock().retain(|_, flight| Arc::strong_count(flight) > 1);
    }

    fn flight(&self, server: &ServerName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.flights.lock().entry(server.to_owned()).or_default())
    }
}

/// What is wanted of a server, and not had yet.
type Missing = Vec<(OwnedServerName, WantedKeys)>;

impl Client {
    /// The keys of some servers, as far as they can be had: see [`RemoteServers::verify_keys`].
    ///
    /// [`RemoteServers::verify_keys`]: myelin_rooms::remote::RemoteServers::verify_keys
    pub(crate) async fn verify_keys_of(&self, wanted: &BTreeMap<OwnedServerName, WantedKeys>) -> VerifyKeys {
        let wanted_keys = wanted.iter().map(|(server, wanted)| (server.clone(), wanted.clone())).collect();
        let missing = self.missing(wanted_keys).await;
        if !missing.is_empty() {
            Box::pin(self.fetch_missing(missing)).await;
        }
        let mut found = VerifyKeys::default();
        for server in wanted.keys() {
            let keys = match *server == self.options.server_name {
                true => self.own_verify_keys().await,
                false => self.known(server).await.values().map(verify_key).collect(),
            };
            found.0.insert(server.clone(), keys);
        }
        found
    }

    /// Asks servers and notaries until nothing is missing or nobody else is left to ask.
    async fn fetch_missing(&self, mut missing: Missing) {
        let order = match missing.len() > MANY {
            true => [Source::Notary, Source::Server],
            false => [Source::Server, Source::Notary],
        };
        for source in order {
            match source {
                Source::Server => self.fetch_from_servers(&missing).await,
                Source::Notary => self.fetch_from_notaries(&missing).await,
            }
            missing = self.missing(missing).await;
            if missing.is_empty() {
                return;
            }
        }
        tracing::debug!("the keys of {} servers cannot be had", missing.len());
    }

    /// Those whose keys we have not.
    async fn missing(&self, wanted: Missing) -> Missing {
        let others = wanted.into_iter().filter(|(server, _)| *server != self.options.server_name);
        let looked_at = stream::iter(others).map(async |(server, wanted)| {
            let is_had = satisfies(&*self.known(&server).await, &wanted);
            (!is_had).then_some((server, wanted))
        });
        looked_at.buffered(READS_PARALLEL).filter_map(std::future::ready).collect().await
    }

    /// What is known of a server, from memory or from the database.
    async fn known(&self, server: &ServerName) -> Arc<Known> {
        if let Some(known) = self.keys.known.get(server) {
            return known;
        }
        let stored = match self.store.server_keys(server.as_str()).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the keys of {server} cannot be read");
                return Arc::default();
            }
        };
        let known: Arc<Known> = Arc::new(stored.into_iter().map(|key| (key.key_id.clone(), key)).collect());
        // What is not there may come from another replica at any time.
        if !known.is_empty() {
            self.keys.known.insert(server.to_owned(), Arc::clone(&known));
        }
        known
    }
}

fn is_current(key: &ServerKey, now: i64) -> bool {
    key.expired_ts.is_none() && key.valid_until_ts >= now
}

fn satisfies(known: &Known, wanted: &WantedKeys) -> bool {
    let now = now_ms().unsigned_abs();
    let valid_at = wanted.valid_at_ts.min(now + FUTURE_MS);
    let is_good = |key: &ServerKey| key.expired_ts.is_some() || ts(key.valid_until_ts) >= valid_at;
    if wanted.key_ids.is_empty() {
        return known.values().any(|key| key.expired_ts.is_none() && is_good(key));
    }
    wanted.key_ids.iter().filter(|key_id| is_supported(key_id)).all(|key_id| known.get(key_id).is_some_and(is_good))
}

/// Keys of other kinds do not exist, and are not asked for.
fn is_supported(key_id: &str) -> bool {
    key_id.starts_with("ed25519:")
}

fn verify_key(key: &ServerKey) -> (String, VerifyKey) {
    let verify_key = VerifyKey { key: Base64::new(key.public_key.clone()), valid_until_ts: ts(key.valid_until_ts) };
    (key.key_id.clone(), verify_key)
}

fn ts(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
