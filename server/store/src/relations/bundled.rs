//! What is told of an event together with it: its newest edit, who refers to it, and its thread.
//!
//! For a whole page at once, by a query each, however many events it has.

use std::collections::HashMap;

use crate::{
    Error, Event, Result, Store,
    database::Engine,
    sql::{Ids, json_rows},
};

/// An event to tell of.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// The event.
    pub event: &'a Event,
    /// The last position that may be told of.
    pub end: i64,
}

/// What was found for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundledChild {
    /// An edit by the event's sender, of the event's type. There are up to four, of which the one with the greatest
    /// timestamp and, among those, the greatest identifier counts.
    Edit(i64),
    /// An event that refers to it; the oldest first, a hundred at the most, which are the newest.
    Reference(i64),
    /// A thread starts there, of so many events.
    Thread(i64),
}

/// A thread to tell of.
#[derive(Clone, Copy, Debug)]
pub struct ThreadQuery<'a> {
    /// Its first event.
    pub root: Parent<'a>,
    /// How many events it has, as [`BundledChild::Thread`] says.
    pub count: i64,
}

/// A thread as a user sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadView {
    /// The newest events, the newest first.
    pub newest: Vec<i64>,
    /// How many events it has.
    pub count: i64,
    /// Whether the user has sent one of them.
    pub participated: bool,
}

/// What was found: the event's place in the page, of which kind it is, and a number.
type Found = (i64, i64, i64, i64);

// The plus keeps SQLite to the index by sender.
const CHILDREN_SQLITE: &str = "
    WITH w AS MATERIALIZED (
        SELECT key AS place, value->>0 AS room_nid, value->>1 AS event_id, value->>2 AS sender_nid,
               value->>3 AS event_type, value->>4 AS upto
        FROM json_each($1)
        WHERE EXISTS (SELECT 1 FROM event_relations AS n WHERE n.room_nid = value->>0 AND n.parent_id = value->>1))
    SELECT w.place, 1, r.event_nid, r.pos FROM w CROSS JOIN event_relations AS r WHERE r.event_nid IN (
        SELECT n.event_nid FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.event_id AND n.sender_nid = w.sender_nid
              AND n.rel_type = 'm.replace' AND n.event_type = w.event_type AND n.is_edit AND +n.pos <= w.upto
        ORDER BY n.ts DESC LIMIT 4)
    UNION ALL
    SELECT w.place, 2, r.event_nid, r.pos FROM w CROSS JOIN event_relations AS r WHERE r.event_nid IN (
        SELECT n.event_nid FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.event_id AND n.rel_type = 'm.reference' AND n.pos <= w.upto
        ORDER BY n.pos DESC LIMIT 100)
    UNION ALL
    SELECT w.place, 3, t.count, t.latest_pos
    FROM w CROSS JOIN threads AS t WHERE t.room_nid = w.room_nid AND t.root_id = w.event_id
    ORDER BY 1, 2, 4";

const CHILDREN_POSTGRES: &str = "
    WITH w AS MATERIALIZED (
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::bigint[])
            AS u(place, room_nid, event_id, sender_nid, event_type, upto)
        WHERE EXISTS (SELECT 1 FROM event_relations AS n WHERE n.room_nid = u.room_nid AND n.parent_id = u.event_id))
    SELECT w.place, 1::bigint, r.event_nid, r.pos FROM w CROSS JOIN LATERAL (
        SELECT n.event_nid, n.pos FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.event_id AND n.sender_nid = w.sender_nid
              AND n.rel_type = 'm.replace' AND n.event_type = w.event_type AND n.is_edit AND n.pos <= w.upto
        ORDER BY n.ts DESC LIMIT 4) AS r
    UNION ALL
    SELECT w.place, 2::bigint, r.event_nid, r.pos FROM w CROSS JOIN LATERAL (
        SELECT n.event_nid, n.pos FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.event_id AND n.rel_type = 'm.reference' AND n.pos <= w.upto
        ORDER BY n.pos DESC LIMIT 100) AS r
    UNION ALL
    SELECT w.place, 3::bigint, t.count, t.latest_pos
    FROM w JOIN threads AS t ON t.room_nid = w.room_nid AND t.root_id = w.event_id
    ORDER BY 1, 2, 4";

const THREADS_SQLITE: &str = "
    WITH w AS (SELECT key AS place, value->>0 AS room_nid, value->>1 AS root_id, value->>2 AS upto FROM json_each($1))
    SELECT w.place, 1, r.event_nid, r.pos FROM w CROSS JOIN event_relations AS r WHERE r.event_nid IN (
        SELECT n.event_nid FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.rel_type = 'm.thread' AND n.pos <= w.upto
              AND n.sender_nid NOT IN (SELECT value FROM json_each($2))
        ORDER BY n.pos DESC LIMIT $4)
    UNION ALL
    SELECT w.place, 2, COUNT(*), 0 FROM w CROSS JOIN json_each($2) AS i CROSS JOIN event_relations AS n
    WHERE n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.sender_nid = i.value AND n.rel_type = 'm.thread'
          AND +n.pos <= w.upto
    GROUP BY w.place
    UNION ALL
    SELECT w.place, 3, 1, 0 FROM w WHERE EXISTS (
        SELECT 1 FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.sender_nid = $3 AND n.rel_type = 'm.thread')
    UNION ALL
    SELECT w.place, 4, COUNT(*), 0 FROM w CROSS JOIN event_relations AS n
    WHERE n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.rel_type = 'm.thread' AND n.pos > w.upto
    GROUP BY w.place
    ORDER BY 1, 2, 4 DESC";

const THREADS_POSTGRES: &str = "
    WITH w AS (SELECT * FROM unnest($5::bigint[], $6::bigint[], $1::text[], $7::bigint[])
                   AS u(place, room_nid, root_id, upto))
    SELECT w.place, 1::bigint, r.event_nid, r.pos FROM w CROSS JOIN LATERAL (
        SELECT n.event_nid, n.pos FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.rel_type = 'm.thread' AND n.pos <= w.upto
              AND n.sender_nid <> ALL($2::bigint[])
        ORDER BY n.pos DESC LIMIT $4) AS r
    UNION ALL
    SELECT w.place, 2::bigint, COUNT(*), 0::bigint FROM w JOIN event_relations AS n
        ON n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.sender_nid = ANY($2::bigint[])
           AND n.rel_type = 'm.thread' AND n.pos <= w.upto
    GROUP BY w.place
    UNION ALL
    SELECT w.place, 3::bigint, 1::bigint, 0::bigint FROM w WHERE EXISTS (
        SELECT 1 FROM event_relations AS n
        WHERE n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.sender_nid = $3 AND n.rel_type = 'm.thread')
    UNION ALL
    SELECT w.place, 4::bigint, COUNT(*), 0::bigint FROM w JOIN event_relations AS n
        ON n.room_nid = w.room_nid AND n.parent_id = w.root_id AND n.rel_type = 'm.thread' AND n.pos > w.upto
    GROUP BY w.place
    ORDER BY 1, 2, 4 DESC";

impl Store {
    /// What is to be told together with some events, by the event's number; nothing for most.
    ///
    /// One query for all of which it is not in memory that nothing relates to them. State has nothing to be told of.
    pub async fn bundled_children(&self, parents: &[Parent<'_>]) -> Result<HashMap<i64, Vec<BundledChild>>> {
        let open: Vec<Parent<'_>> = parents
            .iter()
            .filter(|parent| parent.event.key_nid.is_none() && !self.childless.knows(parent.event.event_id.as_str()))
            .copied()
            .collect();
        let mut children: HashMap<i64, Vec<BundledChild>> = HashMap::new();
        if open.is_empty() {
            return Ok(children);
        }
        let mark = self.childless.mark();
        for (place, kind, number, _) in self.read_children(&open).await? {
            let parent = usize::try_from(place).ok().and_then(|place| open.get(place));
            let parent = parent.ok_or(Error::Corrupt { what: "relation" })?;
            let child = match kind {
                1 => BundledChild::Edit(number),
                2 => BundledChild::Reference(number),
                _ => BundledChild::Thread(number),
            };
            children.entry(parent.event.nid).or_default().push(child);
        }
        // Whoever may see only what is before some place may find nothing where there is something.
        let childless =
            open.iter().filter(|parent| parent.end == i64::MAX && !children.contains_key(&parent.event.nid));
        self.childless.remember(mark, childless.map(|parent| parent.event.event_id.as_str()));
        Ok(children)
    }

    async fn read_children(&self, parents: &[Parent<'_>]) -> Result<Vec<Found>> {
        let mut reader = self.database.reader().await?;
        let found = match reader.engine() {
            Engine::Sqlite(connection) => {
                let rows: Vec<(i64, &str, i64, &str, i64)> = parents
                    .iter()
                    .map(|Parent { event, end }| {
                        (event.room_nid, event.event_id.as_str(), event.sender_nid, event.event_type(), *end)
                    })
                    .collect();
                sqlx::query_as(CHILDREN_SQLITE).bind(json_rows(&rows)).fetch_all(connection).await?
            }
            Engine::Postgres(connection) => {
                let column = |of: fn(&Parent<'_>) -> i64| parents.iter().map(of).collect::<Vec<i64>>();
                // A text without the character that PostgreSQL does not take; no relation has it.
                let types: Vec<String> =
                    parents.iter().map(|parent| parent.event.event_type().replace('\0', "")).collect();
                sqlx::query_as(CHILDREN_POSTGRES)
                    .bind(places(parents.len()))
                    .bind(column(|parent| parent.event.room_nid))
                    .bind(parents.iter().map(|parent| parent.event.event_id.as_str()).collect::<Vec<_>>())
                    .bind(column(|parent| parent.event.sender_nid))
                    .bind(types)
                    .bind(column(|parent| parent.end))
                    .fetch_all(connection)
                    .await?
            }
        };
        Ok(found)
    }

    /// How a user sees some threads, in the order asked, without what was sent by those whom they ignore.
    ///
    /// One query for all. Of each, so many of the newest events are named.
    pub async fn thread_views(
        &self,
        threads: &[ThreadQuery<'_>],
        newest: i64,
        user_nid: i64,
        ignored: &[i64],
    ) -> Result<Vec<ThreadView>> {
        let mut views: Vec<ThreadView> =
            threads.iter().map(|thread| ThreadView { count: thread.count, ..ThreadView::default() }).collect();
        if threads.is_empty() {
            return Ok(views);
        }
        for (place, kind, number, _) in self.read_threads(threads, newest, user_nid, ignored).await? {
            let view = usize::try_from(place).ok().and_then(|place| views.get_mut(place));
            let view = view.ok_or(Error::Corrupt { what: "relation" })?;
            match kind {
                1 => view.newest.push(number),
                3 => view.participated = true,
                // By users who are ignored, and after what may be told of.
                _ => view.count -= number,
            }
        }
        Ok(views)
    }

    async fn read_threads(
        &self,
        threads: &[ThreadQuery<'_>],
        newest: i64,
        user_nid: i64,
        ignored: &[i64],
    ) -> Result<Vec<Found>> {
        let mut reader = self.database.reader().await?;
        let found = match reader.engine() {
            Engine::Sqlite(connection) => {
                let rows: Vec<(i64, &str, i64)> = threads
                    .iter()
                    .map(|ThreadQuery { root: Parent { event, end }, .. }| {
                        (event.room_nid, event.event_id.as_str(), *end)
                    })
                    .collect();
                let query = sqlx::query_as(THREADS_SQLITE).bind(json_rows(&rows)).bind(Ids(ignored));
                query.bind(user_nid).bind(newest).fetch_all(connection).await?
            }
            Engine::Postgres(connection) => {
                let column = |of: fn(&ThreadQuery<'_>) -> i64| threads.iter().map(of).collect::<Vec<i64>>();
                sqlx::query_as(THREADS_POSTGRES)
                    .bind(threads.iter().map(|thread| thread.root.event.event_id.as_str()).collect::<Vec<_>>())
                    .bind(Ids(ignored))
                    .bind(user_nid)
                    .bind(newest)
                    .bind(places(threads.len()))
                    .bind(column(|thread| thread.root.event.room_nid))
                    .bind(column(|thread| thread.root.end))
                    .fetch_all(connection)
                    .await?
            }
        };
        Ok(found)
    }
}

fn places(count: usize) -> Vec<i64> {
    (0..count).map(|place| i64::try_from(place).unwrap_or(i64::MAX)).collect()
}
