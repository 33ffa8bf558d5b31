//! What this crate counts.

use std::sync::LazyLock;

use myelin_process::metrics::{self, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

pub(crate) static CONNECTIONS: LazyLock<IntGauge> =
    metrics::gauge!("myelin_push_connections", "Connections to push gateways that are open.");
pub(crate) static DELIVERIES: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_push_deliveries_total",
    "Notifications that were posted to push gateways, by what they are (event, badge) and what came of it.",
    ["what", "outcome"]
);
pub(crate) static RETRIES: LazyLock<IntCounter> =
    metrics::counter!("myelin_push_retries_total", "Tries to tell a pusher again that could not be told before.");
pub(crate) static DROPPED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_push_dropped_total",
    "Notifications that were not sent: of pushers that are gone, or had too many waiting and are told later what is \
     unread then.",
    ["reason"]
);
pub(crate) static REJECTED: LazyLock<IntCounter> = metrics::counter!(
    "myelin_push_rejected_total",
    "Pushers that were removed because their gateway rejects their key."
);
pub(crate) static EVALUATED: LazyLock<IntCounter> =
    metrics::counter!("myelin_push_evaluations_total", "Times that someone's push rules were evaluated for a push.");
pub(crate) static DELAY_SECONDS: LazyLock<Histogram> = metrics::seconds!(
    "myelin_push_delay_seconds",
    "Time from when an event was seen to notify someone until the gateway has taken it."
);
pub(crate) static QUEUED: LazyLock<IntGauge> =
    metrics::gauge!("myelin_push_queued", "Notifications in memory that wait to be sent or for their answer.");
pub(crate) static BEHIND: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_push_lag_positions",
    "Positions of the stream that were not looked at yet by the replica that pushes."
);
pub(crate) static FAILING: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_push_failing_pushers",
    "Pushers that could not be told of something, and wait for a retry."
);
pub(crate) static PUSHERS: LazyLock<IntGaugeVec> =
    metrics::gauge!("myelin_pushers", "Pushers that people have, by kind.", ["kind"]);

/// Lets the metrics show from the start.
pub(crate) fn show() {
    for metric in [&CONNECTIONS, &QUEUED, &BEHIND, &FAILING] {
        metric.set(0);
    }
    for metric in [&RETRIES, &REJECTED, &EVALUATED] {
        metric.inc_by(0);
    }
    PUSHERS.with_label_values(&["http"]).set(0);
    DELIVERIES.with_label_values(&["event", "taken"]).inc_by(0);
}
