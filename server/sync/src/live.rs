//! What passes by and is not kept: who types, who is there.
//!
//! Each change gets a serial number: the time in milliseconds, or one more than the last. So the tokens of another
//! replica, or of this process before a restart, still compare well enough.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
};

use parking_lot::Mutex;
use ruma::presence::PresenceState;
use serde::{Deserialize, Serialize};

/// Rooms in which nobody types any more that are remembered, to tell clients so.
const QUIET_ROOMS_MAX: usize = 10_000;
/// Milliseconds without a sync after which a user counts as offline.
const OFFLINE_AFTER_MS: u64 = 30_000;
/// "The server will automatically set a user's presence to unavailable if their last active time was over a threshold
/// value (e.g. 5 minutes)."
const IDLE_AFTER_MS: u64 = 5 * 60_000;
/// Rooms that are named to other replicas with a user's presence.
const ROOMS_NAMED_MAX: usize = 400;

/// Someone types, or has stopped to (`timeout_ms` 0), as replicas tell each other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct TypingNotice {
    pub(crate) room: i64,
    pub(crate) user: i64,
    pub(crate) timeout_ms: u64,
}

/// A user's presence, as replicas tell each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PresenceNotice {
    /// Which replica looks after the user.
    pub(crate) origin: u64,
    pub(crate) user: i64,
    pub(crate) presence: PresenceState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status_msg: Option<String>,
    /// When the user last did something, in milliseconds since 1970.
    pub(crate) active_ms: u64,
    /// The rooms that the user is in, at most [`ROOMS_NAMED_MAX`] of them.
    pub(crate) rooms: Vec<i64>,
}

/// How a user shows to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Online, unavailable or offline.
    pub state: PresenceState,
    /// What the user says about it.
    pub status_msg: Option<String>,
    /// When the user last did something, in milliseconds since 1970.
    pub last_active_ms: u64,
}

#[derive(Debug)]
struct Shown {
    presence: Presence,
    serial: u64,
    rooms: Arc<HashSet<i64>>,
    /// When the user was last seen syncing here; `None` when another replica looks after the user.
    seen_ms: Option<u64>,
    /// Whether the state was set because the user did nothing.
    idle: bool,
}

#[derive(Debug, Default)]
struct RoomTyping {
    serial: u64,
    /// By user, until when.
    users: BTreeMap<i64, u64>,
}

/// What has changed after a serial number.
#[derive(Debug, Default)]
pub(crate) struct LiveNews {
    /// The last serial number that this covers.
    pub(crate) to: u64,
    /// By room, who types.
    pub(crate) typing: Vec<(i64, Vec<i64>)>,
    pub(crate) presence: Vec<ShownPresence>,
}

#[derive(Clone, Debug)]
pub(crate) struct ShownPresence {
    pub(crate) user_nid: i64,
    pub(crate) presence: Presence,
    pub(crate) rooms: Arc<HashSet<i64>>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    typing: HashMap<i64, RoomTyping>,
    typing_order: BTreeMap<u64, i64>,
    presence: HashMap<i64, Shown>,
    presence_order: BTreeMap<u64, i64>,
}

#[derive(Debug)]
pub(crate) struct Live {
    inner: Mutex<Inner>,
    /// A number that no other replica has.
    origin: u64,
}

impl Default for Live {
    fn default() -> Self {
        Self { inner: Mutex::default(), origin: RandomState::new().build_hasher().finish() }
    }
}

impl Live {
    /// The number by which others know what comes from here.
    pub(crate) fn origin(&self) -> u64 {
        self.origin
    }

    /// Notes who types; true if that changes what others see.
    pub(crate) fn note_typing(&self, notice: TypingNotice, now_ms: u64) -> bool {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let room = inner.typing.entry(notice.room).or_default();
        let changed = if notice.timeout_ms == 0 {
            room.users.remove(&notice.user).is_some()
        } else {
            room.users.insert(notice.user, now_ms.saturating_add(notice.timeout_ms)).is_none()
        };
        if changed {
            inner.typing_changed(notice.room, now_ms);
        } else if room.serial == 0 {
            inner.typing.remove(&notice.room);
        }
        changed
    }

    /// Ends what has lasted long enough; the rooms that this changes.
    pub(crate) fn expire_typing(&self, now_ms: u64) -> Vec<i64> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mut changed = Vec::new();
        for (&room_nid, room) in &mut inner.typing {
            let before = room.users.len();
            room.users.retain(|_, until| *until > now_ms);
            if room.users.len() != before {
                changed.push(room_nid);
            }
        }
        for &room_nid in &changed {
            inner.typing_changed(room_nid, now_ms);
        }
        if inner.typing.len() > QUIET_ROOMS_MAX {
            let surplus = inner.typing.len() - QUIET_ROOMS_MAX;
            let quiet = inner.typing_order.iter().filter(|(_, room)| inner.typing[*room].users.is_empty());
            let quiet: Vec<(u64, i64)> = quiet.take(surplus).map(|(serial, room)| (*serial, *room)).collect();
            for (serial, room_nid) in quiet {
                inner.typing_order.remove(&serial);
                inner.typing.remove(&room_nid);
            }
        }
        changed
    }

    /// What has changed after a serial number; for `None` all that is.
    pub(crate) fn news(&self, since: Option<u64>, with_presence: bool) -> LiveNews {
        let inner = self.inner.lock();
        let after = since.map_or(0, |since| since.saturating_add(1));
        let mut news = LiveNews { to: inner.last.max(since.unwrap_or(0)), ..LiveNews::default() };
        for room_nid in inner.typing_order.range(after..).map(|(_, room_nid)| *room_nid) {
            let users: Vec<i64> = inner.typing[&room_nid].users.keys().copied().collect();
            if since.is_some() || !users.is_empty() {
                news.typing.push((room_nid, users));
            }
        }
        if with_presence {
            let changed = inner.presence_order.range(after..).map(|(_, user_nid)| *user_nid);
            news.presence = changed.map(|user_nid| inner.presence[&user_nid].shown(user_nid)).collect();
        }
        news
    }

    /// The presence of those who are in some rooms.
    pub(crate) fn presence_in(&self, room_nids: &[i64]) -> Vec<ShownPresence> {
        let inner = self.inner.lock();
        let there = |shown: &Shown| room_nids.iter().any(|room_nid| shown.rooms.contains(room_nid));
        let shown = inner.presence.iter().filter(|(_, shown)| there(shown));
        shown.map(|(user_nid, shown)| shown.shown(*user_nid)).collect()
    }

    /// A user's presence, if the user was there since this process started.
    pub(crate) fn presence(&self, user_nid: i64) -> Option<Presence> {
        self.inner.lock().presence.get(&user_nid).map(|shown| shown.presence.clone())
    }

    /// Notes presence that was set, here or elsewhere; the rooms where it shows.
    pub(crate) fn note_presence(&self, notice: PresenceNotice, now_ms: u64) -> Arc<HashSet<i64>> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let serial = inner.next(now_ms);
        let rooms: Arc<HashSet<i64>> = Arc::new(notice.rooms.into_iter().collect());
        let presence =
            Presence { state: notice.presence, status_msg: notice.status_msg, last_active_ms: notice.active_ms };
        let shown = Shown {
            presence,
            serial,
            rooms: rooms.clone(),
            seen_ms: (notice.origin == self.origin).then_some(now_ms),
            idle: false,
        };
        if let Some(before) = inner.presence.insert(notice.user, shown) {
            inner.presence_order.remove(&before.serial);
        }
        inner.presence_order.insert(serial, notice.user);
        rooms
    }

    /// Notes that a user syncs. True if that makes the user's presence another one, which the caller then sets.
    pub(crate) fn note_sync(&self, user_nid: i64, wanted: &PresenceState, now_ms: u64) -> bool {
        let mut inner = self.inner.lock();
        let Some(shown) = inner.presence.get_mut(&user_nid) else { return *wanted != PresenceState::Offline };
        if *wanted == PresenceState::Offline {
            return false;
        }
        shown.seen_ms = Some(now_ms);
        // Syncing is no activity: who is idle stays so.
        shown.presence.state != *wanted && !(shown.idle && *wanted == PresenceState::Online)
    }

    /// Notes that a user is still there, at the end of a sync.
    pub(crate) fn note_seen(&self, user_nid: i64, now_ms: u64) {
        if let Some(shown) = self.inner.lock().presence.get_mut(&user_nid)
            && shown.seen_ms.is_some()
        {
            shown.seen_ms = Some(now_ms);
        }
    }

    /// Notes that users have done something; the rooms to tell where somebody is not idle any more.
    pub(crate) fn note_activity(&self, user_nids: impl IntoIterator<Item = i64>, now_ms: u64) -> Vec<i64> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mut rooms = Vec::new();
        for user_nid in user_nids {
            let Some(shown) = inner.presence.get_mut(&user_nid) else { continue };
            shown.presence.last_active_ms = now_ms;
            if shown.idle {
                shown.idle = false;
                shown.presence.state = PresenceState::Online;
                rooms.extend(shown.rooms.iter().copied());
                inner.presence_changed(user_nid, now_ms);
            }
        }
        rooms
    }

    /// Notes that a user is in one more room, whose members then learn of the user.
    pub(crate) fn note_join(&self, user_nid: i64, room_nid: i64, now_ms: u64) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if let Some(shown) = inner.presence.get_mut(&user_nid)
            && !shown.rooms.contains(&room_nid)
        {
            Arc::make_mut(&mut shown.rooms).insert(room_nid);
            inner.presence_changed(user_nid, now_ms);
        }
    }

    /// The users whom this replica looks after and who have gone away or idle, with what is to be told of them.
    pub(crate) fn sweep_presence(&self, is_waiting: impl Fn(i64) -> bool, now_ms: u64) -> Vec<PresenceNotice> {
        let mut guard = self.inner.lock();
        let mut notices = Vec::new();
        for (&user_nid, shown) in &mut guard.presence {
            let Some(seen_ms) = shown.seen_ms.filter(|_| shown.presence.state != PresenceState::Offline) else {
                continue;
            };
            let gone = !is_waiting(user_nid) && now_ms.saturating_sub(seen_ms) > OFFLINE_AFTER_MS;
            let idle = shown.presence.state == PresenceState::Online
                && now_ms.saturating_sub(shown.presence.last_active_ms) > IDLE_AFTER_MS;
            let state = match (gone, idle) {
                (true, _) => PresenceState::Offline,
                (false, true) => PresenceState::Unavailable,
                (false, false) => continue,
            };
            let mut rooms: Vec<i64> = shown.rooms.iter().copied().collect();
            rooms.truncate(ROOMS_NAMED_MAX);
            notices.push(PresenceNotice {
                origin: self.origin,
                user: user_nid,
                presence: state,
                status_msg: shown.presence.status_msg.clone(),
                active_ms: shown.presence.last_active_ms,
                rooms,
            });
        }
        notices
    }

    /// Marks that a user's presence was changed for want of activity.
    pub(crate) fn mark_idle(&self, user_nid: i64) {
        if let Some(shown) = self.inner.lock().presence.get_mut(&user_nid) {
            shown.idle = shown.presence.state == PresenceState::Unavailable;
        }
    }
}

impl Shown {
    fn shown(&self, user_nid: i64) -> ShownPresence {
        ShownPresence { user_nid, presence: self.presence.clone(), rooms: self.rooms.clone() }
    }
}

impl Inner {
    fn next(&mut self, now_ms: u64) -> u64 {
        self.last = now_ms.max(self.last + 1);
        self.last
    }

    fn typing_changed(&mut self, room_nid: i64, now_ms: u64) {
        let serial = self.next(now_ms);
        if let Some(room) = self.typing.get_mut(&room_nid) {
            self.typing_order.remove(&room.serial);
            room.serial = serial;
            self.typing_order.insert(serial, room_nid);
        }
    }

    fn presence_changed(&mut self, user_nid: i64, now_ms: u64) {
        let serial = self.next(now_ms);
        if let Some(shown) = self.presence.get_mut(&user_nid) {
            self.presence_order.remove(&shown.serial);
            shown.serial = serial;
            self.presence_order.insert(serial, user_nid);
        }
    }
}

/// The rooms to name with a user's presence.
pub(crate) fn rooms_to_name(mut rooms: Vec<i64>) -> Vec<i64> {
    rooms.truncate(ROOMS_NAMED_MAX);
    rooms
}

#[cfg(test)]
mod tests {
    use ruma::presence::PresenceState;

    use super::{Live, PresenceNotice, TypingNotice};

    fn typing(user: i64, timeout_ms: u64) -> TypingNotice {
        TypingNotice { room: 1, user, timeout_ms }
    }

    /// Typing shows once, ends by itself, and its end is told to those who know of it.
    #[test]
    fn typing_begins_and_ends() {
        let live = Live::default();
        let start = live.news(None, false).to;
        assert!(live.note_typing(typing(7, 500), 1_000));
        assert!(!live.note_typing(typing(7, 1_000), 1_100), "going on is no change");
        let began = live.news(Some(start), false);
        assert_eq!(began.typing, [(1, vec![7])]);
        assert!(live.news(Some(began.to), false).typing.is_empty());
        assert!(live.expire_typing(2_000).is_empty(), "it was prolonged");
        assert_eq!(live.expire_typing(2_100), [1]);
        assert_eq!(live.news(Some(began.to), false).typing, [(1, vec![])]);
        assert!(live.news(None, false).typing.is_empty(), "an initial sync needs no empty list");
    }

    /// Users who are gone become offline, those who do nothing unavailable; what they do makes them online.
    #[test]
    fn presence_goes_by_itself() {
        let live = Live::default();
        assert!(live.note_sync(7, &PresenceState::Online, 0));
        let notice = |presence| PresenceNotice {
            origin: live.origin(),
            user: 7,
            presence,
            status_msg: None,
            active_ms: 0,
            rooms: vec![1],
        };
        live.note_presence(notice(PresenceState::Online), 0);
        assert!(!live.note_sync(7, &PresenceState::Online, 1));
        assert!(live.sweep_presence(|_| true, 100_000).is_empty());
        let idle = live.sweep_presence(|_| true, 400_000);
        assert_eq!(idle[0].presence, PresenceState::Unavailable);
        live.note_presence(idle[0].clone(), 400_000);
        live.mark_idle(7);
        assert!(!live.note_sync(7, &PresenceState::Online, 400_001), "a sync is no activity");
        assert_eq!(live.note_activity([7], 400_002), [1]);
        assert_eq!(live.presence(7).unwrap().state, PresenceState::Online);
        let gone = live.sweep_presence(|_| false, 500_000);
        assert_eq!(gone[0].presence, PresenceState::Offline);
    }
}
