//! `GET /_matrix/client/v3/rooms/{roomId}/state`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstate)

use axum::extract::State;
use myelin_http::{Matrix, RawJson};
use ruma::api::client::state::get_state_events::v3::Request;

use super::json;
use crate::{Services, errors::Result};

pub(super) async fn state(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let rooms = &services.rooms;
    let reader = rooms.reader(&request.body.room_id, &session.user_id, session.user_nid).await?;
    let root = rooms.readable_root(&reader).await?;
    let events = rooms.store().all_state_events(root).await?;
    let events = rooms.without_erased(&reader.room, &reader.viewer, events).await?;
    let events = json::events(rooms, session, &request.body.room_id, &events).await?;
    Ok(json::list(&events))
}
