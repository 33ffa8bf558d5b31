//! One-time and fallback keys.

use std::{collections::HashSet, sync::LazyLock};

use prometheus::{IntCounterVec, register_int_counter_vec};

use crate::{
    Ephemeral, Result, Store,
    database::{Engine, Transaction},
    sql::{Sql, execute, optional, row, rows},
};

/// What is called so among what replicas tell each other: devices whose one-time keys have become fewer or more.
pub const ONE_TIME_KEYS: &str = "one_time_keys";
/// One-time keys that a device may have at a time, of one algorithm.
pub const ONE_TIME_KEYS_MAX: i64 = 1000;
/// Keys that were given out and are remembered, of a device and an algorithm.
const CLAIMED_KEPT: i64 = 1000;
/// Devices that one notice names.
const DEVICES_NAMED_MAX: usize = 300;

static CLAIMED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!("myelin_store_keys_claimed_total", "Keys given out, one-time or fallback.", &["kind"])
        .expect("metric names are unique")
});

/// A key that a device uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// For example `signed_curve25519`.
    pub algorithm: String,
    /// What tells it from others of the device.
    pub key_id: String,
    /// The key: JSON in one form.
    pub json: String,
}

/// How many keys a device has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// By algorithm, those that were not given out.
    pub one_time: Vec<(String, i64)>,
    /// The algorithms with a fallback key that was not given out.
    pub unused_fallback: Vec<String>,
}

/// What came of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyUpload {
    /// The keys are there.
    Stored(KeyCounts),
    /// The device has another key of this algorithm and identifier. Nothing was changed.
    Exists(String),
    /// The device would have too many. Nothing was changed.
    TooMany,
}

/// A key that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedKey {
    /// The device.
    pub device_nid: i64,
    /// The algorithm.
    pub algorithm: String,
    /// The key's identifier.
    pub key_id: String,
    /// The key: JSON.
    pub json: String,
}

impl From<(i64, String, String, String)> for ClaimedKey {
    fn from((device_nid, algorithm, key_id, json): (i64, String, String, String)) -> Self {
        Self { device_nid, algorithm, key_id, json }
    }
}

/// Locks a device's row against other uploads; an embedded database has one writer anyway. References to the row may
/// be made meanwhile.
const LOCK_DEVICE: Sql = Sql {
    sqlite: "SELECT device_nid FROM devices WHERE device_nid = $1",
    postgres: "SELECT device_nid FROM devices WHERE device_nid = $1 FOR NO KEY UPDATE",
};

impl Store {
    /// Adds keys of a device: all of them, or none.
    pub async fn add_keys(&self, device_nid: i64, one_time: &[NewKey], fallback: &[NewKey]) -> Result<KeyUpload> {
        let mut transaction = self.database.begin().await?;
        let there: Option<(i64,)> = optional!(transaction, LOCK_DEVICE, device_nid)?;
        there.ok_or(crate::Error::Missing { what: "device" })?;
        let mut algorithms: HashSet<&str> = HashSet::new();
        for key in one_time {
            algorithms.insert(&key.algorithm);
            if !add_one_time_key(&mut transaction, device_nid, key).await? {
                return Ok(KeyUpload::Exists(format!("{}:{}", key.algorithm, key.key_id)));
            }
        }
        for algorithm in algorithms {
            finish_upload(&mut transaction, device_nid, algorithm).await?;
        }
        for key in fallback {
            execute!(
                transaction,
                "INSERT INTO fallback_keys (device_nid, algorithm, key_id, json) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (device_nid, algorithm)
                 DO UPDATE SET key_id = excluded.key_id, json = excluded.json, used = FALSE
                 WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.json <> excluded.json",
                device_nid,
                &*key.algorithm,
                &*key.key_id,
                &*key.json
            )?;
        }
        let counts = counts(&mut transaction, device_nid).await?;
        if counts.one_time.iter().any(|(_, count)| *count > ONE_TIME_KEYS_MAX) {
            return Ok(KeyUpload::TooMany);
        }
        transaction.commit().await?;
        self.tell_keys_changed(&[device_nid]);
        Ok(KeyUpload::Stored(counts))
    }

    /// How many keys a device has left.
    pub async fn key_counts(&self, device_nid: i64) -> Result<KeyCounts> {
        let mut reader = self.database.reader().await?;
        let one_time: Vec<(String, i64)> = rows!(reader, COUNT_ONE_TIME, device_nid)?;
        let unused: Vec<(String,)> = rows!(reader, LIST_UNUSED, device_nid)?;
        Ok(KeyCounts { one_time, unused_fallback: unused.into_iter().map(|(algorithm,)| algorithm).collect() })
    }

    /// Gives out a key for each of some devices and algorithms: the one-time key that was uploaded first, which nobody
    /// else gets, or the fallback key. Devices that have neither are missing from the answer. No device is named twice.
    pub async fn claim_keys(&self, wanted: &[(i64, String)]) -> Result<Vec<ClaimedKey>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        // In one order, so that no two claims wait for each other.
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        let mut transaction = self.database.begin().await?;
        let mut claimed = claim_one_time_keys(&mut transaction, &wanted).await?;
        CLAIMED.with_label_values(&["one_time"]).inc_by(claimed.len() as u64);
        let served: HashSet<(i64, &str)> = claimed.iter().map(|key| (key.device_nid, &*key.algorithm)).collect();
        let without: Vec<(i64, String)> =
            wanted.iter().filter(|(device, algorithm)| !served.contains(&(*device, algorithm))).cloned().collect();
        let fallback = claim_fallback_keys(&mut transaction, &without).await?;
        CLAIMED.with_label_values(&["fallback"]).inc_by(fallback.len() as u64);
        claimed.extend(fallback);
        transaction.commit().await?;
        self.tell_keys_changed(&claimed.iter().map(|key| key.device_nid).collect::<Vec<_>>());
        Ok(claimed)
    }

    /// Tells every replica that devices have fewer or more keys than before.
    fn tell_keys_changed(&self, device_nids: &[i64]) {
        for some in device_nids.chunks(DEVICES_NAMED_MAX) {
            let json = serde_json::to_string(some).expect("numbers are JSON");
            self.pass(&Ephemeral { kind: ONE_TIME_KEYS.to_owned(), json });
        }
    }
}

const COUNT_ONE_TIME: &str = "SELECT algorithm, COUNT(*) FROM one_time_keys WHERE device_nid = $1 AND NOT claimed
                              GROUP BY algorithm ORDER BY algorithm";
const LIST_UNUSED: &str = "SELECT algorithm FROM fallback_keys WHERE device_nid = $1 AND NOT used ORDER BY algorithm";

async fn counts(transaction: &mut Transaction, device_nid: i64) -> Result<KeyCounts> {
    let one_time: Vec<(String, i64)> = rows!(transaction, COUNT_ONE_TIME, device_nid)?;
    let unused: Vec<(String,)> = rows!(transaction, LIST_UNUSED, device_nid)?;
    Ok(KeyCounts { one_time, unused_fallback: unused.into_iter().map(|(algorithm,)| algorithm).collect() })
}

/// Adds a key. One that is there already, given out or not, stays as it is: the client did not get our answer. False if
/// there is another one that was not given out.
async fn add_one_time_key(transaction: &mut Transaction, device_nid: i64, key: &NewKey) -> Result<bool> {
    let known: Option<(String, bool)> = optional!(
        transaction,
        "SELECT json, claimed FROM one_time_keys WHERE device_nid = $1 AND algorithm = $2 AND key_id = $3",
        device_nid,
        &*key.algorithm,
        &*key.key_id
    )?;
    match known {
        Some((json, _)) if json == key.json => return Ok(true),
        Some((_, false)) => return Ok(false),
        Some((_, true)) | None => {}
    }
    // Keys of one upload are of one number: 0 until it is finished.
    execute!(
        transaction,
        "INSERT INTO one_time_keys (device_nid, algorithm, key_id, uploaded, json) VALUES ($1, $2, $3, 0, $4)
         ON CONFLICT (device_nid, algorithm, key_id)
         DO UPDATE SET uploaded = 0, claimed = FALSE, json = excluded.json",
        device_nid,
        &*key.algorithm,
        &*key.key_id,
        &*key.json
    )?;
    Ok(true)
}

/// Numbers the new keys, and forgets the oldest of those that were given out.
async fn finish_upload(transaction: &mut Transaction, device_nid: i64, algorithm: &str) -> Result<()> {
    let (last,): (i64,) = row!(
        transaction,
        "SELECT COALESCE(MAX(uploaded), 0) FROM one_time_keys WHERE device_nid = $1 AND algorithm = $2",
        device_nid,
        algorithm
    )?;
    execute!(
        transaction,
        "UPDATE one_time_keys SET uploaded = $3 WHERE device_nid = $1 AND algorithm = $2 AND uploaded = 0",
        device_nid,
        algorithm,
        last + 1
    )?;
    execute!(
        transaction,
        "DELETE FROM one_time_keys WHERE device_nid = $1 AND algorithm = $2 AND claimed AND uploaded < (
             SELECT uploaded FROM one_time_keys WHERE device_nid = $1 AND algorithm = $2 AND claimed
             ORDER BY uploaded DESC LIMIT 1 OFFSET $3)",
        device_nid,
        algorithm,
        CLAIMED_KEPT
    )?;
    Ok(())
}

async fn claim_one_time_keys(transaction: &mut Transaction, wanted: &[(i64, String)]) -> Result<Vec<ClaimedKey>> {
    let rows: Vec<(i64, String, String, String)> = match transaction.engine() {
        Engine::Sqlite(connection) => {
            let mut claimed = Vec::new();
            for (device_nid, algorithm) in wanted {
                claimed.extend(
                    sqlx::query_as::<_, (i64, String, String, String)>(
                        "UPDATE one_time_keys SET claimed = TRUE WHERE device_nid = $1 AND algorithm = $2 AND key_id = (
                             SELECT key_id FROM one_time_keys WHERE device_nid = $1 AND algorithm = $2 AND NOT claimed
                             ORDER BY uploaded, key_id LIMIT 1)
                         RETURNING device_nid, algorithm, key_id, json",
                    )
                    .bind(device_nid)
                    .bind(algorithm)
                    .fetch_optional(&mut *connection)
                    .await?,
                );
            }
            claimed
        }
        // A key that another claim holds is passed over.
        Engine::Postgres(connection) => {
            sqlx::query_as(
                "WITH chosen AS MATERIALIZED (
                     SELECT w.device_nid, w.algorithm, k.key_id
                     FROM unnest($1::bigint[], $2::text[]) AS w(device_nid, algorithm)
                     CROSS JOIN LATERAL (
                         SELECT key_id FROM one_time_keys AS o
                         WHERE o.device_nid = w.device_nid AND o.algorithm = w.algorithm AND NOT o.claimed
                         ORDER BY o.uploaded, o.key_id LIMIT 1 FOR UPDATE SKIP LOCKED) AS k)
                 UPDATE one_time_keys AS o SET claimed = TRUE FROM chosen AS c
                 WHERE o.device_nid = c.device_nid AND o.algorithm = c.algorithm AND o.key_id = c.key_id
                 RETURNING o.device_nid, o.algorithm, o.key_id, o.json",
            )
            .bind(wanted.iter().map(|(device_nid, _)| *device_nid).collect::<Vec<_>>())
            .bind(wanted.iter().map(|(_, algorithm)| &**algorithm).collect::<Vec<&str>>())
            .fetch_all(connection)
            .await?
        }
    };
    Ok(rows.into_iter().map(ClaimedKey::from).collect())
}

async fn claim_fallback_keys(transaction: &mut Transaction, wanted: &[(i64, String)]) -> Result<Vec<ClaimedKey>> {
    let mut claimed = Vec::new();
    for (device_nid, algorithm) in wanted {
        let found: Option<(i64, String, String, String, bool)> = optional!(
            transaction,
            "SELECT device_nid, algorithm, key_id, json, used FROM fallback_keys
             WHERE device_nid = $1 AND algorithm = $2",
            *device_nid,
            &**algorithm
        )?;
        let Some((device_nid, algorithm, key_id, json, used)) = found else { continue };
        if !used {
            execute!(
                transaction,
                "UPDATE fallback_keys SET used = TRUE WHERE device_nid = $1 AND algorithm = $2 AND key_id = $3",
                device_nid,
                &*algorithm,
                &*key_id
            )?;
        }
        claimed.push(ClaimedKey { device_nid, algorithm, key_id, json });
    }
    Ok(claimed)
}
