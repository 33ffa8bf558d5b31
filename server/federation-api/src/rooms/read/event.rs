//! `GET /_matrix/federation/v1/event/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1eventeventid)

use axum::extract::State;
use myelin_http::RawJson;
use ruma::api::federation::event::get_event::v1::Request;

use super::transaction;
use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn event(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let event = services.rooms.serve_event(&request.origin, &request.body.event_id).await?;
    Ok(transaction(services.rooms.server_name(), &[event])?)
}
