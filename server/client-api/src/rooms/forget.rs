//! `POST /_matrix/client/v3/rooms/{roomId}/forget`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidforget)

use axum::extract::State;
use http::StatusCode;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_store::Membership;
use ruma::api::{
    client::membership::forget_room::v3::{Request, Response},
    error::ErrorCode,
};

use super::{outsider, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn forget(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    let room = room_to_act_in(&services.rooms, &request.body.room_id).await?;
    let member = services.rooms.member(&room, session.user_nid).await?.ok_or_else(outsider)?;
    if !matches!(member.membership, Membership::Leave | Membership::Ban) {
        let message = "You have not left this room";
        Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, message))?;
    }
    if !member.forgotten {
        services.rooms.store().forget_room(room.nid, session.user_nid).await?;
    }
    Ok(Reply(Response::new()))
}
