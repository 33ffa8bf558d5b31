//! The event that was sent nearest to a point in time.

use std::sync::Arc;

use myelin_store::{Direction, Event};
use ruma::{RoomId, ServerName};

use super::{ServerReader, reader::Sight};
use crate::{Error, Result, Rooms, history::Reader};

/// Events on either side of the place in question that are compared: those sent at about the same time are not always
/// in the order of their times.
const AROUND: usize = 50;
/// Events that are read at once behind these, while none may be seen.
const BATCH: usize = 200;
/// Events that are looked at for one answer at the most.
const SCANNED: usize = 2000;

const NONE: Error = Error::NotFound("there is no event in that direction that you may see");

/// Who asks.
enum Asker<'a, 'r> {
    User(&'a Reader<'r>),
    Server(&'a ServerReader<'r>),
}

impl Asker<'_, '_> {
    fn room_nid(&self) -> i64 {
        match self {
            Self::User(reader) => reader.room.nid,
            Self::Server(reader) => reader.room.nid,
        }
    }
}

impl Rooms {
    /// The event that a user may see and that was sent nearest to a point in time, at or after it (forward), or at or
    /// before it (backward) ([specification]).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when none is found.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event
    pub async fn event_at(&self, reader: &Reader<'_>, ts: u64, direction: Direction) -> Result<Arc<Event>> {
        self.nearest(&Asker::User(reader), ts, direction).await
    }

    /// The same for a server ([specification]).
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the server may not read the room; [`Error::NotFound`] when none is found.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1timestamp_to_eventroomid
    pub async fn serve_event_at(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        ts: u64,
        direction: Direction,
    ) -> Result<Arc<Event>> {
        let reader = self.server_reader(origin, room_id).await?;
        self.nearest(&Asker::Server(&reader), ts, direction).await
    }

    async fn nearest(&self, asker: &Asker<'_, '_>, ts: u64, direction: Direction) -> Result<Arc<Event>> {
        let room_nid = asker.room_nid();
        let place = self.place_of(room_nid, ts).await?;
        let older = self.store.page(room_nid, Direction::Backward, place, None, AROUND).await?;
        let newer = self.store.page(room_nid, Direction::Forward, place.saturating_sub(1), None, AROUND).await?;
        let far = match direction {
            Direction::Forward => newer.last(),
            Direction::Backward => older.last(),
        };
        let mut end = far.and_then(|event| event.pos);
        let mut candidates: Vec<_> = older.into_iter().chain(newer).collect();
        let mut scanned = candidates.len();
        loop {
            candidates.retain(|event| match direction {
                Direction::Forward => event.origin_server_ts() >= ts,
                Direction::Backward => event.origin_server_ts() <= ts,
            });
            let seen = self.seen_by(asker, candidates).await?;
            let nearest = seen.into_iter().min_by_key(|event| {
                let order = event.pos.unwrap_or_default();
                let order = if direction == Direction::Forward { order } else { -order };
                (event.origin_server_ts().abs_diff(ts), order)
            });
            if let Some(event) = nearest {
                return Ok(event);
            }
            let Some(from) = end.filter(|_| scanned < SCANNED) else { return Err(NONE) };
            candidates = self.store.page(room_nid, direction, from, None, BATCH).await?;
            scanned += candidates.len();
            end = candidates.last().and_then(|event| event.pos);
        }
    }

    async fn seen_by(&self, asker: &Asker<'_, '_>, events: Vec<Arc<Event>>) -> Result<Vec<Arc<Event>>> {
        match asker {
            Asker::User(reader) => self.visible(&reader.room, &reader.viewer, events).await,
            Asker::Server(reader) => {
                let sights = self.sights(reader, &events).await?;
                let seen = events.into_iter().zip(sights);
                Ok(seen
                    .filter(|(event, sight)| event.is_shown() && *sight != Sight::Place)
                    .map(|(event, _)| event)
                    .collect())
            }
        }
    }

    /// About the position of a room's first event that was sent at a time or later, found by halving the timeline: its
    /// order is nearly that of the events' times.
    async fn place_of(&self, room_nid: i64, ts: u64) -> Result<i64> {
        let first = self.store.page(room_nid, Direction::Forward, i64::MIN, None, 1).await?;
        let last = self.store.page(room_nid, Direction::Backward, i64::MAX, None, 1).await?;
        let pos = |events: &[Arc<Event>]| events.first().and_then(|event| event.pos);
        let (Some(mut low), Some(last)) = (pos(&first), pos(&last)) else { return Err(NONE) };
        // The place is in low..=high; beyond the last event, when that was sent earlier.
        let mut high = last.saturating_add(1);
        while low < high {
            let middle = low.midpoint(high - 1).clamp(low, high - 1);
            let Some(event) = self.store.last_event_at(room_nid, middle).await? else { break };
            let pos = event.pos.unwrap_or(middle);
            if event.origin_server_ts() < ts {
                low = middle + 1;
            } else if pos <= low {
                return Ok(pos);
            } else {
                high = pos;
            }
        }
        Ok(low)
    }
}
