//! `GET /_matrix/federation/v1/hierarchy/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1hierarchyroomid)

use axum::extract::State;
use myelin_http::{ApiError, RawJson};
use ruma::api::federation::space::get_hierarchy::v1::Request;

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn hierarchy(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, suggested_only, .. } = &request.body;
    let hierarchy = services.rooms.serve_hierarchy(&request.origin, room_id, *suggested_only).await?;
    Ok(RawJson::from(serde_json::to_string(&hierarchy).map_err(ApiError::unknown)?))
}
