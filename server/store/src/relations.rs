//! Which events relate to which: edits, annotations, references, threads.
//!
//! A relation is written with its event, when that gets its place in the timeline, and goes when the event is redacted.
//! An event that relates to nothing costs the search for `m.relates_to` in its content.

mod bundled;
mod childless;
#[cfg(test)]
mod tests;
mod write;

use std::borrow::Cow;

use ruma::EventId;
use serde::Deserialize;

pub use self::bundled::{BundledChild, Parent, ThreadQuery, ThreadView};
pub(crate) use self::{
    childless::{Childless, show_metrics},
    write::{forget, insert},
};
use crate::{
    Direction, Event, Result, Store,
    names::is_storable,
    sql::{Sql, Texts, listed, rows},
};

/// How far relations of relations are followed.
pub const RELATION_DEPTH_MAX: i64 = 3;

/// What an event says of the one that it relates to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The other event.
    pub parent_id: Cow<'a, str>,
    /// How it relates to it.
    pub rel_type: Cow<'a, str>,
    /// What an annotation says.
    pub key: Option<Cow<'a, str>>,
    /// Whether the event has what an edit must have, whatever it edits.
    pub is_edit: bool,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, rename = "m.relates_to")]
    relates_to: RelatesTo<'a>,
    #[serde(borrow, rename = "m.new_content")]
    new_content: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct RelatesTo<'a> {
    #[serde(borrow)]
    event_id: Text<'a>,
    #[serde(borrow)]
    rel_type: Text<'a>,
    #[serde(borrow)]
    key: Option<&'a serde_json::value::RawValue>,
}

/// A text, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Relation<'a> {
    /// What an event relates to, if its content names another event and a `rel_type` as it should.
    pub fn of(event: &'a Event) -> Option<Self> {
        let content = event.content();
        // As good as every event is done with this; one that is written with escapes is looked at.
        if !content.contains("m.relates_to") && !content.contains("\\u00") {
            return None;
        }
        let content: Content<'_> = serde_json::from_str(content).ok()?;
        let RelatesTo { event_id: Text(parent_id), rel_type: Text(rel_type), key } = content.relates_to;
        if !is_storable(&parent_id) || !is_storable(&rel_type) || !is_storable(event.event_type()) {
            return None;
        }
        <&EventId>::try_from(&*parent_id).ok()?;
        let key = key.and_then(|key| serde_json::from_str::<Text<'_>>(key.get()).ok()).map(|Text(key)| key);
        let has_new_content = content.new_content.is_some_and(|new| new.get().starts_with('{'));
        // What an encrypted event has instead of its content cannot be seen here.
        let is_edit = event.state_key().is_none() && (event.event_type() == "m.room.encrypted" || has_new_content);
        Some(Self { parent_id, rel_type, key, is_edit })
    }

    /// Whether whoever is shown the parent is told of this.
    fn is_bundled(&self) -> bool {
        matches!(&*self.rel_type, "m.replace" | "m.reference" | "m.thread")
    }
}

/// Which events that relate to another one are wanted.
#[derive(Clone, Copy, Debug)]
pub struct RelatedQuery<'a> {
    /// The room.
    pub room_nid: i64,
    /// The event that they relate to.
    pub parent_id: &'a EventId,
    /// How they relate to it, if that matters.
    pub rel_type: Option<&'a str>,
    /// Their type, if that matters.
    pub event_type: Option<&'a str>,
    /// Whether those that relate to one of them are wanted too, and so on, down to [`RELATION_DEPTH_MAX`]. The types
    /// are asked of all of them; no more than 10,000 are looked at.
    pub recurse: bool,
}

/// A thread in the list of a room's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedThread {
    /// The event that it starts from.
    pub root_nid: i64,
    /// The position of the newest event in it.
    pub latest_pos: i64,
    /// Whether the user has sent the first event, or one in it.
    pub participated: bool,
}

/// Relations of one parent: `$2` the room, `$3` the parent, `$4` and `$5` the types, `$6` and `$7` the bounds.
macro_rules! related {
    ($types:literal, $order:literal) => {
        concat!(
            "SELECT event_nid, pos FROM event_relations WHERE room_nid = $2 AND parent_id = $3 AND ",
            $types,
            " AND (CAST($5 AS TEXT) IS NULL OR event_type = $5) AND pos > $6 AND pos < $7 ORDER BY pos ",
            $order,
            " LIMIT $1"
        )
    };
}

/// Relations of one parent, and theirs; an event that relates to itself in the end is told of once. `CROSS JOIN` keeps
/// SQLite to the order in which the tables are written.
macro_rules! related_in_depth {
    ($inner_limit:literal, $order:literal) => {
        concat!(
            "WITH RECURSIVE found(event_nid, pos, depth) AS (
                 SELECT event_nid, pos, 1 FROM event_relations
                 WHERE room_nid = $2 AND parent_id = $3 AND (CAST($4 AS TEXT) IS NULL OR rel_type = $4)
                       AND (CAST($5 AS TEXT) IS NULL OR event_type = $5)
                 UNION ALL
                 SELECT c.event_nid, c.pos, f.depth + 1
                 FROM found AS f CROSS JOIN events AS e CROSS JOIN event_relations AS c
                 WHERE e.event_nid = f.event_nid AND c.room_nid = $2 AND c.parent_id = e.event_id
                      AND (CAST($4 AS TEXT) IS NULL OR c.rel_type = $4)
                      AND (CAST($5 AS TEXT) IS NULL OR c.event_type = $5)
                      AND f.depth < 3 ",
            $inner_limit,
            ")
             SELECT event_nid, MIN(pos) AS place FROM (SELECT * FROM found LIMIT 10000) AS bounded
             WHERE pos > $6 AND pos < $7 GROUP BY event_nid ORDER BY place ",
            $order,
            " LIMIT $1"
        )
    };
}

/// The query for some relations.
fn related_sql(direction: Direction, recurse: bool, is_typed: bool) -> Sql {
    match (direction, recurse, is_typed) {
        (Direction::Forward, false, true) => related!("rel_type = $4", "").into(),
        (Direction::Backward, false, true) => related!("rel_type = $4", "DESC").into(),
        (Direction::Forward, false, false) => related!("CAST($4 AS TEXT) IS NULL", "").into(),
        (Direction::Backward, false, false) => related!("CAST($4 AS TEXT) IS NULL", "DESC").into(),
        // SQLite's recursion ends where it is limited itself, PostgreSQL's where no more is read of it.
        (Direction::Forward, true, _) => {
            Sql { sqlite: related_in_depth!("LIMIT 10000", ""), postgres: related_in_depth!("", "") }
        }
        (Direction::Backward, true, _) => {
            Sql { sqlite: related_in_depth!("LIMIT 10000", "DESC"), postgres: related_in_depth!("", "DESC") }
        }
    }
}

impl Store {
    /// The places of events that relate to another one, in the direction's order: their numbers and positions.
    ///
    /// Forward: positions in `(from, until)`; backward: `(until, from)`.
    pub async fn related(
        &self,
        query: &RelatedQuery<'_>,
        direction: Direction,
        (from, until): (i64, i64),
        limit: usize,
    ) -> Result<Vec<(i64, i64)>> {
        let (after, before) = match direction {
            Direction::Forward => (from, until),
            Direction::Backward => (until, from),
        };
        let storable = |name: Option<&str>| name.is_none_or(is_storable);
        if !is_storable(query.parent_id.as_str()) || !storable(query.rel_type) || !storable(query.event_type) {
            return Ok(Vec::new());
        }
        let sql = related_sql(direction, query.recurse, query.rel_type.is_some());
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            sql,
            i64::try_from(limit).unwrap_or(i64::MAX),
            query.room_nid,
            query.parent_id.as_str(),
            query.rel_type,
            query.event_type,
            after,
            before
        )?)
    }

    /// A room's threads whose newest event is at or before a position, the newest first.
    pub async fn threads(&self, room_nid: i64, user_nid: i64, up_to: i64, limit: usize) -> Result<Vec<ListedThread>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64, bool)> = rows!(
            reader,
            "SELECT e.event_nid, t.latest_pos,
                    e.sender_nid = $2 OR EXISTS (SELECT 1 FROM event_relations AS r
                        WHERE r.room_nid = t.room_nid AND r.parent_id = t.root_id AND r.sender_nid = $2
                              AND r.rel_type = 'm.thread')
             FROM threads AS t CROSS JOIN events AS e
             WHERE e.event_id = t.root_id AND e.room_nid = t.room_nid AND t.room_nid = $1 AND t.latest_pos <= $3 AND e.pos IS NOT NULL
             ORDER BY t.latest_pos DESC LIMIT $4",
            room_nid,
            user_nid,
            up_to,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        let listed = |(root_nid, latest_pos, participated)| ListedThread { root_nid, latest_pos, participated };
        Ok(found.into_iter().map(listed).collect())
    }

    /// The newest events by which a user relates to another one in some way, at most some dozens: among them are those
    /// that say the same.
    pub async fn relations_by(
        &self,
        room_nid: i64,
        parent_id: &str,
        sender_nid: i64,
        rel_type: &str,
        event_type: &str,
    ) -> Result<Vec<i64>> {
        if ![parent_id, rel_type, event_type].into_iter().all(is_storable) {
            return Ok(Vec::new());
        }
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(
            reader,
            "SELECT event_nid FROM event_relations
             WHERE room_nid = $1 AND parent_id = $2 AND sender_nid = $3 AND rel_type = $4 AND event_type = $5
             ORDER BY ts DESC LIMIT 64",
            room_nid,
            parent_id,
            sender_nid,
            rel_type,
            event_type
        )?;
        Ok(found.into_iter().map(|(nid,)| nid).collect())
    }
}

impl Store {
    /// The numbers of those among some users who have one.
    pub async fn nids_of_users(&self, user_ids: &[&str]) -> Result<Vec<i64>> {
        let known: Vec<&str> = user_ids.iter().copied().filter(|user_id| is_storable(user_id)).collect();
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> =
            rows!(reader, listed!("SELECT user_nid FROM users WHERE user_id ", "$1", ""), Texts(&known))?;
        Ok(found.into_iter().map(|(nid,)| nid).collect())
    }
}
