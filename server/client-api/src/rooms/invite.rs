//! `POST /_matrix/client/v3/rooms/{roomId}/invite`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::MembershipAction;
use ruma::{
    OwnedRoomId, OwnedUserId,
    api::client::membership::invite_user::v3::{Request, Response},
};
use serde::Deserialize;

use super::{refuse, room_to_act_in};
use crate::{Services, errors::Result, own::Own};

/// Both forms of the body in one: ruma's type cannot tell what is wrong with one that has neither.
#[derive(Debug, Deserialize)]
pub(super) struct Invitation {
    user_id: Option<OwnedUserId>,
    /// Of an invitation by e-mail address or telephone number.
    medium: Option<String>,
    reason: Option<String>,
}

pub(super) async fn invite(
    State(services): State<Services>,
    request: Matrix<Own<Request, OwnedRoomId, Invitation>>,
) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let room = room_to_act_in(&services.rooms, &request.body.path).await?;
    let (target, reason) = match &request.body.body {
        Invitation { user_id: Some(user_id), reason, .. } => (user_id, reason.as_deref()),
        Invitation { medium: Some(_), .. } => {
            Err(ApiError::forbidden("This server does not invite by e-mail address or telephone number"))?
        }
        Invitation { .. } => Err(ApiError::missing_param("user_id says who is invited"))?,
    };
    let action = MembershipAction::Invite;
    match services.rooms.change_membership(&room, &session.user_id, target, action, reason, false).await {
        Ok(()) => Ok(Reply(Response::new())),
        Err(error) => Err(refuse(&services.rooms, &room, session, error).await),
    }
}
