//! `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1event_authroomideventid)

use axum::extract::State;
use myelin_http::RawJson;
use ruma::api::federation::authorization::get_event_authorization::v1::Request;

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn event_auth(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, event_id, .. } = &request.body;
    let json = services.rooms.serve_event_auth(&request.origin, room_id, event_id).await?;
    Ok(RawJson::from(json))
}
