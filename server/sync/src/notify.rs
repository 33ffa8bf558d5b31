//! Whom an event notifies, what someone was notified of, and how much of it is unread: what pushers and
//! `/notifications` ask for, by the same rules as the counts of `/sync`.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use myelin_rooms::{INVITE_PERMISSION, blocks_invites};
use myelin_store::{AccountData, Event, Membership, RoomName};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{
    OwnedUserId, UserId,
    events::ignored_user_list::IgnoredUserListEventContent,
    push::{Action, PushConditionRoomCtx},
};

use crate::{
    Result, Sync,
    index::Settings,
    push_rules::rules_of,
    unread::{ReadRoom, Reader, matching, thread_of},
};

/// Users whose rules are in memory for events that are pushed, beside those who sync here.
const SETTINGS: usize = 50_000;
/// Rooms whose number of members is in memory.
const JOINED: usize = 10_000;
/// Rooms that are read at once in search of notifications.
const ROOMS_AT_ONCE: usize = 16;
/// Events of a room that are read at once: fewer for who is in many rooms.
const PAGE_MAX: usize = 32;
const PAGE_MIN: usize = 4;
/// Events that one search looks at, or a little more. What is beyond is found by the next one.
const LOOKED_AT_MAX: usize = 2_000;
/// Users whose rules are looked at before others get their turn.
const BREATH: usize = 64;

/// Someone in a room, or invited to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The user.
    pub user_nid: i64,
    /// The user's membership event.
    pub member_nid: i64,
}

/// Someone who is notified.
#[derive(Clone, Debug)]
pub struct Notified {
    /// The user.
    pub user_nid: i64,
    /// Who that is.
    pub user_id: OwnedUserId,
    /// What the rule that matched says, [`Action::Notify`] among it.
    pub actions: Vec<Action>,
}

/// Which notifications are asked for.
#[derive(Clone, Copy, Debug)]
pub struct NotificationQuery<'a> {
    /// Whose, by number.
    pub user_nid: i64,
    /// Whose.
    pub user_id: &'a UserId,
    /// Those of events before this position; `None` for the newest.
    pub before: Option<i64>,
    /// Those of events after this position.
    pub after: i64,
    /// How many at the most.
    pub limit: usize,
    /// Which of them.
    pub only: Only,
}

/// Which notifications are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// All.
    All,
    /// Those with the highlight tweak.
    Highlights,
    /// Those that are not read.
    Unread,
}

/// An event that a user was notified of.
#[derive(Clone, Debug)]
pub struct Notification {
    /// The event.
    pub event: Arc<Event>,
    /// Its room.
    pub room: Arc<RoomName>,
    /// What the rule that matched says.
    pub actions: Vec<Action>,
    /// Whether the user has read it.
    pub is_read: bool,
}

/// Some notifications, the newest first.
#[derive(Clone, Debug)]
pub struct NotificationPage {
    /// These.
    pub notifications: Vec<Notification>,
    /// The position before which there may be more.
    pub next: Option<i64>,
}

/// Rules and ignored users of those who are pushed to, and how many are in their rooms.
pub(crate) struct Pushed {
    settings: Cache<i64, Arc<Settings>>,
    /// Grows with each change of anyone's settings: what was read before it may be old.
    epoch: Mutex<u64>,
    /// By the room and the snapshot of its state.
    joined: Cache<(i64, i64), u64>,
}

impl Pushed {
    pub(crate) fn new() -> Self {
        Self { settings: Cache::new(SETTINGS), epoch: Mutex::default(), joined: Cache::new(JOINED) }
    }

    /// Takes note of account data that was written.
    pub(crate) fn changed(&self, data: &AccountData) {
        if data.room_nid == 0 && matches!(&*data.data_type, "m.push_rules" | "m.ignored_user_list" | INVITE_PERMISSION)
        {
            let mut epoch = self.epoch.lock();
            *epoch += 1;
            self.settings.remove(&data.user_nid);
        }
    }
}

impl Sync {
    /// Of some users in the room of an event, those whose push rules notify of it. The sender is never among them, nor
    /// who ignores the sender of a message or of an invite.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn notified(&self, event: &Event, listeners: &[Listener]) -> Result<Vec<Notified>> {
        let listeners: Vec<Listener> =
            listeners.iter().copied().filter(|listener| listener.user_nid != event.sender_nid).collect();
        if listeners.is_empty() || !event.is_shown() {
            return Ok(Vec::new());
        }
        let user_nids: Vec<i64> = listeners.iter().map(|listener| listener.user_nid).collect();
        let user_ids = self.store.user_ids(&user_nids).await?;
        let settings = self.push_settings(&user_nids, &user_ids).await?;
        let name = self.store.room_by_nid(event.room_nid).await?;
        let joined_count = self.joined_in(&[(event.room_nid, event.room_state)]).await?[0];
        let flat = self.unread.flatten(event);
        let mut notified = Vec::new();
        for (place, ((listener, user_id), settings)) in listeners.iter().zip(user_ids).zip(settings).enumerate() {
            if place % BREATH == BREATH - 1 {
                tokio::task::yield_now().await;
            }
            // What changes a room's state is told even if its sender is ignored, but not an invite.
            let is_invite = event.state_key() == Some(user_id.as_str());
            if event.key_nid.is_none() && settings.ignored.contains(event.sender())
                || is_invite && !settings.wants_invite_of(event.sender())
            {
                continue;
            }
            let reader = Reader { user_nid: listener.user_nid, user_id: &user_id, settings: &settings };
            let room = ReadRoom { name: name.clone(), member_nid: listener.member_nid, joined_count };
            let context = self.unread.context(&self.store, &reader, &room, event.room_state).await?;
            if let Some(actions) = matching(&settings.rules, &flat, &context).await {
                let actions = actions.to_vec();
                notified.push(Notified { user_nid: listener.user_nid, user_id, actions });
            }
        }
        Ok(notified)
    }

    /// How many unread notifications a user has in each joined room, or in one of them: those of all threads together.
    /// At least those up to a position are counted: who follows the stream hears of an event before
    /// [`Store::position`](myelin_store::Store::position) says so.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn unread_notifications(
        &self,
        user_nid: i64,
        user_id: &UserId,
        room_nid: Option<i64>,
        at_least: i64,
    ) -> Result<HashMap<i64, u64>> {
        let settings = self.push_settings(&[user_nid], &[user_id.to_owned()]).await?.remove(0);
        let reader = Reader { user_nid, user_id, settings: &settings };
        let to = self.store.position().max(at_least);
        let rooms = self.rooms_of(user_nid, room_nid).await?;
        let rooms = self.with_joined_counts(&reader, rooms).await?;
        let counts = Box::pin(self.unread.of(&self.store, &reader, &rooms, to)).await?;
        let total = |(room_nid, threads): (i64, crate::unread::ThreadCounts)| {
            (room_nid, threads.values().map(|counts| counts.notifications).sum())
        };
        Ok(counts.into_iter().map(total).collect())
    }

    /// What a user was notified of, or would have been by the rules as they are now: in the rooms that the user is in,
    /// since the user has joined them. The newest first.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn notifications(&self, query: &NotificationQuery<'_>) -> Result<NotificationPage> {
        let user_id = query.user_id.to_owned();
        let settings = self.push_settings(&[query.user_nid], &[user_id]).await?.remove(0);
        let reader = Reader { user_nid: query.user_nid, user_id: query.user_id, settings: &settings };
        // The user's own messages say what was read too: the counts know.
        let rooms = self.with_joined_counts(&reader, self.rooms_of(query.user_nid, None).await?).await?;
        Box::pin(self.unread.of(&self.store, &reader, &rooms, self.store.position())).await?;
        let search = Search::new(self, reader, *query, rooms).await?;
        Box::pin(search.run()).await
    }

    /// The rooms that a user is in, without how many are there; or one of them.
    async fn rooms_of(&self, user_nid: i64, room_nid: Option<i64>) -> Result<Vec<ReadRoom>> {
        let mut members = match room_nid {
            Some(room_nid) => self.store.member(room_nid, user_nid).await?.into_iter().collect(),
            None => self.store.memberships(user_nid).await?,
        };
        members.retain(|member| member.membership == Membership::Join);
        let room_nids: Vec<i64> = members.iter().map(|member| member.room_nid).collect();
        let names = self.store.rooms(&room_nids).await?;
        let room = |(name, member_nid)| ReadRoom { name, member_nid, joined_count: 0 };
        Ok(names.into_iter().zip(members.iter().map(|member| member.event_nid)).map(room).collect())
    }

    /// Adds how many are there, where there is something to count.
    async fn with_joined_counts(&self, reader: &Reader<'_>, mut rooms: Vec<ReadRoom>) -> Result<Vec<ReadRoom>> {
        let counted = self.unread.counted(&self.store, reader, &rooms).await?;
        let room_nids: Vec<i64> = rooms.iter().map(|room| room.name.nid).collect();
        let heads: HashMap<i64, _> = self.store.heads(&room_nids).await?.into_iter().collect();
        let mut places = Vec::new();
        let mut wanted = Vec::new();
        for (place, (room, counted)) in rooms.iter().zip(counted).enumerate() {
            if let Some(head) = heads.get(&room.name.nid).filter(|head| head.last_pos > counted) {
                places.push(place);
                wanted.push((room.name.nid, head.state_root));
            }
        }
        for (place, joined) in places.into_iter().zip(self.joined_in(&wanted).await?) {
            rooms[place].joined_count = joined;
        }
        Ok(rooms)
    }

    /// How many have joined some rooms, by the room and the snapshot of its state.
    async fn joined_in(&self, rooms: &[(i64, i64)]) -> Result<Vec<u64>> {
        let pushed = self.unread.pushed();
        let missing: Vec<i64> =
            rooms.iter().filter(|room| pushed.joined.get(*room).is_none()).map(|room| room.0).collect();
        let mut read = HashMap::new();
        if !missing.is_empty() {
            read = self.store.joined_counts(&missing).await?;
        }
        let count = |room: &(i64, i64)| match read.get(&room.0) {
            Some(joined) => {
                let joined = u64::try_from(*joined).unwrap_or(0);
                pushed.joined.insert(*room, joined);
                joined
            }
            None => pushed.joined.get(room).unwrap_or(0),
        };
        Ok(rooms.iter().map(count).collect())
    }

    /// The rules of some users and whom they ignore, in the order asked: from memory, or by one query for all.
    async fn push_settings(&self, user_nids: &[i64], user_ids: &[OwnedUserId]) -> Result<Vec<Arc<Settings>>> {
        let pushed = self.unread.pushed();
        let mut known: Vec<Option<Arc<Settings>>> = user_nids.iter().map(|nid| pushed.settings.get(nid)).collect();
        let missing: Vec<i64> =
            user_nids.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(nid, _)| *nid).collect();
        if !missing.is_empty() {
            let epoch = *pushed.epoch.lock();
            let mut contents: HashMap<i64, (Option<String>, Option<String>, bool)> = HashMap::new();
            for (user_nid, data_type, content) in self.store.push_settings(&missing).await? {
                let found = contents.entry(user_nid).or_default();
                match data_type.as_str() {
                    "m.push_rules" => found.0 = Some(content),
                    INVITE_PERMISSION => found.2 = blocks_invites(&content),
                    _ => found.1 = Some(content),
                }
            }
            for ((user_nid, user_id), known) in user_nids.iter().zip(user_ids).zip(&mut known) {
                if known.is_some() {
                    continue;
                }
                let (rules, ignored, blocks_invites) = contents.remove(user_nid).unwrap_or_default();
                let settings = Arc::new(Settings {
                    ignored: ignored_in(ignored.as_deref(), user_id),
                    blocks_invites,
                    rules: rules_of(rules.as_deref(), user_id),
                });
                let current = pushed.epoch.lock();
                if *current == epoch {
                    pushed.settings.insert(*user_nid, settings.clone());
                }
                drop(current);
                *known = Some(settings);
            }
        }
        Ok(known.into_iter().flatten().collect())
    }
}

/// Whom the content of `m.ignored_user_list` ignores. Nobody can ignore themselves.
fn ignored_in(content: Option<&str>, user_id: &UserId) -> HashSet<OwnedUserId> {
    let list = content.and_then(|content| serde_json::from_str::<IgnoredUserListEventContent>(content).ok());
    let mut ignored: HashSet<_> = list.map_or_else(HashSet::new, |list| list.ignored_users.into_keys().collect());
    ignored.remove(user_id);
    ignored
}

/// A search through the timelines of a user's rooms, in the order of the stream, from the newest event on.
struct Search<'a> {
    sync: &'a Sync,
    reader: Reader<'a>,
    query: NotificationQuery<'a>,
    rooms: Vec<Timeline>,
    /// The rooms that have more, by the position of the next event, or one that it is not beyond.
    queue: BinaryHeap<(i64, Reverse<usize>)>,
    /// The last position that was asked for.
    end: i64,
    page: usize,
    looked_at: usize,
}

/// What is known of one of the rooms.
struct Timeline {
    room: ReadRoom,
    /// Events that were read, the newest first.
    events: VecDeque<Arc<Event>>,
    /// Those that were not read yet are in `(after, to]`.
    after: i64,
    to: i64,
    context: Option<PushConditionRoomCtx>,
}

impl<'a> Search<'a> {
    async fn new(
        sync: &'a Sync,
        reader: Reader<'a>,
        query: NotificationQuery<'a>,
        rooms: Vec<ReadRoom>,
    ) -> Result<Self> {
        let room_nids: Vec<i64> = rooms.iter().map(|room| room.name.nid).collect();
        let heads: HashMap<i64, _> = sync.store.heads(&room_nids).await?.into_iter().collect();
        let end = query.before.map_or(i64::MAX, |before| before.saturating_sub(1));
        let page = (LOOKED_AT_MAX / rooms.len().max(1)).clamp(PAGE_MIN, PAGE_MAX);
        let (timelines, queue) = (Vec::new(), BinaryHeap::new());
        let mut search = Self { sync, reader, query, rooms: timelines, queue, end, page, looked_at: 0 };
        for room in rooms {
            let last = heads.get(&room.name.nid).map_or(0, |head| head.last_pos);
            let mut after = query.after.max(0);
            if query.only == Only::Unread {
                after = after.max(sync.unread.floor(query.user_nid, room.name.nid, ""));
            }
            let to = last.min(end);
            if to > after {
                search.queue.push((to, Reverse(search.rooms.len())));
                search.rooms.push(Timeline { room, events: VecDeque::new(), after, to, context: None });
            }
        }
        Ok(search)
    }

    async fn run(mut self) -> Result<NotificationPage> {
        let mut notifications = Vec::new();
        while let Some((pos, Reverse(place))) = self.queue.pop() {
            let Some(event) = self.rooms[place].events.pop_front() else {
                // The next search begins further on than this one did, so that there is an end.
                if self.looked_at >= LOOKED_AT_MAX && pos < self.end {
                    return Ok(NotificationPage { notifications, next: Some(pos.saturating_add(1)) });
                }
                self.read(place).await?;
                continue;
            };
            self.enqueue(place);
            if let Some(notification) = self.judge(place, event).await? {
                notifications.push(notification);
                if notifications.len() >= self.query.limit {
                    let next = (!self.queue.is_empty()).then_some(pos);
                    return Ok(NotificationPage { notifications, next });
                }
            }
        }
        Ok(NotificationPage { notifications, next: None })
    }

    /// Puts a room where its next event belongs; one that has no more has no place.
    fn enqueue(&mut self, place: usize) {
        let timeline = &self.rooms[place];
        let next = match timeline.events.front() {
            Some(event) => event.pos.unwrap_or(0),
            None if timeline.to > timeline.after => timeline.to,
            None => return,
        };
        self.queue.push((next, Reverse(place)));
    }

    /// Reads a page of a room, and of those that come next and have to be read too.
    async fn read(&mut self, first: usize) -> Result<()> {
        let mut places = vec![first];
        while places.len() < ROOMS_AT_ONCE
            && let Some((_, Reverse(place))) = self.queue.peek().copied()
            && self.rooms[place].events.is_empty()
        {
            self.queue.pop();
            places.push(place);
        }
        let wanted: Vec<(i64, i64, i64)> = places
            .iter()
            .map(|&place| {
                let timeline = &self.rooms[place];
                (timeline.room.name.nid, timeline.after, timeline.to)
            })
            .collect();
        let pages = self.sync.store.newest_events_of(&wanted, self.page).await?;
        let limit = self.page;
        for (&place, page) in places.iter().zip(pages) {
            self.looked_at += page.len();
            let joined = crate::unread::joined_pos(&self.sync.store, self.rooms[place].room.member_nid).await?;
            let timeline = &mut self.rooms[place];
            timeline.after = timeline.after.max(joined);
            timeline.to = match page.first().and_then(|oldest| oldest.pos) {
                Some(oldest) if page.len() == limit => oldest.saturating_sub(1),
                _ => timeline.after,
            };
            let after = timeline.after;
            timeline.events.extend(page.into_iter().rev().filter(|event| event.pos.is_some_and(|pos| pos > after)));
            self.enqueue(place);
        }
        Ok(())
    }

    async fn judge(&mut self, place: usize, event: Arc<Event>) -> Result<Option<Notification>> {
        let (sync, reader) = (self.sync, &self.reader);
        let settings = reader.settings;
        if !event.is_shown()
            || event.sender_nid == reader.user_nid
            || (event.key_nid.is_none() && settings.ignored.contains(event.sender()))
        {
            return Ok(None);
        }
        let timeline = &mut self.rooms[place];
        let context = match &timeline.context {
            Some(context) => context,
            None => {
                // Where everything was counted before, nobody asked yet how many are there.
                timeline.room.joined_count = sync.joined_in(&[(event.room_nid, event.room_state)]).await?[0];
                let context = sync.unread.context(&sync.store, reader, &timeline.room, event.room_state).await?;
                timeline.context.insert(context)
            }
        };
        let flat = sync.unread.flatten(&event);
        let Some(actions) = matching(&settings.rules, &flat, context).await else { return Ok(None) };
        if self.query.only == Only::Highlights && !actions.iter().any(Action::is_highlight) {
            return Ok(None);
        }
        let thread = thread_of(&sync.store, &event).await?;
        let floor = sync.unread.floor(reader.user_nid, event.room_nid, &thread);
        let is_read = event.pos.is_some_and(|pos| pos <= floor);
        if self.query.only == Only::Unread && is_read {
            return Ok(None);
        }
        let room = self.rooms[place].room.name.clone();
        Ok(Some(Notification { event, room, actions: actions.to_vec(), is_read }))
    }
}
