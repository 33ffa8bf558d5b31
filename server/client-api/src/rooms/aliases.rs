//! `GET /_matrix/client/v3/rooms/{roomId}/aliases`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidaliases)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::{
    OwnedRoomAliasId,
    api::client::room::aliases::v3::{Request, Response},
};

use super::{outsider, room_to_act_in};
use crate::{Services, errors::Result};

/// "This endpoint can be called by users who are in the room […] If the room's m.room.history_visibility maps to
/// world_readable, any user can call this endpoint."
pub(super) async fn aliases(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    let rooms = &services.rooms;
    let room = room_to_act_in(rooms, &request.body.room_id).await?;
    if !rooms.is_joined(&room, session.user_nid).await? && !rooms.is_world_readable(&room).await? {
        Err(outsider())?;
    }
    let aliases = rooms.store().aliases(room.nid).await?;
    let aliases = aliases.into_iter().filter_map(|alias| OwnedRoomAliasId::try_from(alias).ok()).collect();
    Ok(Reply(Response::new(aliases)))
}
