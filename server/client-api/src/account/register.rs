//! POST /_matrix/client/v3/register
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register>

use std::time::Duration;

use axum::extract::State;
use http::StatusCode;
use myelin_accounts::{LoggedIn, NewDevice, Operation, Registration};
use myelin_http::{ApiError, Matrix, RawJson};
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::{
        client::account::register::{LoginType, RegistrationKind, v3::Request},
        error::ErrorCode,
    },
};
use serde::Serialize;

use crate::{Services, errors::Result, uiaa};

pub(crate) async fn register(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<Request>,
) -> Result<RawJson> {
    match body.kind {
        RegistrationKind::User => {}
        // "all parameters in the request body with the exception of initial_device_display_name MUST BE ignored"
        RegistrationKind::Guest => {
            let guest = services.accounts.register_guest(body.initial_device_display_name.as_deref()).await?;
            return Registered::logged_in(guest).into_json();
        }
        _ => return Err(ApiError::invalid_param("kind must be guest or user").into()),
    }
    if matches!(body.login_type, Some(LoginType::ApplicationService)) {
        return Err(ApiError::forbidden("This is not an application service's token").into());
    }
    let flows = services.accounts.registration_flows()?;
    if body.guest_access_token.is_some() {
        let message = "Guest accounts cannot be upgraded on this server; register without guest_access_token";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, message).into());
    }
    let device = (!body.inhibit_login).then_some(NewDevice {
        device_id: body.device_id.as_deref(),
        initial_display_name: body.initial_device_display_name.as_deref(),
        can_refresh: body.refresh_token,
    });
    // "Homeservers MUST perform the relevant checks and return these codes before performing User-Interactive
    // Authentication".
    let (username, password) = (body.username.as_deref(), body.password.as_deref());
    services.accounts.check_registration(username, password, device.as_ref()).await?;
    if body.auth.is_some() && password.is_none() {
        return Err(ApiError::missing_param("missing field `password`").into());
    }
    // Clients learn of the flows before they know the name and the password: what is begun is any registration.
    let operation = Operation::new("register", None, &[]);
    let authorization = uiaa::authorize(&services, &operation, flows, body.auth.as_ref()).await?;
    let password = password.ok_or_else(|| ApiError::missing_param("missing field `password`"))?;
    let registration = Registration { username, password, device };
    let (user_id, login) = services.accounts.register(registration, authorization).await?;
    login.map_or_else(|| Registered::logged_out(user_id), Registered::logged_in).into_json()
}

/// The answer. ruma's has a `device_id` even if it is null.
#[derive(Serialize)]
struct Registered {
    user_id: OwnedUserId,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    login: Option<Login>,
}

#[derive(Serialize)]
struct Login {
    access_token: String,
    device_id: OwnedDeviceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(rename = "expires_in_ms", with = "ruma::serde::duration::opt_ms", skip_serializing_if = "Option::is_none")]
    expires_in: Option<Duration>,
}

impl Registered {
    fn logged_out(user_id: OwnedUserId) -> Self {
        Self { user_id, login: None }
    }

    fn logged_in(login: LoggedIn) -> Self {
        let LoggedIn { user_id, device_id, access_token, refresh_token, expires_in } = login;
        Self { user_id, login: Some(Login { access_token, device_id, refresh_token, expires_in }) }
    }

    fn into_json(self) -> Result<RawJson> {
        Ok(serde_json::to_vec(&self).map_err(ApiError::unknown)?.into())
    }
}
