//! The devices of our own users.

use crate::{
    Result, Store,
    database::Engine,
    sql::{Texts, execute, json_rows, listed, optional, rows},
};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The number.
    pub device_nid: i64,
    /// The identifier that its owner knows it by.
    pub device_id: String,
    /// What its owner calls it.
    pub display_name: Option<String>,
    /// When it was last seen, in milliseconds since 1970, give or take a minute.
    pub last_seen_ts: i64,
    /// Where it was last seen.
    pub last_seen_ip: Option<String>,
}

type DeviceRow = (i64, String, Option<String>, i64, Option<String>);

impl From<DeviceRow> for Device {
    fn from((device_nid, device_id, display_name, last_seen_ts, last_seen_ip): DeviceRow) -> Self {
        Self { device_nid, device_id, display_name, last_seen_ts, last_seen_ip }
    }
}

/// A device was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The device.
    pub device_nid: i64,
    /// When, in milliseconds since 1970.
    pub ts: i64,
    /// Where.
    pub ip: Option<String>,
}

impl Store {
    /// A user's devices, the oldest first.
    pub async fn devices(&self, user_nid: i64) -> Result<Vec<Device>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<DeviceRow> = rows!(
            reader,
            "SELECT device_nid, device_id, display_name, last_seen_ts, last_seen_ip FROM devices
             WHERE user_nid = $1 ORDER BY device_nid",
            user_nid
        )?;
        Ok(found.into_iter().map(Device::from).collect())
    }

    /// One of a user's devices.
    pub async fn device(&self, user_nid: i64, device_id: &str) -> Result<Option<Device>> {
        let mut reader = self.database.reader().await?;
        let found: Option<DeviceRow> = optional!(
            reader,
            "SELECT device_nid, device_id, display_name, last_seen_ts, last_seen_ip FROM devices
             WHERE user_nid = $1 AND device_id = $2",
            user_nid,
            device_id
        )?;
        Ok(found.map(Device::from))
    }

    /// Calls a device something else. False if there is none.
    pub async fn rename_device(&self, user_nid: i64, device_id: &str, display_name: Option<&str>) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let renamed = execute!(
            transaction,
            "UPDATE devices SET display_name = $3 WHERE user_nid = $1 AND device_id = $2",
            user_nid,
            device_id,
            display_name
        )?;
        transaction.commit().await?;
        Ok(renamed == 1)
    }

    /// Removes some of a user's devices, with their tokens; answers the identifiers of those that were there.
    pub async fn delete_devices(&self, user_nid: i64, device_ids: &[&str]) -> Result<Vec<String>> {
        let mut transaction = self.database.begin().await?;
        let deleted: Vec<(String,)> = rows!(
            transaction,
            listed!("DELETE FROM devices WHERE device_id ", "$2", " AND user_nid = $1 RETURNING device_id"),
            user_nid,
            Texts(device_ids)
        )?;
        transaction.commit().await?;
        Ok(deleted.into_iter().map(|(device_id,)| device_id).collect())
    }

    /// Removes all of a user's devices, with their tokens; answers their identifiers.
    pub async fn delete_all_devices(&self, user_nid: i64) -> Result<Vec<String>> {
        let mut transaction = self.database.begin().await?;
        let deleted: Vec<(String,)> =
            rows!(transaction, "DELETE FROM devices WHERE user_nid = $1 RETURNING device_id", user_nid)?;
        transaction.commit().await?;
        Ok(deleted.into_iter().map(|(device_id,)| device_id).collect())
    }

    /// Notes where and when devices were seen, in one transaction.
    pub async fn note_sightings(&self, sightings: &[Sighting]) -> Result<()> {
        if sightings.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.begin().await?;
        let rows: Vec<(i64, i64, Option<&str>)> =
            sightings.iter().map(|sighting| (sighting.device_nid, sighting.ts, sighting.ip.as_deref())).collect();
        match transaction.engine() {
            Engine::Sqlite(connection) => {
                sqlx::query(
                    "UPDATE devices SET last_seen_ts = s.value->>1, last_seen_ip = COALESCE(s.value->>2, last_seen_ip)
                     FROM json_each($1) AS s WHERE device_nid = s.value->>0 AND last_seen_ts <= s.value->>1",
                )
                .bind(json_rows(&rows))
                .execute(connection)
                .await?;
            }
            // Replicas that write the same rows take them in the same order, so that none waits for the other.
            Engine::Postgres(connection) => {
                sqlx::query(
                    "WITH locked AS (SELECT device_nid FROM devices WHERE device_nid = ANY($1)
                                     ORDER BY device_nid FOR UPDATE)
                     UPDATE devices AS d SET last_seen_ts = s.ts, last_seen_ip = COALESCE(s.ip, d.last_seen_ip)
                     FROM locked
                     JOIN unnest($1::bigint[], $2::bigint[], $3::text[]) AS s(device_nid, ts, ip) USING (device_nid)
                     WHERE d.device_nid = s.device_nid AND d.last_seen_ts <= s.ts",
                )
                .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
                .execute(connection)
                .await?;
            }
        }
        transaction.commit().await
    }
}
