//! Messages to devices.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
};

use prometheus::{IntCounter, register_int_counter};

use crate::{
    Change, Operation, Result, Store,
    database::{Engine, Reader, Transaction},
    sql::{execute, rows},
};

/// Messages that wait for a device, at the most; the oldest give way. More may be there for a moment.
pub const TO_DEVICE_MAX: i64 = 20_000;
/// Every so many messages it is seen that there are not too many.
const PRUNE_EVERY: i64 = 256;

static SENT: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_store_to_device_messages_total", "Messages to devices here that were kept for them.")
        .expect("metric names are unique")
});
static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_store_to_device_dropped_total",
        "Messages that gave way because too many waited for a device."
    )
    .expect("metric names are unique")
});

/// Messages from one sender, sent at once.
#[derive(Clone, Debug)]
pub struct ToDevice {
    /// Who sends: a device of ours by number, or another server.
    pub origin: Box<str>,
    /// What tells them from others of the origin: sent again, they are not kept again.
    pub txn: Box<str>,
    /// The user who sends.
    pub sender: Box<str>,
    /// The type of the messages.
    pub event_type: Box<str>,
    /// One message for a device at the most.
    pub messages: Vec<ToDeviceMessage>,
    /// For each other server, the content of its `m.direct_to_device`: JSON.
    pub edus: Vec<(String, String)>,
    /// The time in milliseconds since 1970.
    pub now_ms: i64,
    /// The place in the stream; given at the commit.
    pub pos: i64,
}

/// A message to a device here.
#[derive(Clone, Debug)]
pub struct ToDeviceMessage {
    /// Whose device it is.
    pub user_nid: i64,
    /// The device.
    pub device_nid: i64,
    /// The content: a JSON object.
    pub content: Arc<str>,
}

/// Messages have come for devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToDeviceArrival {
    /// The place in the stream.
    pub pos: i64,
    /// The users, and their devices.
    pub devices: Vec<(i64, i64)>,
}

impl From<&ToDevice> for ToDeviceArrival {
    fn from(sent: &ToDevice) -> Self {
        let devices = sent.messages.iter().map(|message| (message.user_nid, message.device_nid)).collect();
        Self { pos: sent.pos, devices }
    }
}

/// A message that waits for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingMessage {
    /// The place in the stream.
    pub pos: i64,
    /// Who sent it.
    pub sender: String,
    /// Its type.
    pub event_type: String,
    /// Its content: a JSON object.
    pub content: String,
}

impl Store {
    /// The messages for a device in `(after, to]`, in the stream's order.
    pub async fn to_device_messages(
        &self,
        device_nid: i64,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<WaitingMessage>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String, String, String)> = rows!(
            reader,
            "SELECT pos, sender, type, content FROM to_device
             WHERE device_nid = $1 AND pos > $2 AND pos <= $3 ORDER BY pos LIMIT $4",
            device_nid,
            after,
            to,
            limit
        )?;
        Ok(found
            .into_iter()
            .map(|(pos, sender, event_type, content)| WaitingMessage { pos, sender, event_type, content })
            .collect())
    }

    /// A device has acknowledged its messages up to a position.
    pub async fn delete_to_device(&self, device_nid: i64, up_to: i64) -> Result<()> {
        let mut reader = self.database.reader().await?;
        let waiting: Vec<(i64,)> = rows!(
            reader,
            "SELECT pos FROM to_device WHERE device_nid = $1 AND pos <= $2 ORDER BY pos LIMIT 1",
            device_nid,
            up_to
        )?;
        drop(reader);
        if waiting.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM to_device WHERE device_nid = $1 AND pos <= $2", device_nid, up_to)?;
        transaction.commit().await
    }

    /// Forgets what was sent before a moment: it is not sent again any more.
    pub async fn forget_to_device_transactions(&self, before_ms: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM to_device_transactions WHERE created_ts < $1", before_ms)?;
        transaction.commit().await
    }
}

/// Writes the messages of a batch; answers the positions of those that had been sent already.
pub(crate) async fn insert(transaction: &mut Transaction, operations: &[Operation]) -> Result<HashSet<i64>> {
    let sent: Vec<&ToDevice> = operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::ToDevice(sent) => Some(&**sent),
            _ => None,
        })
        .collect();
    if sent.is_empty() {
        return Ok(HashSet::new());
    }
    let repeated = insert_transactions(transaction, &sent).await?;
    let sent: Vec<&ToDevice> = sent.into_iter().filter(|sent| !repeated.contains(&sent.pos)).collect();
    insert_messages(transaction, &sent).await?;
    insert_edus(transaction, &sent).await?;
    Ok(repeated)
}

async fn insert_transactions(transaction: &mut Transaction, sent: &[&ToDevice]) -> Result<HashSet<i64>> {
    let mut repeated = HashSet::new();
    let mut first: HashMap<(&str, &str), &ToDevice> = HashMap::new();
    for one in sent {
        if first.contains_key(&(&*one.origin, &*one.txn)) {
            repeated.insert(one.pos);
        } else {
            first.insert((&one.origin, &one.txn), one);
        }
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for one in first.into_values() {
                let made = sqlx::query(
                    "INSERT INTO to_device_transactions (origin, txn, created_ts) VALUES ($1, $2, $3)
                     ON CONFLICT (origin, txn) DO NOTHING",
                )
                .bind(&*one.origin)
                .bind(&*one.txn)
                .bind(one.now_ms)
                .execute(&mut *connection)
                .await?;
                if made.rows_affected() == 0 {
                    repeated.insert(one.pos);
                }
            }
        }
        Engine::Postgres(connection) => {
            let new: Vec<&ToDevice> = first.into_values().collect();
            let made: Vec<(String, String)> = sqlx::query_as(
                "INSERT INTO to_device_transactions (origin, txn, created_ts)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
                 ON CONFLICT (origin, txn) DO NOTHING RETURNING origin, txn",
            )
            .bind(new.iter().map(|one| &*one.origin).collect::<Vec<&str>>())
            .bind(new.iter().map(|one| &*one.txn).collect::<Vec<&str>>())
            .bind(new.iter().map(|one| one.now_ms).collect::<Vec<i64>>())
            .fetch_all(connection)
            .await?;
            let made: HashSet<(&str, &str)> = made.iter().map(|(origin, txn)| (&**origin, &**txn)).collect();
            let known = new.iter().filter(|one| !made.contains(&(&*one.origin, &*one.txn)));
            repeated.extend(known.map(|one| one.pos));
        }
    }
    Ok(repeated)
}

async fn insert_messages(transaction: &mut Transaction, sent: &[&ToDevice]) -> Result<()> {
    // How many messages of this batch a device gets before this one.
    let mut ranks: HashMap<i64, i64> = HashMap::new();
    let mut messages: Vec<(&ToDevice, &ToDeviceMessage, i64)> = Vec::new();
    for one in sent {
        for message in &one.messages {
            let rank = ranks.entry(message.device_nid).or_insert(0);
            *rank += 1;
            messages.push((one, message, *rank));
        }
    }
    if messages.is_empty() {
        return Ok(());
    }
    SENT.inc_by(messages.len() as u64);
    // A device that was removed meanwhile gets nothing.
    let full: Vec<(i64, i64)> = match transaction.engine() {
        Engine::Sqlite(connection) => {
            let mut full = Vec::new();
            for (one, message, _) in &messages {
                let made: Option<(i64, i64)> = sqlx::query_as(
                    "INSERT INTO to_device (device_nid, pos, n, user_nid, sender, type, content)
                     SELECT $1, $2, 1 + COALESCE(
                         (SELECT n FROM to_device WHERE device_nid = $1 ORDER BY pos DESC LIMIT 1), 0), $3, $4, $5, $6
                     WHERE EXISTS (SELECT 1 FROM devices WHERE device_nid = $1) RETURNING device_nid, n",
                )
                .bind(message.device_nid)
                .bind(one.pos)
                .bind(message.user_nid)
                .bind(&*one.sender)
                .bind(&*one.event_type)
                .bind(&*message.content)
                .fetch_optional(&mut *connection)
                .await?;
                full.extend(made.filter(|(_, n)| *n > TO_DEVICE_MAX && n % PRUNE_EVERY == 0));
            }
            full
        }
        Engine::Postgres(connection) => {
            sqlx::query_as(
                "WITH made AS (
                     INSERT INTO to_device (device_nid, pos, n, user_nid, sender, type, content)
                     SELECT u.device_nid, u.pos, u.rank + COALESCE(
                         (SELECT t.n FROM to_device AS t WHERE t.device_nid = u.device_nid ORDER BY t.pos DESC LIMIT 1), 0),
                         u.user_nid, u.sender, u.type, u.content
                     FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[])
                          AS u(device_nid, pos, rank, user_nid, sender, type, content)
                     WHERE EXISTS (SELECT 1 FROM devices AS d WHERE d.device_nid = u.device_nid)
                     RETURNING device_nid, n)
                 SELECT device_nid, n FROM made WHERE n > $8 AND n % $9 = 0",
            )
            .bind(messages.iter().map(|(_, message, _)| message.device_nid).collect::<Vec<_>>())
            .bind(messages.iter().map(|(one, ..)| one.pos).collect::<Vec<_>>())
            .bind(messages.iter().map(|(.., rank)| *rank).collect::<Vec<_>>())
            .bind(messages.iter().map(|(_, message, _)| message.user_nid).collect::<Vec<_>>())
            .bind(messages.iter().map(|(one, ..)| &*one.sender).collect::<Vec<&str>>())
            .bind(messages.iter().map(|(one, ..)| &*one.event_type).collect::<Vec<&str>>())
            .bind(messages.iter().map(|(_, message, _)| &*message.content).collect::<Vec<&str>>())
            .bind(TO_DEVICE_MAX)
            .bind(PRUNE_EVERY)
            .fetch_all(connection)
            .await?
        }
    };
    for (device_nid, n) in full {
        let dropped = execute!(
            transaction,
            "DELETE FROM to_device WHERE device_nid = $1 AND n <= $2",
            device_nid,
            n - TO_DEVICE_MAX
        )?;
        DROPPED.inc_by(dropped);
    }
    Ok(())
}

async fn insert_edus(transaction: &mut Transaction, sent: &[&ToDevice]) -> Result<()> {
    for one in sent {
        for (destination, edu) in &one.edus {
            execute!(
                transaction,
                "INSERT INTO to_device_edus (destination, pos, edu) VALUES ($1, $2, $3)",
                &**destination,
                one.pos,
                &**edu
            )?;
        }
    }
    Ok(())
}

/// The arrivals in `(from, to]`, for those who follow the stream; those that were acknowledged already are no news.
pub(crate) async fn read_changes(reader: &mut Reader, from: i64, to: i64) -> Result<Vec<Change>> {
    let found: Vec<(i64, i64, i64)> = rows!(
        reader,
        "SELECT pos, user_nid, device_nid FROM to_device WHERE pos > $1 AND pos <= $2 ORDER BY pos",
        from,
        to
    )?;
    let arrivals = found.chunk_by(|one, next| one.0 == next.0).map(|rows| {
        let devices = rows.iter().map(|(_, user_nid, device_nid)| (*user_nid, *device_nid)).collect();
        Change::ToDevice(Arc::new(ToDeviceArrival { pos: rows[0].0, devices }))
    });
    Ok(arrivals.collect())
}

/// Shows every metric from the start on, not from its first use.
pub(crate) fn show_metrics() {
    LazyLock::force(&SENT);
    LazyLock::force(&DROPPED);
}
