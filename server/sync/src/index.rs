//! What has happened since this process started, so far as it decides whether a client has to be told of something.
//!
//! All in memory, bounded, and made anew from the store on demand: for each room the positions of what came last, for
//! each user who syncs here the rooms, and who of them waits.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use myelin_store::{Batch, Change, DeviceListChange, Event, Member, Membership, Receipt};
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId, push::Ruleset};
use tokio::sync::Notify;

use crate::metrics::{RECEIPT_READS, USERS, WAITERS};

/// Rooms whose last positions are kept; with more, all are forgotten and asked of the store again.
const ROOMS_MAX: usize = 200_000;
/// Users whose rooms are kept.
const USERS_MAX: usize = 50_000;
/// Places in rooms, of all users together.
const PLACES_MAX: usize = 2_000_000;
/// The newest receipts of all rooms.
const RECEIPTS_MAX: usize = 4096;
/// The newest changes of device lists.
const DEVICE_CHANGES_MAX: usize = 4096;
/// Rooms that these name, all together.
const DEVICE_ROOMS_MAX: usize = 500_000;
/// The newest arrivals in rooms and departures from them.
const MOVES_MAX: usize = 16_384;

/// A user's place in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) membership: Membership,
    pub(crate) event_nid: i64,
    pub(crate) pos: i64,
}

impl From<&Member> for Place {
    fn from(member: &Member) -> Self {
        Self { membership: member.membership, event_nid: member.event_nid, pos: member.pos }
    }
}

/// What a user's account data says about how others' events are told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) ignored: HashSet<OwnedUserId>,
    /// Whether the user wants no invitations.
    pub(crate) blocks_invites: bool,
    pub(crate) rules: Ruleset,
}

impl Settings {
    /// "Servers must not send room invites from ignored users to clients", nor any to those who want none.
    pub(crate) fn wants_invite_of(&self, sender: &UserId) -> bool {
        !self.blocks_invites && !self.ignored.contains(sender)
    }
}

/// A room that may have news for a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomView {
    pub(crate) room_nid: i64,
    pub(crate) place: Place,
    /// Whether there are events after the client's position; `None` when only the store knows.
    pub(crate) events: Option<bool>,
    /// The position of the last membership event, or one that none has come after.
    pub(crate) members_pos: i64,
    /// The same of the last event that says that the room is encrypted.
    pub(crate) encryption_pos: i64,
}

/// What may be news for a user.
#[derive(Debug)]
pub(crate) struct View {
    /// Up to where the view goes.
    pub(crate) to: i64,
    pub(crate) rooms: Vec<RoomView>,
    /// New receipts in joined rooms; `None` when only the store knows.
    pub(crate) receipts: Option<Vec<Arc<Receipt>>>,
    /// Whether there may be new account data.
    pub(crate) account_data: bool,
    /// Users in the same rooms whose keys have changed; `None` when only the store knows.
    pub(crate) device_lists: Option<Vec<i64>>,
}

impl View {
    /// True if there is surely nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
            && !self.account_data
            && self.receipts.as_ref().is_some_and(Vec::is_empty)
            && self.device_lists.as_ref().is_some_and(Vec::is_empty)
    }
}

/// A room that a user has or had a place in, with what came last in it. Positions are 0 where nothing came after the
/// survey's floor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) room_nid: i64,
    pub(crate) place: Place,
    pub(crate) event: i64,
    pub(crate) member: i64,
    pub(crate) encryption: i64,
    pub(crate) bump: i64,
}

/// All of a user's rooms.
#[derive(Debug)]
pub(crate) struct Survey {
    /// What may be news.
    pub(crate) view: View,
    /// What came up to this position is only known to the store.
    pub(crate) floor: i64,
    pub(crate) rooms: Vec<Placed>,
    /// The position of the user's newest account data, or beyond it.
    pub(crate) data_pos: i64,
}

/// "An event being received is one of the following types".
const BUMPING: [&str; 9] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
    // What clients in use still send.
    "org.matrix.msc3381.poll.start",
    "org.matrix.msc3672.beacon_info",
];

/// Whether an event moves its room up in a client's list.
pub(crate) fn is_bumping(event: &Event) -> bool {
    event.is_shown() && BUMPING.contains(&event.event_type())
}

/// Someone has come into a room, or gone out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pos: i64,
    pub(crate) room_nid: i64,
    pub(crate) user_nid: i64,
    pub(crate) has_come: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct RoomNews {
    event: i64,
    member: i64,
    encryption: i64,
    /// The last event that moves the room up in a client's list.
    bump: i64,
}

/// A user's polls that wait, and how to wake them.
#[derive(Debug, Default)]
struct Waiting {
    notify: Arc<Notify>,
    polls: usize,
    woken: Option<Instant>,
}

#[derive(Debug)]
struct User {
    loaded: bool,
    rooms: HashMap<i64, Place>,
    /// Account data after this position is known of here.
    data_floor: i64,
    data_pos: i64,
    settings: Option<Arc<Settings>>,
    /// Messages to devices after this position are known of here.
    to_device_floor: i64,
    /// By device, the position of the last message.
    to_device: HashMap<i64, i64>,
    used: u64,
}

#[derive(Debug, Default)]
struct Inner {
    started: bool,
    position: i64,
    /// A room that is not in `rooms` has had no event after this position.
    floor: i64,
    rooms: HashMap<i64, RoomNews>,
    users: HashMap<i64, User>,
    /// The users in `users` who are joined, by room.
    joined: HashMap<i64, HashSet<i64>>,
    places: usize,
    receipts: VecDeque<Arc<Receipt>>,
    /// Those among them that no other has gone beyond, by room and user.
    foremost: HashMap<(i64, i64), Vec<Arc<Receipt>>>,
    receipts_floor: i64,
    device_changes: VecDeque<Arc<DeviceListChange>>,
    /// The rooms that these name.
    device_rooms: usize,
    device_floor: i64,
    moves: VecDeque<Move>,
    /// Moves after this position are known.
    moves_floor: i64,
    waiting: HashMap<i64, Waiting>,
    /// Grows when what is known of users had to be thrown away.
    epoch: u64,
    clock: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Index(Mutex<Inner>);

/// The users and rooms that a batch is news for.
#[derive(Default)]
struct Touched {
    rooms: HashSet<i64>,
    users: HashSet<i64>,
}

impl Index {
    /// Starts at a position; what was committed before is asked of the store.
    pub(crate) fn start(&self, position: i64) {
        let mut inner = self.0.lock();
        if !inner.started {
            inner.forget(position);
        }
    }

    /// Takes note of what was committed, and wakes those who wait for it.
    pub(crate) fn committed(&self, batch: &Batch) {
        let mut guard = self.0.lock();
        let inner = &mut *guard;
        if !inner.started || batch.from > inner.position {
            inner.forget(batch.from);
        }
        let mut touched = Touched::default();
        for change in &batch.changes {
            match change {
                Change::Event(event) => inner.note_event(event, &mut touched),
                Change::Membership { member, was } => {
                    inner.note_move(member, *was);
                    inner.note_member(member, &mut touched);
                }
                Change::Receipt(receipt) => {
                    if !inner.note_receipt(receipt) {
                        continue;
                    }
                    if &*receipt.receipt_type == "m.read.private" {
                        touched.users.insert(receipt.user_nid);
                    } else {
                        touched.rooms.insert(receipt.room_nid);
                    }
                }
                Change::AccountData(data) => {
                    touched.users.insert(data.user_nid);
                    if let Some(user) = inner.users.get_mut(&data.user_nid) {
                        user.data_pos = data.pos;
                        user.settings = None;
                    }
                }
                Change::ToDevice(arrival) => {
                    for (user_nid, device_nid) in &arrival.devices {
                        touched.users.insert(*user_nid);
                        if let Some(user) = inner.users.get_mut(user_nid) {
                            user.to_device.insert(*device_nid, arrival.pos);
                        }
                    }
                }
                Change::DeviceList(change) => inner.note_device_list(change, &mut touched),
            }
        }
        inner.position = batch.to;
        if inner.rooms.len() > ROOMS_MAX {
            inner.rooms.clear();
            inner.floor = batch.to;
        }
        inner.wake(&touched);
    }

    /// Wakes the members of some rooms.
    pub(crate) fn wake_rooms(&self, room_nids: impl IntoIterator<Item = i64>) {
        let touched = Touched { rooms: room_nids.into_iter().collect(), users: HashSet::new() };
        self.0.lock().wake(&touched);
    }

    /// Wakes one user.
    pub(crate) fn wake_user(&self, user_nid: i64) {
        let touched = Touched { rooms: HashSet::new(), users: HashSet::from([user_nid]) };
        self.0.lock().wake(&touched);
    }

    /// Wakes everyone.
    pub(crate) fn wake_all(&self) {
        for waiting in self.0.lock().waiting.values() {
            waiting.notify.notify_waiters();
        }
    }

    /// True if the user's rooms are known here, which keeps them for a while.
    pub(crate) fn is_loaded(&self, user_nid: i64) -> bool {
        let mut inner = self.0.lock();
        inner.clock += 1;
        let now = inner.clock;
        inner.users.get_mut(&user_nid).is_some_and(|user| {
            user.used = now;
            user.loaded
        })
    }

    /// Begins to load a user's rooms: from now on, changes are kept. Answers what [`Index::finish_load`] asks for.
    pub(crate) fn begin_load(&self, user_nid: i64) -> u64 {
        let mut inner = self.0.lock();
        inner.make_room();
        inner.clock += 1;
        let (now, position) = (inner.clock, inner.position);
        inner.users.entry(user_nid).or_insert_with(|| User {
            loaded: false,
            rooms: HashMap::new(),
            data_floor: position,
            data_pos: position,
            settings: None,
            to_device_floor: position,
            to_device: HashMap::new(),
            used: now,
        });
        USERS.set(inner.users.len() as i64);
        inner.epoch
    }

    /// Ends it with the rooms found; false if it has to be done again.
    pub(crate) fn finish_load(&self, user_nid: i64, epoch: u64, members: &[Member]) -> bool {
        let mut inner = self.0.lock();
        if inner.epoch != epoch || !inner.users.contains_key(&user_nid) {
            return false;
        }
        for member in members {
            inner.set_place(user_nid, member.room_nid, Place::from(member));
        }
        if let Some(user) = inner.users.get_mut(&user_nid) {
            user.loaded = true;
        }
        true
    }

    /// What may be news for a user after a position; everything for `None`. The user must be loaded.
    pub(crate) fn view(&self, user_nid: i64, since: Option<i64>) -> Option<View> {
        self.0.lock().view(user_nid, since)
    }

    /// The same with all of the user's rooms. The user must be loaded.
    pub(crate) fn survey(&self, user_nid: i64, since: Option<i64>) -> Option<Survey> {
        let inner = self.0.lock();
        let view = inner.view(user_nid, since)?;
        let user = inner.users.get(&user_nid)?;
        let placed = |(&room_nid, &place): (&i64, &Place)| {
            let RoomNews { event, member, encryption, bump } = inner.rooms.get(&room_nid).copied().unwrap_or_default();
            Placed { room_nid, place, event, member, encryption, bump }
        };
        let rooms = user.rooms.iter().map(placed).collect();
        Some(Survey { view, floor: inner.floor, rooms, data_pos: user.data_pos })
    }

    /// Up to where a device may have messages. To be asked after [`Index::view`], so that none is passed over.
    pub(crate) fn to_device_pos(&self, user_nid: i64, device_nid: i64) -> i64 {
        let inner = self.0.lock();
        let Some(user) = inner.users.get(&user_nid) else { return i64::MAX };
        user.to_device.get(&device_nid).copied().unwrap_or(user.to_device_floor)
    }

    /// A user's place in a room, and the position of the room's last membership event or one that none has come after.
    pub(crate) fn place(&self, user_nid: i64, room_nid: i64) -> Option<(Place, i64)> {
        let inner = self.0.lock();
        let place = *inner.users.get(&user_nid)?.rooms.get(&room_nid)?;
        Some((place, inner.rooms.get(&room_nid).map_or(0, |news| news.member).max(inner.floor)))
    }

    /// The rooms that a user is joined to. The user must be loaded.
    pub(crate) fn joined_rooms(&self, user_nid: i64) -> Vec<i64> {
        let inner = self.0.lock();
        let Some(user) = inner.users.get(&user_nid) else { return Vec::new() };
        let joined = user.rooms.iter().filter(|(_, place)| place.membership == Membership::Join);
        joined.map(|(room_nid, _)| *room_nid).collect()
    }

    /// Who has come into some rooms, or gone out of them, after a position, in order; `None` when only the store knows.
    pub(crate) fn moves_after(&self, since: i64, is_asked: impl Fn(i64) -> bool) -> Option<Vec<Move>> {
        let inner = self.0.lock();
        let start = inner.moves.partition_point(|moved| moved.pos <= since);
        let known = since >= inner.moves_floor;
        known.then(|| inner.moves.range(start..).filter(|moved| is_asked(moved.room_nid)).copied().collect())
    }

    /// Which of some users are joined to which of some rooms, as room and user; `None` when only the store knows.
    pub(crate) fn joined_among(&self, user_nids: &[i64], room_nids: &[i64]) -> Option<Vec<(i64, i64)>> {
        let inner = self.0.lock();
        let mut joined = Vec::new();
        for &user_nid in user_nids {
            let user = inner.users.get(&user_nid).filter(|user| user.loaded)?;
            let is_joined = |room: &i64| user.rooms.get(room).is_some_and(|place| place.membership == Membership::Join);
            joined.extend(room_nids.iter().copied().filter(is_joined).map(|room_nid| (room_nid, user_nid)));
        }
        Some(joined)
    }

    /// The position of a room's last event that says that it is encrypted, or one that none has come after.
    pub(crate) fn encryption_pos(&self, room_nid: i64) -> i64 {
        let inner = self.0.lock();
        inner.rooms.get(&room_nid).map_or(0, |news| news.encryption).max(inner.floor)
    }

    /// Whether a user is joined to one of some rooms.
    pub(crate) fn is_joined_to_any(&self, user_nid: i64, room_nids: impl IntoIterator<Item = i64>) -> bool {
        let inner = self.0.lock();
        let Some(user) = inner.users.get(&user_nid) else { return false };
        let joined = |place: &Place| place.membership == Membership::Join;
        room_nids.into_iter().any(|room_nid| user.rooms.get(&room_nid).is_some_and(joined))
    }

    /// A user's settings, if they are known, and the position that they would have to be stored with.
    pub(crate) fn settings(&self, user_nid: i64) -> (Option<Arc<Settings>>, i64) {
        let inner = self.0.lock();
        inner.users.get(&user_nid).map_or((None, 0), |user| (user.settings.clone(), user.data_pos))
    }

    /// Keeps settings that were read when the user's account data stood at a position.
    pub(crate) fn set_settings(&self, user_nid: i64, data_pos: i64, settings: Arc<Settings>) {
        let mut inner = self.0.lock();
        if let Some(user) = inner.users.get_mut(&user_nid)
            && user.data_pos == data_pos
        {
            user.settings = Some(settings);
        }
    }

    /// Lets a poll of a user wait. While the guard lives, the user is woken.
    pub(crate) fn wait(self: &Arc<Self>, user_nid: i64) -> Poll {
        let mut inner = self.0.lock();
        let waiting = inner.waiting.entry(user_nid).or_default();
        waiting.polls += 1;
        let notify = waiting.notify.clone();
        WAITERS.inc();
        Poll { index: self.clone(), user_nid, notify }
    }

    /// Whether a poll of a user waits.
    pub(crate) fn is_waiting(&self, user_nid: i64) -> bool {
        self.0.lock().waiting.contains_key(&user_nid)
    }

    /// How long ago the user was woken, once for each wake-up.
    pub(crate) fn take_woken(&self, user_nid: i64) -> Option<Instant> {
        self.0.lock().waiting.get_mut(&user_nid)?.woken.take()
    }
}

/// A poll that waits.
pub(crate) struct Poll {
    index: Arc<Index>,
    user_nid: i64,
    pub(crate) notify: Arc<Notify>,
}

impl Drop for Poll {
    fn drop(&mut self) {
        WAITERS.dec();
        let mut inner = self.index.0.lock();
        if let Some(waiting) = inner.waiting.get_mut(&self.user_nid) {
            waiting.polls -= 1;
            if waiting.polls == 0 {
                inner.waiting.remove(&self.user_nid);
            }
        }
    }
}

/// "Servers MUST NOT send the m.read.private receipt to any other user than the one which originally sent it."
pub(crate) fn may_see(receipt: &Receipt, user_nid: i64) -> bool {
    &*receipt.receipt_type != "m.read.private" || receipt.user_nid == user_nid
}

impl Inner {
    fn view(&self, user_nid: i64, since: Option<i64>) -> Option<View> {
        let user = self.users.get(&user_nid).filter(|user| user.loaded)?;
        let to = self.position;
        let mut rooms = Vec::new();
        for (&room_nid, &place) in &user.rooms {
            let news = self.rooms.get(&room_nid).copied();
            let members_pos = news.map_or(0, |news| news.member).max(self.floor);
            let encryption_pos = news.map_or(0, |news| news.encryption).max(self.floor);
            let events = match (since, news) {
                (None, _) => Some(true),
                (Some(since), Some(news)) if news.event > since => Some(true),
                (Some(since), _) => (since >= self.floor).then_some(false),
            };
            let moved = since.is_none_or(|since| place.pos > since);
            let has_events = place.membership == Membership::Join && events != Some(false);
            if moved || has_events {
                rooms.push(RoomView { room_nid, place, events, members_pos, encryption_pos });
            }
        }
        rooms.sort_unstable_by_key(|room| room.room_nid);
        let receipts = since.filter(|since| *since >= self.receipts_floor).map(|since| {
            let start = self.receipts.partition_point(|receipt| receipt.pos <= since);
            let joined = |receipt: &&Arc<Receipt>| {
                user.rooms.get(&receipt.room_nid).is_some_and(|place| place.membership == Membership::Join)
            };
            self.receipts.range(start..).filter(joined).filter(|receipt| may_see(receipt, user_nid)).cloned().collect()
        });
        if since.is_some() {
            let outcome = if receipts.is_some() { "hit" } else { "miss" };
            RECEIPT_READS.with_label_values(&[outcome]).inc();
        }
        let account_data = since.is_none_or(|since| since < user.data_floor || since < user.data_pos);
        let device_lists = match since {
            None => Some(Vec::new()),
            Some(since) => (since >= self.device_floor).then(|| self.device_lists_after(user, user_nid, since)),
        };
        Some(View { to, rooms, receipts, account_data, device_lists })
    }

    /// Starts anew at a position.
    fn forget(&mut self, position: i64) {
        self.started = true;
        self.position = position;
        self.floor = position;
        self.rooms.clear();
        self.receipts.clear();
        self.foremost.clear();
        self.receipts_floor = position;
        self.device_changes.clear();
        self.device_rooms = 0;
        self.device_floor = position;
        self.moves.clear();
        self.moves_floor = position;
        self.users.clear();
        self.joined.clear();
        self.places = 0;
        self.epoch += 1;
        USERS.set(0);
        let woken = Instant::now();
        for waiting in self.waiting.values_mut() {
            waiting.woken = Some(woken);
            waiting.notify.notify_waiters();
        }
    }

    /// Keeps a receipt; false if it is behind another one, which went to the database between its check and its
    /// commit. Nobody is told of such.
    fn note_receipt(&mut self, receipt: &Arc<Receipt>) -> bool {
        let known = self.foremost.entry((receipt.room_nid, receipt.user_nid)).or_default();
        let of_kind =
            |other: &&mut Arc<Receipt>| other.receipt_type == receipt.receipt_type && other.thread == receipt.thread;
        match known.iter_mut().find(of_kind) {
            Some(other) if other.event_pos >= receipt.event_pos => return false,
            Some(other) => *other = receipt.clone(),
            None => known.push(receipt.clone()),
        }
        self.receipts.push_back(receipt.clone());
        if self.receipts.len() > RECEIPTS_MAX
            && let Some(oldest) = self.receipts.pop_front()
        {
            self.receipts_floor = oldest.pos;
            let key = (oldest.room_nid, oldest.user_nid);
            if let Some(known) = self.foremost.get_mut(&key) {
                known.retain(|other| !Arc::ptr_eq(other, &oldest));
                if known.is_empty() {
                    self.foremost.remove(&key);
                }
            }
        }
        true
    }

    fn note_event(&mut self, event: &Arc<Event>, touched: &mut Touched) {
        let Some(pos) = event.pos else { return };
        touched.rooms.insert(event.room_nid);
        let news = self.rooms.entry(event.room_nid).or_default();
        news.event = pos;
        match event.event_type() {
            "m.room.member" => news.member = pos,
            "m.room.encryption" => news.encryption = pos,
            _ => {}
        }
        if is_bumping(event) {
            news.bump = pos;
        }
    }

    /// Takes note of a user's place, which need not be what the last event about it says: states are resolved.
    fn note_member(&mut self, member: &Member, touched: &mut Touched) {
        let news = self.rooms.entry(member.room_nid).or_default();
        news.event = news.event.max(member.pos);
        news.member = news.member.max(member.pos);
        if self.users.contains_key(&member.user_nid) {
            touched.users.insert(member.user_nid);
            self.set_place(member.user_nid, member.room_nid, Place::from(member));
        }
    }

    /// Keeps who has come or gone: not who was joined and still is, with another name.
    fn note_move(&mut self, member: &Member, was: Option<Membership>) {
        let has_come = member.membership == Membership::Join;
        if has_come == (was == Some(Membership::Join)) {
            return;
        }
        let &Member { pos, room_nid, user_nid, .. } = member;
        self.moves.push_back(Move { pos, room_nid, user_nid, has_come });
        if self.moves.len() > MOVES_MAX
            && let Some(oldest) = self.moves.pop_front()
        {
            self.moves_floor = oldest.pos;
        }
    }

    fn note_device_list(&mut self, change: &Arc<DeviceListChange>, touched: &mut Touched) {
        touched.users.insert(change.only_for.unwrap_or(change.user_nid));
        touched.rooms.extend(change.rooms.iter());
        self.device_changes.push_back(change.clone());
        self.device_rooms += change.rooms.len();
        while self.device_changes.len() > DEVICE_CHANGES_MAX || self.device_rooms > DEVICE_ROOMS_MAX {
            let Some(oldest) = self.device_changes.pop_front() else { break };
            self.device_rooms -= oldest.rooms.len();
            self.device_floor = oldest.pos;
        }
    }

    /// Those whose changes after a position a user has to know of.
    fn device_lists_after(&self, user: &User, user_nid: i64, since: i64) -> Vec<i64> {
        let start = self.device_changes.partition_point(|change| change.pos <= since);
        let is_joined =
            |room_nid: &i64| user.rooms.get(room_nid).is_some_and(|place| place.membership == Membership::Join);
        let concerns = |change: &&Arc<DeviceListChange>| match change.only_for {
            Some(only) => only == user_nid,
            None => change.user_nid == user_nid || change.rooms.iter().any(is_joined),
        };
        self.device_changes.range(start..).filter(concerns).map(|change| change.user_nid).collect()
    }

    /// Sets a user's place in a room, unless a newer one is known.
    fn set_place(&mut self, user_nid: i64, room_nid: i64, place: Place) {
        let Some(user) = self.users.get_mut(&user_nid) else { return };
        let before = user.rooms.get(&room_nid);
        if before.is_some_and(|before| before.pos > place.pos) {
            return;
        }
        if before.is_none() {
            self.places += 1;
        }
        user.rooms.insert(room_nid, place);
        if place.membership == Membership::Join {
            self.joined.entry(room_nid).or_default().insert(user_nid);
        } else {
            self.leave(user_nid, room_nid);
        }
    }

    fn leave(&mut self, user_nid: i64, room_nid: i64) {
        if let Some(users) = self.joined.get_mut(&room_nid) {
            users.remove(&user_nid);
            if users.is_empty() {
                self.joined.remove(&room_nid);
            }
        }
    }

    /// Forgets a tenth of the users, those who were away longest, when there are too many.
    fn make_room(&mut self) {
        if self.users.len() < USERS_MAX && self.places < PLACES_MAX {
            return;
        }
        let waiting = &self.waiting;
        let idle = self.users.iter().filter(|(user_nid, _)| !waiting.contains_key(user_nid));
        let mut idle: Vec<(u64, i64)> = idle.map(|(user_nid, user)| (user.used, *user_nid)).collect();
        idle.sort_unstable();
        idle.truncate((self.users.len() / 10).max(1));
        for (_, user_nid) in idle {
            let Some(user) = self.users.remove(&user_nid) else { continue };
            self.places -= user.rooms.len();
            for &room_nid in user.rooms.keys() {
                self.leave(user_nid, room_nid);
            }
        }
    }

    fn wake(&mut self, touched: &Touched) {
        if self.waiting.is_empty() {
            return;
        }
        let woken = Instant::now();
        let wake = |waiting: &mut Waiting| {
            waiting.woken.get_or_insert(woken);
            waiting.notify.notify_waiters();
        };
        for user_nid in &touched.users {
            if let Some(waiting) = self.waiting.get_mut(user_nid) {
                wake(waiting);
            }
        }
        for room_nid in &touched.rooms {
            let Some(joined) = self.joined.get(room_nid) else { continue };
            if joined.len() <= self.waiting.len() {
                for user_nid in joined {
                    if let Some(waiting) = self.waiting.get_mut(user_nid) {
                        wake(waiting);
                    }
                }
            } else {
                for (_, waiting) in self.waiting.iter_mut().filter(|(user_nid, _)| joined.contains(user_nid)) {
                    wake(waiting);
                }
            }
        }
    }
}
