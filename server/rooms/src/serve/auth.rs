//! The events that allow others.

use myelin_store::flags;
use ruma::{EventId, RoomId, ServerName};

use super::{
    reader::may_read_state,
    state::{Array, events_json},
};
use crate::{Error, Result, Rooms, resolve::auth_chain};

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
        let chain = auth_chain(self, &[event.nid]).await?;
        events_json(self, &reader, &[Array { name: "auth_chain", nids: &chain }]).await
    }
}
