//! `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson};
use myelin_rooms::serve::RoomSummary;
use ruma::api::client::room::get_summary::v1::Request;
use serde::Serialize;

use super::resolve;
use crate::{Services, errors::Result};

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    summary: RoomSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
}

pub(super) async fn summary(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let Request { room_id_or_alias, via, .. } = &request.body;
    let (room_id, servers) = resolve(&services.rooms, room_id_or_alias).await?;
    let via: Vec<_> = via.iter().chain(&servers).cloned().collect();
    let user_nid = request.caller.as_ref().map(|session| session.user_nid);
    let (summary, membership) = services.rooms.summary_of(&room_id, &via, user_nid).await?;
    let answer = Answer { summary, membership: membership.map(|membership| membership.word()) };
    Ok(RawJson::from(serde_json::to_string(&answer).map_err(ApiError::unknown)?))
}
