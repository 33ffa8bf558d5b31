//! `GET /_matrix/key/v2/server`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixkeyv2server)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::federation::discovery::get_server_keys::v2::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn publish(State(services): State<Services>, _: Matrix<Request>) -> Result<Reply<Response>> {
    let document = services.peers.key_document().await.map_err(ApiError::unavailable)?;
    Ok(Reply(Response::new(document)))
}
