//! An event as it came, before its signatures are looked at.

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedServerName, RoomId,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
    signatures::required_server_signatures_to_verify_event,
};
use ruma_state_res::check_pdu_format;
use serde_json::value::RawValue;

use super::Refusal;

/// The most bytes of an event.
const EVENT_BYTES_MAX: usize = 65_536;
/// The most bytes that may come for an event: what is not signed does not count towards its size.
const RAW_BYTES_MAX: usize = 4 * EVENT_BYTES_MAX;

/// An event of the right shape.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) event_id: OwnedEventId,
    pub(crate) object: CanonicalJsonObject,
    /// The servers that must have signed it.
    pub(crate) signers: BTreeSet<OwnedServerName>,
}

/// Reads an event of a room.
///
/// "1. Is a valid event, otherwise it is dropped. For an event to be valid, it must contain a room_id, and it must comply
/// with the event format of that room version."
pub(crate) fn parse(raw: &RawValue, room_id: &RoomId, rules: &RoomVersionRules) -> Result<Received, Refusal> {
    if raw.get().len() > RAW_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    let mut object: CanonicalJsonObject =
        serde_json::from_str(raw.get()).map_err(|error| Refusal::Malformed(error.to_string()))?;
    // It is not signed, so it is not the sender's word.
    object.remove("unsigned");
    check_pdu_format(&object, &rules.event_format)
        .map_err(|reason| if reason.contains("larger") { Refusal::TooLarge } else { Refusal::Malformed(reason) })?;
    let event_id = event_id(&object, rules)?;
    check_room(&object, &event_id, room_id, rules)?;
    let signers = required_server_signatures_to_verify_event(&object, &rules.signatures)
        .map_err(|error| Refusal::Malformed(error.to_string()))?;
    Ok(Received { event_id, object, signers })
}

/// The identifier of an event: what it says in room versions 1 and 2, its hash in later ones.
pub(crate) fn event_id(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<OwnedEventId, Refusal> {
    let id = match rules.event_id_format {
        EventIdFormatVersion::V1 => {
            let id = object.get("event_id").and_then(CanonicalJsonValue::as_str);
            id.ok_or_else(|| Refusal::Malformed("it has no event_id".into()))?.to_owned()
        }
        _ => {
            let hash = ruma::signatures::reference_hash(object, rules)
                .map_err(|error| Refusal::Malformed(error.to_string()))?;
            format!("${hash}")
        }
    };
    EventId::parse(id).map_err(|error| Refusal::Malformed(format!("its event_id is invalid: {error}")))
}

fn check_room(
    object: &CanonicalJsonObject,
    event_id: &EventId,
    room_id: &RoomId,
    rules: &RoomVersionRules,
) -> Result<(), Refusal> {
    let is_create = object.get("type").and_then(CanonicalJsonValue::as_str) == Some("m.room.create");
    let is_here = if is_create && rules.authorization.room_create_event_id_as_room_id {
        event_id.as_str().strip_prefix('$') == room_id.as_str().strip_prefix('!')
    } else {
        object.get("room_id").and_then(CanonicalJsonValue::as_str) == Some(room_id.as_str())
    };
    if is_here { Ok(()) } else { Err(Refusal::OtherRoom) }
}
