//! `POST /_matrix/client/v3/rooms/{roomId}/kick`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidkick)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use myelin_rooms::MembershipAction;
use ruma::api::client::membership::kick_user::v3::{Request, Response};

use super::{refuse, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn kick(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let Request { room_id, user_id, reason, .. } = &request.body;
    let room = room_to_act_in(&services.rooms, room_id).await?;
    let (action, reason) = (MembershipAction::Kick, reason.as_deref());
    match services.rooms.change_membership(&room, &session.user_id, user_id, action, reason, false).await {
        Ok(()) => Ok(Reply(Response::new())),
        Err(error) => Err(refuse(&services.rooms, &room, session, error).await),
    }
}
