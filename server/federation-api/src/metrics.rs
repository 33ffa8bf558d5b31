//! What this crate counts.

use std::sync::LazyLock;

use myelin_process::metrics::{self, IntCounter, IntCounterVec, IntGauge};

pub(crate) static REFUSED_AUTHENTICATIONS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_refused_authentications_total",
    "Requests of other servers refused before they were looked at, by reason.",
    ["reason"]
);
pub(crate) static LIMITED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_limited_total",
    "Requests of other servers refused because there were too many, by limit: requests, transactions, bodies.",
    ["limit"]
);
pub(crate) static BODY_BYTES: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_federation_body_bytes",
    "Bytes in memory of requests of other servers that are not verified yet, or being handled."
);
pub(crate) static ORIGINS: LazyLock<IntGauge> =
    metrics::gauge!("myelin_federation_origins", "Servers with requests that are being answered.");
pub(crate) static TRANSACTIONS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_received_transactions_total",
    "Transactions received, by outcome: processed, repeated, refused.",
    ["outcome"]
);
pub(crate) static PDUS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_received_pdus_total",
    "Events received in transactions, by outcome: accepted, failed, unnamed (without an identifier to answer for).",
    ["outcome"]
);
pub(crate) static EDUS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_received_edus_total",
    "Ephemeral messages received, by type and outcome: accepted, ignored, refused, malformed, failed.",
    ["type", "outcome"]
);
pub(crate) static KEY_DOCUMENTS: LazyLock<IntCounter> = metrics::counter!(
    "myelin_federation_notary_documents_total",
    "Documents of servers' keys that were handed out with our signature."
);

/// Makes all of them show, also those that have not counted yet.
pub(crate) fn show() {
    for family in [&REFUSED_AUTHENTICATIONS, &LIMITED, &TRANSACTIONS, &PDUS, &EDUS] {
        LazyLock::force(family);
    }
    for gauge in [&BODY_BYTES, &ORIGINS] {
        LazyLock::force(gauge);
    }
    LazyLock::force(&KEY_DOCUMENTS);
}
