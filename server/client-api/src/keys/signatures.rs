//! POST /_matrix/client/v3/keys/signatures/upload
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson};
use ruma::{UserId, api::client::keys::upload_signatures::v3::Request};
use serde_json::{Map, Value, json, value::RawValue};

use super::owner;
use crate::{Services, errors::Result};

pub(super) async fn upload(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    session.require_full_account()?;
    let mut signed: Vec<(&UserId, &str, &RawValue)> = Vec::new();
    for (user_id, keys) in &request.body.signed_keys {
        signed.extend(keys.iter().map(|(key_id, json)| (&**user_id, key_id, json)));
    }
    let failures = Box::pin(services.encryption.upload_signatures(&owner(session), &signed)).await?;
    let mut refused = Map::new();
    for (user_id, keys) in failures {
        let keys: Map<String, Value> = keys
            .into_iter()
            .map(|(key_id, (errcode, error))| (key_id, json!({ "errcode": errcode, "error": error })))
            .collect();
        refused.insert(user_id.to_string(), keys.into());
    }
    let body = serde_json::to_vec(&json!({ "failures": refused })).map_err(ApiError::unknown)?;
    Ok(RawJson(body.into()))
}
