//! `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidtypinguserid)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::typing::create_typing_event::v3::{Request, Response, Typing};

use super::{must_be_self, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn typing(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    must_be_self(session, &request.body.user_id)?;
    session.require_good_standing()?;
    let room = room_to_act_in(&services, &request.body.room_id).await?;
    let (typing, timeout) = match request.body.state {
        Typing::Yes(info) => (true, Some(info.timeout)),
        Typing::No => (false, None),
    };
    services.sync.set_typing(&room, session.user_nid, typing, timeout).await?;
    Ok(Reply(Response::new()))
}
