//! What the outgoing queues keep and ask for: how far events were distributed, who lacks some, who is in which room.

use std::{collections::HashMap, sync::Arc};

use crate::{
    Event, Lease, Receipt, Result, Store,
    database::{Engine, Transaction},
    events::{EventRow, select_events},
    receipts::ReceiptRow,
    sql::{Ids, Sql, execute, json_rows, optional, row, rows},
};

/// The duty, and the name of its position.
pub const FEDERATION_SENDER: &str = "federation_sender";

/// Rows that one statement writes at the most.
const ROWS: usize = 500;
/// Positions of a gap that are looked at first.
const GAP_WINDOW: i64 = 1_000;
/// The end of a stay that lasts: after every position.
const NEVER: i64 = i64::MAX;

/// A server that is, or once was, in trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDestination {
    /// The server.
    pub server: String,
    /// The position of the first event that it lacks; `None` if it has all up to the sender's position.
    pub pending_from: Option<i64>,
    /// Tries in a row that failed.
    pub failures: i64,
    /// When it is tried again, in milliseconds since 1970.
    pub retry_at: i64,
    /// When it last took a transaction, in milliseconds since 1970, as far as known.
    pub last_success_ts: Option<i64>,
}

/// The columns of [`StoredDestination`], in their order.
type DestinationRow = (String, Option<i64>, i64, i64, Option<i64>);

/// The servers in a room: how many users of each have joined.
#[derive(Clone, Debug, Default)]
pub struct RoomServers {
    /// The snapshot of the state that this follows from.
    pub state_root: i64,
    /// The servers.
    pub joined: HashMap<String, u32>,
}

/// Which of a server's gap is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Gap<'a> {
    /// The server that lacks events.
    pub server: &'a str,
    /// Our own server, whose events are sent, beside those that are marked.
    pub ours: &'a str,
    /// The first position.
    pub from: i64,
    /// The last position.
    pub to: i64,
}

/// Selects from the events that are to be sent to a server: those of its gap, in the rooms where it has users, up to
/// the end of their stay.
macro_rules! gap {
    ($select:literal, $stays:literal, $rest:literal) => {
        Sql {
            sqlite: concat!(
                "WITH stays AS (
                     SELECT m.room_nid, MAX(CASE WHEN m.membership = 1 THEN $5 ELSE m.pos END) AS until
                     FROM users AS u JOIN memberships AS m ON m.user_nid = u.user_nid
                     WHERE substr(u.user_id, instr(u.user_id, ':') + 1) = $1 AND (m.membership = 1 OR m.pos >= $3) ",
                $stays,
                "    GROUP BY m.room_nid) ",
                $select,
                " FROM stays AS s CROSS JOIN events AS e ON e.room_nid = s.room_nid
                  WHERE e.pos >= $3 AND e.pos <= $4 AND e.pos <= s.until AND e.flags & 3 = 0
                    AND (e.flags & 8 <> 0 OR EXISTS (SELECT 1 FROM users AS w WHERE w.user_nid = e.sender_nid
                         AND substr(w.user_id, instr(w.user_id, ':') + 1) = $2)) ",
                $rest
            ),
            postgres: concat!(
                "WITH stays AS (
                     SELECT m.room_nid, MAX(CASE WHEN m.membership = 1 THEN $5 ELSE m.pos END) AS until
                     FROM users AS u JOIN memberships AS m ON m.user_nid = u.user_nid
                     WHERE substr(u.user_id, strpos(u.user_id, ':') + 1) = $1 AND (m.membership = 1 OR m.pos >= $3) ",
                $stays,
                "    GROUP BY m.room_nid) ",
                $select,
                " FROM stays AS s JOIN events AS e ON e.room_nid = s.room_nid
                  WHERE e.pos >= $3 AND e.pos <= $4 AND e.pos <= s.until AND e.flags & 3 = 0
                    AND (e.flags & 8 <> 0 OR EXISTS (SELECT 1 FROM users AS w WHERE w.user_nid = e.sender_nid
                         AND substr(w.user_id, strpos(w.user_id, ':') + 1) = $2)) ",
                $rest
            ),
        }
    };
}

impl Store {
    /// How far along the stream a duty has come.
    pub async fn duty_position(&self, name: &str) -> Result<i64> {
        let mut reader = self.database.reader().await?;
        let found: Option<(i64,)> = optional!(reader, "SELECT pos FROM duty_positions WHERE name = $1", name)?;
        Ok(found.map_or(0, |(pos,)| pos))
    }

    /// The servers that lack events or failed lately, by name, after one.
    pub async fn troubled_destinations(&self, after: &str, limit: usize) -> Result<Vec<StoredDestination>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<DestinationRow> = rows!(
            reader,
            "SELECT server, pending_from, failures, retry_at, last_success_ts FROM destinations
             WHERE (pending_from IS NOT NULL OR failures > 0) AND server > $1 ORDER BY server LIMIT $2",
            after,
            count(limit)
        )?;
        Ok(found.into_iter().map(StoredDestination::from).collect())
    }

    /// What is known of a server that is, or once was, in trouble.
    pub async fn destination(&self, server: &str) -> Result<Option<StoredDestination>> {
        let mut reader = self.database.reader().await?;
        let found: Option<DestinationRow> = optional!(
            reader,
            "SELECT server, pending_from, failures, retry_at, last_success_ts FROM destinations WHERE server = $1",
            server
        )?;
        Ok(found.map(StoredDestination::from))
    }

    /// Writes how far events were distributed, and the servers for which something has changed. False when the lease is
    /// held no more: nothing is written then.
    pub async fn save_sending(&self, lease: &Lease, pos: i64, changed: &[StoredDestination]) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO duty_positions (name, pos) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET pos = excluded.pos",
            FEDERATION_SENDER,
            pos
        )?;
        for rows in changed.chunks(ROWS) {
            upsert(&mut transaction, rows).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// The servers whose users are in some rooms now: one query. A room without users is not in the answer.
    pub async fn room_servers(&self, room_nids: &[i64]) -> Result<HashMap<i64, RoomServers>> {
        // State and memberships are of one moment: it is one statement.
        let sql = Sql {
            sqlite: "SELECT m.room_nid, r.state_root, substr(u.user_id, instr(u.user_id, ':') + 1) AS server, COUNT(*)
                     FROM memberships AS m JOIN rooms AS r ON r.room_nid = m.room_nid
                     JOIN users AS u ON u.user_nid = m.user_nid
                     WHERE m.membership = 1 AND m.room_nid IN (SELECT value FROM json_each($1))
                     GROUP BY m.room_nid, r.state_root, server",
            postgres:
                "SELECT m.room_nid, r.state_root, substr(u.user_id, strpos(u.user_id, ':') + 1) AS server, COUNT(*)
                       FROM memberships AS m JOIN rooms AS r ON r.room_nid = m.room_nid
                       JOIN users AS u ON u.user_nid = m.user_nid
                       WHERE m.membership = 1 AND m.room_nid = ANY($1)
                       GROUP BY m.room_nid, r.state_root, server",
        };
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64, String, i64)> = rows!(reader, sql, Ids(room_nids))?;
        let mut rooms: HashMap<i64, RoomServers> = HashMap::new();
        for (room_nid, state_root, server, users) in found {
            let room = rooms.entry(room_nid).or_default();
            room.state_root = state_root;
            room.joined.insert(server, u32::try_from(users).unwrap_or(u32::MAX));
        }
        Ok(rooms)
    }

    /// The events at the positions `(from, to]` that matter to the outgoing queues: those of our own users, those that
    /// are marked to be sent, and changes of state. In the stream's order.
    pub async fn events_to_distribute(&self, ours: &str, from: i64, to: i64) -> Result<Vec<Arc<Event>>> {
        let sql = Sql {
            sqlite: select_events!(
                "WHERE pos > $1 AND pos <= $2 AND (key_nid IS NOT NULL OR flags & 8 <> 0
                    OR EXISTS (SELECT 1 FROM users AS w WHERE w.user_nid = sender_nid
                               AND substr(w.user_id, instr(w.user_id, ':') + 1) = $3))
                 ORDER BY pos"
            ),
            postgres: select_events!(
                "WHERE pos > $1 AND pos <= $2 AND (key_nid IS NOT NULL OR flags & 8 <> 0
                    OR EXISTS (SELECT 1 FROM users AS w WHERE w.user_nid = sender_nid
                               AND substr(w.user_id, strpos(w.user_id, ':') + 1) = $3))
                 ORDER BY pos"
            ),
        };
        let mut reader = self.database.reader().await?;
        let found: Vec<EventRow> = rows!(reader, sql, from, to, ours)?;
        found.into_iter().map(|row| Ok(Arc::new(Event::try_from(row)?))).collect()
    }

    /// The public receipts of our own users at the positions `(from, to]`, in the stream's order.
    pub async fn receipts_to_distribute(&self, ours: &str, from: i64, to: i64) -> Result<Vec<Receipt>> {
        let sql = Sql {
            sqlite: "SELECT r.room_nid, r.user_nid, r.type, r.thread, r.event_nid, r.event_pos, r.ts, r.pos
                     FROM receipts AS r JOIN users AS u ON u.user_nid = r.user_nid
                     WHERE r.pos > $1 AND r.pos <= $2 AND r.type = 'm.read'
                       AND substr(u.user_id, instr(u.user_id, ':') + 1) = $3 ORDER BY r.pos",
            postgres: "SELECT r.room_nid, r.user_nid, r.type, r.thread, r.event_nid, r.event_pos, r.ts, r.pos
                       FROM receipts AS r JOIN users AS u ON u.user_nid = r.user_nid
                       WHERE r.pos > $1 AND r.pos <= $2 AND r.type = 'm.read'
                         AND substr(u.user_id, strpos(u.user_id, ':') + 1) = $3 ORDER BY r.pos",
        };
        let mut reader = self.database.reader().await?;
        let found: Vec<ReceiptRow> = rows!(reader, sql, from, to, ours)?;
        Ok(found.into_iter().map(Receipt::from).collect())
    }

    /// The first events of a gap, in the stream's order.
    pub async fn gap_events(&self, gap: Gap<'_>, limit: usize) -> Result<Vec<Arc<Event>>> {
        let sql = gap!("SELECT e.event_nid", "", "ORDER BY e.pos LIMIT $6");
        let mut reader = self.database.reader().await?;
        let mut nids: Vec<i64> = Vec::new();
        // By windows: sorting the whole of a long gap for each page would cost its square.
        let (mut start, mut window) = (gap.from, GAP_WINDOW);
        while nids.len() < limit && start <= gap.to {
            let end = gap.to.min(start.saturating_add(window - 1));
            let found: Vec<(i64,)> =
                rows!(reader, sql, gap.server, gap.ours, start, end, NEVER, count(limit - nids.len()))?;
            nids.extend(found.into_iter().map(|(nid,)| nid));
            start = end + 1;
            window = window.saturating_mul(4);
        }
        drop(reader);
        self.events(&nids).await
    }

    /// The newest event of a gap in each room, in the stream's order, of at most `limit` rooms after one; and the last
    /// of these rooms, if there may be more.
    pub async fn gap_newest(
        &self,
        gap: Gap<'_>,
        after_room_nid: i64,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Option<i64>)> {
        let sql = gap!(
            "SELECT s.room_nid, MAX(e.pos)",
            "AND m.room_nid > $6",
            "GROUP BY s.room_nid ORDER BY s.room_nid LIMIT $7"
        );
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64)> =
            rows!(reader, sql, gap.server, gap.ours, gap.from, gap.to, NEVER, after_room_nid, count(limit))?;
        let more = if found.len() == limit { found.last().map(|(room_nid, _)| *room_nid) } else { None };
        let positions: Vec<i64> = found.into_iter().map(|(_, pos)| pos).collect();
        let sql = Sql {
            sqlite: "SELECT event_nid FROM events WHERE pos IN (SELECT value FROM json_each($1)) ORDER BY pos",
            postgres: "SELECT event_nid FROM events WHERE pos = ANY($1) ORDER BY pos",
        };
        let nids: Vec<(i64,)> = rows!(reader, sql, Ids(&positions))?;
        drop(reader);
        let events = self.events(&nids.into_iter().map(|(nid,)| nid).collect::<Vec<_>>()).await?;
        Ok((events, more))
    }

    /// For some rooms, whether all of a server's users came to them at or after a position, or have gone: whether the
    /// server was there at an event after that position must then be asked of the event's state. Answers the users to
    /// ask for, by room; rooms where the server was there all the time are not in the answer.
    pub async fn newcomers(&self, server: &str, room_nids: &[i64], since: i64) -> Result<HashMap<i64, Vec<String>>> {
        let sql = Sql {
            sqlite: "SELECT m.room_nid, u.user_id, m.membership = 1 AND m.pos < $3
                     FROM memberships AS m JOIN users AS u ON u.user_nid = m.user_nid
                     WHERE m.room_nid IN (SELECT value FROM json_each($2))
                       AND substr(u.user_id, instr(u.user_id, ':') + 1) = $1",
            postgres: "SELECT m.room_nid, u.user_id, m.membership = 1 AND m.pos < $3
                       FROM memberships AS m JOIN users AS u ON u.user_nid = m.user_nid
                       WHERE m.room_nid = ANY($2) AND substr(u.user_id, strpos(u.user_id, ':') + 1) = $1",
        };
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String, bool)> = rows!(reader, sql, server, Ids(room_nids), since)?;
        let mut users: HashMap<i64, Vec<String>> = HashMap::new();
        let mut settled = Vec::new();
        for (room_nid, user_id, was_there) in found {
            if was_there {
                settled.push(room_nid);
            }
            users.entry(room_nid).or_default().push(user_id);
        }
        for room_nid in settled {
            users.remove(&room_nid);
        }
        Ok(users)
    }

    /// How many servers lack events, and how many failed lately.
    pub async fn count_troubled(&self) -> Result<(i64, i64)> {
        let mut reader = self.database.reader().await?;
        let counted: (i64, i64) = row!(
            reader,
            "SELECT COUNT(pending_from), COUNT(CASE WHEN failures > 0 THEN 1 END) FROM destinations
             WHERE pending_from IS NOT NULL OR failures > 0"
        )?;
        Ok(counted)
    }
}

impl From<DestinationRow> for StoredDestination {
    fn from(row: DestinationRow) -> Self {
        let (server, pending_from, failures, retry_at, last_success_ts) = row;
        Self { server, pending_from, failures, retry_at, last_success_ts }
    }
}

async fn upsert(transaction: &mut Transaction, changed: &[StoredDestination]) -> Result<()> {
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            let rows: Vec<_> = changed
                .iter()
                .map(|row| (&row.server, row.pending_from, row.failures, row.retry_at, row.last_success_ts))
                .collect();
            sqlx::query(
                "INSERT INTO destinations (server, pending_from, failures, retry_at, last_success_ts)
                 SELECT w.value->>0, w.value->>1, w.value->>2, w.value->>3, w.value->>4 FROM json_each($1) AS w WHERE TRUE
                 ON CONFLICT (server) DO UPDATE SET pending_from = excluded.pending_from, failures = excluded.failures,
                     retry_at = excluded.retry_at,
                     last_success_ts = COALESCE(excluded.last_success_ts, destinations.last_success_ts)",
            )
            .bind(json_rows(&rows))
            .execute(connection)
            .await?;
        }
        Engine::Postgres(connection) => {
            sqlx::query(
                "INSERT INTO destinations (server, pending_from, failures, retry_at, last_success_ts)
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
                 ON CONFLICT (server) DO UPDATE SET pending_from = excluded.pending_from, failures = excluded.failures,
                     retry_at = excluded.retry_at,
                     last_success_ts = COALESCE(excluded.last_success_ts, destinations.last_success_ts)",
            )
            .bind(changed.iter().map(|row| row.server.as_str()).collect::<Vec<_>>())
            .bind(changed.iter().map(|row| row.pending_from).collect::<Vec<_>>())
            .bind(changed.iter().map(|row| row.failures).collect::<Vec<_>>())
            .bind(changed.iter().map(|row| row.retry_at).collect::<Vec<_>>())
            .bind(changed.iter().map(|row| row.last_success_ts).collect::<Vec<_>>())
            .execute(connection)
            .await?;
        }
    }
    Ok(())
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FEDERATION_SENDER, StoredDestination};
    use crate::{
        Candidate,
        testing::{Fresh, on_both},
    };

    fn row(server: &str, pending_from: Option<i64>, failures: i64) -> StoredDestination {
        StoredDestination { server: server.to_owned(), pending_from, failures, retry_at: 5, last_success_ts: None }
    }

    /// What is written comes back, in pages; only those in trouble; and nothing is written without the lease.
    #[tokio::test]
    async fn checkpoints_are_fenced() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let candidate = |holder: &str| Candidate {
                name: FEDERATION_SENDER,
                holder: holder.to_owned(),
                ttl: Duration::from_secs(600),
            };
            assert_eq!(store.duty_position(FEDERATION_SENDER).await.unwrap(), 0);
            let lease = store.take_lease(&candidate("a")).await.unwrap().unwrap();
            let rows: Vec<_> = (0..1200).map(|number| row(&format!("s{number:04}.example"), Some(number), 1)).collect();
            assert!(store.save_sending(&lease, 7, &rows).await.unwrap());
            assert!(store.save_sending(&lease, 8, &[row("s0000.example", None, 0)]).await.unwrap());
            assert_eq!(store.duty_position(FEDERATION_SENDER).await.unwrap(), 8);
            let page = store.troubled_destinations("", 1000).await.unwrap();
            assert_eq!(page, rows[1..1001]);
            let page = store.troubled_destinations(&page[999].server, 1000).await.unwrap();
            assert_eq!(page, rows[1001..]);
            assert_eq!(store.count_troubled().await.unwrap(), (1199, 1199));
            assert!(store.release_lease(&lease).await.unwrap());
            store.take_lease(&candidate("b")).await.unwrap().unwrap();
            assert!(!store.save_sending(&lease, 9, &[row("s0001.example", None, 0)]).await.unwrap());
            assert_eq!(store.duty_position(FEDERATION_SENDER).await.unwrap(), 8);
            assert_eq!(store.destination("s0001.example").await.unwrap().unwrap().pending_from, Some(1));
            store.close().await;
        })
        .await;
    }
}
