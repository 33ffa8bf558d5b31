//! What comes in a user's rooms, for clients that ask for events one by one.

use std::sync::Arc;

use crate::{
    Event, Result, Store,
    sql::{Sql, rows},
};

impl Store {
    /// The first events after a position in the rooms that a user is in or has since come out of, in their order.
    pub async fn events_for_member(&self, user_nid: i64, after: i64, limit: usize) -> Result<Vec<Arc<Event>>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // A few of each room, and of those the first.
        let sql = Sql {
            sqlite: "SELECT e.event_nid FROM memberships AS m
                     CROSS JOIN events AS e ON e.event_nid IN (SELECT n.event_nid FROM events AS n
                         WHERE n.room_nid = m.room_nid AND n.pos > $2 ORDER BY n.pos LIMIT $3)
                     WHERE m.user_nid = $1 AND (m.membership = 1 OR m.pos > $2) ORDER BY e.pos LIMIT $3",
            postgres: "SELECT e.event_nid FROM memberships AS m
                       CROSS JOIN LATERAL (SELECT n.event_nid, n.pos FROM events AS n
                           WHERE n.room_nid = m.room_nid AND n.pos > $2 ORDER BY n.pos LIMIT $3) AS e
                       WHERE m.user_nid = $1 AND (m.membership = 1 OR m.pos > $2) ORDER BY e.pos LIMIT $3",
        };
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(reader, sql, user_nid, after, limit)?;
        drop(reader);
        self.events(&found.into_iter().map(|(nid,)| nid).collect::<Vec<_>>()).await
    }
}
