//! The power levels that events were built on, one after the other: as much of the [mainline] as orders these events.
//!
//! [mainline]: https://spec.matrix.org/v1.19/rooms/v2/#definitions

use std::collections::{BinaryHeap, HashMap, HashSet};

use ruma::events::TimelineEventType;
use ruma_state_res::Event as _;

use super::graph::{Graph, Pdus};
use crate::{Pdu, Result};

/// Whether an event sets the room's power levels.
pub(super) fn is_power_levels(pdu: &Pdu) -> bool {
    *pdu.event_type() == TimelineEventType::RoomPowerLevels && pdu.state_key() == Some("")
}

/// The power levels that each of some power levels was built on, theirs, and so on, down to those that all of them go
/// through: what lies below these is the same for all, and orders nothing.
pub(super) async fn follow(
    graph: &Graph<'_>,
    pdus: &mut Pdus,
    starts: impl IntoIterator<Item = i64>,
) -> Result<HashMap<i64, i64>> {
    let mut parents = HashMap::new();
    let mut seen: HashSet<i64> = starts.into_iter().collect();
    // The deepest first, so that branches meet where they part. The depth is what servers say it is: if it is wrong,
    // more is followed.
    let mut ends: BinaryHeap<(i64, i64)> = pdus.among(seen.iter().copied()).map(|pdu| (pdu.depth, pdu.nid)).collect();
    let mut has_first = false;
    while let Some((_, nid)) = ends.pop() {
        if ends.is_empty() && !has_first {
            break;
        }
        let auth: Vec<i64> = graph.edges(&[nid]).await?.values().flat_map(|auth| auth.iter().copied()).collect();
        pdus.load(graph, auth.iter().copied()).await?;
        match pdus.among(auth).find(|pdu| is_power_levels(pdu)) {
            Some(parent) => {
                parents.insert(nid, parent.nid);
                if seen.insert(parent.nid) {
                    ends.push((parent.depth, parent.nid));
                }
            }
            None => has_first = true,
        }
    }
    Ok(parents)
}
