//! `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`, and the same of version 1
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2send_joinroomideventid)

use axum::extract::State;
use myelin_http::{ApiError, RawJson};
use myelin_rooms::JoinedRoom;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, ServerName, api::federation::membership::create_join_event::v2::Request,
};
use serde_json::value::RawValue;

use crate::{
    Services,
    errors::Result,
    json::{Object, with_status},
    own::{Own, SendJoinV1},
    signed::Signed,
};

pub(super) async fn send_join(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, event_id, pdu, omit_members, .. } = request.body;
    let joined = join(&services, &request.origin, &room_id, &event_id, pdu, omit_members).await?;
    Ok(room(&services, &joined)?.finish())
}

pub(super) async fn send_join_v1(
    State(services): State<Services>,
    request: Signed<Own<SendJoinV1, (OwnedRoomId, OwnedEventId), Box<RawValue>>>,
) -> Result<RawJson> {
    let (room_id, event_id) = &request.body.path;
    let joined = join(&services, &request.origin, room_id, event_id, request.body.body, false).await?;
    Ok(with_status(&room(&services, &joined)?.text()))
}

async fn join(
    services: &Services,
    origin: &ServerName,
    room_id: &RoomId,
    event_id: &EventId,
    pdu: Box<RawValue>,
    omit_members: bool,
) -> Result<JoinedRoom> {
    services.writes.check_acl(origin, room_id).await?;
    Ok(services.writes.send_join(origin, room_id, event_id, pdu, omit_members).await?)
}

/// The room's state as it is stored, spliced: it may be of many thousand events.
fn room(services: &Services, joined: &JoinedRoom) -> Result<Object, ApiError> {
    let events = joined.state.iter().chain(&joined.auth_chain);
    let bytes = joined.event.json().len() + events.map(|event| event.json().len() + 1).sum::<usize>();
    let mut object = Object::with_capacity(bytes)
        // Servers that know version 1.1 and older expect it.
        .value("origin", services.rooms.server_name())
        .map_err(ApiError::unknown)?
        .list("auth_chain", joined.auth_chain.iter().map(|event| event.json()))
        .list("state", joined.state.iter().map(|event| event.json()))
        .json("event", joined.event.json())
        .json("members_omitted", if joined.members_omitted { "true" } else { "false" });
    if let Some(servers) = &joined.servers_in_room {
        object = object.value("servers_in_room", servers).map_err(ApiError::unknown)?;
    }
    Ok(object)
}
