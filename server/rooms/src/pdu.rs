//! An event as the authorisation rules read it.

use std::sync::Arc;

use myelin_store::{Event, flags};
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UInt,
    UserId,
    events::TimelineEventType,
    room_version_rules::{EventsReferenceFormatVersion, RoomVersionRules},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Error, Result};

/// An event with the parts that authorisation and state resolution ask for.
#[derive(Clone, Debug)]
pub struct Pdu {
    /// The internal number.
    pub nid: i64,
    /// The distance from the create event.
    pub depth: i64,
    event_id: OwnedEventId,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    event_type: TimelineEventType,
    content: Box<RawValue>,
    state_key: Option<String>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    redacts: Option<OwnedEventId>,
    rejected: bool,
    /// The reference hash, in the room versions that put it beside an event's identifier.
    pub(crate) reference_hash: Option<String>,
}

#[derive(Deserialize)]
struct Fields {
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    origin_server_ts: UInt,
    #[serde(rename = "type")]
    event_type: TimelineEventType,
    content: Box<RawValue>,
    state_key: Option<String>,
    prev_events: Vec<Reference>,
    auth_events: Vec<Reference>,
    redacts: Option<OwnedEventId>,
}

/// An event named by another one: by its identifier alone, or with its hash in room versions 1 and 2.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Id(OwnedEventId),
    WithHash(OwnedEventId, serde::de::IgnoredAny),
}

impl From<Reference> for OwnedEventId {
    fn from(reference: Reference) -> Self {
        match reference {
            Reference::Id(id) | Reference::WithHash(id, _) => id,
        }
    }
}

impl Pdu {
    /// Reads a stored event.
    pub fn from_event(event: &Event, rules: &RoomVersionRules) -> Result<Self> {
        let rejected = event.flags & flags::REJECTED != 0;
        Self::parse(event.nid, event.depth, event.event_id.clone(), event.json(), rejected, rules)
    }

    pub(crate) fn parse(
        nid: i64,
        depth: i64,
        event_id: OwnedEventId,
        json: &str,
        rejected: bool,
        rules: &RoomVersionRules,
    ) -> Result<Self> {
        let fields: Fields = serde_json::from_str(json).map_err(Error::Corrupt)?;
        let reference_hash = match rules.events_reference_format {
            EventsReferenceFormatVersion::V1 => {
                let object: CanonicalJsonObject = serde_json::from_str(json).map_err(Error::Corrupt)?;
                Some(ruma::signatures::reference_hash(&object, rules).map_err(|_| Error::TooLarge)?)
            }
            _ => None,
        };
        Ok(Self {
            nid,
            depth,
            event_id,
            room_id: fields.room_id,
            sender: fields.sender,
            origin_server_ts: MilliSecondsSinceUnixEpoch(fields.origin_server_ts),
            event_type: fields.event_type,
            content: fields.content,
            state_key: fields.state_key,
            prev_events: fields.prev_events.into_iter().map(Into::into).collect(),
            auth_events: fields.auth_events.into_iter().map(Into::into).collect(),
            redacts: fields.redacts,
            rejected,
            reference_hash,
        })
    }

    /// The identifier.
    pub fn id(&self) -> &OwnedEventId {
        &self.event_id
    }

    /// The events that it follows.
    pub(crate) fn prevs(&self) -> &[OwnedEventId] {
        &self.prev_events
    }

    /// The events that it says it is allowed by.
    pub(crate) fn auths(&self) -> &[OwnedEventId] {
        &self.auth_events
    }

    /// Takes note that the event is not allowed.
    pub(crate) fn reject(&mut self) {
        self.rejected = true;
    }

    /// The content, read as a type of the caller's; `None` if it has another shape.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_str(self.content.get()).ok()
    }
}

impl ruma_state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// Finds a PDU by its identifier among a few.
pub(crate) fn find<'a>(pdus: &'a [Arc<Pdu>], event_id: &EventId) -> Option<&'a Arc<Pdu>> {
    pdus.iter().find(|pdu| pdu.event_id == event_id)
}
