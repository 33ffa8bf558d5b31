//! `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid)

use axum::extract::State;
use myelin_http::Reply;
use ruma::{
    OwnedRoomId,
    api::federation::thirdparty::exchange_invite::v1::{Request, Response},
};
use serde_json::value::RawValue;

use crate::{Services, errors::Result, own::Own, signed::Signed};

pub(super) async fn exchange_third_party_invite(
    State(services): State<Services>,
    request: Signed<Own<Request, OwnedRoomId, Box<RawValue>>>,
) -> Result<Reply<Response>> {
    let Own { path: room_id, body: event, .. } = request.body;
    services.writes.check_acl(&request.origin, &room_id).await?;
    services.writes.exchange_third_party_invite(&request.origin, &room_id, event).await?;
    Ok(Reply(Response::new()))
}
