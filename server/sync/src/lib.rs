//! What a client is told: the answers of /sync, and the wake-ups of those who wait.
//!
//! [`Sync`] follows the stream and keeps, in memory, what it takes to say that a client has no news without asking the
//! store. A client with news gets an answer put together for all its rooms at once; a client without waits.

mod account_data;
mod answer;
mod device_lists;
mod ephemeral;
mod error;
mod filter;
mod index;
mod keys_left;
mod lazy;
mod live;
mod metrics;
mod notify;
mod push_rules;
mod receipts;
mod response;
mod sliding;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod timeline;
mod to_device;
pub mod token;
mod unread;

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use myelin_rooms::{Rooms, visibility::membership_in};
use myelin_store::{Batch, Change, Ephemeral, ONE_TIME_KEYS, Observer, Store};
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, presence::PresenceState};

pub use self::{
    account_data::is_server_managed,
    device_lists::KeyChanges,
    error::{Error, Result},
    filter::Filter,
    live::Presence,
    notify::{Listener, Notification, NotificationPage, NotificationQuery, Notified, Only},
    push_rules::{PUSH_RULES_BYTES_MAX, PushRuleChange},
    receipts::ReceiptType,
    sliding::{SlidingCaller, SlidingForm, SlidingQuery, SlidingRequest},
};
use self::{
    index::{Index, View},
    keys_left::KeysLeftCache,
    lazy::SentMembers,
    live::{Live, LiveNews, PresenceNotice, SeenNotice, Sighting, TypingNotice},
    metrics::{ANSWER_SECONDS, SYNCS, USER_LOADS, WAKE_SECONDS},
    response::Answer,
    sliding::Sliding,
    summary::Summaries,
    to_device::Acknowledged,
    token::Token,
    unread::UnreadCounts,
};

/// How often typing is looked at for what has lasted long enough.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at presence.
const PRESENCE_TICKS: u32 = 10;
/// Stored filters in memory.
const FILTERS: usize = 4096;
/// Rooms that are remembered to be encrypted.
const ENCRYPTED_ROOMS: usize = 100_000;
/// How long a user's rooms may take to be told, once the database has them.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How `/sync` behaves.
#[derive(Clone, Copy, Debug)]
pub struct SyncOptions {
    /// The longest that a request may wait.
    pub timeout_max: Duration,
    /// Whether people are told of the presence of those they share rooms with.
    pub presence: bool,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self { timeout_max: Duration::from_secs(300), presence: true }
    }
}

/// Which state a client wants beside the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateForm {
    /// What changed before the start of the timeline.
    #[default]
    Before,
    /// What changed before its end: `use_state_after`.
    After,
    /// The same by its name before the specification had it, `org.matrix.msc4222.use_state_after`.
    AfterUnstable,
}

/// A request of `/sync`.
#[derive(Clone, Debug)]
pub struct Request {
    /// The user, by number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device, by number.
    pub device_nid: i64,
    /// Where to go on from.
    pub since: Option<Token>,
    /// What to leave out.
    pub filter: Arc<Filter>,
    /// Whether to tell the whole state of all rooms.
    pub full_state: bool,
    /// How long to wait for news.
    pub timeout: Duration,
    /// The presence that syncing gives the user.
    pub set_presence: PresenceState,
    /// Which state to tell.
    pub state_form: StateForm,
}

/// Answers `/sync`: one for a process.
pub struct Sync {
    store: Arc<Store>,
    rooms: Arc<Rooms>,
    options: SyncOptions,
    index: Arc<Index>,
    live: Live,
    unread: UnreadCounts,
    summaries: Summaries,
    sent: SentMembers,
    keys_left: KeysLeftCache,
    acknowledged: Acknowledged,
    /// Rooms known to be encrypted, which does not end.
    encrypted: Cache<i64, ()>,
    /// Rooms that were not, with the position of the last event that could have said so, and when that was seen.
    unencrypted: Cache<i64, (i64, Instant)>,
    filters: Cache<(i64, i64), Arc<Filter>>,
    sliding: Sliding,
    ticker: tokio::task::AbortHandle,
    stopping: AtomicBool,
    /// Whether other replicas could not be heard for a while.
    missed: AtomicBool,
}

impl std::fmt::Debug for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sync").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Drop for Sync {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

/// What may be news for a client.
struct Look {
    view: View,
    live: LiveNews,
}

impl Sync {
    /// Follows the stream from now on. Must be called within a runtime.
    #[must_use]
    pub fn new(store: Arc<Store>, rooms: Arc<Rooms>, options: SyncOptions) -> Arc<Self> {
        metrics::show();
        let sync = Arc::new_cyclic(|weak: &Weak<Self>| Self {
            store: store.clone(),
            rooms,
            options,
            index: Arc::default(),
            live: Live::default(),
            unread: UnreadCounts::new(),
            summaries: Summaries::new(),
            sent: SentMembers::new(),
            keys_left: KeysLeftCache::new(),
            acknowledged: Acknowledged::default(),
            encrypted: Cache::new(ENCRYPTED_ROOMS),
            unencrypted: Cache::new(ENCRYPTED_ROOMS),
            filters: Cache::new(FILTERS),
            sliding: Sliding::new(),
            ticker: tokio::spawn(tick(weak.clone())).abort_handle(),
            stopping: AtomicBool::new(false),
            missed: AtomicBool::new(true),
        });
        store.observe(Arc::new(Follower(Arc::downgrade(&sync))));
        sync.index.start(store.position());
        sync
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Answers all who wait, now and from now on, so that the server can stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.index.wake_all();
    }

    /// A filter that a user has stored.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when the user has none of this number.
    pub async fn stored_filter(&self, user_nid: i64, filter_id: i64) -> Result<Arc<Filter>> {
        if let Some(filter) = self.filters.get(&(user_nid, filter_id)) {
            return Ok(filter);
        }
        let json = self.store.filter(user_nid, filter_id).await?.ok_or(Error::NotFound("there is no such filter"))?;
        let filter = Arc::new(Filter::parse(&json)?);
        self.filters.insert((user_nid, filter_id), filter.clone());
        Ok(filter)
    }

    /// Answers a request, at once if there is news or when the client wants no wait. The answer is JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] and [`Error::Rooms`] when the database does not answer.
    pub async fn sync(self: &Arc<Self>, request: Request) -> Result<Bytes> {
        self.load(request.user_nid).await?;
        Box::pin(self.seen_syncing(request.user_nid, &request.set_presence)).await?;
        let since = self.known_since(request.since).await?;
        if let Some(since) = since {
            self.acknowledge(request.user_nid, request.device_nid, since.to_device_pos()).await?;
        }
        let since = match since {
            Some(since) if !request.full_state => since,
            since => {
                let kind = if since.is_some() { "full_state" } else { "initial" };
                return written(&self.answer(&request, since, None).await?, kind);
            }
        };
        let answer = self.wait_for_news(&request, since).await?;
        self.live.note_seen(request.user_nid, now_ms());
        let kind = if answer.is_empty() { "empty" } else { "news" };
        written(&answer, kind)
    }

    /// The place to go on from, if this database has ever been there. If it has not, because it was restored from a
    /// backup, the client begins anew: it would miss all that gets the positions that it has passed already.
    async fn known_since(&self, since: Option<Token>) -> Result<Option<Token>> {
        let Some(asked) = since.filter(|since| since.pos > self.store.position()) else { return Ok(since) };
        // Another replica may have told of what we have not heard of yet.
        let committed = Box::pin(self.store.committed_position()).await?;
        if asked.pos <= committed {
            return Ok(since);
        }
        tracing::info!(since = asked.pos, committed, "a client comes with a token from beyond the stream");
        Ok(None)
    }

    async fn wait_for_news(self: &Arc<Self>, request: &Request, mut since: Token) -> Result<Answer> {
        let poll = self.index.wait(request.user_nid);
        let mut timeout = std::pin::pin!(tokio::time::sleep(request.timeout.min(self.options.timeout_max)));
        loop {
            let mut woken = std::pin::pin!(poll.notify.notified());
            woken.as_mut().enable();
            self.load(request.user_nid).await?;
            if let Some(look) = self.look(request, &mut since) {
                let started = self.index.take_woken(request.user_nid);
                let answer = self.answer(request, Some(since), Some(look)).await?;
                if !answer.is_empty() {
                    if let Some(started) = started {
                        WAKE_SECONDS.observe(started.elapsed().as_secs_f64());
                    }
                    return Ok(answer);
                }
                since = answer.next_batch.parse().unwrap_or(since);
            }
            if request.timeout.is_zero() || self.stopping.load(Ordering::Acquire) {
                return self.nothing(request, since).await;
            }
            tokio::select! {
                biased;
                () = &mut woken => {}
                () = &mut timeout => return self.nothing(request, since).await,
            }
        }
    }

    /// The answer where there is no news.
    async fn nothing(&self, request: &Request, since: Token) -> Result<Answer> {
        let keys = self.keys_left(request.device_nid).await?;
        Ok(Answer { next_batch: since.to_string(), keys, ..Answer::default() })
    }

    /// What may be news. Where there surely is none, moves the token to where we looked up to.
    fn look(&self, request: &Request, since: &mut Token) -> Option<Look> {
        let view = self.index.view(request.user_nid, Some(since.pos))?;
        let has_messages = self.index.to_device_pos(request.user_nid, request.device_nid) > since.to_device_pos();
        let live = self.live_news(request, Some(since.serial.unwrap_or(0)));
        if view.is_empty() && !has_messages && live.typing.is_empty() && live.presence.is_empty() {
            *since = Token::sync(since.pos.max(view.to), live.to);
            return None;
        }
        Some(Look { view, live })
    }

    /// Typing and presence that concern a user.
    fn live_news(&self, request: &Request, since: Option<u64>) -> LiveNews {
        let presence = self.options.presence && !request.filter.excludes_presence();
        let mut news = self.live.news(since, presence);
        let user_nid = request.user_nid;
        news.typing.retain(|(room_nid, _)| self.index.is_joined_to_any(user_nid, [*room_nid]));
        news.presence.retain(|shown| {
            shown.user_nid == user_nid || self.index.is_joined_to_any(user_nid, shown.rooms.iter().copied())
        });
        news
    }

    /// The answer, in a box of its own: those who wait must not hold the room for it.
    fn answer<'a>(
        self: &'a Arc<Self>,
        request: &'a Request,
        since: Option<Token>,
        look: Option<Look>,
    ) -> Pin<Box<dyn Future<Output = Result<Answer>> + Send + 'a>> {
        Box::pin(self.put_together(request, since, look))
    }

    /// Makes sure that a user's rooms are known.
    async fn load(&self, user_nid: i64) -> Result<()> {
        if self.index.is_loaded(user_nid) {
            return Ok(());
        }
        Box::pin(async {
            loop {
                USER_LOADS.inc();
                let epoch = self.index.begin_load(user_nid);
                let members = self.store.memberships(user_nid).await?;
                // The database may be ahead of what we were told.
                let newest = members.iter().map(|member| member.pos).max().unwrap_or(0);
                let mut positions = self.store.positions();
                let told = positions.wait_for(|position| *position >= newest);
                if tokio::time::timeout(CATCH_UP, told).await.is_err() {
                    return Err(Error::Store(myelin_store::Error::Closed));
                }
                if self.index.finish_load(user_nid, epoch, &members) {
                    return Ok(());
                }
            }
        })
        .await
    }

    async fn seen_syncing(&self, user_nid: i64, set_presence: &PresenceState) -> Result<()> {
        if !self.options.presence {
            return Ok(());
        }
        let now = now_ms();
        match self.live.note_sync(user_nid, set_presence, now) {
            Sighting::Known => Ok(()),
            Sighting::Moved => {
                let here = vec![user_nid];
                self.pass_seen(&SeenNotice { origin: self.live.origin(), here, ..SeenNotice::default() })
            }
            Sighting::Changed => {
                let before = self.live.presence(user_nid);
                let status_msg = before.and_then(|presence| presence.status_msg);
                self.tell_presence(user_nid, set_presence.clone(), status_msg, now).await
            }
        }
    }

    fn tell_live(&self, notice: &Ephemeral) {
        match notice.kind.as_str() {
            ONE_TIME_KEYS => match serde_json::from_str::<Vec<i64>>(&notice.json) {
                Ok(devices) => self.keys_left.forget(&devices),
                Err(_) => self.keys_left.forget_all(),
            },
            "typing" => {
                if let Ok(notice) = serde_json::from_str::<TypingNotice>(&notice.json)
                    && self.live.note_typing(notice, now_ms())
                {
                    self.index.wake_rooms([notice.room]);
                }
            }
            "presence" => {
                if let Ok(notice) = serde_json::from_str::<PresenceNotice>(&notice.json) {
                    let user_nid = notice.user;
                    let rooms = self.live.note_presence(notice, now_ms());
                    self.index.wake_rooms(rooms.iter().copied());
                    self.index.wake_user(user_nid);
                }
            }
            "seen" => {
                if let Ok(notice) = serde_json::from_str::<SeenNotice>(&notice.json) {
                    self.live.note_seen_elsewhere(&notice, now_ms());
                }
            }
            _ => {}
        }
    }

    fn on_tick(&self, count: u32) {
        let now = now_ms();
        let rooms = self.live.expire_typing(now);
        if !rooms.is_empty() {
            self.index.wake_rooms(rooms);
        }
        if self.options.presence && self.missed.swap(false, Ordering::AcqRel) {
            self.ask_anew();
        }
        if self.options.presence && count.is_multiple_of(PRESENCE_TICKS) {
            let swept = self.live.sweep_presence(|user_nid| self.index.is_waiting(user_nid), now);
            self.index.wake_rooms(swept.rooms);
            let told = swept.presence.iter().try_for_each(|notice| self.pass_presence(notice));
            if let Err(error) = told.and_then(|()| swept.seen.iter().try_for_each(|notice| self.pass_seen(notice))) {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not tell of users' presence");
            }
        }
    }

    /// Asks other replicas for what they have said meanwhile.
    fn ask_anew(&self) {
        let asks = SeenNotice { origin: self.live.origin(), asks: true, ..SeenNotice::default() };
        if let Err(error) = self.pass_seen(&asks) {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not ask for users' presence");
        }
    }
}

/// Follows the stream for a [`Sync`] as long as there is one.
struct Follower(Weak<Sync>);

impl Observer for Follower {
    fn committed(&self, batch: &Batch) {
        let Some(sync) = self.0.upgrade() else { return };
        let mut active = Vec::new();
        for change in &batch.changes {
            match change {
                Change::Event(event) => {
                    if sync.options.presence {
                        active.push(event.sender_nid);
                        if event.event_type() == "m.room.member"
                            && let (Some(user_id), Some(membership)) = (event.state_key(), membership_in(event))
                        {
                            sync.live.note_member(user_id, event.room_nid, membership, now_ms());
                        }
                    }
                }
                Change::Receipt(receipt) => sync.unread.received(receipt),
                Change::AccountData(data) => sync.unread.pushed().changed(data),
                Change::Membership { .. } | Change::ToDevice(_) | Change::DeviceList(_) => {}
            }
        }
        let roused = if active.is_empty() { Vec::new() } else { sync.live.note_activity(active, now_ms()) };
        sync.index.committed(batch);
        if !roused.is_empty() {
            sync.index.wake_rooms(roused);
        }
    }

    fn passed(&self, ephemeral: &Ephemeral) {
        if let Some(sync) = self.0.upgrade() {
            sync.tell_live(ephemeral);
        }
    }

    fn missed(&self) {
        if let Some(sync) = self.0.upgrade() {
            sync.keys_left.forget_all();
            // Not from here: the store is telling its observers.
            sync.missed.store(true, Ordering::Release);
        }
    }
}

/// Ends typing and presence that have lasted long enough, while there is a [`Sync`].
async fn tick(sync: Weak<Sync>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 0_u32.. {
        interval.tick().await;
        if count == 0 {
            // The Sync is being made.
            continue;
        }
        let Some(sync) = sync.upgrade() else { return };
        sync.on_tick(count);
    }
}

fn written(answer: &Answer, kind: &'static str) -> Result<Bytes> {
    SYNCS.with_label_values(&[kind]).inc();
    serde_json::to_vec(answer).map(Bytes::from).map_err(Error::Write)
}

/// The present, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Measures an answer.
pub(crate) fn observe(started: Instant, initial: bool) {
    let kind = if initial { "full" } else { "incremental" };
    ANSWER_SECONDS.with_label_values(&[kind]).observe(started.elapsed().as_secs_f64());
}
