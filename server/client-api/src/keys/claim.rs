//! POST /_matrix/client/v3/keys/claim
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysclaim>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::keys::claim_keys::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn claim(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let Request { one_time_keys, timeout, .. } = request.body;
    let claimed = Box::pin(services.encryption.claim_keys(one_time_keys, timeout)).await?;
    let mut response = Response::new(claimed.one_time_keys);
    response.failures = claimed.failures;
    Ok(Reply(response))
}
