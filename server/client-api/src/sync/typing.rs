//! `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidtypinguserid)

use std::time::Duration;

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::{
    OwnedRoomId, OwnedUserId,
    api::client::typing::create_typing_event::v3::{Request, Response},
};
use serde::Deserialize;

use super::{must_be_self, room_to_act_in};
use crate::{Services, errors::Result, own::Own};

/// The body as the specification has it: `timeout` may be left out, which ruma's type does not allow.
#[derive(Debug, Deserialize)]
pub(super) struct Typing {
    typing: bool,
    #[serde(default, with = "ruma::serde::duration::opt_ms")]
    timeout: Option<Duration>,
}

type TypingRequest = Own<Request, (OwnedRoomId, OwnedUserId), Typing>;

pub(super) async fn typing(
    State(services): State<Services>,
    request: Matrix<TypingRequest>,
) -> Result<Reply<Response>> {
    let session = request.session();
    let (room_id, user_id) = &request.body.path;
    must_be_self(session, user_id)?;
    session.require_good_standing()?;
    let room = room_to_act_in(&services, room_id).await?;
    let Typing { typing, timeout } = request.body.body;
    services.sync.set_typing(&room, session.user_nid, typing, timeout).await?;
    Ok(Reply(Response::new()))
}
