//! POST /_matrix/client/v3/keys/device_signing/upload
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>

use axum::extract::State;
use myelin_encryption::CrossSigningKeys;
use myelin_http::{Matrix, Reply};
use ruma::api::client::keys::upload_signing_keys::v3::{Request, Response};

use super::owner;
use crate::{Services, errors::Result, uiaa};

pub(super) async fn upload(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    let owner = owner(session);
    let body = &request.body;
    let keys = CrossSigningKeys {
        master: body.master_key.as_ref(),
        self_signing: body.self_signing_key.as_ref(),
        user_signing: body.user_signing_key.as_ref(),
    };
    let prepared = services.encryption.prepare_cross_signing(&owner, keys).await?;
    if prepared.needs_authentication {
        let subject: Vec<&str> = prepared.subject.iter().map(String::as_str).collect();
        uiaa::confirm(&services, session, "keys/device_signing", &subject, body.auth.as_ref()).await?;
    }
    services.encryption.set_cross_signing(&owner, prepared).await?;
    Ok(Reply(Response::new()))
}
