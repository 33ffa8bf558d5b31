//! One event for another server.

use std::sync::Arc;

use myelin_store::{Event, flags};
use ruma::{EventId, ServerName};

use crate::{Error, Result, Rooms};

const UNKNOWN: Error = Error::NotFound("there is no such event, or your server may not see it");

impl Rooms {
    /// An event as a server may see it ([specification]). A server that is in the room gets it redacted if it may not see
    /// it: events that it may see refer to it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for an event that we do not have or have rejected, and likewise when the server may not see it.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid
    pub async fn serve_event(&self, origin: &ServerName, event_id: &EventId) -> Result<Arc<Event>> {
        let event = self.store.event_by_id(event_id).await?.filter(|event| event.flags & flags::REJECTED == 0);
        let event = event.ok_or(UNKNOWN)?;
        let room = self.store.room_by_nid(event.room_nid).await?;
        let reader = match self.server_reader_of(origin, room).await {
            Err(Error::Forbidden(_)) => return Err(UNKNOWN),
            reader => reader?,
        };
        self.shown_to_server(&reader, vec![event]).await?.pop().ok_or(UNKNOWN)
    }
}
