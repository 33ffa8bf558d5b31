//! `POST /_matrix/client/v3/rooms/{roomId}/upgrade`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidupgrade)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::room::upgrade_room::v3::{Request, Response};

use super::{refuse, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn upgrade(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let Request { room_id, new_version, additional_creators, .. } = &request.body;
    let room = room_to_act_in(&services.rooms, room_id).await?;
    match services.rooms.upgrade(&room, &session.user_id, new_version, additional_creators).await {
        Ok(replacement) => Ok(Reply(Response::new(replacement.room_id.clone()))),
        Err(error) => Err(refuse(&services.rooms, &room, session, error).await),
    }
}
