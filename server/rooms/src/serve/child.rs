//! What a space says of one of its rooms.

use std::sync::Arc;

use myelin_store::Event;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, SpaceChildOrder};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, Result};

/// Children of a space that are looked at; others are left out.
pub(super) const CHILDREN_MAX: usize = 1000;
/// Servers of a child that are asked for it at the most.
const VIA_MAX: usize = 3;

/// A child of a space, as the `m.space.child` event has it.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) room_id: OwnedRoomId,
    /// Servers that may know the room.
    pub(super) via: Vec<OwnedServerName>,
    order: Option<String>,
    sender: OwnedUserId,
    content: Box<RawValue>,
    origin_server_ts: u64,
}

/// "represented as Stripped State Events with an added `origin_server_ts` key"
#[derive(Serialize)]
struct Stripped<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    state_key: &'a str,
    content: &'a RawValue,
    sender: &'a str,
    origin_server_ts: u64,
}

/// The same from another server.
#[derive(Deserialize)]
struct StrippedChild {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
    content: Box<RawValue>,
    sender: OwnedUserId,
    origin_server_ts: u64,
}

impl Child {
    /// `None` when the event says of no room that it belongs to the space.
    pub(super) fn of_event(event: &Arc<Event>, suggested_only: bool) -> Option<Self> {
        let content = serde_json::from_str(event.content()).ok()?;
        Self::new(event.state_key()?, event.sender().clone(), content, event.origin_server_ts(), suggested_only)
    }

    /// The same, of an event that another server tells of.
    pub(super) fn of_stripped(json: &RawValue, suggested_only: bool) -> Option<Self> {
        let child: StrippedChild = serde_json::from_str(json.get()).ok()?;
        if child.event_type != "m.space.child" {
            return None;
        }
        Self::new(&child.state_key, child.sender, child.content, child.origin_server_ts, suggested_only)
    }

    fn new(
        room_id: &str,
        sender: OwnedUserId,
        content: Box<RawValue>,
        origin_server_ts: u64,
        suggested_only: bool,
    ) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: Vec<String>,
            order: Option<serde_json::Value>,
            suggested: Option<serde_json::Value>,
        }
        let said: Content = serde_json::from_str(content.get()).ok()?;
        let is_suggested = said.suggested.and_then(|suggested| suggested.as_bool()).unwrap_or(false);
        if said.via.is_empty() || suggested_only && !is_suggested {
            return None;
        }
        let via = said.via.iter().filter_map(|server| OwnedServerName::try_from(server.as_str()).ok());
        let order = said.order.as_ref().and_then(|order| order.as_str());
        // "`order` values with the wrong type, or otherwise invalid contents, are to be treated as though the `order`
        // key was not provided."
        let order = order.filter(|order| <&SpaceChildOrder>::try_from(*order).is_ok()).map(str::to_owned);
        let via = via.take(VIA_MAX).collect();
        Some(Self { room_id: RoomId::parse(room_id).ok()?, via, order, sender, content, origin_server_ts })
    }

    /// Children with an order first, by that; then by the age of the event, then by the room's id.
    fn sort_key(&self) -> (bool, Option<&str>, u64, &str) {
        (self.order.is_none(), self.order.as_deref(), self.origin_server_ts, self.room_id.as_str())
    }

    /// As clients and servers are told of it.
    pub(super) fn stripped(&self) -> Result<Box<RawValue>> {
        let stripped = Stripped {
            event_type: "m.space.child",
            state_key: self.room_id.as_str(),
            content: &self.content,
            sender: self.sender.as_str(),
            origin_server_ts: self.origin_server_ts,
        };
        serde_json::value::to_raw_value(&stripped).map_err(Error::Corrupt)
    }

    /// About the bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        256 + self.content.get().len()
    }
}

/// Children in the order that the specification gives them, as far as they are looked at.
pub(super) fn in_order(mut children: Vec<Child>) -> Vec<Child> {
    children.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    children.truncate(CHILDREN_MAX);
    children
}
