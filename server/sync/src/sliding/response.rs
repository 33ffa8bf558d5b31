//! The shape of an answer of sliding sync.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::response::{DeviceLists, KeysLeft};

#[derive(Debug, Default, Serialize)]
pub(super) struct SlidingAnswer {
    pub(super) pos: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) txn_id: Option<String>,
    pub(super) lists: BTreeMap<Box<str>, Count>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) rooms: BTreeMap<OwnedRoomId, RoomAnswer>,
    pub(super) extensions: ExtensionsAnswer,
}

impl SlidingAnswer {
    /// True if a client learns nothing from it but the next position.
    pub(super) fn is_empty(&self) -> bool {
        let ExtensionsAnswer { to_device, e2ee, account_data, receipts, typing } = &self.extensions;
        self.rooms.is_empty()
            && to_device.as_ref().is_none_or(|to_device| to_device.events.is_empty())
            && e2ee.as_ref().is_none_or(|e2ee| e2ee.device_lists.is_empty())
            && account_data.is_empty()
            && receipts.is_empty()
            && typing.is_empty()
    }
}

/// How many rooms are in a list, in the window or not.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Count {
    pub(super) count: usize,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct RoomAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bump_stamp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) membership: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) lists: Vec<Box<str>>,
    /// The inner `None` where there is none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) avatar: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) heroes: Option<Vec<Hero>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) is_dm: Option<bool>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) initial: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) expanded_timeline: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) unstable_expanded_timeline: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) required_state: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) timeline: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prev_batch: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) invited_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) notification_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) highlight_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) invite_state: Option<Vec<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stripped_state: Option<Vec<Box<RawValue>>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

/// One who could give a room a name.
#[derive(Debug, Serialize)]
pub(super) struct Hero {
    pub(super) user_id: OwnedUserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) displayname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) avatar_url: Option<String>,
}

/// A piece of state that is no more.
#[derive(Debug, Serialize)]
pub(super) struct StateStub<'a> {
    #[serde(rename = "type")]
    pub(super) event_type: &'a str,
    pub(super) state_key: &'a str,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct ExtensionsAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to_device: Option<ToDeviceAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) e2ee: Option<E2eeAnswer>,
    #[serde(skip_serializing_if = "AccountDataAnswer::is_empty")]
    pub(super) account_data: AccountDataAnswer,
    #[serde(skip_serializing_if = "ByRoom::is_empty")]
    pub(super) receipts: ByRoom,
    #[serde(skip_serializing_if = "ByRoom::is_empty")]
    pub(super) typing: ByRoom,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct ToDeviceAnswer {
    pub(super) next_batch: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<Box<RawValue>>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct E2eeAnswer {
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub(super) device_lists: DeviceLists,
    #[serde(flatten)]
    pub(super) keys: Arc<KeysLeft>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct AccountDataAnswer {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) global: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) rooms: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
}

impl AccountDataAnswer {
    fn is_empty(&self) -> bool {
        self.global.is_empty() && self.rooms.is_empty()
    }
}

/// One event a room.
#[derive(Debug, Default, Serialize)]
pub(super) struct ByRoom {
    pub(super) rooms: BTreeMap<OwnedRoomId, Box<RawValue>>,
}

impl ByRoom {
    fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}
