//! `POST /_matrix/client/v3/rooms/{roomId}/leave`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidleave)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use myelin_rooms::MembershipAction;
use ruma::api::client::membership::leave_room::v3::{Request, Response};

use super::{refuse, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn leave(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    let Request { room_id, reason, .. } = &request.body;
    let room = room_to_act_in(&services.rooms, room_id).await?;
    let user_id = &session.user_id;
    let action = MembershipAction::Leave;
    match services.rooms.change_membership(&room, user_id, user_id, action, reason.as_deref(), false).await {
        Ok(()) => Ok(Reply(Response::new())),
        Err(error) => Err(refuse(&services.rooms, &room, session, error).await),
    }
}
