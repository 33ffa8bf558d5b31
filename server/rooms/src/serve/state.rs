//! The state of a room before an event.

use myelin_store::{Event, flags, state_tree};
use ruma::{EventId, OwnedEventId, RoomId, ServerName};
use tokio::sync::SemaphorePermit;

use super::{
    STATE_WAITING, ServerReader,
    reader::{Sight, may_read_state},
};
use crate::{Error, Result, Rooms, resolve::auth_chain};

/// Events that are read at once for an answer.
const BATCH: usize = 500;

/// The state before an event, and all that allows it, as event ids.
#[derive(Clone, Debug)]
pub struct ServedStateIds {
    /// The events of the state.
    pub pdu_ids: Vec<OwnedEventId>,
    /// Their auth events, and so on.
    pub auth_chain_ids: Vec<OwnedEventId>,
}

/// The state before an event, and all that allows it, by number.
struct StateBefore<'a> {
    reader: ServerReader<'a>,
    pdus: Vec<i64>,
    auth_chain: Vec<i64>,
}

impl Rooms {
    /// The state of a room before an event, with its auth chain ([specification]): the answer's JSON, put together from
    /// the events as they are stored.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the server may not read the room, or its state at that event; [`Error::NotFound`] when we
    /// do not have the event, or not its place in the graph.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid
    pub async fn serve_state(&self, origin: &ServerName, room_id: &RoomId, event_id: &EventId) -> Result<String> {
        let _turn = self.state_turn().await?;
        let state = self.state_before(origin, room_id, event_id).await?;
        let arrays = [Array { name: "auth_chain", nids: &state.auth_chain }, Array { name: "pdus", nids: &state.pdus }];
        events_json(self, &state.reader, &arrays).await
    }

    /// The same as event ids ([specification]). No event of the state is read.
    ///
    /// # Errors
    ///
    /// Like [`Rooms::serve_state`].
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid
    pub async fn serve_state_ids(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<ServedStateIds> {
        let _turn = self.state_turn().await?;
        let state = self.state_before(origin, room_id, event_id).await?;
        Ok(ServedStateIds {
            pdu_ids: self.store.event_ids(&state.pdus).await?,
            auth_chain_ids: self.store.event_ids(&state.auth_chain).await?,
        })
    }

    async fn state_before<'a>(
        &self,
        origin: &'a ServerName,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<StateBefore<'a>> {
        let reader = self.server_reader(origin, room_id).await?;
        let event = self.store.event_by_id(event_id).await?.filter(|event| event.room_nid == reader.room.nid);
        let event = event.ok_or(Error::NotFound("there is no such event in this room"))?;
        if !has_state(&event) {
            return Err(Error::NotFound("the state of the room at this event is not known here"));
        }
        let sight = self.sights(&reader, std::slice::from_ref(&event)).await?.pop().unwrap_or(Sight::Place);
        if !may_read_state(&reader, sight) {
            return Err(Error::forbidden("your server may not see the room's state at this event"));
        }
        let entries = state_tree::entries(&*self.store, &[event.state_before]).await;
        let entries = entries.map_err(myelin_store::Error::from)?.into_iter().next().unwrap_or_default();
        let mut pdus: Vec<i64> = entries.into_iter().map(|(_, nid)| nid).collect();
        pdus.sort_unstable();
        let auth_chain = auth_chain(self, &pdus).await?;
        Ok(StateBefore { reader, pdus, auth_chain })
    }

    /// Waits for a turn to write an answer that may be as large as the state of a room: few are in memory at once.
    pub(super) async fn state_turn(&self) -> Result<SemaphorePermit<'_>> {
        STATE_WAITING.inc();
        let _waiting = Waiting;
        self.serving.states.acquire().await.map_err(|_| myelin_store::Error::Closed.into())
    }
}

/// One who waits, or has given up waiting.
struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        STATE_WAITING.dec();
    }
}

/// True if the snapshot before an event is that of the room, not the one of an event that we know nothing about.
fn has_state(event: &Event) -> bool {
    event.flags & (flags::REJECTED | flags::OUTLIER) == 0
}

/// A list of events in an answer.
pub(super) struct Array<'a> {
    pub(super) name: &'static str,
    pub(super) nids: &'a [i64],
}

/// A JSON object of lists of events, as they are stored.
pub(super) async fn events_json(rooms: &Rooms, reader: &ServerReader<'_>, arrays: &[Array<'_>]) -> Result<String> {
    let mut json = String::from("{");
    for (place, array) in arrays.iter().enumerate() {
        if place > 0 {
            json.push(',');
        }
        json.push('"');
        json.push_str(array.name);
        json.push_str("\":[");
        let mut is_first = true;
        for batch in array.nids.chunks(BATCH) {
            let events = rooms.store.events(batch).await?;
            for event in rooms.state_for_server(reader, events).await? {
                if !std::mem::take(&mut is_first) {
                    json.push(',');
                }
                json.push_str(event.json());
            }
        }
        json.push(']');
    }
    json.push('}');
    Ok(json)
}
