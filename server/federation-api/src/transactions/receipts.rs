//! `m.receipt`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#receipts)

use std::collections::BTreeMap;

use myelin_store::RoomName;
use myelin_sync::ReceiptType;
use ruma::{OwnedEventId, RoomId, ServerName, UserId};
use serde::Deserialize;

use super::edus::{Budget, Outcome, failed, told};
use crate::Services;

/// By room. Names are looked at one by one, so that a wrong one spoils nothing but its own receipt.
type Content = BTreeMap<String, Room>;

#[derive(Deserialize)]
struct Room {
    /// "Currently the only kind of receipt supported".
    #[serde(rename = "m.read", default)]
    read: BTreeMap<String, Receipt>,
}

#[derive(Deserialize)]
struct Receipt {
    event_ids: Vec<OwnedEventId>,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    thread_id: Option<String>,
    /// "A POSIX timestamp in milliseconds for when the user read the event specified in the read receipt." One that is
    /// none does not spoil the receipt.
    ts: Option<serde_json::Value>,
}

pub(super) async fn take(services: &Services, origin: &ServerName, content: &str, budget: &mut Budget) -> Outcome {
    let Ok(rooms) = serde_json::from_str::<Content>(content) else { return Outcome::Malformed };
    let mut outcome = Outcome::Ignored;
    for (room_id, Room { read }) in rooms {
        let Ok(room_id) = RoomId::parse(&room_id) else {
            outcome = outcome.max(Outcome::Malformed);
            continue;
        };
        let room = match services.store.room(&room_id).await {
            Ok(Some(room)) => room,
            Ok(None) => continue,
            Err(error) => return failed(&error),
        };
        // "all receipts for a particular room ID MUST be ignored if the sending server is denied access to the room"
        if services.writes.check_acl(origin, &room_id).await.is_err() {
            outcome = outcome.max(Outcome::Refused);
            continue;
        }
        for (user_id, receipt) in &read {
            if !budget.take() {
                return outcome;
            }
            outcome = outcome.max(mark(services, origin, &room, user_id, receipt).await);
        }
    }
    outcome
}

async fn mark(services: &Services, origin: &ServerName, room: &RoomName, user_id: &str, receipt: &Receipt) -> Outcome {
    let Ok(user_id) = UserId::parse(user_id) else { return Outcome::Malformed };
    if user_id.server_name() != origin {
        return Outcome::Refused;
    }
    // "The extremity event IDs that the user has read up to": there is exactly one.
    let [event_id] = receipt.event_ids.as_slice() else { return Outcome::Malformed };
    let user_nid = match services.store.known_user_nid(&user_id).await {
        Ok(Some(user_nid)) => user_nid,
        Ok(None) => return Outcome::Ignored,
        Err(error) => return failed(&error),
    };
    let thread = receipt.data.thread_id.as_deref();
    let at_ms = receipt.data.ts.as_ref().and_then(serde_json::Value::as_u64);
    told(services.sync.mark_read_at(room, user_nid, ReceiptType::Read, thread, event_id, at_ms).await)
}
