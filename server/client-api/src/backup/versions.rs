//! POST and GET /_matrix/client/v3/room_keys/version; GET, PUT and DELETE /_matrix/client/v3/room_keys/version/{version}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3room_keysversion>

use axum::extract::State;
use myelin_encryption::BackupState;
use myelin_http::{ApiError, Matrix, RawJson, Reply};
use ruma::api::client::backup::{
    create_backup_version, delete_backup_version, get_backup_info, get_latest_backup_info, update_backup_version,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{Services, errors::Result};

pub(super) async fn create(
    State(services): State<Services>,
    request: Matrix<create_backup_version::v3::Request>,
) -> Result<Reply<create_backup_version::v3::Response>> {
    let session = request.session();
    session.require_full_account()?;
    let version = services.encryption.create_backup(session.user_nid, request.body.algorithm.json()).await?;
    Ok(Reply(create_backup_version::v3::Response::new(version)))
}

pub(super) async fn latest(
    State(services): State<Services>,
    request: Matrix<get_latest_backup_info::v3::Request>,
) -> Result<RawJson> {
    told(services.encryption.backup(request.session().user_nid, None).await?)
}

pub(super) async fn show(
    State(services): State<Services>,
    request: Matrix<get_backup_info::v3::Request>,
) -> Result<RawJson> {
    told(services.encryption.backup(request.session().user_nid, Some(&request.body.version)).await?)
}

pub(super) async fn update(
    State(services): State<Services>,
    request: Matrix<update_backup_version::v3::Request>,
) -> Result<Reply<update_backup_version::v3::Response>> {
    let (user_nid, body) = (request.session().user_nid, &request.body);
    services.encryption.update_backup(user_nid, &body.version, body.algorithm.json()).await?;
    Ok(Reply(update_backup_version::v3::Response::new()))
}

pub(super) async fn delete(
    State(services): State<Services>,
    request: Matrix<delete_backup_version::v3::Request>,
) -> Result<Reply<delete_backup_version::v3::Response>> {
    services.encryption.delete_backup(request.session().user_nid, &request.body.version).await?;
    Ok(Reply(delete_backup_version::v3::Response::new()))
}

fn told(backup: BackupState) -> Result<RawJson> {
    #[derive(Serialize)]
    struct Told {
        algorithm: String,
        auth_data: Box<RawValue>,
        count: u64,
        etag: String,
        version: String,
    }
    let BackupState { version, algorithm, auth_data, etag, count } = backup;
    let auth_data = RawValue::from_string(auth_data).map_err(ApiError::unknown)?;
    let body = serde_json::to_vec(&Told { algorithm, auth_data, count, etag, version }).map_err(ApiError::unknown)?;
    Ok(RawJson(body.into()))
}
