//! POST /_matrix/client/v3/keys/upload
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::keys::upload_keys::v3::{Request, Response};

use super::owner;
use crate::{Services, errors::Result};

pub(super) async fn upload(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let owner = owner(request.session());
    let Request { device_keys, one_time_keys, fallback_keys, .. } = &request.body;
    let counts = services.encryption.upload_keys(&owner, device_keys.as_ref(), one_time_keys, fallback_keys).await?;
    Ok(Reply(Response::new(counts)))
}
