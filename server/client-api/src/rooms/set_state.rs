//! `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey)

use std::sync::Arc;

use axum::extract::{RawPathParams, State};
use myelin_http::{Matrix, Reply, Session};
use myelin_rooms::{Rooms, Template, content};
use myelin_store::RoomName;
use ruma::{
    CanonicalJsonObject, OwnedEventId,
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
    let mut template = Template::state(&session.user_id, event_type, state_key, content);
    if session.appservice_id.is_some() {
        template.timestamp_ms = request.timestamp.map(|timestamp| timestamp.get().into());
    }
    if (event_type, state_key) == ("m.room.guest_access", "") {
        return rooms.set_guest_access(room, template).await;
    }
    rooms.send(room, template, None).await
}
