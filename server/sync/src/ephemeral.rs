//! Typing, receipts and presence: how they are told to clients, and how clients set them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use myelin_store::{Ephemeral, Membership, Receipt, RoomName, Store};
use ruma::{OwnedUserId, UserId, presence::PresenceState};
use serde::Serialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use crate::{
    Error, Presence, Result, Sync,
    live::{Cause, PresenceNotice, SeenNotice, ShownPresence, TypingNotice, rooms_to_name},
    now_ms,
};

/// The longest that someone types without saying so again.
const TYPING_MAX: Duration = Duration::from_secs(120);
/// How long someone types who does not say how long.
const TYPING_DEFAULT: Duration = Duration::from_secs(30);
/// Bytes of a status message at the most, so that it fits into a notification of the database.
const STATUS_BYTES_MAX: usize = 2048;

#[derive(Serialize)]
struct ReceiptContent<'a> {
    ts: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    thread_id: &'a str,
}

type ByUser<'a> = BTreeMap<&'a str, ReceiptContent<'a>>;
type ByEvent<'a> = BTreeMap<&'a str, BTreeMap<&'a str, ByUser<'a>>>;

/// The `m.receipt` events of some rooms: "receipts SHOULD be batched into one event per room and thread".
pub(crate) async fn receipt_events(
    store: &Store,
    receipts: &[Arc<Receipt>],
) -> Result<HashMap<i64, Vec<Box<RawValue>>>> {
    let mut event_nids: Vec<i64> = receipts.iter().map(|receipt| receipt.event_nid).collect();
    let mut user_nids: Vec<i64> = receipts.iter().map(|receipt| receipt.user_nid).collect();
    for nids in [&mut event_nids, &mut user_nids] {
        nids.sort_unstable();
        nids.dedup();
    }
    let events: HashMap<i64, _> =
        store.events(&event_nids).await?.into_iter().map(|event| (event.nid, event)).collect();
    let users: HashMap<i64, OwnedUserId> = user_nids.iter().copied().zip(store.user_ids(&user_nids).await?).collect();

    let mut batches: BTreeMap<(i64, &str), ByEvent<'_>> = BTreeMap::new();
    let mut newest: HashMap<(i64, i64, &str, &str), &Receipt> = HashMap::new();
    for receipt in receipts {
        let key = (receipt.room_nid, receipt.user_nid, &*receipt.receipt_type, &*receipt.thread);
        let known = newest.entry(key).or_insert(receipt);
        if known.event_pos < receipt.event_pos {
            *known = receipt;
        }
    }
    for receipt in newest.into_values() {
        let (Some(event), Some(user)) = (events.get(&receipt.event_nid), users.get(&receipt.user_nid)) else {
            continue;
        };
        batches
            .entry((receipt.room_nid, &*receipt.thread))
            .or_default()
            .entry(event.event_id.as_str())
            .or_default()
            .entry(&*receipt.receipt_type)
            .or_default()
            .insert(user.as_str(), ReceiptContent { ts: receipt.ts, thread_id: &receipt.thread });
    }
    let mut by_room: HashMap<i64, Vec<Box<RawValue>>> = HashMap::new();
    for ((room_nid, _), content) in batches {
        by_room.entry(room_nid).or_default().push(event("m.receipt", &content)?);
    }
    Ok(by_room)
}

/// The `m.typing` event of a room.
pub(crate) async fn typing_event(store: &Store, user_nids: &[i64]) -> Result<Box<RawValue>> {
    event("m.typing", &json!({ "user_ids": store.user_ids(user_nids).await? }))
}

/// The `m.presence` event of a user.
pub(crate) fn presence_event(user_id: &UserId, shown: &ShownPresence) -> Result<Box<RawValue>> {
    #[derive(Serialize)]
    struct Content<'a> {
        presence: &'a PresenceState,
        #[serde(skip_serializing_if = "Option::is_none")]
        status_msg: Option<&'a str>,
        last_active_ago: u64,
        currently_active: bool,
    }
    #[derive(Serialize)]
    struct Event<'a> {
        content: Content<'a>,
        sender: &'a UserId,
        #[serde(rename = "type")]
        event_type: &'a str,
    }
    let Presence { state, status_msg, last_active_ms } = &shown.presence;
    let content = Content {
        presence: state,
        status_msg: status_msg.as_deref(),
        last_active_ago: now_ms().saturating_sub(*last_active_ms),
        currently_active: *state == PresenceState::Online,
    };
    to_raw_value(&Event { content, sender: user_id, event_type: "m.presence" }).map_err(Error::Write)
}

/// An event that is only a type and a content.
pub(crate) fn event(event_type: &str, content: &impl Serialize) -> Result<Box<RawValue>> {
    #[derive(Serialize)]
    struct Event<'a, C> {
        content: &'a C,
        #[serde(rename = "type")]
        event_type: &'a str,
    }
    to_raw_value(&Event { content, event_type }).map_err(Error::Write)
}

impl Sync {
    /// Says that a user types in a room, or (`typing: false`) has stopped to.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the user is not in the room.
    pub async fn set_typing(
        &self,
        room: &RoomName,
        user_nid: i64,
        typing: bool,
        timeout: Option<Duration>,
    ) -> Result<()> {
        self.require_joined(room.nid, user_nid).await?;
        let timeout = timeout.unwrap_or(TYPING_DEFAULT).min(TYPING_MAX);
        let timeout_ms = if typing { timeout.as_millis() as u64 } else { 0 };
        let notice = TypingNotice { room: room.nid, user: user_nid, timeout_ms };
        self.rouse(user_nid);
        self.pass("typing", &notice)
    }

    /// Sets a user's presence.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the status message is too long.
    pub async fn set_presence(&self, user_nid: i64, state: PresenceState, status_msg: Option<String>) -> Result<()> {
        self.set_presence_as_of(user_nid, state, status_msg, None).await
    }

    /// [`Self::set_presence`] of a user who was last active so long ago, as their own server says.
    ///
    /// # Errors
    ///
    /// Those of [`Self::set_presence`].
    pub async fn set_presence_as_of(
        &self,
        user_nid: i64,
        state: PresenceState,
        status_msg: Option<String>,
        last_active_ago: Option<Duration>,
    ) -> Result<()> {
        if status_msg.as_ref().is_some_and(|status| status.len() > STATUS_BYTES_MAX) {
            return Err(Error::InvalidParam(format!("a status message has at most {STATUS_BYTES_MAX} bytes")));
        }
        if !self.options.presence {
            return Ok(());
        }
        let now = now_ms();
        let Some(ago) = last_active_ago else { return self.tell_presence(user_nid, state, status_msg, now).await };
        let active_ms = now.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
        self.tell_activity(user_nid, state, status_msg, active_ms).await
    }

    /// A user's presence, as another user may know it; offline where it is not known.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the two share no room.
    pub async fn presence(&self, viewer_nid: i64, user_nid: i64) -> Result<Presence> {
        if viewer_nid != user_nid {
            let theirs = self.joined_rooms_of(user_nid).await?;
            let ours = self.joined_rooms_of(viewer_nid).await?;
            if !theirs.iter().any(|room_nid| ours.contains(room_nid)) {
                return Err(Error::Forbidden("you share no room with this user"));
            }
        }
        let known = self.live.presence(user_nid);
        Ok(known.unwrap_or(Presence { state: PresenceState::Offline, status_msg: None, last_active_ms: 0 }))
    }

    pub(crate) async fn tell_presence(
        &self,
        user_nid: i64,
        state: PresenceState,
        status_msg: Option<String>,
        now: u64,
    ) -> Result<()> {
        let active_ms = match state {
            PresenceState::Online => now,
            _ => self.live.presence(user_nid).map_or(now, |presence| presence.last_active_ms),
        };
        self.tell_activity(user_nid, state, status_msg, active_ms).await
    }

    async fn tell_activity(
        &self,
        user_nid: i64,
        state: PresenceState,
        status_msg: Option<String>,
        active_ms: u64,
    ) -> Result<()> {
        let rooms = rooms_to_name(self.joined_rooms_of(user_nid).await?);
        let user_id = self.store.user_id(user_nid).await?;
        self.pass_presence(&PresenceNotice {
            origin: self.live.origin(),
            cause: Cause::Set,
            user: user_nid,
            user_id: user_id.as_str().into(),
            presence: state,
            status_msg,
            active_ms,
            idle: false,
            rooms,
        })
    }

    pub(crate) fn pass_presence(&self, notice: &PresenceNotice) -> Result<()> {
        self.pass("presence", notice)
    }

    pub(crate) fn pass_seen(&self, notice: &SeenNotice) -> Result<()> {
        self.pass("seen", notice)
    }

    pub(crate) async fn require_joined(&self, room_nid: i64, user_nid: i64) -> Result<()> {
        let member = self.store.member(room_nid, user_nid).await?;
        match member.is_some_and(|member| member.membership == Membership::Join) {
            true => Ok(()),
            false => Err(Error::Forbidden("you are not in this room")),
        }
    }

    /// Notes that a user has done something.
    pub(crate) fn rouse(&self, user_nid: i64) {
        let rooms = self.live.note_activity([user_nid], now_ms());
        if !rooms.is_empty() {
            self.index.wake_rooms(rooms);
        }
    }

    async fn joined_rooms_of(&self, user_nid: i64) -> Result<Vec<i64>> {
        if self.index.is_loaded(user_nid) {
            return Ok(self.index.joined_rooms(user_nid));
        }
        let members = self.store.memberships(user_nid).await?;
        let joined = members.iter().filter(|member| member.membership == Membership::Join);
        Ok(joined.map(|member| member.room_nid).collect())
    }

    fn pass(&self, kind: &str, notice: &impl Serialize) -> Result<()> {
        let json = serde_json::to_string(notice).map_err(Error::Write)?;
        self.store.pass(&Ephemeral { kind: kind.to_owned(), json });
        Ok(())
    }
}
