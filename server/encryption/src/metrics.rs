//! What this crate counts.

use std::sync::LazyLock;

use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, register_histogram_vec, register_int_counter, register_int_counter_vec,
};

const UNIQUE: &str = "metric names are unique";

pub(crate) static REMOTE_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        "myelin_encryption_remote_duration_seconds",
        "Time that other servers took with keys, failures included.",
        &["request"],
        vec![0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0]
    )
    .expect(UNIQUE)
});
pub(crate) static REMOTE_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_encryption_remote_failures_total",
        "Requests for keys that other servers did not answer.",
        &["request"]
    )
    .expect(UNIQUE)
});
pub(crate) static CACHED_LISTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_encryption_remote_lists_total",
        "Device lists of other servers' users that were asked for, kept here (hit) or not (miss).",
        &["outcome"]
    )
    .expect(UNIQUE)
});
pub(crate) static RESYNCS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_encryption_resyncs_total",
        "Device lists that were asked for anew because a change was missed.",
        &["outcome"]
    )
    .expect(UNIQUE)
});
pub(crate) static FOLLOW_FAILURES: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_encryption_follow_failures_total",
        "Rounds of the keeper of device lists that failed, and are made again."
    )
    .expect(UNIQUE)
});

/// Shows every metric from the start on, not from its first use.
pub(crate) fn show() {
    LazyLock::force(&REMOTE_SECONDS);
    LazyLock::force(&REMOTE_FAILURES);
    LazyLock::force(&CACHED_LISTS);
    LazyLock::force(&RESYNCS);
    LazyLock::force(&FOLLOW_FAILURES);
}
