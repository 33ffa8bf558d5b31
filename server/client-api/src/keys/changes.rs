//! GET /_matrix/client/v3/keys/changes
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3keyschanges>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_sync::token::Token;
use ruma::api::client::keys::get_key_changes::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn changes(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    let from = token("from", &request.body.from)?;
    // "This may be used by the server as a hint to check its caches are up to date." They are.
    token("to", &request.body.to)?;
    let found = services.sync.key_changes(session.user_nid, &session.user_id, from).await?;
    Ok(Reply(Response::new(found.changed, found.left)))
}

fn token(name: &str, text: &str) -> Result<Token, ApiError> {
    text.parse().map_err(|_| ApiError::invalid_param(format!("{name} is no token of this server")))
}
