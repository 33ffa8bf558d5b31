//! `POST /_matrix/federation/v1/user/keys/query`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1userkeysquery)

use axum::extract::State;
use myelin_http::Reply;
use ruma::api::federation::keys::get_keys::v1::{Request, Response};

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn query_keys(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    Ok(Reply(services.encryption.query_local_keys(request.body.device_keys).await?))
}
