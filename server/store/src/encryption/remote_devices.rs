//! The device lists of other servers' users, as far as we follow them.

use std::sync::Arc;

use crate::{
    Result, Store,
    sql::{Ids, execute, listed, optional, rows},
};

/// How long a list waits that could not be had, after the first try: doubled with each one.
const RETRY_FIRST_MS: i64 = 30_000;
/// The longest that it waits.
const RETRY_MAX_MS: i64 = 3_600_000;

/// A followed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteDeviceList {
    /// Whose devices.
    pub user_nid: i64,
    /// The last change that we have.
    pub stream_id: i64,
    /// Whether we have missed one.
    pub stale: bool,
}

/// A device of another server's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDevice {
    /// The device.
    pub device_id: String,
    /// What its owner calls it.
    pub display_name: Option<String>,
    /// Its identity keys, if it has any: JSON.
    pub keys: Option<String>,
}

/// A whole list, as the user's server tells it.
#[derive(Clone, Debug, Default)]
pub struct FetchedDeviceList {
    /// The last change in it.
    pub stream_id: i64,
    /// The devices.
    pub devices: Vec<RemoteDevice>,
    /// The cross-signing keys: usage, JSON.
    pub cross_signing: Vec<(String, String)>,
}

/// A change of a list.
#[derive(Clone, Debug)]
pub struct RemoteDeviceUpdate {
    /// Its number.
    pub stream_id: i64,
    /// The numbers of those that it follows.
    pub prev_ids: Vec<i64>,
    /// The device as it is now.
    pub device: RemoteDevice,
    /// Whether it is gone.
    pub deleted: bool,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateOutcome {
    /// The list has it now.
    Applied,
    /// The list had it already.
    Known,
    /// The list is not followed, or one before it was missed: the list has to be asked for.
    Missed,
}

impl Store {
    /// Which of some users' lists we follow, and how they stand.
    pub async fn remote_device_lists(&self, user_nids: &[i64]) -> Result<Vec<RemoteDeviceList>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64, bool)> = rows!(
            reader,
            listed!("SELECT user_nid, stream_id, stale FROM remote_device_lists WHERE user_nid ", "$1", ""),
            Ids(user_nids)
        )?;
        Ok(found
            .into_iter()
            .map(|(user_nid, stream_id, stale)| RemoteDeviceList { user_nid, stream_id, stale })
            .collect())
    }

    /// The devices in some lists that we follow.
    pub async fn remote_devices(&self, user_nids: &[i64]) -> Result<Vec<(i64, RemoteDevice)>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String, Option<String>, Option<String>)> = rows!(
            reader,
            listed!(
                "SELECT user_nid, device_id, display_name, keys FROM remote_devices WHERE user_nid ",
                "$1",
                " ORDER BY user_nid, device_id"
            ),
            Ids(user_nids)
        )?;
        Ok(found
            .into_iter()
            .map(|(user_nid, device_id, display_name, keys)| (user_nid, RemoteDevice { device_id, display_name, keys }))
            .collect())
    }

    /// Which of some users are in a room with one of ours: their servers tell us of changes.
    pub async fn users_sharing_rooms(&self, user_nids: &[i64]) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(
            reader,
            listed!(
                "SELECT DISTINCT theirs.user_nid FROM memberships AS theirs
                 WHERE theirs.membership = 1 AND EXISTS (
                     SELECT 1 FROM memberships AS own JOIN accounts AS a USING (user_nid)
                     WHERE own.room_nid = theirs.room_nid AND own.membership = 1) AND theirs.user_nid ",
                "$1",
                ""
            ),
            Ids(user_nids)
        )?;
        Ok(found.into_iter().map(|(user_nid,)| user_nid).collect())
    }

    /// Follows a list from now on, or brings it up to date. Announces it if `told`: to those here who may know it
    /// otherwise. A list that is newer already stays.
    pub async fn set_remote_devices(
        self: &Arc<Self>,
        user_nid: i64,
        list: FetchedDeviceList,
        told: bool,
    ) -> Result<()> {
        let audience = Self::audience_here();
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let known: Option<(i64, bool)> = optional!(
                    write.transaction,
                    "SELECT stream_id, stale FROM remote_device_lists WHERE user_nid = $1",
                    user_nid
                )?;
                if known.is_some_and(|(stream_id, stale)| !stale && stream_id > list.stream_id) {
                    return Ok(());
                }
                execute!(
                    write.transaction,
                    "INSERT INTO remote_device_lists (user_nid, stream_id, stale) VALUES ($1, $2, FALSE)
                     ON CONFLICT (user_nid) DO UPDATE SET stream_id = excluded.stream_id, stale = FALSE, tries = 0,
                         next_ts = 0",
                    user_nid,
                    list.stream_id
                )?;
                execute!(write.transaction, "DELETE FROM remote_devices WHERE user_nid = $1", user_nid)?;
                execute!(write.transaction, "DELETE FROM cross_signing_keys WHERE user_nid = $1", user_nid)?;
                for device in &list.devices {
                    write.put_remote_device(user_nid, device).await?;
                }
                for (usage, json) in &list.cross_signing {
                    write.put_cross_signing_key(user_nid, usage, json).await?;
                }
                if told {
                    write.announce_remote(user_nid, &audience).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Takes a change of a list that we follow, if it follows what we have; otherwise the list is stale from now on.
    /// Announces it in both cases.
    pub async fn update_remote_device(
        self: &Arc<Self>,
        user_nid: i64,
        update: RemoteDeviceUpdate,
    ) -> Result<UpdateOutcome> {
        let audience = Self::audience_here();
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let known: Option<(i64, bool)> = optional!(
                    write.transaction,
                    "SELECT stream_id, stale FROM remote_device_lists WHERE user_nid = $1",
                    user_nid
                )?;
                if known.is_some_and(|(stream_id, stale)| !stale && update.stream_id <= stream_id) {
                    return Ok(UpdateOutcome::Known);
                }
                let follows = |known: i64| update.prev_ids.iter().all(|prev| *prev <= known);
                let applies = known.is_some_and(|(stream_id, stale)| !stale && follows(stream_id));
                if applies {
                    if update.deleted {
                        execute!(
                            write.transaction,
                            "DELETE FROM remote_devices WHERE user_nid = $1 AND device_id = $2",
                            user_nid,
                            &*update.device.device_id
                        )?;
                    } else {
                        write.put_remote_device(user_nid, &update.device).await?;
                    }
                    execute!(
                        write.transaction,
                        "UPDATE remote_device_lists SET stream_id = $2 WHERE user_nid = $1",
                        user_nid,
                        update.stream_id
                    )?;
                } else {
                    execute!(
                        write.transaction,
                        "UPDATE remote_device_lists SET stale = TRUE WHERE user_nid = $1",
                        user_nid
                    )?;
                }
                write.announce_remote(user_nid, &audience).await?;
                Ok(if applies { UpdateOutcome::Applied } else { UpdateOutcome::Missed })
            })
        })
        .await
    }

    /// Takes other cross-signing keys of a user whose list we follow, and announces them.
    pub async fn update_remote_cross_signing(
        self: &Arc<Self>,
        user_nid: i64,
        keys: Vec<(String, String)>,
    ) -> Result<()> {
        let audience = Self::audience_here();
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let followed: Option<(i64,)> = optional!(
                    write.transaction,
                    "SELECT user_nid FROM remote_device_lists WHERE user_nid = $1",
                    user_nid
                )?;
                if followed.is_some() {
                    for (usage, json) in &keys {
                        write.put_cross_signing_key(user_nid, usage, json).await?;
                    }
                }
                write.announce_remote(user_nid, &audience).await
            })
        })
        .await
    }

    /// Lists that have to be asked for again by now.
    pub async fn stale_device_lists(&self, now_ms: i64, limit: i64) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(
            reader,
            "SELECT user_nid FROM remote_device_lists WHERE stale AND next_ts <= $1 ORDER BY next_ts LIMIT $2",
            now_ms,
            limit
        )?;
        Ok(found.into_iter().map(|(user_nid,)| user_nid).collect())
    }

    /// A list could not be had: it is stale, and asked for again later, each time twice as late.
    pub async fn postpone_device_list(&self, user_nid: i64, now_ms: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let tries: Option<(i64,)> =
            optional!(transaction, "SELECT tries FROM remote_device_lists WHERE user_nid = $1", user_nid)?;
        let Some((tries,)) = tries else { return Ok(()) };
        let wait = RETRY_FIRST_MS.saturating_mul(1 << tries.clamp(0, 10)).min(RETRY_MAX_MS);
        execute!(
            transaction,
            "UPDATE remote_device_lists SET stale = TRUE, tries = $2, next_ts = $3 WHERE user_nid = $1",
            user_nid,
            tries.saturating_add(1),
            now_ms.saturating_add(wait)
        )?;
        transaction.commit().await
    }

    /// Forgets the lists of users who are in no room with ours any more: nobody tells us of their changes.
    pub async fn forget_unshared_device_lists(&self) -> Result<u64> {
        let mut reader = self.database.reader().await?;
        let unshared: Vec<(i64,)> = rows!(
            reader,
            "SELECT l.user_nid FROM remote_device_lists AS l WHERE NOT EXISTS (
                 SELECT 1 FROM memberships AS theirs
                 JOIN memberships AS own ON own.room_nid = theirs.room_nid AND own.membership = 1
                 JOIN accounts AS a ON a.user_nid = own.user_nid
                 WHERE theirs.user_nid = l.user_nid AND theirs.membership = 1)"
        )?;
        drop(reader);
        if unshared.is_empty() {
            return Ok(0);
        }
        let nids: Vec<i64> = unshared.into_iter().map(|(user_nid,)| user_nid).collect();
        let mut transaction = self.database.begin().await?;
        execute!(transaction, listed!("DELETE FROM cross_signing_keys WHERE user_nid ", "$1", ""), Ids(&nids))?;
        let gone =
            execute!(transaction, listed!("DELETE FROM remote_device_lists WHERE user_nid ", "$1", ""), Ids(&nids))?;
        transaction.commit().await?;
        Ok(gone)
    }
}

impl super::StreamWrite {
    async fn put_remote_device(&mut self, user_nid: i64, device: &RemoteDevice) -> Result<()> {
        execute!(
            self.transaction,
            "INSERT INTO remote_devices (user_nid, device_id, display_name, keys) VALUES ($1, $2, $3, $4)
             ON CONFLICT (user_nid, device_id)
             DO UPDATE SET display_name = excluded.display_name, keys = excluded.keys",
            user_nid,
            &*device.device_id,
            device.display_name.as_deref(),
            device.keys.as_deref()
        )?;
        Ok(())
    }
}
