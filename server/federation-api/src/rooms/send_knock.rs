//! `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1send_knockroomideventid)

use axum::extract::State;
use myelin_http::RawJson;
use ruma::api::federation::membership::create_knock_event::v1::Request;

use crate::{Services, errors::Result, json::Object, signed::Signed};

pub(super) async fn send_knock(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, event_id, pdu, .. } = request.body;
    services.writes.check_acl(&request.origin, &room_id).await?;
    let state = services.writes.send_knock(&request.origin, &room_id, &event_id, pdu).await?;
    let bytes = state.iter().map(|event| event.get().len() + 1).sum();
    Ok(Object::with_capacity(bytes).list("knock_room_state", state.iter().map(|event| event.get())).finish())
}
