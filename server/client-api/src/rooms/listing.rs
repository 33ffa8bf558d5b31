//! `GET /_matrix/client/v3/directory/list/room/{roomId}` and `PUT` of the same
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3directorylistroomroomid)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::{
    OwnedRoomId,
    api::client::{
        directory::{get_room_visibility, set_room_visibility},
        room::Visibility,
    },
};
use serde::Deserialize;

use crate::{Services, errors::Result, own::Own};

pub(super) async fn listing(
    State(services): State<Services>,
    request: Matrix<get_room_visibility::v3::Request>,
) -> Result<Reply<get_room_visibility::v3::Response>> {
    let room = services.rooms.room(&request.body.room_id).await?;
    let is_public = services.rooms.store().is_public(room.nid).await?;
    let visibility = if is_public { Visibility::Public } else { Visibility::Private };
    Ok(Reply(get_room_visibility::v3::Response::new(visibility)))
}

/// The body as the specification has it: without a visibility, public is meant.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(default = "public")]
    visibility: Visibility,
}

fn public() -> Visibility {
    Visibility::Public
}

pub(super) async fn set_listing(
    State(services): State<Services>,
    request: Matrix<Own<set_room_visibility::v3::Request, OwnedRoomId, Listed>>,
) -> Result<Reply<set_room_visibility::v3::Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let room_id = &request.body.path;
    let is_listed = match &request.body.body.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        other => Err(ApiError::invalid_param(format!("There is no visibility {:?}", other.as_str())))?,
    };
    services.rooms.set_listed(room_id, &session.user_id, session.is_admin, is_listed).await?;
    Ok(Reply(set_room_visibility::v3::Response::new()))
}
