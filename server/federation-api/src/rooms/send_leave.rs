//! `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`, and the same of version 1
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_leaveroomideventid)

use axum::extract::State;
use myelin_http::{RawJson, Reply};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, ServerName,
    api::federation::membership::create_leave_event::v2::{Request, Response},
};
use serde_json::value::RawValue;

use crate::{
    Services,
    errors::Result,
    json::with_status,
    own::{Own, SendLeaveV1},
    signed::Signed,
};

pub(super) async fn send_leave(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    let Request { room_id, event_id, pdu, .. } = request.body;
    leave(&services, &request.origin, &room_id, &event_id, pdu).await?;
    Ok(Reply(Response::new()))
}

pub(super) async fn send_leave_v1(
    State(services): State<Services>,
    request: Signed<Own<SendLeaveV1, (OwnedRoomId, OwnedEventId), Box<RawValue>>>,
) -> Result<RawJson> {
    let (room_id, event_id) = &request.body.path;
    leave(&services, &request.origin, room_id, event_id, request.body.body).await?;
    Ok(with_status("{}"))
}

async fn leave(
    services: &Services,
    origin: &ServerName,
    room_id: &RoomId,
    event_id: &EventId,
    pdu: Box<RawValue>,
) -> Result<()> {
    services.writes.check_acl(origin, room_id).await?;
    Ok(services.writes.send_leave(origin, room_id, event_id, pdu).await?)
}
