//! The devices of our own users.

use std::{collections::HashSet, sync::Arc};

use crate::{
    Result, Store,
    database::Engine,
    encryption::{StreamWrite, device_lists::Audience},
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

    /// Calls a device something else, and announces it where others see its name. False if there is none.
    pub async fn rename_device(
        self: &Arc<Self>,
        user_nid: i64,
        device_id: &str,
        display_name: Option<&str>,
    ) -> Result<bool> {
        let audience = self.own_audience(user_nid).await?;
        let (device_id, display_name) = (device_id.to_owned(), display_name.map(str::to_owned));
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let keyed = write.keyed_devices(user_nid).await?;
                let renamed = execute!(
                    write.transaction,
                    "UPDATE devices SET display_name = $3 WHERE user_nid = $1 AND device_id = $2",
                    user_nid,
                    &*device_id,
                    display_name.as_deref()
                )?;
                if renamed == 1 && keyed.contains(&device_id) {
                    write.announce_device(user_nid, &device_id, &audience).await?;
                }
                Ok(renamed == 1)
            })
        })
        .await
    }

    /// Removes some of a user's devices, with their tokens, keys and messages, and announces that; answers the
    /// identifiers of those that were there.
    pub async fn delete_devices(self: &Arc<Self>, user_nid: i64, device_ids: &[&str]) -> Result<Vec<String>> {
        let audience = self.own_audience(user_nid).await?;
        let device_ids: Vec<String> = device_ids.iter().map(|device_id| (*device_id).to_owned()).collect();
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let keyed = write.keyed_devices(user_nid).await?;
                let device_ids: Vec<&str> = device_ids.iter().map(String::as_str).collect();
                let gone: Vec<(String,)> = rows!(
                    write.transaction,
                    listed!("DELETE FROM devices WHERE device_id ", "$2", " AND user_nid = $1 RETURNING device_id"),
                    user_nid,
                    Texts(&device_ids)
                )?;
                write.announce_gone(user_nid, gone, &keyed, &audience).await
            })
        })
        .await
    }

    /// Removes all of a user's devices like [`Store::delete_devices`]; answers their identifiers.
    pub async fn delete_all_devices(self: &Arc<Self>, user_nid: i64) -> Result<Vec<String>> {
        let audience = self.own_audience(user_nid).await?;
        self.write_in_stream(move |write| {
            Box::pin(async move { write.delete_devices_but(user_nid, None, &audience).await })
        })
        .await
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

impl StreamWrite {
    /// The devices of a user that others know of.
    async fn keyed_devices(&mut self, user_nid: i64) -> Result<HashSet<String>> {
        let found: Vec<(String,)> = rows!(
            self.transaction,
            "SELECT d.device_id FROM devices AS d JOIN device_keys AS k USING (device_nid) WHERE d.user_nid = $1",
            user_nid
        )?;
        Ok(found.into_iter().map(|(device_id,)| device_id).collect())
    }

    /// Removes all devices of a user but one, and announces that.
    pub(crate) async fn delete_devices_but(
        &mut self,
        user_nid: i64,
        kept_nid: Option<i64>,
        audience: &Audience,
    ) -> Result<Vec<String>> {
        let keyed = self.keyed_devices(user_nid).await?;
        let gone: Vec<(String,)> = rows!(
            self.transaction,
            "DELETE FROM devices WHERE user_nid = $1 AND device_nid <> $2 RETURNING device_id",
            user_nid,
            kept_nid.unwrap_or(0)
        )?;
        self.announce_gone(user_nid, gone, &keyed, audience).await
    }

    async fn announce_gone(
        &mut self,
        user_nid: i64,
        gone: Vec<(String,)>,
        keyed: &HashSet<String>,
        audience: &Audience,
    ) -> Result<Vec<String>> {
        let gone: Vec<String> = gone.into_iter().map(|(device_id,)| device_id).collect();
        for device_id in gone.iter().filter(|device_id| keyed.contains(*device_id)) {
            self.forget_signatures_of(user_nid, device_id).await?;
            self.announce_device(user_nid, device_id, audience).await?;
        }
        Ok(gone)
    }
}
