//! What the outgoing queues count.

use std::sync::LazyLock;

use myelin_process::metrics::{self, Histogram, IntCounter, IntCounterVec, IntGauge};

pub(crate) static QUEUED: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_queued_events", "Events in the queues of all destinations, in memory.");
pub(crate) static BEHIND: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_federation_destinations_behind",
    "Servers that lack events which are not in memory any more: they are to be read from the database."
);
pub(crate) static TROUBLED: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_destinations_troubled", "Servers that did not take the last transaction.");
pub(crate) static KNOWN: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_destinations_known", "Servers that something is kept of in memory.");
pub(crate) static COURIERS: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_couriers", "Tasks that send, or wait for their turn to send, transactions.");
pub(crate) static UNDER_WAY: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_transactions_under_way", "Transactions that wait for their answer.");
pub(crate) static TRANSACTIONS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_transactions_sent_total",
    "Tries to send a transaction: ok, refused, unreachable, nonsense, timeout, displaced by others who wait, not_allowed \
     by the configuration, backing_off.",
    ["outcome"]
);
pub(crate) static TRANSACTION_SECONDS: LazyLock<Histogram> = metrics::seconds!(
    "myelin_federation_transaction_send_seconds",
    "Time from the sending of a transaction to its answer, where there was one."
);
pub(crate) static PDUS: LazyLock<IntCounter> =
    metrics::counter!("myelin_federation_pdus_sent_total", "Events that servers took, each server counted.");
pub(crate) static PDUS_REFUSED: LazyLock<IntCounter> =
    metrics::counter!("myelin_federation_pdus_refused_total", "Events of transactions that servers did not want.");
pub(crate) static EDUS: LazyLock<IntCounter> =
    metrics::counter!("myelin_federation_edus_sent_total", "EDUs that servers took, each server counted.");
pub(crate) static EDUS_DROPPED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_edus_dropped_total",
    "Ephemeral EDUs that were dropped: the queue was full, or the server is in trouble.",
    ["reason"]
);
pub(crate) static CATCH_UPS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_catch_ups_total",
    "Times that a server had to be sent events from the database: begun, and done.",
    ["state"]
);
pub(crate) static ROOM_LOADS: LazyLock<IntCounter> =
    metrics::counter!("myelin_federation_room_servers_loads_total", "Times that a room's servers were read.");
pub(crate) static POSITION: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_federation_sender_position",
    "The position of the stream up to which events were given to the queues."
);
pub(crate) static LAG: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_federation_sender_lag",
    "Positions of the stream that the stored position of the sender is behind: what is read again after a crash."
);
pub(crate) static CHECKPOINT: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_federation_checkpoint_timestamp_seconds",
    "When the sender's position and the destinations in trouble were last written, or found unchanged."
);
pub(crate) static CHECKPOINT_FAILURES: LazyLock<IntCounter> =
    metrics::counter!("myelin_federation_checkpoint_failures_total", "Checkpoints that could not be written.");

/// Shows every metric from the start on.
pub(crate) fn show() {
    for gauge in [&QUEUED, &BEHIND, &TROUBLED, &KNOWN, &COURIERS, &UNDER_WAY, &POSITION, &LAG, &CHECKPOINT] {
        LazyLock::force(gauge);
    }
    for counter in [&PDUS, &PDUS_REFUSED, &EDUS, &ROOM_LOADS, &CHECKPOINT_FAILURES] {
        LazyLock::force(counter);
    }
    for family in [&TRANSACTIONS, &EDUS_DROPPED, &CATCH_UPS] {
        LazyLock::force(family);
    }
    LazyLock::force(&TRANSACTION_SECONDS);
}

/// Counts one more for as long as it lives.
pub(crate) struct Counted(&'static IntGauge);

impl Counted {
    pub(crate) fn new(gauge: &'static LazyLock<IntGauge>) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
