//! Walking back through a room's history, event by event.

use std::{
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Direction, Event, RoomName, Store, flags};
use ruma::{OwnedEventId, RoomId, ServerName};

use super::{ServerReader, links::prev_events, order::oldest_first};
use crate::{Error, Result, Rooms};

/// Events of an answer to `/backfill` at the most.
pub const BACKFILL_MAX: usize = 100;
/// Events of an answer to `/get_missing_events` at the most.
pub const MISSING_MAX: usize = 100;
/// Events that a request may begin at or end at; more are left out.
const ENDS_MAX: usize = 100;
/// Events that are looked at for one answer: more than are given, since some are passed over.
const VISITED_MAX: usize = 400;

/// What a server lacks: the events between those that it has and those that follow what it lacks.
#[derive(Clone, Debug, Default)]
pub struct MissingEvents {
    /// The newest that it has.
    pub earliest: Vec<OwnedEventId>,
    /// The events that follow those that it lacks.
    pub latest: Vec<OwnedEventId>,
    /// How many it wants at the most.
    pub limit: usize,
    /// The depth below which it wants none.
    pub min_depth: i64,
}

impl Rooms {
    /// Some events of a room and what came before them, the newest first ([specification]): each event comes after all
    /// of greater depth. The limit is for both together.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the server may not read the room; [`Error::NotFound`] when we have none of the events.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid
    pub async fn serve_backfill(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Vec<Arc<Event>>> {
        let reader = self.server_reader(origin, room_id).await?;
        let limit = limit.min(BACKFILL_MAX);
        let mut walk = Walk::new(&self.store, &reader.room, limit);
        let starts = walk.take(&from[..from.len().min(ENDS_MAX)]).await?;
        if starts.is_empty() {
            return Err(Error::NotFound("there are no such events in this room"));
        }
        let mut open: BinaryHeap<Newest> = starts.into_iter().map(Newest).collect();
        let mut found = Vec::with_capacity(limit);
        while found.len() < limit
            && let Some(Newest(event)) = open.pop()
        {
            open.extend(walk.take(&prev_events(&event)).await?.into_iter().map(Newest));
            if is_served(&event) {
                found.push(event);
            }
        }
        self.shown_to_server(&reader, found).await
    }

    /// The events that a server lacks, each after those that it follows ([specification]); when they are too many,
    /// those that come first in a walk back.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the server may not read the room.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid
    pub async fn serve_missing_events(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        wanted: &MissingEvents,
    ) -> Result<Vec<Arc<Event>>> {
        let reader = self.server_reader(origin, room_id).await?;
        let found = self.walk_to_missing(&reader, wanted).await?;
        self.shown_to_server(&reader, oldest_first(found)).await
    }

    /// "a breadth-first walk of the prev_events for the latest_events, ignoring any events in earliest_events and
    /// stopping at the limit"
    async fn walk_to_missing(&self, reader: &ServerReader<'_>, wanted: &MissingEvents) -> Result<Vec<Arc<Event>>> {
        let limit = wanted.limit.min(MISSING_MAX);
        let mut walk = Walk::new(&self.store, &reader.room, limit);
        walk.leave_out(&wanted.earliest[..wanted.earliest.len().min(ENDS_MAX)]);
        let mut level = walk.take(&wanted.latest[..wanted.latest.len().min(ENDS_MAX)]).await?;
        let mut found = Vec::with_capacity(limit);
        while !level.is_empty() {
            let before: Vec<OwnedEventId> = level.iter().flat_map(|event| prev_events(event)).collect();
            level = walk.take(&before).await?;
            // What follows an event is deeper: behind one that is not deep enough there is nothing to be found.
            level.retain(|event| event.depth >= wanted.min_depth);
            for event in level.iter().filter(|event| is_served(event)) {
                if found.len() >= limit {
                    return Ok(found);
                }
                found.push(event.clone());
            }
        }
        Ok(found)
    }
}

/// True for an event that has its place in the graph.
///
/// "soft failed events are returned in `/backfill` and `/get_missing_events` responses only if the requests include
/// events referencing the soft failed events": they are found here in no other way. Rejected events are found by such
/// references too, but are not to be passed on.
fn is_served(event: &Event) -> bool {
    event.flags & (flags::REJECTED | flags::OUTLIER) == 0
}

/// Events by depth, then by their place in the timeline; the greatest is the newest.
struct Newest(Arc<Event>);

impl Newest {
    fn key(&self) -> (i64, Option<i64>, i64) {
        (self.0.depth, self.0.pos, self.0.nid)
    }
}

impl PartialEq for Newest {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Newest {}

impl PartialOrd for Newest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Newest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// A walk that comes by each event once.
struct Walk<'a> {
    store: &'a Store,
    room: &'a RoomName,
    /// How much of the timeline is read ahead at once.
    ahead: usize,
    /// Events that were read and not come by yet.
    loaded: HashMap<OwnedEventId, Arc<Event>>,
    seen: HashSet<OwnedEventId>,
    visited: usize,
}

impl<'a> Walk<'a> {
    fn new(store: &'a Store, room: &'a RoomName, ahead: usize) -> Self {
        Self { store, room, ahead, loaded: HashMap::new(), seen: HashSet::new(), visited: 0 }
    }

    fn leave_out(&mut self, ids: &[OwnedEventId]) {
        self.seen.extend(ids.iter().cloned());
    }

    /// Those among some events that the room has and the walk has not come by yet.
    async fn take(&mut self, ids: &[OwnedEventId]) -> Result<Vec<Arc<Event>>> {
        let mut fresh = Vec::new();
        for id in ids {
            if self.visited < VISITED_MAX && self.seen.insert(id.clone()) {
                self.visited += 1;
                fresh.push(id);
            }
        }
        let lacking: Vec<&str> =
            fresh.iter().filter(|id| !self.loaded.contains_key(**id)).map(|id| id.as_str()).collect();
        if !lacking.is_empty() {
            self.load(&lacking).await?;
        }
        Ok(fresh.into_iter().filter_map(|id| self.loaded.remove(id)).collect())
    }

    /// Reads events, and what the timeline has before the newest of them: most of what they follow is there, so that a
    /// walk along one line does not cost a query a step.
    async fn load(&mut self, ids: &[&str]) -> Result<()> {
        let mut events = self.store.events_by_id(ids).await?;
        events.retain(|event| event.room_nid == self.room.nid);
        if let Some(pos) = events.iter().filter_map(|event| event.pos).max() {
            events.extend(self.store.page(self.room.nid, Direction::Backward, pos, None, self.ahead).await?);
        }
        self.loaded.extend(events.into_iter().map(|event| (event.event_id.clone(), event)));
        Ok(())
    }
}
