//! POST /_matrix/client/v3/keys/query
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::keys::get_keys::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn query(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let viewer_nid = request.session().user_nid;
    let Request { device_keys, timeout, .. } = request.body;
    let found = Box::pin(services.encryption.query_keys(viewer_nid, device_keys, timeout)).await?;
    let mut response = Response::new();
    response.device_keys = found.device_keys;
    response.master_keys = found.master_keys;
    response.self_signing_keys = found.self_signing_keys;
    response.user_signing_keys = found.user_signing_keys;
    response.failures = found.failures;
    Ok(Reply(response))
}
