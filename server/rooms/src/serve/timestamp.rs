//! The event that was sent nearest to a point in time.

use std::{sync::Arc, time::Duration};

use myelin_store::{Direction, Event, RoomName};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName, UInt, api,
    api::federation::event::get_event_by_timestamp,
};

use super::{ServerReader, reader::Sight};
use crate::{Error, Result, Rooms, elsewhere::asked, history::Reader};

/// Events on either side of the place in question that are compared: those sent at about the same time are not always
/// in the order of their times.
const AROUND: usize = 50;
/// Events that are read at once behind these, while none may be seen.
const BATCH: usize = 200;
/// Events that are looked at for one answer at the most.
const SCANNED: usize = 2000;

/// Servers that are asked for an event from before what we have, one after the other.
const SERVERS: usize = 3;
/// How often history is fetched to get to such an event.
const FETCHES: usize = 10;
/// How long all this may take: people wait for it.
const PATIENCE: Duration = Duration::from_secs(20);

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
    /// Where our history does not go back that far, other servers are asked, and the history up to the event that they
    /// name is fetched, if it is not too much: an event that we do not have would be of no use to the client.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when none is found.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event
    pub async fn event_at(self: &Arc<Self>, reader: &Reader<'_>, ts: u64, direction: Direction) -> Result<Arc<Event>> {
        let asker = Asker::User(reader);
        if self.remote().is_ok() && self.begins_after(&reader.room, ts).await? {
            let fetched =
                tokio::time::timeout(PATIENCE, Box::pin(self.fetch_history_at(&reader.room, ts, direction))).await;
            match fetched {
                Ok(outcome) => outcome?,
                Err(_) => tracing::info!(room.id = %reader.room.room_id, "fetching history up to a time took too long"),
            }
        }
        self.nearest(&asker, ts, direction).await
    }

    /// True if there are events of a room from about a time that we do not have.
    async fn begins_after(&self, room: &RoomName, ts: u64) -> Result<bool> {
        let first = self.store.page(room.nid, Direction::Forward, i64::MIN, None, 1).await?;
        if first.first().is_some_and(|event| event.origin_server_ts() < ts) {
            return Ok(false);
        }
        Ok(!self.store.missing_events(room.nid, 1).await?.is_empty())
    }

    /// Fetches history until the event that others name is there.
    async fn fetch_history_at(self: &Arc<Self>, room: &Arc<RoomName>, ts: u64, direction: Direction) -> Result<()> {
        let Some(wanted) = self.event_elsewhere_at(room, ts, direction).await? else { return Ok(()) };
        for _ in 0..FETCHES {
            let known = self.store.event_by_id(&wanted).await?;
            if known.is_some_and(|event| !event.is_outlier()) || !Box::pin(self.backfill(room)).await? {
                break;
            }
        }
        Ok(())
    }

    /// The event nearest to a time, as the first server of the room has it that has one.
    async fn event_elsewhere_at(&self, room: &RoomName, ts: u64, direction: Direction) -> Result<Option<OwnedEventId>> {
        let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts));
        let dir = match direction {
            Direction::Forward => api::Direction::Forward,
            Direction::Backward => api::Direction::Backward,
        };
        let servers = self.servers_in(room).await?;
        for server in servers.iter().filter(|server| **server != self.server_name).take(SERVERS) {
            let request = get_event_by_timestamp::v1::Request::new(room.room_id.clone(), ts, dir);
            match asked("event_by_timestamp", self.remote()?.event_by_timestamp(server, request).await) {
                Ok(answer) => return Ok(Some(answer.event_id)),
                Err(error) => {
                    tracing::info!(room.id = %room.room_id, %error, "{server} names no event of a time: {error}");
                }
            }
        }
        Ok(None)
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
