//! `GET` and `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`, and the same of a room
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#client-config)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson, Reply, Session};
use ruma::api::client::config::{
    get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data,
};

use super::{known_room, must_keep_data};
use crate::{Services, errors::Result};

pub(super) async fn global(
    State(services): State<Services>,
    request: Matrix<get_global_account_data::v3::Request>,
) -> Result<RawJson> {
    must_keep_data(request.session(), &request.body.user_id)?;
    read(&services, request.session(), None, &request.body.event_type.to_string()).await
}

pub(super) async fn set_global(
    State(services): State<Services>,
    request: Matrix<set_global_account_data::v3::Request>,
) -> Result<Reply<set_global_account_data::v3::Response>> {
    let session = request.session();
    must_keep_data(session, &request.body.user_id)?;
    let data_type = request.body.event_type.to_string();
    services.sync.set_account_data(session.user_nid, None, &data_type, request.body.data.json()).await?;
    Ok(Reply(set_global_account_data::v3::Response::new()))
}

pub(super) async fn of_room(
    State(services): State<Services>,
    request: Matrix<get_room_account_data::v3::Request>,
) -> Result<RawJson> {
    must_keep_data(request.session(), &request.body.user_id)?;
    let room = known_room(&services, request.session(), &request.body.room_id).await?;
    read(&services, request.session(), Some(room.nid), &request.body.event_type.to_string()).await
}

pub(super) async fn set_of_room(
    State(services): State<Services>,
    request: Matrix<set_room_account_data::v3::Request>,
) -> Result<Reply<set_room_account_data::v3::Response>> {
    let session = request.session();
    must_keep_data(session, &request.body.user_id)?;
    let data_type = request.body.event_type.to_string();
    let room = known_room(&services, request.session(), &request.body.room_id).await?;
    services.sync.set_account_data(session.user_nid, Some(room.nid), &data_type, request.body.data.json()).await?;
    Ok(Reply(set_room_account_data::v3::Response::new()))
}

async fn read(services: &Services, session: &Session, room_nid: Option<i64>, data_type: &str) -> Result<RawJson> {
    let found = services.sync.account_data(session.user_nid, &session.user_id, room_nid, data_type).await?;
    let content = found.ok_or_else(|| ApiError::not_found("There is no account data of this type"))?;
    Ok(content.get().to_owned().into())
}
