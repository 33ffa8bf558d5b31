//! Figures that are looked up when somebody asks for the metrics.

use std::sync::LazyLock;

use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use myelin_process::metrics::{self, IntCounterVec, IntGaugeVec};

use crate::parts::Parts;

static CONNECTIONS: LazyLock<IntGaugeVec> =
    metrics::gauge!("myelin_database_connections", "Connections to the database.", ["state"]);
static CACHE_BYTES: LazyLock<IntGaugeVec> = metrics::gauge!("myelin_cache_bytes", "Bytes in a cache.", ["cache"]);
static CACHE_HITS: LazyLock<IntCounterVec> =
    metrics::counter!("myelin_cache_hits_total", "What a cache was asked for and had.", ["cache"]);
static CACHE_MISSES: LazyLock<IntCounterVec> =
    metrics::counter!("myelin_cache_misses_total", "What a cache was asked for and had not.", ["cache"]);

/// Everything in the format of Prometheus.
pub(crate) fn show(parts: &Parts) -> impl IntoResponse + use<> {
    look_up(parts);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render())
}

fn look_up(parts: &Parts) {
    let (open, idle) = parts.store.database().connections();
    let (open, idle) = (i64::from(open), i64::try_from(idle).unwrap_or(i64::MAX));
    CONNECTIONS.with_label_values(&["idle"]).set(idle);
    CONNECTIONS.with_label_values(&["used"]).set((open - idle).max(0));
    for (cache, bytes) in parts.store.cache_weights().into_iter().chain(parts.accounts.cache_weights()) {
        CACHE_BYTES.with_label_values(&[cache]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    let (hits, misses) = parts.accounts.session_hits();
    for (cache, hits, misses) in parts.store.cache_hits().into_iter().chain([("sessions", hits, misses)]) {
        raise(&CACHE_HITS, cache, hits);
        raise(&CACHE_MISSES, cache, misses);
    }
}

/// Brings a counter up to what was counted elsewhere.
fn raise(counter: &IntCounterVec, cache: &str, count: u64) {
    let counter = counter.with_label_values(&[cache]);
    counter.inc_by(count.saturating_sub(counter.get()));
}
