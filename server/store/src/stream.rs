//! The one stream: what was committed, in order, to everyone who follows it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, LazyLock},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge, register_int_counter, register_int_gauge};
use sqlx::postgres::PgListener;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::{
    AccountData, DeviceListChange, Error, Event, Member, Membership, Receipt, Result, Store, ToDeviceArrival,
    database::Database,
    encryption::{device_lists, to_device},
    events::{EventRow, redacted_event_id, select_events},
    sql::{row, rows},
};

/// Changes that are read from the database at once when another replica wrote them.
const GAP: i64 = 2000;
/// Notifications that wait to be sent, at the most.
const HERALDS: usize = 4096;
/// The longest that PostgreSQL takes, in bytes, with some room.
const NOTIFICATION_BYTES_MAX: usize = 7900;
/// How long reading what others wrote may take: longer than any read that is not stuck.
const CATCH_UP_TIME: Duration = Duration::from_secs(30);
/// How often the stream is polled in case a notification was lost.
const POLL: Duration = Duration::from_secs(2);

static POSITION: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("myelin_store_stream_position", "The last position of the stream known here.")
        .expect("metric names are unique")
});
static GAPS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_store_stream_gap_reads_total", "Times the stream was read from the database.")
        .expect("metric names are unique")
});

static NOT_PASSED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_store_ephemeral_lost_total",
        "Typing, presence and ended sessions that other replicas could not be told of."
    )
    .expect("metric names are unique")
});

/// A membership as a row, with the one before it.
type MovedRow = (i64, i64, i64, i64, i64, bool, Option<i64>);

/// A committed change.
#[derive(Clone, Debug)]
pub enum Change {
    /// An event at the end of a room's timeline.
    Event(Arc<Event>),
    /// A receipt.
    Receipt(Arc<Receipt>),
    /// A user's data.
    AccountData(Arc<AccountData>),
    /// A user's place in a room, which its event or the resolution of the room's state has changed.
    Membership {
        /// The place.
        member: Member,
        /// The membership before.
        was: Option<Membership>,
    },
    /// Messages have come for devices.
    ToDevice(Arc<ToDeviceArrival>),
    /// A user's devices or cross-signing keys have changed.
    DeviceList(Arc<DeviceListChange>),
}

impl Change {
    /// The change's place in the stream.
    pub fn pos(&self) -> i64 {
        match self {
            Self::Event(event) => event.pos.unwrap_or_default(),
            Self::Receipt(receipt) => receipt.pos,
            Self::AccountData(data) => data.pos,
            Self::Membership { member, .. } => member.pos,
            Self::ToDevice(arrival) => arrival.pos,
            Self::DeviceList(change) => change.pos,
        }
    }
}

/// The changes of the positions `from + 1 ..= to`, in order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The position before the first one.
    pub from: i64,
    /// The last position.
    pub to: i64,
    /// What happened at them. A position may have no change: its write was refused.
    pub changes: Vec<Change>,
}

/// Something that passes by and is not kept: typing, presence.
#[derive(Clone, Debug)]
pub struct Ephemeral {
    /// What it is, for example `typing`.
    pub kind: String,
    /// Its JSON, at most some 7 KiB.
    pub json: String,
}

/// Follows the stream. Called in order, one batch at a time; must be quick and must not block.
pub trait Observer: Send + Sync {
    /// What was committed, here or by another replica.
    fn committed(&self, batch: &Batch);
    /// What passed by, here or at another replica.
    fn passed(&self, ephemeral: &Ephemeral) {
        let _ = ephemeral;
    }
    /// For a while, what passed by at other replicas could not be heard here.
    fn missed(&self) {}
}

/// How far the stream has been told to the observers.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) pos: i64,
}

/// The newest events of the rooms, in memory.
#[derive(Debug)]
pub(crate) struct Recent {
    inner: Mutex<RecentRooms>,
    max_weight: u64,
}

#[derive(Debug)]
struct RecentRooms {
    rooms: HashMap<i64, RecentRoom>,
    /// Rooms in the order of their last event, oldest first; may name a room more than once.
    order: VecDeque<(i64, i64)>,
    weight: u64,
    /// A room without an entry has had no event after this position.
    floor: i64,
}

#[derive(Debug)]
struct RecentRoom {
    /// All events after this position are here.
    complete_after: i64,
    events: VecDeque<Arc<Event>>,
}

const RECENT_PER_ROOM: usize = 64;

impl Recent {
    pub(crate) fn new(floor: i64, max_weight: u64) -> Self {
        let rooms = RecentRooms { rooms: HashMap::new(), order: VecDeque::new(), weight: 0, floor };
        Self { inner: Mutex::new(rooms), max_weight }
    }

    fn push(&self, event: &Arc<Event>) {
        let Some(pos) = event.pos else { return };
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let floor = inner.floor;
        let room = inner
            .rooms
            .entry(event.room_nid)
            .or_insert_with(|| RecentRoom { complete_after: floor, events: VecDeque::new() });
        inner.weight += event.weight();
        room.events.push_back(event.clone());
        if room.events.len() > RECENT_PER_ROOM
            && let Some(oldest) = room.events.pop_front()
        {
            inner.weight -= oldest.weight();
            room.complete_after = oldest.pos.unwrap_or(pos);
        }
        inner.order.push_back((event.room_nid, pos));
        while inner.weight > self.max_weight {
            let Some((room_nid, pos)) = inner.order.pop_front() else { break };
            let is_last = inner
                .rooms
                .get(&room_nid)
                .is_some_and(|room| room.events.back().and_then(|event| event.pos) == Some(pos));
            if is_last && let Some(room) = inner.rooms.remove(&room_nid) {
                inner.weight -= room.events.iter().map(|event| event.weight()).sum::<u64>();
                inner.floor = inner.floor.max(pos);
            }
        }
        // Entries for rooms that have had newer events say nothing; keep the list as short as the ring.
        if inner.order.len() > 4 * RECENT_PER_ROOM + 8 * inner.rooms.len() {
            let rooms = &inner.rooms;
            inner.order.retain(|(room_nid, pos)| {
                rooms.get(room_nid).is_some_and(|room| room.events.back().and_then(|event| event.pos) == Some(*pos))
            });
        }
    }

    /// The events of a room in `(after, to]`, oldest first, if all of them are here.
    pub(crate) fn events(&self, room_nid: i64, after: i64, to: i64) -> Option<Vec<Arc<Event>>> {
        let inner = self.inner.lock();
        let Some(room) = inner.rooms.get(&room_nid) else {
            return (after >= inner.floor).then(Vec::new);
        };
        if after < room.complete_after {
            return None;
        }
        let start = room.events.partition_point(|event| event.pos.is_some_and(|pos| pos <= after));
        Some(room.events.range(start..).take_while(|event| event.pos.is_some_and(|pos| pos <= to)).cloned().collect())
    }

    /// Puts a newer copy of an event in the place of an older one.
    fn replace(&self, event: &Arc<Event>) {
        let mut inner = self.inner.lock();
        let mut delta = 0;
        if let Some(room) = inner.rooms.get_mut(&event.room_nid)
            && let Some(place) = room.events.iter_mut().find(|old| old.nid == event.nid)
        {
            delta = place.weight() as i64 - event.weight() as i64;
            *place = event.clone();
        }
        inner.weight = inner.weight.saturating_add_signed(-delta);
    }

    /// Forgets a room's events; whoever asks for them reads the database.
    fn forget(&self, room_nid: i64) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if let Some(room) = inner.rooms.get_mut(&room_nid) {
            inner.weight -= room.events.iter().map(|event| event.weight()).sum::<u64>();
            room.complete_after = room.events.back().and_then(|event| event.pos).unwrap_or(room.complete_after);
            room.events.clear();
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        self.inner.lock().weight
    }
}

impl Store {
    /// The last position that every reader here may see.
    pub fn position(&self) -> i64 {
        *self.position.borrow()
    }

    /// Follows the position.
    pub fn positions(&self) -> watch::Receiver<i64> {
        self.position.subscribe()
    }

    /// Adds a follower of the stream. Those added first are told first.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.write().push(observer);
    }

    /// Tells everyone of something that is not kept: here at once, on other replicas soon, and not at all if they
    /// cannot be reached.
    pub fn pass(&self, ephemeral: &Ephemeral) {
        self.tell_passed(ephemeral);
        let Some(heralds) = &self.heralds else { return };
        let payload = serde_json::json!([self.replica, ephemeral.kind, ephemeral.json]).to_string();
        if payload.len() > NOTIFICATION_BYTES_MAX || heralds.try_send(payload).is_err() {
            NOT_PASSED.inc();
        }
    }

    fn tell_passed(&self, ephemeral: &Ephemeral) {
        for observer in self.observers.read().iter() {
            observer.passed(ephemeral);
        }
    }

    /// Moves the tail to the end of a batch that was just committed here.
    pub(crate) async fn advance(&self, tail: &mut Tail, batch: Batch) -> Result<()> {
        if batch.from > tail.pos {
            self.read_gap(tail, batch.from).await?;
        }
        if batch.to > tail.pos {
            self.tell(tail, &batch).await;
        }
        Ok(())
    }

    /// Reads what other replicas wrote, up to a position.
    pub(crate) async fn catch_up(&self, to: i64) -> Result<()> {
        let mut tail = self.tail.lock().await;
        if to > tail.pos {
            self.read_gap(&mut tail, to).await?;
        }
        Ok(())
    }

    async fn read_gap(&self, tail: &mut Tail, to: i64) -> Result<()> {
        GAPS.inc();
        while tail.pos < to {
            let end = to.min(tail.pos + GAP);
            let changes = self.read_changes(tail.pos, end).await?;
            self.tell(tail, &Batch { from: tail.pos, to: end, changes }).await;
        }
        Ok(())
    }

    async fn tell(&self, tail: &mut Tail, batch: &Batch) {
        for change in &batch.changes {
            if let Change::Event(event) = change {
                self.remember_event(event);
                self.recent.push(event);
                self.childless.note(event);
                if event.event_type() == "m.room.redaction" {
                    self.refresh_redacted(event).await;
                }
            }
        }
        tail.pos = batch.to;
        POSITION.set(batch.to);
        for observer in self.observers.read().iter() {
            observer.committed(batch);
        }
        // Last, so that whoever is woken finds what it was woken for.
        self.position.send_replace(batch.to);
    }

    /// The copy of a redacted event in memory still has its content: take the stored one in its place.
    async fn refresh_redacted(&self, redaction: &Event) {
        match self.events_redacted_by(redaction.nid).await {
            Ok(events) => {
                for event in events {
                    self.remember_event(&event);
                    self.recent.replace(&event);
                }
            }
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "could not reload a redacted event; it leaves the cache"
                );
                if let Some(target) = redacted_event_id(redaction) {
                    self.forget_event_id(&target);
                }
                self.recent.forget(redaction.room_nid);
            }
        }
    }

    async fn read_changes(&self, from: i64, to: i64) -> Result<Vec<Change>> {
        let mut reader = self.database.reader().await?;
        let events: Vec<EventRow> = rows!(reader, select_events!("WHERE pos > $1 AND pos <= $2"), from, to)?;
        let receipts: Vec<crate::receipts::ReceiptRow> = rows!(
            reader,
            "SELECT room_nid, user_nid, type, thread, event_nid, event_pos, ts, pos FROM receipts WHERE pos > $1 AND pos <= $2",
            from,
            to
        )?;
        let data: Vec<crate::account_data::AccountDataRow> = rows!(
            reader,
            "SELECT user_nid, room_nid, type, content, pos FROM account_data WHERE pos > $1 AND pos <= $2",
            from,
            to
        )?;
        let members: Vec<MovedRow> = rows!(
            reader,
            "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten, was FROM memberships
             WHERE pos > $1 AND pos <= $2",
            from,
            to
        )?;
        let mut changes: Vec<Change> = Vec::with_capacity(events.len() + receipts.len() + data.len() + members.len());
        for event in events {
            changes.push(Change::Event(Arc::new(event.try_into()?)));
        }
        changes.extend(receipts.into_iter().map(|row| Change::Receipt(Arc::new(row.into()))));
        changes.extend(data.into_iter().map(|row| Change::AccountData(Arc::new(row.into()))));
        for (room_nid, user_nid, membership, event_nid, pos, forgotten, was) in members {
            let member = Member::try_from((room_nid, user_nid, membership, event_nid, pos, forgotten))?;
            changes.push(Change::Membership { member, was: was.map(Membership::from_number).transpose()? });
        }
        changes.extend(to_device::read_changes(&mut reader, from, to).await?);
        changes.extend(device_lists::read_changes(&mut reader, from, to).await?);
        changes.sort_by_key(Change::pos);
        Ok(changes)
    }

    pub(crate) async fn stored_position(database: &Database) -> Result<i64> {
        let mut reader = database.reader().await?;
        let (pos,): (i64,) = row!(reader, "SELECT pos FROM stream WHERE id = 1")?;
        Ok(pos)
    }
}

/// The way from [`Store::pass`] to the other replicas: none where there can be no others.
pub(crate) fn heralds(database: &Database) -> (Option<mpsc::Sender<String>>, mpsc::Receiver<String>) {
    let (sender, receiver) = mpsc::channel(HERALDS);
    (matches!(database, Database::Postgres { .. }).then_some(sender), receiver)
}

/// Notifies the other replicas, of all at once that came while the database took the last ones, until the store is
/// closed.
pub(crate) async fn herald(store: Arc<Store>, mut waiting: mpsc::Receiver<String>, mut stop: watch::Receiver<bool>) {
    let Database::Postgres { pool, .. } = &store.database else { return };
    let mut payloads = Vec::new();
    let mut stopping = false;
    loop {
        if stopping {
            while payloads.len() < HERALDS
                && let Ok(payload) = waiting.try_recv()
            {
                payloads.push(payload);
            }
            if payloads.is_empty() {
                return;
            }
        } else {
            tokio::select! {
                biased;
                _ = waiting.recv_many(&mut payloads, HERALDS) => {}
                _ = stop.wait_for(|stop| *stop) => {
                    stopping = true;
                    continue;
                }
            }
        }
        let sent = sqlx::query("SELECT pg_notify('myelin_ephemeral', p) FROM unnest($1::text[]) AS p")
            .bind(&payloads)
            .execute(pool)
            .await;
        if let Err(error) = sent {
            NOT_PASSED.inc_by(payloads.len() as u64);
            warn!(
                error = &error as &dyn std::error::Error,
                "could not tell other replicas of typing, presence and ended sessions"
            );
        }
        payloads.clear();
    }
}

/// Follows what other replicas commit, until the store is closed.
pub(crate) async fn follow(store: Arc<Store>, mut stop: watch::Receiver<bool>) {
    let Database::Postgres { pool, .. } = &store.database else { return };
    let mut stopped = std::pin::pin!(async move { stop.wait_for(|stopped| *stopped).await.is_ok() });
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            outcome = listen(&store, pool) => {
                if let Err(error) = outcome {
                    warn!(error = &error as &dyn std::error::Error, "lost the database's notifications; connecting anew");
                }
            }
        }
        tokio::select! {
            _ = &mut stopped => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn listen(store: &Arc<Store>, pool: &sqlx::PgPool) -> Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen_all(["myelin_stream", "myelin_ephemeral"]).await?;
    info!("following the database's notifications");
    for observer in store.observers.read().iter() {
        observer.missed();
    }
    loop {
        let notification = match tokio::time::timeout(POLL, listener.try_recv()).await {
            Ok(notification) => notification?,
            Err(_) => {
                let catch_up = async { store.catch_up(Store::stored_position(&store.database).await?).await };
                tokio::time::timeout(CATCH_UP_TIME, catch_up).await.map_err(|_| {
                    store.database.distrust_connections();
                    Error::Timeout
                })??;
                continue;
            }
        };
        // `None`: the connection was lost.
        let Some(notification) = notification else { return Ok(()) };
        if notification.channel() == "myelin_stream" {
            if let Ok(pos) = notification.payload().parse::<i64>()
                && pos > store.position()
            {
                store.catch_up(pos).await?;
            }
        } else if let Ok((replica, kind, json)) = serde_json::from_str::<(u64, String, String)>(notification.payload())
            && replica != store.replica
        {
            store.tell_passed(&Ephemeral { kind, json });
        }
    }
}
