//! GET and POST /_synapse/admin/v1/register: who shares a secret with the server makes users.

use std::time::Duration;

use axum::{Json, body::Body, extract::State};
use http::{HeaderMap, StatusCode};
use myelin_accounts::{Error, SharedSecretRegistration};
use myelin_http::{ApiError, ClientAddress, LimitKind, read_body};
use ruma::api::error::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::AdminServices;

const BODY_BYTES_MAX: usize = 64 * 1024;

/// What a tool sends.
#[derive(Deserialize)]
struct Registration {
    nonce: String,
    username: String,
    password: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    displayname: Option<String>,
    mac: String,
}

pub(crate) async fn nonce(
    State(services): State<AdminServices>,
    ClientAddress(address): ClientAddress,
) -> Result<Json<Value>, ApiError> {
    services.rate_limiter.check_caller(LimitKind::Registration, None, address)?;
    let nonce = services.accounts.create_nonce().await.map_err(refusal)?;
    Ok(Json(json!({ "nonce": nonce })))
}

pub(crate) async fn register(
    State(services): State<AdminServices>,
    ClientAddress(address): ClientAddress,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    services.rate_limiter.check_caller(LimitKind::Registration, None, address)?;
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    let registration = parse(&body)?;
    let login = services
        .accounts
        .register_by_shared_secret(SharedSecretRegistration {
            nonce: &registration.nonce,
            username: &registration.username,
            password: &registration.password,
            admin: registration.admin,
            user_type: registration.user_type.as_deref(),
            display_name: registration.displayname.as_deref(),
            mac: &registration.mac,
        })
        .await
        .map_err(refusal)?;
    Ok(Json(json!({
        "user_id": login.user_id,
        "home_server": services.accounts.server_name(),
        "access_token": login.access_token,
        "device_id": login.device_id,
    })))
}

fn parse(body: &[u8]) -> Result<Registration, ApiError> {
    let json: Value = serde_json::from_slice(body).map_err(|error| ApiError::not_json(error.to_string()))?;
    serde_json::from_value(json).map_err(|error| {
        let message = error.to_string();
        // serde tells a missing field from a wrong one by its words alone.
        if message.starts_with("missing field") {
            ApiError::missing_param(message)
        } else {
            ApiError::bad_json(message)
        }
    })
}

fn refusal(error: Error) -> ApiError {
    let bad = |errcode, error: Error| ApiError::new(StatusCode::BAD_REQUEST, errcode, error.to_string());
    match error {
        Error::Store(error) if error.is_unavailable() => ApiError::unavailable(error),
        Error::Busy => ApiError::limit_exceeded(Duration::from_secs(1)),
        Error::SharedSecretDisabled => ApiError::forbidden(error.to_string()),
        // As the tools that use this endpoint know it.
        Error::WrongMac => ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Unknown, error.to_string()),
        Error::InvalidNonce => bad(ErrorCode::Unknown, error),
        Error::InvalidUsername => bad(ErrorCode::InvalidUsername, error),
        Error::UserInUse => bad(ErrorCode::UserInUse, error),
        Error::EmptyPassword => bad(ErrorCode::WeakPassword, error),
        Error::PasswordTooLong => bad(ErrorCode::InvalidParam, error),
        Error::InvalidFieldValue(_) => bad(ErrorCode::BadJson, error),
        error => ApiError::unknown(error),
    }
}
