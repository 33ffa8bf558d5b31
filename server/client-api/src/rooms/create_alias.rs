//! `PUT /_matrix/client/v3/directory/room/{roomAlias}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3directoryroomroomalias)

use axum::extract::State;
use http::StatusCode;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::Error;
use ruma::api::{
    client::alias::create_alias::v3::{Request, Response},
    error::ErrorCode,
};

use crate::{
    Services,
    errors::{Refusal, Result},
};

pub(super) async fn create_alias(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let Request { room_alias, room_id, .. } = &request.body;
    match services.rooms.create_alias(room_alias, room_id, session.user_nid).await {
        Ok(()) => Ok(Reply(Response::new())),
        Err(Error::AliasTaken) => {
            let message = format!("Room alias {room_alias} already exists.");
            Err(Refusal(ApiError::new(StatusCode::CONFLICT, ErrorCode::Unknown, message)))
        }
        Err(error) => Err(error.into()),
    }
}
