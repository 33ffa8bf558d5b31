//! Read receipts.

use crate::{
    Result, Store,
    sql::{Ids, listed, rows},
};

/// How far a user has read a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The room.
    pub room_nid: i64,
    /// The reader.
    pub user_nid: i64,
    /// `m.read` or `m.read.private`.
    pub receipt_type: Box<str>,
    /// Empty without a thread, `main`, or the identifier of the thread's root.
    pub thread: Box<str>,
    /// The event read.
    pub event_nid: i64,
    /// The event's position.
    pub event_pos: i64,
    /// When it was read, in milliseconds since 1970.
    pub ts: i64,
    /// The receipt's place in the stream; given at the commit.
    pub pos: i64,
}

pub(crate) type ReceiptRow = (i64, i64, String, String, i64, i64, i64, i64);

impl From<ReceiptRow> for Receipt {
    fn from(row: ReceiptRow) -> Self {
        let (room_nid, user_nid, receipt_type, thread, event_nid, event_pos, ts, pos) = row;
        Self {
            room_nid,
            user_nid,
            receipt_type: receipt_type.into(),
            thread: thread.into(),
            event_nid,
            event_pos,
            ts,
            pos,
        }
    }
}

impl Store {
    /// The receipts of some rooms with a position in `(after, to]`, in the stream's order.
    pub async fn receipts(&self, room_nids: &[i64], after: i64, to: i64) -> Result<Vec<Receipt>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<ReceiptRow> = rows!(
            reader,
            listed!(
                "SELECT room_nid, user_nid, type, thread, event_nid, event_pos, ts, pos FROM receipts WHERE room_nid ",
                "$1",
                " AND pos > $2 AND pos <= $3 ORDER BY pos"
            ),
            Ids(room_nids),
            after,
            to
        )?;
        Ok(found.into_iter().map(Receipt::from).collect())
    }

    /// One user's receipts in some rooms.
    pub async fn receipts_of_user(&self, user_nid: i64, room_nids: &[i64]) -> Result<Vec<Receipt>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<ReceiptRow> = rows!(
            reader,
            listed!(
                "SELECT room_nid, user_nid, type, thread, event_nid, event_pos, ts, pos FROM receipts WHERE room_nid ",
                "$2",
                " AND user_nid = $1"
            ),
            user_nid,
            Ids(room_nids)
        )?;
        Ok(found.into_iter().map(Receipt::from).collect())
    }
}
