//! The events that allow others.

use std::collections::{HashMap, HashSet};

use myelin_store::{Event, flags};
use ruma::{EventId, OwnedEventId, RoomId, ServerName};

use super::{
    links::auth_events,
    reader::may_read_state,
    state::{Array, events_json},
};
use crate::{Error, Result, Rooms};

/// Events without stored links that are read at once.
const BATCH: usize = 500;

impl Rooms {
    /// The auth chain of an event ([specification]): the answer's JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the server may not read the room; [`Error::NotFound`] when we do not have the event, or
    /// the server may not see it.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid
    pub async fn serve_event_auth(&self, origin: &ServerName, room_id: &RoomId, event_id: &EventId) -> Result<String> {
        let reader = self.server_reader(origin, room_id).await?;
        let event = self.store.event_by_id(event_id).await?;
        let event = event.filter(|event| event.room_nid == reader.room.nid && event.flags & flags::REJECTED == 0);
        let event = event.ok_or(Error::NotFound("there is no such event in this room"))?;
        let sight = self.sights(&reader, std::slice::from_ref(&event)).await?;
        if !sight.first().is_some_and(|sight| may_read_state(&reader, *sight)) {
            return Err(Error::NotFound("there is no such event in this room"));
        }
        let _turn = self.state_turn().await?;
        let chain = self.auth_chain_of(&[event.nid]).await?;
        events_json(self, &reader, &[Array { name: "auth_chain", nids: &chain }]).await
    }

    /// The auth events of some events, theirs, and so on, without the events themselves unless they are among those.
    ///
    /// Asks once for each step back, however many events there are.
    pub(super) async fn auth_chain_of(&self, nids: &[i64]) -> Result<Vec<i64>> {
        let mut chain = HashSet::new();
        let mut level = nids.to_vec();
        let mut looked_at: HashSet<i64> = level.iter().copied().collect();
        while !level.is_empty() {
            let mut edges = self.store.auth_edges(&level).await?;
            let unlinked: Vec<i64> = level.into_iter().filter(|nid| !edges.contains_key(nid)).collect();
            for batch in unlinked.chunks(BATCH) {
                edges.extend(self.read_auth_events(batch).await?);
            }
            let named: HashSet<i64> = edges.values().flat_map(|auth| auth.iter().copied()).collect();
            chain.extend(&named);
            level = named.into_iter().filter(|nid| looked_at.insert(*nid)).collect();
        }
        let mut chain: Vec<i64> = chain.into_iter().collect();
        chain.sort_unstable();
        Ok(chain)
    }

    /// The auth events of events whose links are not stored: messages, and state of before there were links.
    async fn read_auth_events(&self, nids: &[i64]) -> Result<HashMap<i64, std::sync::Arc<[i64]>>> {
        let events = self.store.events(nids).await?;
        let named: Vec<(i64, Vec<OwnedEventId>)> =
            events.iter().map(|event: &std::sync::Arc<Event>| (event.nid, auth_events(event))).collect();
        let mut ids: Vec<&EventId> = named.iter().flat_map(|(_, ids)| ids.iter().map(|id| &**id)).collect();
        ids.sort_unstable();
        ids.dedup();
        let known = self.store.event_nids(&ids).await?;
        let linked = named.iter().map(|(nid, ids)| {
            (*nid, ids.iter().filter_map(|id| known.get(id).map(|(nid, _)| *nid)).collect())
        });
        Ok(linked.collect())
    }
}
