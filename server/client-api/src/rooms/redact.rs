//! `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidredacteventidtxnid)

use axum::extract::State;
use myelin_http::{Matrix, Reply, Session, Standing};
use myelin_rooms::Rooms;
use ruma::{
    CanonicalJsonObject, OwnedEventId,
    api::client::redact::redact_event::v3::{Request, Response},
};

use super::{refuse, room_to_act_in, transaction};
use crate::{Services, errors::Result};

pub(super) async fn redact(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    let Request { room_id, event_id, txn_id, reason, .. } = &request.body;
    let rooms = &services.rooms;
    require_standing(rooms, session, event_id).await?;
    let room = room_to_act_in(rooms, room_id).await?;
    let transaction = transaction(session, &["redact", &room.nid.to_string(), event_id.as_str()], txn_id);
    let mut content = CanonicalJsonObject::new();
    if let Some(reason) = reason {
        content.insert("reason".to_owned(), reason.clone().into());
    }
    match rooms.redact(&room, &session.user_id, event_id, content, Some(&transaction)).await {
        Ok(event_id) => Ok(Reply(Response::new(event_id))),
        Err(error) => Err(refuse(rooms, &room, session, error).await),
    }
}

/// A suspended user may still redact their own events.
pub(super) async fn require_standing(rooms: &Rooms, session: &Session, event_id: &OwnedEventId) -> Result<()> {
    if session.standing == Standing::Suspended
        && let Some(event) = rooms.store().event_by_id(event_id).await?
        && *event.sender() == session.user_id
    {
        return Ok(());
    }
    Ok(session.require_good_standing()?)
}
