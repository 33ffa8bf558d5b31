//! `GET /_matrix/client/v3/directory/list/room/{roomId}` and `PUT` of the same
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3directorylistroomroomid)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::client::{
    directory::{get_room_visibility, set_room_visibility},
    room::Visibility,
};

use crate::{Services, errors::Result};

pub(super) async fn listing(
    State(services): State<Services>,
    request: Matrix<get_room_visibility::v3::Request>,
) -> Result<Reply<get_room_visibility::v3::Response>> {
    let room = services.rooms.room(&request.body.room_id).await?;
    let is_public = services.rooms.store().is_public(room.nid).await?;
    let visibility = if is_public { Visibility::Public } else { Visibility::Private };
    Ok(Reply(get_room_visibility::v3::Response::new(visibility)))
}

pub(super) async fn set_listing(
    State(services): State<Services>,
    request: Matrix<set_room_visibility::v3::Request>,
) -> Result<Reply<set_room_visibility::v3::Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let set_room_visibility::v3::Request { room_id, visibility, .. } = &request.body;
    let is_listed = match visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        other => Err(ApiError::invalid_param(format!("There is no visibility {:?}", other.as_str())))?,
    };
    services.rooms.set_listed(room_id, &session.user_id, session.is_admin, is_listed).await?;
    Ok(Reply(set_room_visibility::v3::Response::new()))
}
