//! `GET /_matrix/federation/v1/backfill/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1backfillroomid)

use axum::extract::State;
use myelin_http::RawJson;
use myelin_rooms::serve::BACKFILL_MAX;
use ruma::api::federation::backfill::get_backfill::v1::Request;

use super::transaction;
use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn backfill(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, v, limit, .. } = &request.body;
    let limit = u64::from(*limit).min(BACKFILL_MAX as u64) as usize;
    let events = services.rooms.serve_backfill(&request.origin, room_id, v, limit).await?;
    Ok(transaction(services.rooms.server_name(), &events)?)
}
