//! `POST /_matrix/client/v3/join/{roomIdOrAlias}` and `POST /_matrix/client/v3/rooms/{roomId}/join`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3joinroomidoralias)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply, Session};
use myelin_rooms::MembershipAction;
use ruma::{
    OwnedRoomId, OwnedServerName, RoomOrAliasId,
    api::client::membership::{ThirdPartySigned, join_room_by_id, join_room_by_id_or_alias},
};

use super::resolve;
use crate::{Services, errors::Result};

pub(super) async fn join(
    State(services): State<Services>,
    request: Matrix<join_room_by_id_or_alias::v3::Request>,
) -> Result<Reply<join_room_by_id_or_alias::v3::Response>> {
    let body = &request.body;
    let signed = body.third_party_signed.as_ref();
    let room_id =
        enter(&services, request.session(), &body.room_id_or_alias, &body.via, signed, body.reason.as_deref()).await?;
    Ok(Reply(join_room_by_id_or_alias::v3::Response::new(room_id)))
}

pub(super) async fn join_by_id(
    State(services): State<Services>,
    request: Matrix<join_room_by_id::v3::Request>,
) -> Result<Reply<join_room_by_id::v3::Response>> {
    let body = &request.body;
    let signed = body.third_party_signed.as_ref();
    let room = <&RoomOrAliasId>::from(&*body.room_id);
    let room_id = enter(&services, request.session(), room, &[], signed, body.reason.as_deref()).await?;
    Ok(Reply(join_room_by_id::v3::Response::new(room_id)))
}

async fn enter(
    services: &Services,
    session: &Session,
    room: &RoomOrAliasId,
    via: &[OwnedServerName],
    signed: Option<&ThirdPartySigned>,
    reason: Option<&str>,
) -> Result<OwnedRoomId> {
    session.require_good_standing()?;
    if signed.is_some() {
        Err(ApiError::forbidden("This server does not invite by e-mail address or telephone number"))?;
    }
    let user_id = &session.user_id;
    let (room_id, mut servers) = resolve(&services.rooms, room).await?;
    servers.extend_from_slice(via);
    let action = MembershipAction::Join;
    services.rooms.enter(&room_id, &servers, user_id, action, reason, session.is_guest).await?;
    Ok(room_id)
}
