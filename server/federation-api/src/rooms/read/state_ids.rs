//! `GET /_matrix/federation/v1/state_ids/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1state_idsroomid)

use axum::extract::State;
use myelin_http::Reply;
use ruma::api::federation::event::get_room_state_ids::v1::{Request, Response};

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn state_ids(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    let Request { room_id, event_id, .. } = &request.body;
    let ids = services.rooms.serve_state_ids(&request.origin, room_id, event_id).await?;
    Ok(Reply(Response::new(ids.auth_chain_ids, ids.pdu_ids)))
}
