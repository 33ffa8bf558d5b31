//! The group commit: what waits, from all rooms, becomes one transaction.

mod graph;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{Histogram, IntCounter, IntGauge, register_histogram, register_int_counter, register_int_gauge};
use ruma::{OwnedEventId, OwnedRoomId, RoomVersionId};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::{
    AccountData, Error, Event, Member, Receipt, Result, Store, ToDevice, ToDeviceArrival,
    database::{Engine, Transaction},
    encryption::to_device,
    relations,
    sql::{Sql, execute, row},
    state_tree::Node,
    stream::{Batch, Change},
};

/// Operations that wait for the committer at the most; senders wait for a place.
const QUEUE: usize = 4096;
/// How long a transaction may take: longer than any that is not stuck.
const COMMIT_TIME: Duration = Duration::from_secs(20);
/// Operations in one transaction at the most.
const BATCH: usize = 512;

static EVENTS_WRITTEN: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_store_events_written_total", "Events committed to the database.")
        .expect("metric names are unique")
});
static BATCH_SIZE: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(
        "myelin_store_commit_batch_size",
        "Operations in one group commit.",
        vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    )
    .expect("metric names are unique")
});
static COMMIT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(
        "myelin_store_commit_duration_seconds",
        "Duration of one group commit, from its first statement to its end.",
        vec![0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]
    )
    .expect("metric names are unique")
});
static COMMIT_FAILURES: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_store_commit_failures_total", "Group commits that were rolled back.")
        .expect("metric names are unique")
});
static COMMIT_CONFLICTS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_store_commit_conflicts_total",
        "Writes to a room refused because it had been written meanwhile."
    )
    .expect("metric names are unique")
});
static QUEUED: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("myelin_store_commit_queue", "Operations that wait for the committer.")
        .expect("metric names are unique")
});

/// Shows every metric from the start on, not from its first use.
pub(crate) fn show_metrics() {
    LazyLock::force(&EVENTS_WRITTEN);
    LazyLock::force(&BATCH_SIZE);
    LazyLock::force(&COMMIT_SECONDS);
    LazyLock::force(&COMMIT_FAILURES);
    LazyLock::force(&COMMIT_CONFLICTS);
    LazyLock::force(&QUEUED);
    to_device::show_metrics();
    relations::show_metrics();
}

/// Where a room stands once a write is through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The number of the event appended last; 0 for a room that is not there yet.
    pub version: i64,
    /// The position of the event appended last, as far as known.
    pub last_pos: i64,
    /// The greatest depth.
    pub depth: i64,
    /// The events that no other event follows, by number.
    pub extremities: Vec<i64>,
    /// The snapshot of the current state.
    pub state_root: i64,
}

/// A room's first write.
#[derive(Clone, Debug)]
pub struct NewRoom {
    /// The identifier.
    pub room_id: OwnedRoomId,
    /// The version of its rules.
    pub version: RoomVersionId,
    /// Whether it is listed in the directory.
    pub is_public: bool,
    /// An alias that is to point to it, with its creator's number and the time in milliseconds.
    pub alias: Option<(String, i64, i64)>,
}

/// A user's membership after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The user.
    pub user_nid: i64,
    /// The membership.
    pub membership: Membership,
    /// Its event's number.
    pub event_nid: i64,
}

/// A membership as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i64)]
pub enum Membership {
    /// `join`
    Join = 1,
    /// `invite`
    Invite = 2,
    /// `knock`
    Knock = 3,
    /// `leave`
    Leave = 4,
    /// `ban`
    Ban = 5,
}

impl Membership {
    /// The membership of a stored number.
    pub fn from_number(number: i64) -> Result<Self> {
        Ok(match number {
            1 => Self::Join,
            2 => Self::Invite,
            3 => Self::Knock,
            4 => Self::Leave,
            5 => Self::Ban,
            _ => return Err(Error::Corrupt { what: "membership" }),
        })
    }

    /// The membership of a word of the specification.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "join" => Self::Join,
            "invite" => Self::Invite,
            "knock" => Self::Knock,
            "leave" => Self::Leave,
            "ban" => Self::Ban,
            _ => return None,
        })
    }

    /// The specification's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

/// An event that loses its content.
#[derive(Clone, Debug)]
pub struct Redaction {
    /// The event.
    pub target: Arc<Event>,
    /// The redaction's number.
    pub by: i64,
    /// The event's JSON, redacted.
    pub json: Box<str>,
}

/// Events at the end of one room.
#[derive(Debug, Default)]
pub struct Append {
    /// The room.
    pub room_nid: i64,
    /// The version that the room must have for the write to go through.
    pub expected_version: i64,
    /// Given for a room's first write.
    pub create: Option<NewRoom>,
    /// The events, in order, without positions. Those that clients may be shown get one.
    pub events: Vec<Event>,
    /// Events from before what we have of the room, the newest first, without positions. They get negative ones.
    pub history: Vec<Event>,
    /// Events that get no position, because others only refer to them.
    pub outliers: Vec<Event>,
    /// The numbers of those events that are stored already, as outliers, and now find their place.
    pub promoted: HashSet<i64>,
    /// The auth events' numbers of the state events among those not stored already.
    pub auth_edges: Vec<(i64, Vec<i64>)>,
    /// Events that are followed by one of these (its number) and are not here.
    pub gaps: Vec<(OwnedEventId, i64)>,
    /// Events that were missing, and no longer are.
    pub filled: Vec<OwnedEventId>,
    /// Redactions of events that are not here, with the redaction's number.
    pub waiting_redactions: Vec<(OwnedEventId, i64)>,
    /// Stripped state that came with an event.
    pub stripped_state: Option<(i64, Box<str>)>,
    /// New nodes of the state snapshots.
    pub nodes: Vec<(i64, Arc<Node>)>,
    /// The room's head afterwards.
    pub head: Head,
    /// The memberships that change.
    pub memberships: Vec<MembershipChange>,
    /// The events that are redacted.
    pub redactions: Vec<Redaction>,
    /// Told how the write ends, for whoever builds on it meanwhile.
    pub fate: Arc<Fate>,
}

/// How the writes that were built one on the other have fared so far.
#[derive(Debug, Default)]
pub struct Fate {
    failed: AtomicBool,
    committed: AtomicI64,
}

impl Fate {
    /// True once one of the writes has failed: what was built on it will fail too, and must start anew.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The number of the last event that was committed.
    pub fn committed(&self) -> i64 {
        self.committed.load(Ordering::Acquire)
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn commit(&self, version: i64) {
        self.committed.store(version, Ordering::Release);
    }
}

/// A change to the stream.
#[derive(Debug)]
pub enum Operation {
    /// Events in a room.
    Append(Box<Append>),
    /// A receipt.
    Receipt(Receipt),
    /// A user's data.
    AccountData(AccountData),
    /// Messages to devices.
    ToDevice(Box<ToDevice>),
}

/// The positions that a committed operation got, and the events as they now stand.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// The last position of the operation.
    pub pos: i64,
    /// The events, if it was an [`Append`].
    pub events: Vec<Arc<Event>>,
}

/// An answer that will come when the operation is committed.
pub type Waiting = oneshot::Receiver<Result<Committed>>;

pub(crate) struct Queued {
    operation: Operation,
    answer: oneshot::Sender<Result<Committed>>,
}

pub(crate) type Queue = mpsc::Sender<Queued>;

pub(crate) fn queue() -> (Queue, mpsc::Receiver<Queued>) {
    mpsc::channel(QUEUE)
}

impl Store {
    /// Takes a place in the queue. Holding it, [`Place::submit`] cannot fail or wait.
    pub async fn place(&self) -> Result<Place<'_>> {
        let permit = self.queue.reserve().await.map_err(|_| Error::Closed)?;
        Ok(Place { permit })
    }

    /// Queues an operation and waits until it is committed.
    pub async fn commit(&self, operation: Operation) -> Result<Committed> {
        let waiting = self.place().await?.submit(operation);
        waiting.await.map_err(|_| Error::Closed)?
    }
}

/// A place in the committer's queue.
pub struct Place<'s> {
    permit: mpsc::Permit<'s, Queued>,
}

impl Place<'_> {
    /// Queues an operation.
    pub fn submit(self, operation: Operation) -> Waiting {
        let (answer, waiting) = oneshot::channel();
        QUEUED.inc();
        self.permit.send(Queued { operation, answer });
        waiting
    }
}

/// Commits what is queued until every sender is gone.
pub(crate) async fn run(
    store: Arc<Store>,
    mut queue: mpsc::Receiver<Queued>,
    stop: tokio::sync::watch::Receiver<bool>,
) {
    let mut stop = stop;
    let mut stopped = std::pin::pin!(async move { stop.wait_for(|stopped| *stopped).await.is_ok() });
    let mut closing = false;
    let mut waiting = Vec::with_capacity(BATCH);
    loop {
        let count = tokio::select! {
            biased;
            count = queue.recv_many(&mut waiting, BATCH) => count,
            _ = &mut stopped, if !closing => {
                // Nothing new from now on; what is queued is still committed.
                closing = true;
                queue.close();
                continue;
            }
        };
        if count == 0 {
            return;
        }
        QUEUED.sub(count as i64);
        BATCH_SIZE.observe(count as f64);
        let started = Instant::now();
        commit_batch(&store, std::mem::take(&mut waiting)).await;
        COMMIT_SECONDS.observe(started.elapsed().as_secs_f64());
        waiting.reserve(BATCH);
    }
}

async fn commit_batch(store: &Arc<Store>, batch: Vec<Queued>) {
    let (operations, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|queued| (queued.operation, queued.answer)).unzip();
    match write(store, operations).await {
        Ok(outcomes) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // A caller that has gone away needs no answer; its write stands.
                drop(answer.send(outcome));
            }
        }
        Err((error, operations)) => {
            COMMIT_FAILURES.inc();
            if operations.len() > 1 && !error.is_unavailable() {
                // One of them is at fault; the others must not suffer for it. Halves find it in few commits.
                let mut first: Vec<Queued> = operations
                    .into_iter()
                    .zip(answers)
                    .map(|(operation, answer)| Queued { operation, answer })
                    .collect();
                let second = first.split_off(first.len() / 2);
                Box::pin(commit_batch(store, first)).await;
                Box::pin(commit_batch(store, second)).await;
                return;
            }
            warn!(error = &error as &dyn std::error::Error, "a batch of {} writes was rolled back", operations.len());
            let error = Arc::new(error);
            for (operation, answer) in operations.iter().zip(answers) {
                if let Operation::Append(append) = operation {
                    append.fate.fail();
                    store.pending.remove(&append.nodes);
                }
                drop(answer.send(Err(Error::Batch(error.clone()))));
            }
        }
    }
}

/// A run of appends to one room, which stands or falls as one.
struct RoomRun {
    expected: i64,
    last: usize,
    last_pos: i64,
    create: bool,
}

type Failed = (Error, Vec<Operation>);

/// Writes a batch. `Ok` has one outcome for each operation; `Err` gives the operations back.
async fn write(store: &Arc<Store>, mut operations: Vec<Operation>) -> Result<Vec<Result<Committed>>, Failed> {
    // Readers of the stream wait here until what is committed is also known in memory.
    let mut tail = store.tail.lock().await;
    // A server that has vanished without a word must not stop everything until TCP gives up.
    let written = match tokio::time::timeout(COMMIT_TIME, write_transaction(store, &mut operations)).await {
        Ok(Ok(written)) => written,
        Ok(Err(error)) => return Err((error, operations)),
        Err(_) => {
            store.database.distrust_connections();
            return Err((Error::Timeout, operations));
        }
    };
    let Written { from, to, refused, repeated, mut places } = written;

    let mut changes = Vec::new();
    let mut outcomes = Vec::with_capacity(operations.len());
    for operation in operations {
        match operation {
            Operation::Append(append) => {
                let append = *append;
                if refused.contains(&append.room_nid) {
                    COMMIT_CONFLICTS.inc();
                    append.fate.fail();
                    store.pending.remove(&append.nodes);
                    outcomes.push(Err(Error::Conflict));
                    continue;
                }
                append.fate.commit(append.head.version);
                store.remember_nodes(&append.nodes);
                store.pending.remove(&append.nodes);
                for redaction in &append.redactions {
                    store.forget_event(&redaction.target);
                }
                let events: Vec<Arc<Event>> = append.events.into_iter().map(Arc::new).collect();
                let others = append.history.into_iter().chain(append.outliers).map(Arc::new);
                let mut written = events.len() as u64;
                for event in others {
                    written += 1;
                    store.remember_event(&event);
                    store.childless.note(&event);
                }
                EVENTS_WRITTEN.inc_by(written);
                for (event_nid, auth) in append.auth_edges {
                    store.remember_auth_edges(event_nid, auth.into());
                }
                for event in &events {
                    store.remember_event(event);
                    if event.pos.is_some_and(|pos| pos > 0) {
                        changes.push(Change::Event(event.clone()));
                    }
                }
                for change in &append.memberships {
                    let pos = position_of(&events, change.event_nid).unwrap_or(append.head.last_pos);
                    let member = Member {
                        room_nid: append.room_nid,
                        user_nid: change.user_nid,
                        membership: change.membership,
                        event_nid: change.event_nid,
                        pos,
                        forgotten: false,
                    };
                    let was = places.insert((append.room_nid, change.user_nid), change.membership);
                    changes.push(Change::Membership { member, was });
                }
                let pos = events.iter().filter_map(|event| event.pos).max().unwrap_or(to);
                outcomes.push(Ok(Committed { pos, events }));
            }
            Operation::Receipt(receipt) => {
                outcomes.push(Ok(Committed { pos: receipt.pos, events: Vec::new() }));
                changes.push(Change::Receipt(Arc::new(receipt)));
            }
            Operation::AccountData(data) => {
                outcomes.push(Ok(Committed { pos: data.pos, events: Vec::new() }));
                changes.push(Change::AccountData(Arc::new(data)));
            }
            Operation::ToDevice(sent) => {
                outcomes.push(Ok(Committed { pos: sent.pos, events: Vec::new() }));
                if !repeated.contains(&sent.pos) && !sent.messages.is_empty() {
                    changes.push(Change::ToDevice(Arc::new(ToDeviceArrival::from(&*sent))));
                }
            }
        }
    }
    changes.sort_by_key(Change::pos);
    if let Err(error) = store.advance(&mut tail, Batch { from, to, changes }).await {
        // The writes stand. Whoever reads the stream next closes the gap.
        warn!(error = &error as &dyn std::error::Error, "could not read what other replicas wrote; will try again");
    }
    Ok(outcomes)
}

struct Written {
    from: i64,
    to: i64,
    refused: HashSet<i64>,
    /// The positions of messages to devices that had been sent already.
    repeated: HashSet<i64>,
    /// The memberships before those that were written, by room and user.
    places: HashMap<(i64, i64), Membership>,
}

async fn write_transaction(store: &Store, operations: &mut [Operation]) -> Result<Written> {
    let count: i64 = operations.iter().map(positions).sum();
    let mut transaction = store.database.begin().await?;
    let from = advance_stream(&mut transaction, count).await?;
    let to = from + count;

    let mut next = from;
    let mut runs: BTreeMap<i64, RoomRun> = BTreeMap::new();
    for (place, operation) in operations.iter_mut().enumerate() {
        match operation {
            Operation::Append(append) => {
                // A position from a try that was rolled back is given anew; history keeps its negative one.
                for event in append.events.iter_mut().filter(|event| event.is_shown()) {
                    next += 1;
                    event.pos = Some(next);
                }
                if append.events.is_empty() && !append.memberships.is_empty() {
                    next += 1;
                }
                append.head.last_pos = next;
                let run = runs.entry(append.room_nid).or_insert(RoomRun {
                    expected: append.expected_version,
                    last: place,
                    last_pos: next,
                    create: append.create.is_some(),
                });
                run.last = place;
                run.last_pos = next;
            }
            Operation::Receipt(receipt) => {
                next += 1;
                receipt.pos = next;
            }
            Operation::AccountData(data) => {
                next += 1;
                data.pos = next;
            }
            Operation::ToDevice(sent) => {
                next += 1;
                sent.pos = next;
            }
        }
    }

    place_history(&mut transaction, operations).await?;
    let mut refused = broken_runs(&runs, operations);
    runs.retain(|room_nid, _| !refused.contains(room_nid));
    refused.extend(compare_and_set(&mut transaction, &runs, operations).await?);
    let appends: Vec<&Append> = operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Append(append) if !refused.contains(&append.room_nid) => Some(&**append),
            _ => None,
        })
        .collect();
    if !refused.is_empty() && appends.is_empty() && operations.iter().all(|op| matches!(op, Operation::Append(_))) {
        // Nothing to write: leave the stream as it was.
        return Ok(Written { from, to: from, refused, repeated: HashSet::new(), places: HashMap::new() });
    }
    insert_nodes(&mut transaction, &appends).await?;
    insert_events(&mut transaction, &appends).await?;
    graph::write(&mut transaction, &appends).await?;
    relations::insert(&mut transaction, &appends).await?;
    let places = upsert_memberships(&mut transaction, &appends).await?;
    redact(&mut transaction, &appends).await?;
    upsert_receipts(&mut transaction, operations).await?;
    upsert_account_data(&mut transaction, operations).await?;
    let repeated = to_device::insert(&mut transaction, operations).await?;
    transaction.commit().await?;
    Ok(Written { from, to, refused, repeated, places })
}

fn positions(operation: &Operation) -> i64 {
    match operation {
        // A write that shows no event may still change memberships, which are told at its last position.
        Operation::Append(append) => (append.events.len() as i64).max(1),
        Operation::Receipt(_) | Operation::AccountData(_) | Operation::ToDevice(_) => 1,
    }
}

/// Gives the events of history their places: below all others, the newest first.
async fn place_history(transaction: &mut Transaction, operations: &mut [Operation]) -> Result<()> {
    let mut events: Vec<&mut Event> = operations
        .iter_mut()
        .filter_map(|operation| match operation {
            Operation::Append(append) => Some(&mut append.history),
            _ => None,
        })
        .flatten()
        .filter(|event| event.is_shown())
        .collect();
    if events.is_empty() {
        return Ok(());
    }
    let count = events.len() as i64;
    let (next,): (i64,) = row!(
        transaction,
        "INSERT INTO sequences (name, next) VALUES ('history', $1 + 1)
         ON CONFLICT (name) DO UPDATE SET next = sequences.next + $1 RETURNING next",
        count
    )?;
    for (event, place) in events.iter_mut().zip(next - count..next) {
        event.pos = Some(-place);
    }
    Ok(())
}

fn position_of(events: &[Arc<Event>], event_nid: i64) -> Option<i64> {
    events.iter().find(|event| event.nid == event_nid).and_then(|event| event.pos)
}

/// Moves the stream on and answers where it stood. The row stays locked until the commit, so positions are
/// committed in their order, on every replica.
pub(crate) async fn advance_stream(transaction: &mut Transaction, count: i64) -> Result<i64> {
    let sql = Sql {
        sqlite: "UPDATE stream SET pos = pos + $1 WHERE id = 1 RETURNING pos",
        postgres: "WITH moved AS (UPDATE stream SET pos = pos + $1 WHERE id = 1 RETURNING pos)
                   SELECT pos FROM moved, pg_notify('myelin_stream', moved.pos::text)",
    };
    let (to,): (i64,) = row!(transaction, sql, count)?;
    Ok(to - count)
}

/// Sets the head of every room of the batch whose version is the expected one; answers the rooms refused.
async fn compare_and_set(
    transaction: &mut Transaction,
    runs: &BTreeMap<i64, RoomRun>,
    operations: &[Operation],
) -> Result<HashSet<i64>> {
    let mut refused: HashSet<i64> = HashSet::new();
    let mut changed = Vec::new();
    for (&room_nid, run) in runs {
        let Operation::Append(last) = &operations[run.last] else { continue };
        let extremities = serde_json::to_string(&last.head.extremities).expect("numbers are JSON");
        if !run.create {
            changed.push((room_nid, run, &last.head, extremities));
            continue;
        }
        let created = operations.iter().find_map(|operation| match operation {
            Operation::Append(append) if append.room_nid == room_nid => append.create.as_ref(),
            _ => None,
        });
        let Some(room) = created else { continue };
        execute!(
            transaction,
            "INSERT INTO rooms (room_nid, room_id, room_version, version, last_pos, depth, extremities, state_root, is_public)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            room_nid,
            room.room_id.as_str(),
            room.version.as_str(),
            last.head.version,
            run.last_pos,
            last.head.depth,
            &*extremities,
            last.head.state_root,
            room.is_public
        )?;
        if let Some((alias, creator, created_ts)) = &room.alias {
            execute!(
                transaction,
                "INSERT INTO aliases (alias, room_nid, creator_nid, created_ts) VALUES ($1, $2, $3, $4)",
                &**alias,
                room_nid,
                *creator,
                *created_ts
            )?;
        }
    }
    if changed.is_empty() {
        return Ok(refused);
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for (room_nid, run, head, extremities) in &changed {
                let hit = sqlx::query(
                    "UPDATE rooms SET version = $3, last_pos = $4, depth = $5, extremities = $6, state_root = $7
                     WHERE room_nid = $1 AND version = $2",
                )
                .bind(room_nid)
                .bind(run.expected)
                .bind(head.version)
                .bind(run.last_pos)
                .bind(head.depth)
                .bind(extremities)
                .bind(head.state_root)
                .execute(&mut *connection)
                .await?;
                if hit.rows_affected() == 0 {
                    refused.insert(*room_nid);
                }
            }
        }
        Engine::Postgres(connection) => {
            type Changed<'a> = (i64, &'a RoomRun, &'a Head, String);
            let column = |of: fn(&Changed<'_>) -> i64| changed.iter().map(of).collect::<Vec<_>>();
            let extremities: Vec<&str> = changed.iter().map(|row| row.3.as_str()).collect();
            let hit: Vec<(i64,)> = sqlx::query_as(
                "UPDATE rooms AS r SET version = u.version, last_pos = u.last_pos, depth = u.depth,
                        extremities = u.extremities, state_root = u.state_root
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::bigint[])
                      AS u(room_nid, expected, version, last_pos, depth, extremities, state_root)
                 WHERE r.room_nid = u.room_nid AND r.version = u.expected
                 RETURNING r.room_nid",
            )
            .bind(column(|row| row.0))
            .bind(column(|row| row.1.expected))
            .bind(column(|row| row.2.version))
            .bind(column(|row| row.1.last_pos))
            .bind(column(|row| row.2.depth))
            .bind(extremities)
            .bind(column(|row| row.2.state_root))
            .fetch_all(&mut *connection)
            .await?;
            let hit: HashSet<i64> = hit.into_iter().map(|(room_nid,)| room_nid).collect();
            refused.extend(changed.iter().map(|row| row.0).filter(|room_nid| !hit.contains(room_nid)));
        }
    }
    Ok(refused)
}

/// The rooms in which an append does not follow the one before it: that one had failed.
fn broken_runs(runs: &BTreeMap<i64, RoomRun>, operations: &[Operation]) -> HashSet<i64> {
    let mut broken = HashSet::new();
    let mut versions: HashMap<i64, i64> = runs.iter().map(|(&room_nid, run)| (room_nid, run.expected)).collect();
    for operation in operations {
        let Operation::Append(append) = operation else { continue };
        if let Some(version) = versions.get_mut(&append.room_nid) {
            if *version != append.expected_version {
                broken.insert(append.room_nid);
            }
            *version = append.head.version;
        }
    }
    broken
}

async fn insert_nodes(transaction: &mut Transaction, appends: &[&Append]) -> Result<()> {
    let (ids, data): (Vec<i64>, Vec<Vec<u8>>) =
        appends.iter().flat_map(|append| &append.nodes).map(|(id, node)| (*id, node.encode())).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for (id, data) in ids.iter().zip(&data) {
                sqlx::query("INSERT INTO state_nodes (node_nid, data) VALUES ($1, $2)")
                    .bind(id)
                    .bind(data.as_slice())
                    .execute(&mut *connection)
                    .await?;
            }
        }
        Engine::Postgres(connection) => {
            sqlx::query("INSERT INTO state_nodes (node_nid, data) SELECT * FROM unnest($1::bigint[], $2::bytea[])")
                .bind(ids)
                .bind(data)
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

async fn insert_events(transaction: &mut Transaction, appends: &[&Append]) -> Result<()> {
    let (known, events): (Vec<graph::Placed<'_>>, Vec<graph::Placed<'_>>) = appends
        .iter()
        .flat_map(|append| {
            append.outliers.iter().chain(&append.history).chain(&append.events).map(|event| (*append, event))
        })
        .partition(|(append, event)| append.promoted.contains(&event.nid));
    graph::promote(transaction, &known).await?;
    let events: Vec<&Event> = events.into_iter().map(|(_, event)| event).collect();
    if events.is_empty() {
        return Ok(());
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for event in events {
                sqlx::query(
                    "INSERT INTO events (event_nid, event_id, room_nid, pos, depth, sender_nid, key_nid, state_before,
                                         room_state, state_after, replaces, redacted_by, device_nid, txn, flags, json)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
                )
                .bind(event.nid)
                .bind(event.event_id.as_str())
                .bind(event.room_nid)
                .bind(event.pos)
                .bind(event.depth)
                .bind(event.sender_nid)
                .bind(event.key_nid)
                .bind(event.state_before)
                .bind(event.room_state)
                .bind(event.forked_state)
                .bind(event.replaces)
                .bind(event.redacted_by)
                .bind(event.device_nid)
                .bind(event.txn.as_deref())
                .bind(event.flags)
                .bind(event.json().as_bytes())
                .execute(&mut *connection)
                .await?;
            }
        }
        Engine::Postgres(connection) => {
            let column = |of: fn(&Event) -> i64| events.iter().map(|event| of(event)).collect::<Vec<i64>>();
            let optional =
                |of: fn(&Event) -> Option<i64>| events.iter().map(|event| of(event)).collect::<Vec<Option<i64>>>();
            sqlx::query(
                "INSERT INTO events (event_nid, event_id, room_nid, pos, depth, sender_nid, key_nid, state_before,
                                     room_state, state_after, replaces, redacted_by, device_nid, txn, flags, json)
                 SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                                      $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
                                      $12::bigint[], $13::bigint[], $14::text[], $15::bigint[], $16::bytea[])",
            )
            .bind(column(|event| event.nid))
            .bind(events.iter().map(|event| event.event_id.as_str()).collect::<Vec<_>>())
            .bind(column(|event| event.room_nid))
            .bind(optional(|event| event.pos))
            .bind(column(|event| event.depth))
            .bind(column(|event| event.sender_nid))
            .bind(optional(|event| event.key_nid))
            .bind(column(|event| event.state_before))
            .bind(column(|event| event.room_state))
            .bind(optional(|event| event.forked_state))
            .bind(optional(|event| event.replaces))
            .bind(optional(|event| event.redacted_by))
            .bind(optional(|event| event.device_nid))
            .bind(events.iter().map(|event| event.txn.as_deref()).collect::<Vec<_>>())
            .bind(column(|event| event.flags))
            .bind(events.iter().map(|event| event.json().as_bytes()).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

/// Writes the memberships that change, and answers what was there before.
async fn upsert_memberships(
    transaction: &mut Transaction,
    appends: &[&Append],
) -> Result<HashMap<(i64, i64), Membership>> {
    // The last change of a batch wins, and one statement may touch a row only once.
    let mut last: BTreeMap<(i64, i64), (i64, i64, i64)> = BTreeMap::new();
    for append in appends {
        for change in &append.memberships {
            let event = append.events.iter().find(|event| event.nid == change.event_nid);
            let pos = event.and_then(|event| event.pos).unwrap_or(append.head.last_pos);
            last.insert((append.room_nid, change.user_nid), (change.membership as i64, change.event_nid, pos));
        }
    }
    let mut before: Vec<(i64, i64, Option<i64>)> = Vec::with_capacity(last.len());
    if last.is_empty() {
        return Ok(HashMap::new());
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for ((room_nid, user_nid), (membership, event_nid, pos)) in last {
                let row = sqlx::query_as(
                    "INSERT INTO memberships (room_nid, user_nid, membership, event_nid, pos, forgotten)
                     VALUES ($1, $2, $3, $4, $5, FALSE)
                     ON CONFLICT (room_nid, user_nid) DO UPDATE SET membership = excluded.membership,
                         event_nid = excluded.event_nid, pos = excluded.pos, forgotten = FALSE,
                         was = memberships.membership
                     RETURNING room_nid, user_nid, was",
                )
                .bind(room_nid)
                .bind(user_nid)
                .bind(membership)
                .bind(event_nid)
                .bind(pos)
                .fetch_one(&mut *connection)
                .await?;
                before.push(row);
            }
        }
        Engine::Postgres(connection) => {
            type Row<'a> = (&'a (i64, i64), &'a (i64, i64, i64));
            let column = |of: fn(Row<'_>) -> i64| last.iter().map(of).collect::<Vec<i64>>();
            before = sqlx::query_as(
                "INSERT INTO memberships (room_nid, user_nid, membership, event_nid, pos, forgotten)
                 SELECT u.*, FALSE
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS u
                 ON CONFLICT (room_nid, user_nid) DO UPDATE SET membership = excluded.membership,
                     event_nid = excluded.event_nid, pos = excluded.pos, forgotten = FALSE,
                     was = memberships.membership
                 RETURNING room_nid, user_nid, was",
            )
            .bind(column(|(key, _)| key.0))
            .bind(column(|(key, _)| key.1))
            .bind(column(|(_, row)| row.0))
            .bind(column(|(_, row)| row.1))
            .bind(column(|(_, row)| row.2))
            .fetch_all(&mut *connection)
            .await?;
        }
    }
    let known = before.into_iter().filter_map(|(room_nid, user_nid, was)| Some(((room_nid, user_nid), was?)));
    known.map(|(place, was)| Ok((place, Membership::from_number(was)?))).collect()
}

async fn redact(transaction: &mut Transaction, appends: &[&Append]) -> Result<()> {
    for redaction in appends.iter().flat_map(|append| &append.redactions) {
        // A redaction is rare; its target may be in the same batch.
        let hit = execute!(
            transaction,
            "UPDATE events SET redacted_by = $2, json = $3 WHERE event_nid = $1",
            redaction.target.nid,
            redaction.by,
            redaction.json.as_bytes()
        )?;
        if hit != 1 {
            return Err(Error::Missing { what: "event to redact" });
        }
        relations::forget(transaction, redaction.target.nid).await?;
    }
    Ok(())
}

/// Receipts move forward only: of two for the same, the one for the later event stays.
async fn upsert_receipts(transaction: &mut Transaction, operations: &[Operation]) -> Result<()> {
    let mut furthest: BTreeMap<(i64, i64, &str, &str), &Receipt> = BTreeMap::new();
    for operation in operations {
        let Operation::Receipt(receipt) = operation else { continue };
        let key = (receipt.room_nid, receipt.user_nid, &*receipt.receipt_type, &*receipt.thread);
        let place = furthest.entry(key).or_insert(receipt);
        if place.event_pos <= receipt.event_pos {
            *place = receipt;
        }
    }
    if furthest.is_empty() {
        return Ok(());
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for receipt in furthest.into_values() {
                sqlx::query(
                    "INSERT INTO receipts (room_nid, user_nid, type, thread, event_nid, event_pos, ts, pos)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                     ON CONFLICT (room_nid, user_nid, type, thread) DO UPDATE SET event_nid = excluded.event_nid,
                         event_pos = excluded.event_pos, ts = excluded.ts, pos = excluded.pos
                     WHERE receipts.event_pos <= excluded.event_pos",
                )
                .bind(receipt.room_nid)
                .bind(receipt.user_nid)
                .bind(&*receipt.receipt_type)
                .bind(&*receipt.thread)
                .bind(receipt.event_nid)
                .bind(receipt.event_pos)
                .bind(receipt.ts)
                .bind(receipt.pos)
                .execute(&mut *connection)
                .await?;
            }
        }
        Engine::Postgres(connection) => {
            let receipts: Vec<&Receipt> = furthest.into_values().collect();
            let column = |of: fn(&Receipt) -> i64| receipts.iter().map(|receipt| of(receipt)).collect::<Vec<i64>>();
            sqlx::query(
                "INSERT INTO receipts (room_nid, user_nid, type, thread, event_nid, event_pos, ts, pos)
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
                                      $7::bigint[], $8::bigint[])
                 ON CONFLICT (room_nid, user_nid, type, thread) DO UPDATE SET event_nid = excluded.event_nid,
                     event_pos = excluded.event_pos, ts = excluded.ts, pos = excluded.pos
                 WHERE receipts.event_pos <= excluded.event_pos",
            )
            .bind(column(|receipt| receipt.room_nid))
            .bind(column(|receipt| receipt.user_nid))
            .bind(receipts.iter().map(|receipt| &*receipt.receipt_type).collect::<Vec<_>>())
            .bind(receipts.iter().map(|receipt| &*receipt.thread).collect::<Vec<_>>())
            .bind(column(|receipt| receipt.event_nid))
            .bind(column(|receipt| receipt.event_pos))
            .bind(column(|receipt| receipt.ts))
            .bind(column(|receipt| receipt.pos))
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

async fn upsert_account_data(transaction: &mut Transaction, operations: &[Operation]) -> Result<()> {
    for operation in operations {
        let Operation::AccountData(data) = operation else { continue };
        execute!(
            transaction,
            "INSERT INTO account_data (user_nid, room_nid, type, content, pos) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (user_nid, room_nid, type) DO UPDATE SET content = excluded.content, pos = excluded.pos",
            data.user_nid,
            data.room_nid,
            &*data.data_type,
            &*data.content,
            data.pos
        )?;
    }
    Ok(())
}
