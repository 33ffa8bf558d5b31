//! `POST /_matrix/client/v3/rooms/{roomId}/invite`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::MembershipAction;
use ruma::api::client::membership::invite_user::v3::{InvitationRecipient, Request, Response};

use super::{refuse, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn invite(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let room = room_to_act_in(&services.rooms, &request.body.room_id).await?;
    let invited = match &request.body.recipient {
        InvitationRecipient::UserId(invited) => invited,
        _ => Err(ApiError::forbidden("This server does not invite by e-mail address or telephone number"))?,
    };
    let (target, reason) = (&invited.user_id, invited.reason.as_deref());
    let action = MembershipAction::Invite;
    match services.rooms.change_membership(&room, &session.user_id, target, action, reason, false).await {
        Ok(()) => Ok(Reply(Response::new())),
        Err(error) => Err(refuse(&services.rooms, &room, session, error).await),
    }
}
