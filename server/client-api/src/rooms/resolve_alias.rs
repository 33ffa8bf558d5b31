//! `GET /_matrix/client/v3/directory/room/{roomAlias}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3directoryroomroomalias)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::alias::get_alias::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn resolve_alias(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let (room_id, servers) = services.rooms.find_alias(&request.body.room_alias).await?;
    Ok(Reply(Response::new(room_id, servers)))
}
