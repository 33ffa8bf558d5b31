//! `POST /_matrix/federation/v1/user/keys/claim`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1userkeysclaim)

use axum::extract::State;
use myelin_http::Reply;
use ruma::api::federation::keys::claim_keys::v1::{Request, Response};

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn claim_keys(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    Ok(Reply(services.encryption.claim_local_keys(request.body.one_time_keys).await?))
}
