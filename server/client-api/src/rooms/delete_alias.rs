//! `DELETE /_matrix/client/v3/directory/room/{roomAlias}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3directoryroomroomalias)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::alias::delete_alias::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn delete_alias(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let alias = &request.body.room_alias;
    services.rooms.delete_alias(alias, &session.user_id, session.user_nid, session.is_admin).await?;
    Ok(Reply(Response::new()))
}
