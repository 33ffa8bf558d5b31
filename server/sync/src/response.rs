//! The shape of an answer of `/sync`. Events are JSON already and go out as they are.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::RawValue;

/// A list of events, wrapped as the specification has it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Events {
    pub(crate) events: Vec<Box<RawValue>>,
}

impl Events {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Answer {
    pub(crate) next_batch: String,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) account_data: Events,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) presence: Events,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) to_device: Events,
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub(crate) device_lists: DeviceLists,
    #[serde(flatten)]
    pub(crate) keys: Arc<KeysLeft>,
    #[serde(skip_serializing_if = "RoomSections::is_empty")]
    pub(crate) rooms: RoomSections,
}

impl Answer {
    /// True if a client learns nothing from it but the next token.
    pub(crate) fn is_empty(&self) -> bool {
        self.account_data.is_empty()
            && self.presence.is_empty()
            && self.rooms.is_empty()
            && self.to_device.is_empty()
            && self.device_lists.is_empty()
    }
}

/// Whose keys a client has to ask for again, and who is none of its business any more.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceLists {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) changed: Vec<OwnedUserId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) left: Vec<OwnedUserId>,
}

impl DeviceLists {
    pub(crate) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// The keys of the device that others can still claim. The counts are always there: clients take it for none if one is
/// missing, or for a server that does not tell.
#[derive(Debug, Default, Serialize)]
pub(crate) struct KeysLeft {
    pub(crate) device_one_time_keys_count: BTreeMap<String, i64>,
    pub(crate) device_unused_fallback_key_types: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct RoomSections {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) join: BTreeMap<OwnedRoomId, JoinedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) invite: BTreeMap<OwnedRoomId, InvitedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) knock: BTreeMap<OwnedRoomId, KnockedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) leave: BTreeMap<OwnedRoomId, LeftRoom>,
}

impl RoomSections {
    fn is_empty(&self) -> bool {
        self.join.is_empty() && self.invite.is_empty() && self.knock.is_empty() && self.leave.is_empty()
    }
}

/// The state, under the name that the client asked for.
#[derive(Debug, Serialize)]
pub(crate) enum State {
    #[serde(rename = "state")]
    Before(Events),
    #[serde(rename = "state_after")]
    After(Events),
    #[serde(rename = "org.matrix.msc4222.state_after")]
    AfterUnstable(Events),
}

impl State {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Before(events) | Self::After(events) | Self::AfterUnstable(events) => events.is_empty(),
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Timeline {
    pub(crate) events: Vec<Box<RawValue>>,
    pub(crate) limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prev_batch: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct RoomSummary {
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    pub(crate) heroes: Option<Vec<OwnedUserId>>,
    #[serde(rename = "m.joined_member_count", skip_serializing_if = "Option::is_none")]
    pub(crate) joined: Option<u64>,
    #[serde(rename = "m.invited_member_count", skip_serializing_if = "Option::is_none")]
    pub(crate) invited: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct UnreadNotifications {
    pub(crate) highlight_count: u64,
    pub(crate) notification_count: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct JoinedRoom {
    pub(crate) summary: RoomSummary,
    #[serde(flatten)]
    pub(crate) state: State,
    pub(crate) timeline: Timeline,
    pub(crate) ephemeral: Events,
    pub(crate) account_data: Events,
    pub(crate) unread_notifications: UnreadNotifications,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) unread_thread_notifications: BTreeMap<OwnedEventId, UnreadNotifications>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LeftRoom {
    #[serde(flatten)]
    pub(crate) state: State,
    pub(crate) timeline: Timeline,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) account_data: Events,
}

#[derive(Debug, Serialize)]
pub(crate) struct InvitedRoom {
    pub(crate) invite_state: Events,
}

#[derive(Debug, Serialize)]
pub(crate) struct KnockedRoom {
    pub(crate) knock_state: Events,
}
