//! Reading events and state snapshots.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use ruma::{EventId, OwnedEventId};
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

use crate::{
    Error, Event, EventParts, Result, Store,
    database::Engine,
    names::{Weight, is_storable},
    sql::{Ids, Sql, Texts, json_rows, listed, optional, rows},
    state_tree::{self, Node, NodeSource},
};

/// Reads events: the columns of [`EventRow`].
macro_rules! select_events {
    ($($rest:literal),+) => {
        concat!(
            "SELECT event_nid, event_id, room_nid, pos, depth, sender_nid, key_nid, state_before, room_state, \
             state_after, replaces, redacted_by, device_nid, txn, flags, json FROM events ",
            $($rest),+
        )
    };
}
/// Reads events by a list parameter.
macro_rules! select_listed_events {
    ($column:literal) => {
        Sql {
            sqlite: select_events!("WHERE ", $column, " IN (SELECT value FROM json_each($1))"),
            postgres: select_events!("WHERE ", $column, " = ANY($1)"),
        }
    };
}
pub(crate) use select_events;

/// An event as the database gives it: the columns of [`select_events`], in their order.
pub(crate) struct EventRow {
    event_nid: i64,
    event_id: String,
    room_nid: i64,
    pos: Option<i64>,
    depth: i64,
    sender_nid: i64,
    key_nid: Option<i64>,
    state_before: i64,
    room_state: i64,
    forked_state: Option<i64>,
    replaces: Option<i64>,
    redacted_by: Option<i64>,
    device_nid: Option<i64>,
    txn: Option<String>,
    flags: i64,
    json: Vec<u8>,
}

/// By the columns' places: a page of history has thousands of columns, and a name is looked up in a map.
impl<'r, R> FromRow<'r, R> for EventRow
where
    R: Row,
    usize: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self {
            event_nid: row.try_get(0)?,
            event_id: row.try_get(1)?,
            room_nid: row.try_get(2)?,
            pos: row.try_get(3)?,
            depth: row.try_get(4)?,
            sender_nid: row.try_get(5)?,
            key_nid: row.try_get(6)?,
            state_before: row.try_get(7)?,
            room_state: row.try_get(8)?,
            forked_state: row.try_get(9)?,
            replaces: row.try_get(10)?,
            redacted_by: row.try_get(11)?,
            device_nid: row.try_get(12)?,
            txn: row.try_get(13)?,
            flags: row.try_get(14)?,
            json: row.try_get(15)?,
        })
    }
}

impl TryFrom<EventRow> for Event {
    type Error = Error;

    fn try_from(row: EventRow) -> Result<Self> {
        let corrupt = || Error::Corrupt { what: "event" };
        let event_id = OwnedEventId::try_from(row.event_id).map_err(|_| corrupt())?;
        let json = String::from_utf8(row.json).map_err(|_| corrupt())?.into_boxed_str();
        let parts = EventParts {
            nid: row.event_nid,
            room_nid: row.room_nid,
            pos: row.pos,
            depth: row.depth,
            sender_nid: row.sender_nid,
            key_nid: row.key_nid,
            state_before: row.state_before,
            room_state: row.room_state,
            forked_state: row.forked_state,
            replaces: row.replaces,
            redacted_by: row.redacted_by,
            device_nid: row.device_nid,
            txn: row.txn.map(String::into_boxed_str),
            flags: row.flags,
        };
        Event::new(parts, event_id, json)
    }
}

impl Weight for Arc<Event> {
    fn weight(&self) -> u64 {
        Event::weight(self)
    }
}

impl Weight for Arc<Node> {
    fn weight(&self) -> u64 {
        Node::weight(self) as u64
    }
}

/// Which way a page of a timeline goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards newer events.
    Forward,
    /// Towards older events.
    Backward,
}

/// Nodes that are queued for a commit and in no other place yet.
#[derive(Debug, Default)]
pub(crate) struct Pending(RwLock<HashMap<i64, Arc<Node>>>);

impl Pending {
    pub(crate) fn add(&self, nodes: &[(i64, Arc<Node>)]) {
        if !nodes.is_empty() {
            self.0.write().extend(nodes.iter().map(|(id, node)| (*id, node.clone())));
        }
    }

    pub(crate) fn remove(&self, nodes: &[(i64, Arc<Node>)]) {
        if !nodes.is_empty() {
            let mut pending = self.0.write();
            for (id, _) in nodes {
                pending.remove(id);
            }
        }
    }

    fn node(&self, id: i64) -> Option<Arc<Node>> {
        self.0.read().get(&id).cloned()
    }
}

impl Store {
    /// Keeps an event in memory; a copy that was read before the event was redacted does not replace one after that.
    pub(crate) fn remember_event(&self, event: &Arc<Event>) {
        let is_old = event.redacted_by.is_none()
            && self.events.peek(&event.nid).is_some_and(|known| known.redacted_by.is_some());
        if !is_old {
            self.events.insert(event.nid, event.clone());
        }
    }

    pub(crate) fn forget_event_id(&self, event_id: &str) {
        self.events.retain(|_, event| event.event_id != event_id);
    }

    pub(crate) fn forget_event(&self, event: &Event) {
        self.events.remove(&event.nid);
    }

    pub(crate) fn remember_nodes(&self, nodes: &[(i64, Arc<Node>)]) {
        for (id, node) in nodes {
            self.nodes.insert(*id, node.clone());
        }
    }

    fn remember_rows(&self, found: Vec<EventRow>) -> Result<Vec<Arc<Event>>> {
        found
            .into_iter()
            .map(|row| {
                let event = Arc::new(Event::try_from(row)?);
                self.remember_event(&event);
                Ok(event)
            })
            .collect()
    }

    /// Events by number, in the order asked. Numbers without an event are an error.
    pub async fn events(&self, nids: &[i64]) -> Result<Vec<Arc<Event>>> {
        let mut found: Vec<Option<Arc<Event>>> = nids.iter().map(|nid| self.events.get(nid)).collect();
        let missing: Vec<i64> =
            nids.iter().zip(&found).filter(|(_, event)| event.is_none()).map(|(nid, _)| *nid).collect();
        if !missing.is_empty() {
            let mut reader = self.database.reader().await?;
            let loaded: Vec<EventRow> = rows!(reader, select_listed_events!("event_nid"), Ids(&missing))?;
            drop(reader);
            let loaded: HashMap<i64, Arc<Event>> =
                self.remember_rows(loaded)?.into_iter().map(|event| (event.nid, event)).collect();
            for (nid, event) in nids.iter().zip(&mut found).filter(|(_, event)| event.is_none()) {
                *event = loaded.get(nid).cloned();
            }
        }
        found.into_iter().map(|event| event.ok_or(Error::Missing { what: "event" })).collect()
    }

    /// One event by number.
    pub async fn event(&self, nid: i64) -> Result<Arc<Event>> {
        self.events(&[nid]).await?.pop().ok_or(Error::Missing { what: "event" })
    }

    /// An event by its identifier.
    pub async fn event_by_id(&self, event_id: &EventId) -> Result<Option<Arc<Event>>> {
        Ok(self.events_by_id(&[event_id.as_str()]).await?.pop())
    }

    /// The events among some identifiers that we have, in no order.
    pub async fn events_by_id(&self, event_ids: &[&str]) -> Result<Vec<Arc<Event>>> {
        let known: Vec<&str> = event_ids.iter().copied().filter(|event_id| is_storable(event_id)).collect();
        let mut reader = self.database.reader().await?;
        let found: Vec<EventRow> = rows!(reader, select_listed_events!("event_id"), Texts(&known))?;
        self.remember_rows(found)
    }

    /// The events that a redaction took the content of.
    pub(crate) async fn events_redacted_by(&self, redaction_nid: i64) -> Result<Vec<Arc<Event>>> {
        let mut reader = self.database.reader().await?;
        // The redaction names its target; both ways of naming it are in its JSON, the database knows the link.
        let redaction: Option<EventRow> = optional!(reader, select_events!("WHERE event_nid = $1"), redaction_nid)?;
        let Some(redaction) = redaction else { return Ok(Vec::new()) };
        let redaction = Event::try_from(redaction)?;
        let Some(target) = redacted_event_id(&redaction) else { return Ok(Vec::new()) };
        let found: Vec<EventRow> =
            rows!(reader, select_events!("WHERE event_id = $1 AND redacted_by = $2"), target, redaction_nid)?;
        found.into_iter().map(|row| Ok(Arc::new(Event::try_from(row)?))).collect()
    }

    /// The event that a device has sent under a transaction id, if it has.
    pub async fn event_by_transaction(&self, device_nid: i64, txn: &str) -> Result<Option<OwnedEventId>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> =
            optional!(reader, "SELECT event_id FROM events WHERE device_nid = $1 AND txn = $2", device_nid, txn)?;
        found.map(|(id,)| OwnedEventId::try_from(id).map_err(|_| Error::Corrupt { what: "event id" })).transpose()
    }

    /// The newest events of a room with a position in `(after, to]`, at most `limit` of them, oldest first.
    pub async fn newest_events(&self, room_nid: i64, after: i64, to: i64, limit: usize) -> Result<Vec<Arc<Event>>> {
        if let Some(mut events) = self.recent.events(room_nid, after, to) {
            let surplus = events.len().saturating_sub(limit);
            events.drain(..surplus);
            return Ok(events);
        }
        let mut events = self.page(room_nid, Direction::Backward, to.saturating_add(1), Some(after), limit).await?;
        events.reverse();
        Ok(events)
    }

    /// A page of a room's timeline, in the direction's order, without `from` itself and without `until`.
    ///
    /// Forward: positions in `(from, until)`; backward: `(until, from)`.
    pub async fn page(
        &self,
        room_nid: i64,
        direction: Direction,
        from: i64,
        until: Option<i64>,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>> {
        let mut reader = self.database.reader().await?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // The numbers first: of pages that many read, the events are in memory.
        let found: Vec<(i64, i64)> = match direction {
            Direction::Forward => rows!(
                reader,
                "SELECT event_nid, pos FROM events WHERE room_nid = $1 AND pos > $2 AND pos < $3 ORDER BY pos LIMIT $4",
                room_nid,
                from,
                until.unwrap_or(i64::MAX),
                limit
            )?,
            Direction::Backward => rows!(
                reader,
                "SELECT event_nid, pos FROM events WHERE room_nid = $1 AND pos < $2 AND pos > $3 ORDER BY pos DESC LIMIT $4",
                room_nid,
                from,
                until.unwrap_or(i64::MIN),
                limit
            )?,
        };
        drop(reader);
        for &(nid, pos) in &found {
            // Another replica has since found the place of an outlier.
            if self.events.peek(&nid).is_some_and(|event| event.pos != Some(pos)) {
                self.events.remove(&nid);
            }
        }
        let nids: Vec<i64> = found.into_iter().map(|(nid, _)| nid).collect();
        self.events(&nids).await
    }

    /// The newest events of many rooms at once: for each `(room, after, to)` at most `limit`, oldest first.
    ///
    /// One query for all rooms that are not in memory.
    pub async fn newest_events_of(&self, wanted: &[(i64, i64, i64)], limit: usize) -> Result<Vec<Vec<Arc<Event>>>> {
        let mut found: Vec<Vec<Arc<Event>>> = vec![Vec::new(); wanted.len()];
        let mut missing = Vec::new();
        for (place, &(room_nid, after, to)) in wanted.iter().enumerate() {
            match self.recent.events(room_nid, after, to) {
                Some(mut events) => {
                    let surplus = events.len().saturating_sub(limit);
                    events.drain(..surplus);
                    found[place] = events;
                }
                None => missing.push(place),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let rows: Vec<(i64, i64, i64)> = missing.iter().map(|&place| wanted[place]).collect();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut reader = self.database.reader().await?;
        let loaded: Vec<EventRow> = match reader.engine() {
            Engine::Sqlite(connection) => sqlx::query_as(
                "SELECT e.event_nid, e.event_id, e.room_nid, e.pos, e.depth, e.sender_nid, e.key_nid, e.state_before,
                            e.room_state, e.state_after, e.replaces, e.redacted_by, e.device_nid, e.txn, e.flags, e.json
                     FROM json_each($1) AS w
                     JOIN events AS e ON e.event_nid IN (SELECT n.event_nid FROM events AS n
                         WHERE n.room_nid = w.value->>0 AND n.pos > w.value->>1 AND n.pos <= w.value->>2
                         ORDER BY n.pos DESC LIMIT $2)
                     ORDER BY e.pos",
            )
            .bind(json_rows(&rows))
            .bind(limit)
            .fetch_all(connection)
            .await?,
            Engine::Postgres(connection) => sqlx::query_as(
                "SELECT e.event_nid, e.event_id, e.room_nid, e.pos, e.depth, e.sender_nid, e.key_nid, e.state_before,
                            e.room_state, e.state_after, e.replaces, e.redacted_by, e.device_nid, e.txn, e.flags, e.json
                     FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w(room_nid, after, upto)
                     CROSS JOIN LATERAL (SELECT * FROM events AS n WHERE n.room_nid = w.room_nid AND n.pos > w.after
                                         AND n.pos <= w.upto ORDER BY n.pos DESC LIMIT $4) AS e
                     ORDER BY e.pos",
            )
            .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
            .bind(limit)
            .fetch_all(connection)
            .await?,
        };
        drop(reader);
        let places: HashMap<i64, usize> = missing.iter().map(|&place| (wanted[place].0, place)).collect();
        for event in self.remember_rows(loaded)? {
            if let Some(&place) = places.get(&event.room_nid) {
                found[place].push(event);
            }
        }
        Ok(found)
    }

    /// The last event of a room at or before a position.
    pub async fn last_event_at(&self, room_nid: i64, pos: i64) -> Result<Option<Arc<Event>>> {
        Ok(self.page(room_nid, Direction::Backward, pos.saturating_add(1), None, 1).await?.pop())
    }

    /// For each `(room, position)`, the snapshot of the room's state at that position; 0 before its first event.
    pub async fn room_states_at(&self, wanted: &[(i64, i64)]) -> Result<Vec<i64>> {
        let wanted: Vec<(i64, i64, i64)> = wanted.iter().map(|&(room, pos)| (room, i64::MIN, pos)).collect();
        let found = self.newest_events_of(&wanted, 1).await?;
        Ok(found.into_iter().map(|events| events.last().map_or(0, |event| event.room_state)).collect())
    }

    /// The state events of some keys in a snapshot, in the order asked.
    pub async fn state_events(&self, root: i64, key_nids: &[i64]) -> Result<Vec<Option<Arc<Event>>>> {
        let nids = state_tree::get_many(self, root, key_nids).await?;
        let present: Vec<i64> = nids.iter().flatten().copied().collect();
        let mut events = self.events(&present).await?.into_iter();
        Ok(nids.into_iter().map(|nid| nid.and_then(|_| events.next())).collect())
    }

    /// All state events of a snapshot.
    pub async fn all_state_events(&self, root: i64) -> Result<Vec<Arc<Event>>> {
        let mut entries = state_tree::entries(self, &[root]).await?;
        let nids: Vec<i64> = entries.pop().unwrap_or_default().into_iter().map(|(_, event)| event).collect();
        self.events(&nids).await
    }

    /// Makes a snapshot from another one by setting (`Some`) or removing (`None`) keys.
    ///
    /// Answers its root and the nodes that must be written for it. They can be read from now on, until they are
    /// either committed or given to [`Store::discard_nodes`].
    pub async fn update_state(
        &self,
        root: i64,
        changes: &[(i64, Option<i64>)],
    ) -> Result<(i64, Vec<(i64, Arc<Node>)>)> {
        let budget = state_tree::new_nodes_max(changes.len()) as i64;
        let mut numbers = self.node_nids.take(&self.database, budget).await?;
        let mut alloc = || numbers.next().expect("new_nodes_max is the bound of what an update allocates");
        let update = state_tree::update(self, root, changes, &mut alloc).await?;
        self.node_nids.give_back(numbers).await;
        self.pending.add(&update.new_nodes);
        Ok((update.root, update.new_nodes))
    }

    /// Forgets the nodes of a snapshot that will not be written after all.
    pub fn discard_nodes(&self, nodes: &[(i64, Arc<Node>)]) {
        self.pending.remove(nodes);
    }

    /// The numbers of the events that some keys have in a snapshot, in the order asked.
    pub async fn state_event_nids(&self, root: i64, key_nids: &[i64]) -> Result<Vec<Option<i64>>> {
        Ok(state_tree::get_many(self, root, key_nids).await?)
    }
}

/// The event that a redaction names: in its content from room version 11 on, beside it before.
pub fn redacted_event_id(redaction: &Event) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Content {
        redacts: Option<String>,
    }
    let in_content = serde_json::from_str::<Content>(redaction.content()).ok().and_then(|content| content.redacts);
    redaction.redacts().map(str::to_owned).or(in_content)
}

impl NodeSource for Store {
    type Error = Error;

    fn cached(&self, id: i64) -> Option<Arc<Node>> {
        self.nodes.get(&id).or_else(|| self.pending.node(id))
    }

    async fn nodes(&self, ids: &[i64]) -> Result<Vec<Arc<Node>>> {
        let mut found: Vec<Option<Arc<Node>>> = ids.iter().map(|id| self.cached(*id)).collect();
        let missing: Vec<i64> = ids.iter().zip(&found).filter(|(_, node)| node.is_none()).map(|(id, _)| *id).collect();
        if !missing.is_empty() {
            let mut reader = self.database.reader().await?;
            let loaded: Vec<(i64, Vec<u8>)> = rows!(
                reader,
                listed!("SELECT node_nid, data FROM state_nodes WHERE node_nid ", "$1", ""),
                Ids(&missing)
            )?;
            drop(reader);
            let mut decoded = HashMap::with_capacity(loaded.len());
            for (id, data) in loaded {
                let node = Arc::new(Node::decode(&data).map_err(|_| Error::Corrupt { what: "state node" })?);
                self.nodes.insert(id, node.clone());
                decoded.insert(id, node);
            }
            for (id, node) in ids.iter().zip(&mut found).filter(|(_, node)| node.is_none()) {
                *node = decoded.get(id).cloned();
            }
        }
        found.into_iter().map(|node| node.ok_or(Error::Missing { what: "state node" })).collect()
    }
}
