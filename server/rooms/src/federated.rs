//! Memberships over federation: the users of other servers in our rooms ([`admit`]), our users in rooms that other
//! servers hold ([`enter`], [`leave`]), and invitations both ways ([`invite`]).

mod admit;
mod enter;
mod invite;
mod leave;
mod out_of_band;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use myelin_store::{Event, RoomName};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedServerName, RoomVersionId};
use serde_json::value::RawValue;

use crate::{
    Error, Result, Rooms,
    receive::{Incoming, parse, verify},
    writer::rules_of,
};

/// An event that another server is to complete and sign.
#[derive(Debug)]
pub struct MembershipTemplate {
    /// The version of the room.
    pub room_version: RoomVersionId,
    /// The event without hash and signature.
    pub event: Box<RawValue>,
}

/// What a server gets whose user has joined.
#[derive(Debug)]
pub struct JoinedRoom {
    /// The join, with our signature where the room asks for one.
    pub event: Arc<Event>,
    /// The state before the join.
    pub state: Vec<Arc<Event>>,
    /// The auth chain of that state and of the join.
    pub auth_chain: Vec<Arc<Event>>,
    /// Whether members are missing from the state.
    pub members_omitted: bool,
    /// The servers in the room, where members are missing.
    pub servers_in_room: Option<Vec<OwnedServerName>>,
}

/// Room versions that rooms of other servers may have.
pub fn room_versions() -> Vec<RoomVersionId> {
    (1..=12).filter_map(|version| RoomVersionId::try_from(version.to_string()).ok()).collect()
}

fn text<'a>(object: &'a CanonicalJsonObject, field: &str) -> &'a str {
    object.get(field).and_then(CanonicalJsonValue::as_str).unwrap_or_default()
}

fn membership_word(object: &CanonicalJsonObject) -> &str {
    let content = object.get("content").and_then(CanonicalJsonValue::as_object);
    content.map(|content| text(content, "membership")).unwrap_or_default()
}

fn raw(object: &CanonicalJsonObject) -> Result<Box<RawValue>> {
    let json = serde_json::to_string(object).map_err(|error| Error::BadJson(error.to_string()))?;
    RawValue::from_string(json).map_err(|error| Error::BadJson(error.to_string()))
}

impl Rooms {
    /// Adds our hash and signature to an event.
    fn sign(&self, object: &mut CanonicalJsonObject, version: &RoomVersionId) -> Result<()> {
        let rules = rules_of(version)?;
        ruma::signatures::hash_and_sign_event(self.server_name.as_str(), &self.key, object, &rules.redaction)
            .map_err(Error::Sign)
    }

    /// Reads and checks one event.
    async fn verified(&self, event: &RawValue, room: &RoomName) -> Result<Incoming> {
        let rules = rules_of(&room.version)?;
        let received = parse(event, &room.room_id, &rules)?;
        match verify(self, &rules, vec![received]).await?.pop() {
            Some(outcome) => Ok(outcome?),
            None => Err(Error::Gap),
        }
    }
}

/// The identifier that an event has must be the one that it was sent under.
fn must_be_called(found: &OwnedEventId, expected: &ruma::EventId) -> Result<()> {
    if *found == *expected {
        return Ok(());
    }
    Err(Error::InvalidParam(format!("the event is {found}, not {expected}")))
}
