//! `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey)

use std::sync::Arc;

use axum::extract::{RawPathParams, State};
use myelin_http::{Matrix, Reply, Session};
use myelin_rooms::{Rooms, Template, content};
use myelin_store::RoomName;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId,
    api::client::state::send_state_event::v3::{Request, Response},
};

use super::{event_type, refuse, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn set_state(
    State(services): State<Services>,
    path: RawPathParams,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_good_standing()?;
    let room = room_to_act_in(&services.rooms, &request.body.room_id).await?;
    let content = content(request.body.body.json())?;
    match set(&services.rooms, &room, session, event_type(&path)?, &request.body, content).await {
        Ok(event_id) => Ok(Reply(Response::new(event_id))),
        Err(error) => Err(refuse(&services.rooms, &room, session, error).await),
    }
}

async fn set(
    rooms: &Arc<Rooms>,
    room: &Arc<RoomName>,
    session: &Session,
    event_type: &str,
    request: &Request,
    content: CanonicalJsonObject,
) -> Result<OwnedEventId, myelin_rooms::Error> {
    let state_key = request.state_key.as_str();
    match (event_type, state_key) {
        ("m.room.member", _) => {
            return rooms.set_member_state(room, &session.user_id, state_key, content, session.is_guest).await;
        }
        ("m.room.canonical_alias", "") => rooms.check_canonical_alias(room, &content).await?,
        _ => {}
    }
    let closes_to_guests = event_type == "m.room.guest_access"
        && state_key.is_empty()
        && content.get("guest_access").and_then(CanonicalJsonValue::as_str) != Some("can_join");
    let mut template = Template::state(&session.user_id, event_type, state_key, content);
    if session.appservice_id.is_some() {
        template.timestamp_ms = request.timestamp.map(|timestamp| timestamp.get().into());
    }
    let event_id = rooms.send(room, template, None).await?;
    if closes_to_guests {
        rooms.remove_guests(room).await?;
    }
    Ok(event_id)
}
