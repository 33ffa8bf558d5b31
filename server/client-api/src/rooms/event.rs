//! `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomideventeventid)

use axum::extract::State;
use myelin_http::{Matrix, RawJson};
use myelin_rooms::Error;
use ruma::api::client::room::get_room_event::v3::Request;

use super::json;
use crate::{Services, errors::Result};

pub(super) async fn event(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, event_id, .. } = &request.body;
    let rooms = &services.rooms;
    // "404: The event was not found or you do not have permission to read this event."
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await.map_err(|error| match error {
        Error::Forbidden(_) => Error::NotFound("there is no such event, or you may not see it"),
        other => other,
    })?;
    let event = rooms.readable_event(&reader, event_id).await?;
    let written = json::related_events(rooms, session, &reader, &[event]).await?;
    let event = written.first().map(|event| event.get()).unwrap_or_default();
    Ok(RawJson::from(event.to_owned()))
}
