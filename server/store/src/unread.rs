//! Unread counts that were worked out once, so that no event has to be counted twice.

use crate::{
    Result, Store,
    sql::{Ids, execute, listed, rows},
};

/// What a user has not read in a room, up to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadCheckpoint {
    /// The user.
    pub user_nid: i64,
    /// The room.
    pub room_nid: i64,
    /// The position up to which the user had read everything.
    pub receipt_pos: i64,
    /// The position up to which events were counted.
    pub counted_pos: i64,
    /// The counts, in JSON.
    pub counts: String,
}

type Row = (i64, i64, i64, i64, String);

impl Store {
    /// A user's checkpoints of some rooms, in no order.
    pub async fn unread_checkpoints(&self, user_nid: i64, room_nids: &[i64]) -> Result<Vec<UnreadCheckpoint>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<Row> = rows!(
            reader,
            listed!(
                "SELECT user_nid, room_nid, receipt_pos, counted_pos, counts FROM unread_checkpoints WHERE room_nid ",
                "$2",
                " AND user_nid = $1"
            ),
            user_nid,
            Ids(room_nids)
        )?;
        let checkpoint = |(user_nid, room_nid, receipt_pos, counted_pos, counts)| UnreadCheckpoint {
            user_nid,
            room_nid,
            receipt_pos,
            counted_pos,
            counts,
        };
        Ok(found.into_iter().map(checkpoint).collect())
    }

    /// Keeps checkpoints, each in the place of an older one.
    pub async fn save_unread_checkpoints(&self, checkpoints: &[UnreadCheckpoint]) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        for checkpoint in checkpoints {
            execute!(
                transaction,
                "INSERT INTO unread_checkpoints (user_nid, room_nid, receipt_pos, counted_pos, counts)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (user_nid, room_nid) DO UPDATE SET receipt_pos = excluded.receipt_pos,
                     counted_pos = excluded.counted_pos, counts = excluded.counts
                 WHERE unread_checkpoints.counted_pos <= excluded.counted_pos",
                checkpoint.user_nid,
                checkpoint.room_nid,
                checkpoint.receipt_pos,
                checkpoint.counted_pos,
                &*checkpoint.counts
            )?;
        }
        transaction.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::UnreadCheckpoint;
    use crate::testing::{Fresh, on_both};

    /// The newest checkpoint of each room is kept, for each user alone.
    #[tokio::test]
    async fn the_newest_is_kept() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let checkpoint = |user_nid, room_nid, counted_pos| UnreadCheckpoint {
                user_nid,
                room_nid,
                receipt_pos: 1,
                counted_pos,
                counts: format!("{{\"at\":{counted_pos}}}"),
            };
            store
                .save_unread_checkpoints(&[checkpoint(1, 10, 5), checkpoint(1, 11, 5), checkpoint(2, 10, 9)])
                .await
                .unwrap();
            store.save_unread_checkpoints(&[checkpoint(1, 10, 8), checkpoint(1, 11, 3)]).await.unwrap();
            let mut found = store.unread_checkpoints(1, &[10, 11, 12]).await.unwrap();
            found.sort_by_key(|found| found.room_nid);
            assert_eq!(found, [checkpoint(1, 10, 8), checkpoint(1, 11, 5)]);
            assert_eq!(store.unread_checkpoints(2, &[10]).await.unwrap(), [checkpoint(2, 10, 9)]);
            store.close().await;
        })
        .await;
    }
}
