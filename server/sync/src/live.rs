//! What passes by and is not kept: who types, who is there.
//!
//! Each change gets a serial number: the time in milliseconds, or one more than the last. So the tokens of another
//! replica, or of this process before a restart, still compare well enough.
//!
//! A user may sync at several replicas. Each of them says now and then whom it sees, and says so when it sees someone no
//! more; the last one to see a user makes them offline. Whom nobody has seen for a while, because a replica died, is
//! offline too.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
};

use myelin_store::Membership;
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
/// Milliseconds between two notices that a user is still seen at a replica.
const RENEW_AFTER_MS: u64 = 60_000;
/// Milliseconds without such a notice after which another replica does not see a user any more.
const FORGET_AFTER_MS: u64 = 3 * RENEW_AFTER_MS;
/// Users whose presence is told anew at once, when another replica has missed it.
const ANEW_MAX: usize = 400;
/// Users whom one notice names.
const SEEN_NAMED_MAX: usize = 400;
/// Rooms that are named to other replicas with a user's presence.
const ROOMS_NAMED_MAX: usize = 400;

/// Someone types, or has stopped to (`timeout_ms` 0), as replicas tell each other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct TypingNotice {
    pub(crate) room: i64,
    pub(crate) user: i64,
    pub(crate) timeout_ms: u64,
}

/// Why a user's presence is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// The user, or a client of the user, has set it.
    Set,
    /// The user was not seen, or did nothing, for a while.
    Swept,
    /// Another replica may have missed it.
    Anew,
}

/// A user's presence, as replicas tell each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PresenceNotice {
    /// The replica that tells it, where the user is seen.
    pub(crate) origin: u64,
    pub(crate) cause: Cause,
    pub(crate) user: i64,
    pub(crate) user_id: Box<str>,
    pub(crate) presence: PresenceState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status_msg: Option<String>,
    /// When the user last did something, in milliseconds since 1970.
    pub(crate) active_ms: u64,
    /// Whether the state was set because the user did nothing.
    pub(crate) idle: bool,
    /// The rooms that the user is in, at most [`ROOMS_NAMED_MAX`] of them.
    pub(crate) rooms: Vec<i64>,
}

/// Whom a replica sees, as replicas tell each other.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SeenNotice {
    pub(crate) origin: u64,
    /// Users seen there, for the first time or still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) here: Vec<i64>,
    /// Users seen there no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gone: Vec<i64>,
    /// Whether the others are to say anew whom they see: this one could not hear them.
    #[serde(default)]
    pub(crate) asks: bool,
}

/// What a sync makes of a user's presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// Nothing.
    Known,
    /// The user was seen at other replicas only, which are to know.
    Moved,
    /// The presence is another one, which is to be set.
    Changed,
}

/// What a look at everyone's presence has found.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// To be told of those who have gone away or idle.
    pub(crate) presence: Vec<PresenceNotice>,
    /// To be told to other replicas.
    pub(crate) seen: Vec<SeenNotice>,
    /// The rooms of those whom no replica sees any more.
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
    user_id: Box<str>,
    rooms: Arc<HashSet<i64>>,
    /// When the user was last seen syncing here; `None` when only other replicas see the user.
    seen_ms: Option<u64>,
    /// When the others were last told of that.
    told_ms: u64,
    /// The other replicas that see the user, and when they last said so.
    elsewhere: Vec<(u64, u64)>,
    /// Whether the state was set because the user did nothing.
    idle: bool,
    /// Whether another replica may take the user's presence for another one.
    doubted: bool,
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
    /// The users in `presence`, by their identifiers.
    names: HashMap<Box<str>, i64>,
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

    /// Notes presence that was told, here or elsewhere; the rooms where that makes a difference.
    pub(crate) fn note_presence(&self, notice: PresenceNotice, now_ms: u64) -> Arc<HashSet<i64>> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let is_ours = notice.origin == self.origin;
        let is_offline = notice.presence == PresenceState::Offline;
        let (mut seen_ms, mut told_ms, mut elsewhere) = (None, 0, Vec::new());
        if let Some(before) = inner.presence.get_mut(&notice.user) {
            before.elsewhere.retain(|(origin, _)| *origin != notice.origin);
            let is_seen = (!is_ours && before.seen_ms.is_some()) || !before.elsewhere.is_empty();
            if is_offline && notice.cause == Cause::Swept && is_seen {
                // That replica sees the user no more, but others do, and it has not heard so.
                before.doubted |= !is_ours && before.seen_ms.is_some();
                before.seen_ms = before.seen_ms.filter(|_| !is_ours);
                return Arc::default();
            }
            if notice.cause == Cause::Anew && before.says(&notice) {
                if !is_ours {
                    before.elsewhere.push((notice.origin, now_ms));
                }
                return Arc::default();
            }
            (seen_ms, told_ms) = (before.seen_ms, before.told_ms);
            elsewhere = std::mem::take(&mut before.elsewhere);
        }
        match (is_ours, notice.cause) {
            _ if is_offline => {
                seen_ms = None;
                elsewhere.clear();
            }
            (true, Cause::Set) => (seen_ms, told_ms) = (Some(now_ms), now_ms),
            (true, Cause::Swept | Cause::Anew) => told_ms = now_ms,
            (false, _) => elsewhere.push((notice.origin, now_ms)),
        }
        let serial = inner.next(now_ms);
        let rooms: Arc<HashSet<i64>> = Arc::new(notice.rooms.into_iter().collect());
        let presence =
            Presence { state: notice.presence, status_msg: notice.status_msg, last_active_ms: notice.active_ms };
        inner.names.insert(notice.user_id.clone(), notice.user);
        let shown = Shown {
            presence,
            serial,
            user_id: notice.user_id,
            rooms: rooms.clone(),
            seen_ms,
            told_ms,
            elsewhere,
            idle: notice.idle,
            doubted: false,
        };
        if let Some(before) = inner.presence.insert(notice.user, shown) {
            inner.presence_order.remove(&before.serial);
        }
        inner.presence_order.insert(serial, notice.user);
        rooms
    }

    /// Notes whom another replica sees.
    pub(crate) fn note_seen_elsewhere(&self, notice: &SeenNotice, now_ms: u64) {
        if notice.origin == self.origin {
            return;
        }
        let mut inner = self.inner.lock();
        for user_nid in &notice.here {
            if let Some(shown) = inner.presence.get_mut(user_nid) {
                shown.elsewhere.retain(|(origin, _)| *origin != notice.origin);
                shown.elsewhere.push((notice.origin, now_ms));
            }
        }
        for user_nid in &notice.gone {
            if let Some(shown) = inner.presence.get_mut(user_nid) {
                shown.elsewhere.retain(|(origin, _)| *origin != notice.origin);
            }
        }
        if notice.asks {
            for shown in inner.presence.values_mut() {
                shown.doubted |= shown.seen_ms.is_some();
            }
        }
    }

    /// Notes that a user syncs.
    pub(crate) fn note_sync(&self, user_nid: i64, wanted: &PresenceState, now_ms: u64) -> Sighting {
        let mut inner = self.inner.lock();
        if *wanted == PresenceState::Offline {
            return Sighting::Known;
        }
        let Some(shown) = inner.presence.get_mut(&user_nid) else { return Sighting::Changed };
        let was_seen = shown.seen_ms.replace(now_ms).is_some();
        // Syncing is no activity: who is idle stays so.
        if shown.presence.state != *wanted && !(shown.idle && *wanted == PresenceState::Online) {
            return Sighting::Changed;
        }
        if was_seen {
            return Sighting::Known;
        }
        shown.told_ms = now_ms;
        Sighting::Moved
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

    /// Notes that a user came into a room, whose members then learn of the user, or is not in it any more.
    pub(crate) fn note_member(&self, user_id: &str, room_nid: i64, membership: Membership, now_ms: u64) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(&user_nid) = inner.names.get(user_id) else { return };
        let Some(shown) = inner.presence.get_mut(&user_nid) else { return };
        let is_joined = membership == Membership::Join;
        if shown.rooms.contains(&room_nid) == is_joined {
            return;
        }
        if is_joined {
            Arc::make_mut(&mut shown.rooms).insert(room_nid);
            inner.presence_changed(user_nid, now_ms);
        } else {
            Arc::make_mut(&mut shown.rooms).remove(&room_nid);
        }
    }

    /// Looks who has gone away or idle, and what other replicas are to be told of those who have not.
    pub(crate) fn sweep_presence(&self, is_waiting: impl Fn(i64) -> bool, now_ms: u64) -> Swept {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mut swept = Swept::default();
        let (mut here, mut gone, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let mut anew = 0;
        for (&user_nid, shown) in &mut inner.presence {
            shown.elsewhere.retain(|(_, heard_ms)| now_ms.saturating_sub(*heard_ms) <= FORGET_AFTER_MS);
            if shown.presence.state == PresenceState::Offline {
                continue;
            }
            let Some(seen_ms) = shown.seen_ms else {
                if shown.elsewhere.is_empty() {
                    lost.push(user_nid);
                }
                continue;
            };
            if !is_waiting(user_nid) && now_ms.saturating_sub(seen_ms) > OFFLINE_AFTER_MS {
                if shown.elsewhere.is_empty() {
                    swept.presence.push(shown.notice(self.origin, user_nid, Cause::Swept, PresenceState::Offline));
                } else {
                    shown.seen_ms = None;
                    gone.push(user_nid);
                }
                continue;
            }
            let is_idle = shown.presence.state == PresenceState::Online
                && now_ms.saturating_sub(shown.presence.last_active_ms) > IDLE_AFTER_MS;
            if is_idle {
                swept.presence.push(shown.notice(self.origin, user_nid, Cause::Swept, PresenceState::Unavailable));
            } else if shown.doubted && anew < ANEW_MAX {
                anew += 1;
                shown.doubted = false;
                shown.told_ms = now_ms;
                let state = shown.presence.state.clone();
                swept.presence.push(shown.notice(self.origin, user_nid, Cause::Anew, state));
            } else if now_ms.saturating_sub(shown.told_ms) >= RENEW_AFTER_MS {
                shown.told_ms = now_ms;
                here.push(user_nid);
            }
        }
        for user_nid in lost {
            if let Some(shown) = inner.presence.get_mut(&user_nid) {
                shown.presence.state = PresenceState::Offline;
                shown.idle = false;
                swept.rooms.extend(shown.rooms.iter().copied());
            }
            inner.presence_changed(user_nid, now_ms);
        }
        let notice = || SeenNotice { origin: self.origin, ..SeenNotice::default() };
        swept.seen.extend(here.chunks(SEEN_NAMED_MAX).map(|here| SeenNotice { here: here.to_vec(), ..notice() }));
        swept.seen.extend(gone.chunks(SEEN_NAMED_MAX).map(|gone| SeenNotice { gone: gone.to_vec(), ..notice() }));
        swept
    }
}

impl Shown {
    fn notice(&self, origin: u64, user_nid: i64, cause: Cause, state: PresenceState) -> PresenceNotice {
        PresenceNotice {
            origin,
            cause,
            user: user_nid,
            user_id: self.user_id.clone(),
            idle: state == PresenceState::Unavailable && (cause == Cause::Swept || self.idle),
            presence: state,
            status_msg: self.presence.status_msg.clone(),
            active_ms: self.presence.last_active_ms,
            rooms: rooms_to_name(self.rooms.iter().copied().collect()),
        }
    }

    /// Whether a notice tells what is known.
    fn says(&self, notice: &PresenceNotice) -> bool {
        self.presence.state == notice.presence && self.presence.status_msg == notice.status_msg
    }

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
    use myelin_store::Membership;
    use ruma::presence::PresenceState;

    use super::{Cause, Live, PresenceNotice, SeenNotice, Sighting, TypingNotice};

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

    fn presence(origin: &Live, cause: Cause, state: PresenceState, rooms: Vec<i64>) -> PresenceNotice {
        PresenceNotice {
            origin: origin.origin(),
            cause,
            user: 7,
            user_id: "@seven:example.org".into(),
            presence: state,
            status_msg: None,
            active_ms: 0,
            idle: false,
            rooms,
        }
    }

    fn state(live: &Live) -> PresenceState {
        live.presence(7).unwrap().state
    }

    /// Users who are gone become offline, those who do nothing unavailable; what they do makes them online.
    #[test]
    fn presence_goes_by_itself() {
        let live = Live::default();
        assert_eq!(live.note_sync(7, &PresenceState::Online, 0), Sighting::Changed);
        live.note_presence(presence(&live, Cause::Set, PresenceState::Online, vec![1]), 0);
        assert_eq!(live.note_sync(7, &PresenceState::Online, 1), Sighting::Known);
        assert!(live.sweep_presence(|_| true, 100_000).presence.is_empty());
        let idle = live.sweep_presence(|_| true, 400_000).presence;
        assert_eq!(idle[0].presence, PresenceState::Unavailable);
        live.note_presence(idle[0].clone(), 400_000);
        assert_eq!(live.note_sync(7, &PresenceState::Online, 400_001), Sighting::Known, "a sync is no activity");
        assert_eq!(live.note_activity([7], 400_002), [1]);
        assert_eq!(state(&live), PresenceState::Online);
        let gone = live.sweep_presence(|_| false, 500_000).presence;
        assert_eq!(gone[0].presence, PresenceState::Offline);
    }

    /// A user who goes on at another replica stays online; the last replica to see the user makes them offline.
    #[test]
    fn presence_moves_between_replicas() {
        let (here, there) = (Live::default(), Live::default());
        let set = presence(&here, Cause::Set, PresenceState::Online, vec![1]);
        for live in [&here, &there] {
            live.note_presence(set.clone(), 0);
        }
        assert_eq!(there.note_sync(7, &PresenceState::Online, 10_000), Sighting::Moved);
        assert_eq!(there.note_sync(7, &PresenceState::Online, 11_000), Sighting::Known, "said once");
        let seen = SeenNotice { origin: there.origin(), here: vec![7], ..SeenNotice::default() };
        here.note_seen_elsewhere(&seen, 10_000);
        let swept = here.sweep_presence(|_| false, 40_000);
        assert!(swept.presence.is_empty(), "the other replica sees the user");
        assert_eq!(swept.seen[0].gone, [7]);
        there.note_seen_elsewhere(&swept.seen[0], 40_000);
        assert_eq!((state(&here), state(&there)), (PresenceState::Online, PresenceState::Online));
        let swept = there.sweep_presence(|_| false, 50_000);
        assert_eq!(swept.presence[0].presence, PresenceState::Offline);
        for live in [&here, &there] {
            live.note_presence(swept.presence[0].clone(), 50_000);
            assert_eq!(state(live), PresenceState::Offline);
        }
    }

    /// Where one replica takes a user for gone whom another one sees, the other one says so.
    #[test]
    fn presence_is_put_right() {
        let (here, there) = (Live::default(), Live::default());
        for live in [&here, &there] {
            live.note_presence(presence(&here, Cause::Set, PresenceState::Online, vec![1]), 0);
        }
        assert_eq!(there.note_sync(7, &PresenceState::Online, 10_000), Sighting::Moved);
        // That was not heard.
        let swept = here.sweep_presence(|_| false, 40_000).presence;
        for live in [&here, &there] {
            live.note_presence(swept[0].clone(), 40_000);
        }
        assert_eq!((state(&here), state(&there)), (PresenceState::Offline, PresenceState::Online));
        let anew = there.sweep_presence(|_| true, 40_001).presence;
        assert_eq!(anew[0].cause, Cause::Anew);
        for live in [&here, &there] {
            live.note_presence(anew[0].clone(), 40_001);
            assert_eq!(state(live), PresenceState::Online);
        }
        // One who has just come asks.
        let late = Live::default();
        let asks = SeenNotice { origin: late.origin(), asks: true, ..SeenNotice::default() };
        there.note_seen_elsewhere(&asks, 40_002);
        late.note_presence(there.sweep_presence(|_| true, 40_003).presence[0].clone(), 40_003);
        assert_eq!(state(&late), PresenceState::Online);
        assert!(there.sweep_presence(|_| true, 40_004).presence.is_empty());
    }

    /// Those whose replica has died are offline in the end, but not those of whom it speaks.
    #[test]
    fn presence_ends_with_its_replica() {
        let (here, dead) = (Live::default(), Live::default());
        let start = here.news(None, true).to;
        here.note_presence(presence(&dead, Cause::Set, PresenceState::Online, vec![1]), 0);
        dead.note_presence(presence(&dead, Cause::Set, PresenceState::Online, vec![1]), 0);
        let renewed = dead.sweep_presence(|_| true, 100_000).seen;
        assert_eq!(renewed[0].here, [7]);
        here.note_seen_elsewhere(&renewed[0], 100_000);
        assert!(here.sweep_presence(|_| true, 250_000).rooms.is_empty());
        assert_eq!(state(&here), PresenceState::Online);
        assert_eq!(here.sweep_presence(|_| true, 300_000).rooms, [1]);
        assert_eq!(state(&here), PresenceState::Offline);
        assert_eq!(here.news(Some(start), true).presence[0].presence.state, PresenceState::Offline);
    }

    /// Presence shows in the rooms that a user is in, and in none that the user has left.
    #[test]
    fn presence_follows_members() {
        let live = Live::default();
        live.note_presence(presence(&live, Cause::Set, PresenceState::Online, vec![1]), 0);
        live.note_member("@seven:example.org", 2, Membership::Join, 1);
        assert_eq!(live.presence_in(&[2]).len(), 1);
        let before = live.news(None, true).to;
        live.note_member("@seven:example.org", 2, Membership::Ban, 2);
        live.note_member("@other:example.org", 1, Membership::Leave, 2);
        assert!(live.presence_in(&[2]).is_empty());
        assert_eq!(live.presence_in(&[1]).len(), 1);
        assert!(live.news(Some(before), true).presence.is_empty(), "to leave is no news of presence");
    }
}
