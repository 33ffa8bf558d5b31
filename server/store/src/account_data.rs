//! What clients keep with their account: global and by room.

use crate::{
    Result, Store,
    sql::{Ids, listed, optional, rows},
};

/// A piece of a user's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountData {
    /// The user.
    pub user_nid: i64,
    /// The room, or 0 for global data.
    pub room_nid: i64,
    /// The event type.
    pub data_type: Box<str>,
    /// The content: a JSON object.
    pub content: Box<str>,
    /// The place in the stream; given at the commit.
    pub pos: i64,
}

pub(crate) type AccountDataRow = (i64, i64, String, String, i64);

impl From<AccountDataRow> for AccountData {
    fn from((user_nid, room_nid, data_type, content, pos): AccountDataRow) -> Self {
        Self { user_nid, room_nid, data_type: data_type.into(), content: content.into(), pos }
    }
}

impl Store {
    /// A piece of a user's data.
    pub async fn account_data(&self, user_nid: i64, room_nid: i64, data_type: &str) -> Result<Option<AccountData>> {
        let mut reader = self.database.reader().await?;
        let found: Option<AccountDataRow> = optional!(
            reader,
            "SELECT user_nid, room_nid, type, content, pos FROM account_data
             WHERE user_nid = $1 AND room_nid = $2 AND type = $3",
            user_nid,
            room_nid,
            data_type
        )?;
        Ok(found.map(AccountData::from))
    }

    /// A user's data, global (room 0) and of all rooms, with a position in `(after, to]`, in the stream's order.
    pub async fn account_data_since(&self, user_nid: i64, after: i64, to: i64) -> Result<Vec<AccountData>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<AccountDataRow> = rows!(
            reader,
            "SELECT user_nid, room_nid, type, content, pos FROM account_data
             WHERE user_nid = $1 AND pos > $2 AND pos <= $3 ORDER BY pos",
            user_nid,
            after,
            to
        )?;
        Ok(found.into_iter().map(AccountData::from).collect())
    }

    /// A user's data of some rooms.
    pub async fn account_data_in(&self, user_nid: i64, room_nids: &[i64]) -> Result<Vec<AccountData>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<AccountDataRow> = rows!(
            reader,
            listed!(
                "SELECT user_nid, room_nid, type, content, pos FROM account_data WHERE room_nid ",
                "$2",
                " AND user_nid = $1 ORDER BY pos"
            ),
            user_nid,
            Ids(room_nids)
        )?;
        Ok(found.into_iter().map(AccountData::from).collect())
    }
}
