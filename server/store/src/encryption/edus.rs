//! What other servers have to be told besides events, until they have acknowledged it.

use crate::{
    Result, Store,
    sql::{execute, optional, row, rows},
};

/// Something that another server has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEdu {
    /// Its place in the stream.
    pub pos: i64,
    /// What it is.
    pub subject: EduSubject,
}

/// What another server has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EduSubject {
    /// Messages to devices: the content of `m.direct_to_device`, JSON.
    ToDevice(String),
    /// A device of ours has changed or is gone.
    Device {
        /// Whose it is.
        user_nid: i64,
        /// The device.
        device_id: String,
        /// The place of the user's change before this one.
        prev_pos: Option<i64>,
    },
    /// The cross-signing keys of one of our users have changed.
    CrossSigning {
        /// Whose they are.
        user_nid: i64,
    },
}

impl Store {
    /// What a server has to be told, in the stream's order: as much as fits the limit, at least one if there is any.
    pub async fn pending_edus(&self, destination: &str, limit: i64) -> Result<Vec<PendingEdu>> {
        let mut reader = self.database.reader().await?;
        let messages: Vec<(i64, String)> = rows!(
            reader,
            "SELECT pos, edu FROM to_device_edus WHERE destination = $1 ORDER BY pos LIMIT $2",
            destination,
            limit
        )?;
        let devices: Vec<(i64, i64, String, Option<i64>)> = rows!(
            reader,
            "SELECT pos, user_nid, device_id, prev_pos FROM device_list_edus WHERE destination = $1
             ORDER BY pos LIMIT $2",
            destination,
            limit
        )?;
        let mut pending: Vec<PendingEdu> =
            messages.into_iter().map(|(pos, edu)| PendingEdu { pos, subject: EduSubject::ToDevice(edu) }).collect();
        pending.extend(devices.into_iter().map(|(pos, user_nid, device_id, prev_pos)| {
            let subject = match device_id.is_empty() {
                true => EduSubject::CrossSigning { user_nid },
                false => EduSubject::Device { user_nid, device_id, prev_pos },
            };
            PendingEdu { pos, subject }
        }));
        pending.sort_by_key(|edu| edu.pos);
        pending.truncate(usize::try_from(limit).unwrap_or_default());
        Ok(pending)
    }

    /// A server has acknowledged what it was told up to a position.
    pub async fn edus_sent(&self, destination: &str, up_to: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM to_device_edus WHERE destination = $1 AND pos <= $2", destination, up_to)?;
        execute!(transaction, "DELETE FROM device_list_edus WHERE destination = $1 AND pos <= $2", destination, up_to)?;
        transaction.commit().await
    }

    /// The servers that have to be told something.
    pub async fn edu_destinations(&self) -> Result<Vec<String>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String,)> =
            rows!(reader, "SELECT destination FROM to_device_edus UNION SELECT destination FROM device_list_edus")?;
        Ok(found.into_iter().map(|(destination,)| destination).collect())
    }

    /// The servers that have to be told something that has a place in `(after, to]` of the stream.
    pub async fn edu_destinations_since(&self, after: i64, to: i64) -> Result<Vec<String>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String,)> = rows!(
            reader,
            "SELECT destination FROM to_device_edus WHERE pos > $1 AND pos <= $2
             UNION SELECT destination FROM device_list_edus WHERE pos > $1 AND pos <= $2",
            after,
            to
        )?;
        Ok(found.into_iter().map(|(destination,)| destination).collect())
    }

    /// A device of ours as another server is told of it: its name and identity keys; `None` if it is gone.
    pub async fn device_to_tell(
        &self,
        user_nid: i64,
        device_id: &str,
    ) -> Result<Option<(Option<String>, Option<String>)>> {
        let mut reader = self.database.reader().await?;
        Ok(optional!(
            reader,
            "SELECT d.display_name, k.json FROM devices AS d LEFT JOIN device_keys AS k USING (device_nid)
             WHERE d.user_nid = $1 AND d.device_id = $2",
            user_nid,
            device_id
        )?)
    }

    /// How much other servers have to be told.
    pub async fn count_pending_edus(&self) -> Result<i64> {
        let mut reader = self.database.reader().await?;
        let (count,): (i64,) =
            row!(reader, "SELECT (SELECT COUNT(*) FROM to_device_edus) + (SELECT COUNT(*) FROM device_list_edus)")?;
        Ok(count)
    }
}
