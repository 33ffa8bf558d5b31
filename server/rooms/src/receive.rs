//! Events of other servers: read, checked, fetched where they are missing, and put into the graph.
//!
//! The steps are those of the specification's [checks on receipt of a PDU], in its order: [`parse`] and [`verify`] need
//! no room, [`missing`] asks other servers, and [`append`] decides and writes, holding the room's writer.
//!
//! [checks on receipt of a PDU]: https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu

mod append;
mod backfill;
mod missing;
mod outliers;
mod parse;
mod policy;
mod ties;
mod transaction;
mod verify;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
};

use prometheus::{IntCounterVec, register_int_counter_vec};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, room_version_rules::RoomVersionRules};

#[cfg(test)]
pub(crate) use self::ties::TIE;
pub use self::transaction::Outcome;
pub(crate) use self::{
    append::{Place, Verdict},
    backfill::Pauses,
    parse::{Received, parse},
    policy::{Opinions, Policies, Policy, is_exempt},
    ties::Ties,
    transaction::Receivers,
    verify::verify,
};
use crate::Pdu;

static RECEIVED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_rooms_received_events_total",
        "Events of other servers by what became of them.",
        &["outcome"]
    )
    .expect("metric names are unique")
});

/// Shows the metrics from the start on.
pub(crate) fn show_metrics() {
    for outcome in ["accepted", "known", "rejected", "soft_failed", "refused"] {
        RECEIVED.with_label_values(&[outcome]);
    }
    ties::show_metrics();
}

/// Why an event is dropped: nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not an event of this room's version.
    #[error("the event is malformed: {0}")]
    Malformed(String),
    /// It is larger than events may be.
    #[error("the event is over 65,536 bytes")]
    TooLarge,
    /// It is not signed as it must be.
    #[error("the event's signature is not valid: {0}")]
    Signature(String),
    /// It belongs to another room.
    #[error("the event belongs to another room")]
    OtherRoom,
}

/// An event with the signatures that it needs. If its content was changed on the way, it is redacted.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    /// The identifier.
    pub(crate) event_id: OwnedEventId,
    /// The JSON as it will be stored.
    pub(crate) json: Arc<str>,
    /// What the authorisation rules read; without a number yet.
    pub(crate) pdu: Pdu,
}

impl Incoming {
    /// An event whose signatures and hash are known to be good.
    pub(crate) fn new(
        event_id: OwnedEventId,
        object: &CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> crate::Result<Self> {
        let json = serde_json::to_string(object).map_err(crate::Error::Corrupt)?;
        let depth = match object.get("depth") {
            Some(CanonicalJsonValue::Integer(depth)) => i64::from(*depth),
            _ => 0,
        };
        let pdu = Pdu::parse(0, depth, event_id.clone(), &json, false, rules)?;
        Ok(Self { event_id, json: json.into(), pdu })
    }

    /// The event itself, and those that it refers to.
    fn references(&self) -> impl Iterator<Item = &OwnedEventId> {
        self.pdu.prevs().iter().chain(self.pdu.auths()).chain([&self.event_id])
    }
}

/// A stored or drafted event, as far as the graph needs it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) pdu: Arc<Pdu>,
    pub(crate) is_outlier: bool,
    /// Whether it was taken into the room, neither rejected nor soft-failed.
    pub(crate) is_shown: bool,
    /// The snapshot after it; meaningless for outliers.
    pub(crate) state_after: i64,
}

/// The part of the graph that a writer has looked at.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) nodes: HashMap<OwnedEventId, Node>,
    /// Events that others follow, and that were missing when the writer was opened.
    missing: HashSet<OwnedEventId>,
    /// Events that were redacted before they came, with the numbers of the redactions.
    redactions: Vec<(OwnedEventId, i64)>,
    /// What the room's policy server thinks of events.
    pub(crate) opinions: Opinions,
    /// The devices that have sent some of the events, with their transactions.
    pub(crate) transactions: HashMap<OwnedEventId, (i64, Box<str>)>,
}

impl Known {
    fn get(&self, event_id: &EventId) -> Option<&Node> {
        self.nodes.get(event_id)
    }
}
