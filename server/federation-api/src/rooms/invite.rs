//! `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}` and `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv2inviteroomideventid)

use axum::extract::State;
use myelin_http::{ApiError, RawJson};
use ruma::{
    OwnedEventId, OwnedRoomId, RoomVersionId, ServerName,
    api::federation::membership::create_invite::{v1, v2},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    Services,
    errors::Result,
    json::{Object, with_status},
    own::Own,
    signed::Signed,
};

type Place = (OwnedRoomId, OwnedEventId);

/// The body as it came: ruma's type would take events apart.
#[derive(Debug, Deserialize)]
pub(super) struct Invite {
    room_version: RoomVersionId,
    event: Box<RawValue>,
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

pub(super) async fn invite(
    State(services): State<Services>,
    request: Signed<Own<v2::Request, Place, Invite>>,
) -> Result<RawJson> {
    let event = accept(&services, &request.origin, &request.body.path, request.body.body).await?;
    Ok(Object::with_capacity(event.get().len()).json("event", event.get()).finish())
}

pub(super) async fn invite_v1(
    State(services): State<Services>,
    request: Signed<Own<v1::Request, Place, Box<RawValue>>>,
) -> Result<RawJson> {
    let event = request.body.body;
    let Untold { unsigned } =
        serde_json::from_str(event.get()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    // "Senders […] SHOULD fall back to the v1 API […] if the room version is "1" or "2"": the two have events alike.
    let invite = Invite { room_version: RoomVersionId::V1, event, invite_room_state: unsigned.invite_room_state };
    let event = accept(&services, &request.origin, &request.body.path, invite).await?;
    let object = Object::with_capacity(event.get().len()).json("event", event.get());
    Ok(with_status(&object.text()))
}

#[derive(Deserialize)]
struct Untold {
    #[serde(default)]
    unsigned: Unsigned,
}

#[derive(Default, Deserialize)]
struct Unsigned {
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

async fn accept(
    services: &Services,
    origin: &ServerName,
    (room_id, event_id): &Place,
    invite: Invite,
) -> Result<Box<RawValue>> {
    services.writes.check_acl(origin, room_id).await?;
    let Invite { room_version, event, invite_room_state } = invite;
    Ok(services.writes.invite(origin, room_id, event_id, &room_version, event, invite_room_state).await?)
}
