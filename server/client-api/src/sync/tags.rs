//! `GET`, `PUT` and `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#room-tagging)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson, Reply};
use ruma::api::client::tag::{create_tag, delete_tag, get_tags};
use serde_json::json;

use super::{known_room, must_keep_data};
use crate::{Services, errors::Result};

pub(super) async fn tags(State(services): State<Services>, request: Matrix<get_tags::v3::Request>) -> Result<RawJson> {
    let session = request.session();
    must_keep_data(session, &request.body.user_id)?;
    let room = known_room(&services, request.session(), &request.body.room_id).await?;
    let tags = services.sync.tags(session.user_nid, room.nid).await?;
    Ok(json!({ "tags": tags }).to_string().into())
}

pub(super) async fn set_tag(
    State(services): State<Services>,
    request: Matrix<create_tag::v3::Request>,
) -> Result<Reply<create_tag::v3::Response>> {
    let session = request.session();
    must_keep_data(session, &request.body.user_id)?;
    let room = known_room(&services, request.session(), &request.body.room_id).await?;
    let info = serde_json::to_value(&request.body.tag_info).map_err(ApiError::unknown)?;
    services.sync.set_tag(session.user_nid, room.nid, &request.body.tag, Some(info)).await?;
    Ok(Reply(create_tag::v3::Response::new()))
}

pub(super) async fn remove_tag(
    State(services): State<Services>,
    request: Matrix<delete_tag::v3::Request>,
) -> Result<Reply<delete_tag::v3::Response>> {
    let session = request.session();
    must_keep_data(session, &request.body.user_id)?;
    let room = known_room(&services, request.session(), &request.body.room_id).await?;
    services.sync.set_tag(session.user_nid, room.nid, &request.body.tag, None).await?;
    Ok(Reply(delete_tag::v3::Response::new()))
}
