//! The identity keys of our own devices, and the devices that wait to be taken over.

use std::sync::Arc;

use ruma::UserId;

use crate::{
    Error, Result, Store,
    sql::{Ids, Texts, execute, listed, optional, rows},
};

/// A device of ours with its identity keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKeys {
    /// Whose it is.
    pub user_nid: i64,
    /// The device.
    pub device_nid: i64,
    /// The device, as others know it.
    pub device_id: String,
    /// What its owner calls it.
    pub display_name: Option<String>,
    /// The keys as they were uploaded: JSON.
    pub json: String,
    /// True for a device that waits to be taken over.
    pub is_dehydrated: bool,
}

type DeviceKeysRow = (i64, i64, String, Option<String>, String, bool);

impl From<DeviceKeysRow> for DeviceKeys {
    fn from((user_nid, device_nid, device_id, display_name, json, is_dehydrated): DeviceKeysRow) -> Self {
        Self { user_nid, device_nid, device_id, display_name, json, is_dehydrated }
    }
}

/// Whether a device that changes its keys is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It signs with the same key as before, or had none.
    Same,
    /// It signs with another key.
    Other,
}

/// A device that waits, with its secrets encrypted, to be taken over by a new login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DehydratedDevice {
    /// The device.
    pub device_nid: i64,
    /// The device, as its owner knows it.
    pub device_id: String,
    /// The secrets: JSON.
    pub data: String,
}

/// A device that is to wait.
#[derive(Clone, Debug)]
pub struct NewDehydratedDevice {
    /// The device.
    pub device_id: String,
    /// What its owner calls it.
    pub display_name: Option<String>,
    /// The secrets: JSON.
    pub data: String,
    /// Its identity keys: JSON.
    pub keys: String,
    /// The time in milliseconds since 1970.
    pub now_ms: i64,
}

impl Store {
    /// Sets a device's identity keys and announces them, unless they are the same as before. With another identity, its
    /// one-time and fallback keys go: their other halves are gone too.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] when the device is gone.
    pub async fn set_device_keys(
        self: &Arc<Self>,
        user_nid: i64,
        device_nid: i64,
        device_id: &str,
        json: &str,
        identity: Identity,
    ) -> Result<()> {
        if self.device_keys(device_nid).await?.is_some_and(|known| known == json) {
            return Ok(());
        }
        let audience = self.own_audience(user_nid).await?;
        let (device_id, json) = (device_id.to_owned(), json.to_owned());
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let there: Option<(i64,)> = optional!(
                    write.transaction,
                    "SELECT device_nid FROM devices WHERE device_nid = $1 AND user_nid = $2",
                    device_nid,
                    user_nid
                )?;
                there.ok_or(Error::Missing { what: "device" })?;
                execute!(
                    write.transaction,
                    "INSERT INTO device_keys (device_nid, json) VALUES ($1, $2)
                     ON CONFLICT (device_nid) DO UPDATE SET json = excluded.json",
                    device_nid,
                    &*json
                )?;
                if identity == Identity::Other {
                    execute!(write.transaction, "DELETE FROM one_time_keys WHERE device_nid = $1", device_nid)?;
                    execute!(write.transaction, "DELETE FROM fallback_keys WHERE device_nid = $1", device_nid)?;
                }
                // What was signed are the keys before.
                execute!(
                    write.transaction,
                    "DELETE FROM key_signatures WHERE target_nid = $1 AND target = $2",
                    user_nid,
                    &*device_id
                )?;
                write.announce_device(user_nid, &device_id, &audience).await.map(drop)
            })
        })
        .await
    }

    /// A device's identity keys: JSON.
    pub async fn device_keys(&self, device_nid: i64) -> Result<Option<String>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> =
            optional!(reader, "SELECT json FROM device_keys WHERE device_nid = $1", device_nid)?;
        Ok(found.map(|(json,)| json))
    }

    /// The devices of some of our users that have identity keys.
    pub async fn device_keys_of(&self, user_nids: &[i64]) -> Result<Vec<DeviceKeys>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<DeviceKeysRow> = rows!(
            reader,
            listed!(
                "SELECT d.user_nid, d.device_nid, d.device_id, d.display_name, k.json, h.device_nid IS NOT NULL
                 FROM devices AS d JOIN device_keys AS k USING (device_nid)
                 LEFT JOIN dehydrated_devices AS h ON h.device_nid = d.device_nid
                 WHERE d.user_nid ",
                "$1",
                " ORDER BY d.user_nid, d.device_nid"
            ),
            Ids(user_nids)
        )?;
        Ok(found.into_iter().map(DeviceKeys::from).collect())
    }

    /// The devices of some of our users: user, number, identifier.
    pub async fn devices_of(&self, user_nids: &[i64]) -> Result<Vec<(i64, i64, String)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            listed!("SELECT user_nid, device_nid, device_id FROM devices WHERE user_nid ", "$1", ""),
            Ids(user_nids)
        )?)
    }

    /// The numbers of some users, where they have one, in no order.
    pub async fn known_user_nids(&self, user_ids: &[&UserId]) -> Result<Vec<(i64, String)>> {
        let names: Vec<&str> =
            user_ids.iter().map(|id| id.as_str()).filter(|id| crate::names::is_storable(id)).collect();
        let mut reader = self.database.reader().await?;
        Ok(rows!(reader, listed!("SELECT user_nid, user_id FROM users WHERE user_id ", "$1", ""), Texts(&names))?)
    }

    /// A user's device that waits to be taken over.
    pub async fn dehydrated_device(&self, user_nid: i64) -> Result<Option<DehydratedDevice>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(i64, String, String)> = optional!(
            reader,
            "SELECT h.device_nid, d.device_id, h.data FROM dehydrated_devices AS h JOIN devices AS d USING (device_nid)
             WHERE h.user_nid = $1",
            user_nid
        )?;
        Ok(found.map(|(device_nid, device_id, data)| DehydratedDevice { device_nid, device_id, data }))
    }

    /// Lets a device wait to be taken over, in the place of the one that did so before. `None` if its identifier is
    /// taken by another device.
    pub async fn put_dehydrated_device(
        self: &Arc<Self>,
        user_nid: i64,
        new: NewDehydratedDevice,
    ) -> Result<Option<i64>> {
        let audience = self.own_audience(user_nid).await?;
        let device_nid = self.take_nids(1).await?.start;
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let gone: Vec<(String,)> = rows!(
                    write.transaction,
                    "DELETE FROM devices WHERE user_nid = $1
                       AND device_nid IN (SELECT device_nid FROM dehydrated_devices WHERE user_nid = $1)
                     RETURNING device_id",
                    user_nid
                )?;
                let made = execute!(
                    write.transaction,
                    "INSERT INTO devices (device_nid, user_nid, device_id, display_name, created_ts, last_seen_ts)
                     VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (user_nid, device_id) DO NOTHING",
                    device_nid,
                    user_nid,
                    &*new.device_id,
                    new.display_name.as_deref(),
                    new.now_ms
                )?;
                if made != 1 {
                    return Err(Error::Conflict);
                }
                execute!(
                    write.transaction,
                    "INSERT INTO dehydrated_devices (user_nid, device_nid, data) VALUES ($1, $2, $3)",
                    user_nid,
                    device_nid,
                    &*new.data
                )?;
                execute!(
                    write.transaction,
                    "INSERT INTO device_keys (device_nid, json) VALUES ($1, $2)",
                    device_nid,
                    &*new.keys
                )?;
                for (device_id,) in gone.iter().filter(|(device_id,)| *device_id != new.device_id) {
                    write.forget_signatures_of(user_nid, device_id).await?;
                    write.announce_device(user_nid, device_id, &audience).await?;
                }
                write.forget_signatures_of(user_nid, &new.device_id).await?;
                write.announce_device(user_nid, &new.device_id, &audience).await?;
                Ok(device_nid)
            })
        })
        .await
        .map(Some)
        .or_else(|error| if matches!(error, Error::Conflict) { Ok(None) } else { Err(error) })
    }
}

impl super::StreamWrite {
    /// Forgets who has signed a device that is gone.
    pub(crate) async fn forget_signatures_of(&mut self, user_nid: i64, device_id: &str) -> Result<()> {
        execute!(
            self.transaction,
            "DELETE FROM key_signatures WHERE target_nid = $1 AND target = $2",
            user_nid,
            device_id
        )?;
        Ok(())
    }
}
