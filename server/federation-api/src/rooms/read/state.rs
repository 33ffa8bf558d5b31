//! `GET /_matrix/federation/v1/state/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1stateroomid)

use axum::extract::State;
use myelin_http::RawJson;
use ruma::api::federation::event::get_room_state::v1::Request;

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn state(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, event_id, .. } = &request.body;
    let json = services.rooms.serve_state(&request.origin, room_id, event_id).await?;
    Ok(RawJson::from(json))
}
