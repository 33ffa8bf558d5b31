//! `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid)

use axum::extract::{RawPathParams, State};
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::{Template, content};
use ruma::{
    OwnedEventId,
    api::client::message::send_message_event::v3::{Request, Response},
};
use serde::Deserialize;

use super::{event_type, refuse, room_to_act_in, transaction};
use crate::{Services, errors::Result};

pub(super) async fn send(
    State(services): State<Services>,
    path: RawPathParams,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    let Request { room_id, txn_id, body, timestamp, .. } = &request.body;
    let rooms = &services.rooms;
    let room = room_to_act_in(rooms, room_id).await?;
    let event_type = event_type(&path)?;
    let transaction = transaction(session, &["send", &room.nid.to_string(), event_type], txn_id);
    let sent = if event_type == "m.room.redaction" {
        let redaction = redaction(body.json().get())?;
        super::redact::require_standing(rooms, session, &redaction.redacts).await?;
        rooms.redact(&room, &session.user_id, &redaction.redacts, content(body.json())?, Some(&transaction)).await
    } else {
        session.require_good_standing()?;
        let mut template = Template::message(&session.user_id, event_type, content(body.json())?);
        if session.appservice_id.is_some() {
            template.timestamp_ms = timestamp.map(|timestamp| timestamp.get().into());
        }
        rooms.send(&room, template, Some(&transaction)).await
    };
    match sent {
        Ok(event_id) => Ok(Reply(Response::new(event_id))),
        Err(error) => Err(refuse(rooms, &room, session, error).await),
    }
}

#[derive(Deserialize)]
struct Redaction {
    redacts: OwnedEventId,
}

/// "Homeservers MUST allow clients to send m.room.redaction events with this endpoint for all room versions."
fn redaction(json: &str) -> Result<Redaction, ApiError> {
    serde_json::from_str(json).map_err(|error| {
        let message = error.to_string();
        if message.starts_with("missing field") {
            ApiError::missing_param(message)
        } else {
            ApiError::bad_json(message)
        }
    })
}
