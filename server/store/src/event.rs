//! An event as it is stored and kept in memory.

use std::ops::Range;

use ruma::{OwnedEventId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Error, Result};

/// What is wrong with an event, as bits of [`Event::flags`].
pub mod flags {
    /// The event is not allowed by its auth events or the state before it. It is kept, not shown.
    pub const REJECTED: i64 = 1;
    /// The event is not allowed by the room's current state. It is part of the graph, not shown.
    pub const SOFT_FAILED: i64 = 2;
    /// The event is known only because others refer to it: it has no snapshots.
    pub const OUTLIER: i64 = 4;
    /// The event is not of our users, and we have to send it on: we let its sender into the room.
    pub const TO_SEND: i64 = 8;
}

/// An event: the bytes that were hashed and signed, and where it stands.
#[derive(Debug)]
pub struct Event {
    /// The event's internal number.
    pub nid: i64,
    /// The event's identifier.
    pub event_id: OwnedEventId,
    /// The room's internal number.
    pub room_nid: i64,
    /// The place in the stream; negative for history fetched later; `None` outside the timeline.
    pub pos: Option<i64>,
    /// The length of the longest path to the create event.
    pub depth: i64,
    /// The sender's internal number.
    pub sender_nid: i64,
    /// The internal number of the event's type and state key, if it is a state event.
    pub key_nid: Option<i64>,
    /// The snapshot of the state that the event was allowed by.
    pub state_before: i64,
    /// The snapshot of the room's current state once the event was appended.
    pub room_state: i64,
    /// The snapshot after the event itself, where the graph forks and that is not [`Event::room_state`].
    pub forked_state: Option<i64>,
    /// The state event that this one took the place of.
    pub replaces: Option<i64>,
    /// The redaction, if the event was redacted.
    pub redacted_by: Option<i64>,
    /// The device that sent it, if it is one of ours and used a transaction id.
    pub device_nid: Option<i64>,
    /// The device's transaction: the scope of the endpoint, a space, the client's transaction id.
    pub txn: Option<Box<str>>,
    /// Bits of [`flags`].
    pub flags: i64,
    json: Box<str>,
    header: Header,
}

/// The parts of the JSON that are asked for again and again.
#[derive(Debug)]
struct Header {
    event_type: Box<str>,
    sender: OwnedUserId,
    state_key: Option<Box<str>>,
    redacts: Option<Box<str>>,
    origin_server_ts: u64,
    content: Range<usize>,
}

#[derive(Deserialize)]
struct RawHeader<'a> {
    #[serde(rename = "type")]
    event_type: Box<str>,
    sender: OwnedUserId,
    state_key: Option<Box<str>>,
    redacts: Option<Box<str>>,
    origin_server_ts: u64,
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Header {
    fn parse(json: &str) -> serde_json::Result<Self> {
        let raw: RawHeader<'_> = serde_json::from_str(json)?;
        let content = raw.content.get();
        let start = content.as_ptr() as usize - json.as_ptr() as usize;
        Ok(Self {
            content: start..start + content.len(),
            event_type: raw.event_type,
            sender: raw.sender,
            state_key: raw.state_key,
            redacts: raw.redacts,
            origin_server_ts: raw.origin_server_ts,
        })
    }
}

/// What an event is made from.
#[derive(Debug, Default)]
pub struct EventParts {
    /// See [`Event::nid`].
    pub nid: i64,
    /// See [`Event::room_nid`].
    pub room_nid: i64,
    /// See [`Event::pos`].
    pub pos: Option<i64>,
    /// See [`Event::depth`].
    pub depth: i64,
    /// See [`Event::sender_nid`].
    pub sender_nid: i64,
    /// See [`Event::key_nid`].
    pub key_nid: Option<i64>,
    /// See [`Event::state_before`].
    pub state_before: i64,
    /// See [`Event::room_state`].
    pub room_state: i64,
    /// See [`Event::forked_state`].
    pub forked_state: Option<i64>,
    /// See [`Event::replaces`].
    pub replaces: Option<i64>,
    /// See [`Event::redacted_by`].
    pub redacted_by: Option<i64>,
    /// See [`Event::device_nid`].
    pub device_nid: Option<i64>,
    /// See [`Event::txn`].
    pub txn: Option<Box<str>>,
    /// See [`Event::flags`].
    pub flags: i64,
}

impl Event {
    /// An event from its parts and its JSON in the federation's format.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the JSON lacks one of the fields that every event has.
    pub fn new(parts: EventParts, event_id: OwnedEventId, json: Box<str>) -> Result<Self> {
        let header = Header::parse(&json).map_err(|_| Error::Corrupt { what: "event" })?;
        let EventParts {
            nid,
            room_nid,
            pos,
            depth,
            sender_nid,
            key_nid,
            state_before,
            room_state,
            forked_state,
            replaces,
            redacted_by,
            device_nid,
            txn,
            flags,
        } = parts;
        Ok(Self {
            nid,
            event_id,
            room_nid,
            pos,
            depth,
            sender_nid,
            key_nid,
            state_before,
            room_state,
            forked_state,
            replaces,
            redacted_by,
            device_nid,
            txn,
            flags,
            json,
            header,
        })
    }

    /// What the event was made from.
    pub fn parts(&self) -> EventParts {
        EventParts {
            nid: self.nid,
            room_nid: self.room_nid,
            pos: self.pos,
            depth: self.depth,
            sender_nid: self.sender_nid,
            key_nid: self.key_nid,
            state_before: self.state_before,
            room_state: self.room_state,
            forked_state: self.forked_state,
            replaces: self.replaces,
            redacted_by: self.redacted_by,
            device_nid: self.device_nid,
            txn: self.txn.clone(),
            flags: self.flags,
        }
    }

    /// The JSON in the federation's format, as received or as signed here.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The type, for example `m.room.message`.
    pub fn event_type(&self) -> &str {
        &self.header.event_type
    }

    /// The sender.
    pub fn sender(&self) -> &OwnedUserId {
        &self.header.sender
    }

    /// The state key; `None` for a message.
    pub fn state_key(&self) -> Option<&str> {
        self.header.state_key.as_deref()
    }

    /// The event that this one redacts, where the room version has it outside the content.
    pub fn redacts(&self) -> Option<&str> {
        self.header.redacts.as_deref()
    }

    /// When the sender's server says that it was made, in milliseconds since 1970.
    pub fn origin_server_ts(&self) -> u64 {
        self.header.origin_server_ts
    }

    /// The content's JSON.
    pub fn content(&self) -> &str {
        self.json.get(self.header.content.clone()).unwrap_or("{}")
    }

    /// True if clients may be shown the event at all.
    pub fn is_shown(&self) -> bool {
        self.flags & (flags::REJECTED | flags::SOFT_FAILED) == 0
    }

    /// True if the event is known only because others refer to it, and its place in the room is not.
    pub fn is_outlier(&self) -> bool {
        self.flags & flags::OUTLIER != 0
    }

    /// The snapshot of the state after the event itself, without what other branches of the graph have.
    pub fn state_after(&self) -> i64 {
        self.forked_state.unwrap_or(self.room_state)
    }

    /// The client's transaction id, if that device sent the event.
    pub fn transaction_id(&self, device_nid: i64) -> Option<&str> {
        if self.device_nid != Some(device_nid) {
            return None;
        }
        self.txn.as_deref()?.split_once(' ').map(|(_, id)| id)
    }

    /// Bytes in memory, for the caches' bounds.
    pub fn weight(&self) -> u64 {
        let text = self.json.len() + self.header.event_type.len() + self.event_id.as_str().len();
        (std::mem::size_of::<Self>() + text + 64) as u64
    }
}
