//! What this crate counts.

use std::sync::LazyLock;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, register_histogram, register_histogram_vec,
    register_int_counter, register_int_counter_vec, register_int_gauge,
};

const UNIQUE: &str = "metric names are unique";

pub(crate) static WAITERS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("myelin_sync_waiters", "Sync requests that wait for something to tell.").expect(UNIQUE)
});
pub(crate) static SYNCS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_sync_answers_total",
        "Answers of /sync: initial, full_state, news, or empty after the timeout.",
        &["kind"]
    )
    .expect(UNIQUE)
});
pub(crate) static ANSWER_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        "myelin_sync_answer_duration_seconds",
        "Time to put an answer of /sync together, without the wait.",
        &["kind"],
        vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
    )
    .expect(UNIQUE)
});
pub(crate) static WAKE_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(
        "myelin_sync_wake_to_answer_seconds",
        "Time from the wake-up of a waiting sync to its answer.",
        vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0]
    )
    .expect(UNIQUE)
});
pub(crate) static USERS: LazyLock<IntGauge> =
    LazyLock::new(|| register_int_gauge!("myelin_sync_users", "Users whose rooms are in memory.").expect(UNIQUE));
pub(crate) static USER_LOADS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_sync_user_loads_total", "Times a user's rooms were read from the database.")
        .expect(UNIQUE)
});
pub(crate) static RECEIPT_READS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_sync_receipt_reads_total",
        "Reads of new receipts, from the ring in memory (hit) or the database (miss).",
        &["outcome"]
    )
    .expect(UNIQUE)
});
pub(crate) static UNREAD_SCANS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_sync_unread_scans_total", "Rooms whose unread events had to be counted anew.")
        .expect(UNIQUE)
});
pub(crate) static UNREAD_EVENTS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_sync_unread_events_total", "Events that push rules were evaluated on.").expect(UNIQUE)
});
pub(crate) static SUMMARIES_MADE: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_sync_room_summaries_total",
        "Summaries of rooms that were made: from an older one (changes) or by reading all members (members).",
        &["from"]
    )
    .expect(UNIQUE)
});

pub(crate) static KEYS_LEFT_READS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_sync_key_count_reads_total",
        "Times that the keys a device has left were counted in the database."
    )
    .expect(UNIQUE)
});

pub(crate) static SLIDING_ANSWERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_sliding_sync_answers_total",
        "Answers of sliding sync: initial, news, or empty after the timeout.",
        &["kind"]
    )
    .expect(UNIQUE)
});
pub(crate) static SLIDING_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        "myelin_sliding_sync_answer_duration_seconds",
        "Time to put an answer of sliding sync together, without the wait.",
        &["kind"],
        vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]
    )
    .expect(UNIQUE)
});
pub(crate) static SLIDING_OPENED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_sliding_sync_connections_opened_total", "Connections of sliding sync that began.")
        .expect(UNIQUE)
});
pub(crate) static SLIDING_LOADS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_sliding_sync_connection_loads_total",
        "Times a connection of sliding sync was read from the database."
    )
    .expect(UNIQUE)
});
pub(crate) static SLIDING_EXPIRED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_sliding_sync_positions_expired_total",
        "Positions of sliding sync that were refused: unknown (not ours, or replaced), overtaken (by another request of \
         the same connection), configs (too many different ones).",
        &["cause"]
    )
    .expect(UNIQUE)
});
pub(crate) static SLIDING_ROOMS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "myelin_sliding_sync_cached_rooms",
        "Rooms of the sliding sync connections that are in memory, all together."
    )
    .expect(UNIQUE)
});

/// Shows every metric from the start on, not from its first use.
pub(crate) fn show() {
    LazyLock::force(&WAITERS);
    LazyLock::force(&SYNCS);
    LazyLock::force(&ANSWER_SECONDS);
    LazyLock::force(&WAKE_SECONDS);
    LazyLock::force(&USERS);
    LazyLock::force(&USER_LOADS);
    LazyLock::force(&RECEIPT_READS);
    LazyLock::force(&UNREAD_SCANS);
    LazyLock::force(&UNREAD_EVENTS);
    LazyLock::force(&SUMMARIES_MADE);
    LazyLock::force(&KEYS_LEFT_READS);
    LazyLock::force(&SLIDING_ANSWERS);
    LazyLock::force(&SLIDING_SECONDS);
    LazyLock::force(&SLIDING_OPENED);
    LazyLock::force(&SLIDING_LOADS);
    LazyLock::force(&SLIDING_EXPIRED);
    LazyLock::force(&SLIDING_ROOMS);
}
