//! POST /_matrix/client/v3/register
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register>

use axum::extract::State;
use myelin_accounts::{LoggedIn, NewDevice, Operation, Registration};
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::client::account::register::{
    LoginType, RegistrationKind,
    v3::{Request, Response},
};

use crate::{Services, errors::Result, uiaa};

pub(crate) async fn register(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<Request>,
) -> Result<Reply<Response>> {
    if matches!(body.kind, RegistrationKind::Guest) {
        let guest = services.accounts.register_guest(body.initial_device_display_name.as_deref()).await?;
        return Ok(Reply(logged_in(guest)));
    }
    if matches!(body.login_type, Some(LoginType::ApplicationService)) {
        return Err(ApiError::forbidden("This is not an application service's token").into());
    }
    let flows = services.accounts.registration_flows()?;
    // "Homeservers MUST perform the relevant checks and return these codes before performing User-Interactive
    // Authentication".
    if let Some(username) = &body.username {
        services.accounts.check_username(username).await?;
    }
    if body.auth.is_some() && body.password.is_none() {
        return Err(ApiError::missing_param("missing field `password`").into());
    }
    // Clients learn of the flows before they know the name and the password: what is begun is any registration.
    let operation = Operation::new("register", None, &[]);
    let authorization = uiaa::authorize(&services, &operation, flows, body.auth.as_ref()).await?;
    let Some(password) = &body.password else {
        return Err(ApiError::missing_param("missing field `password`").into());
    };
    let device = NewDevice {
        device_id: body.device_id.as_deref(),
        initial_display_name: body.initial_device_display_name.as_deref(),
        can_refresh: body.refresh_token,
    };
    let registration =
        Registration { username: body.username.as_deref(), password, device: (!body.inhibit_login).then_some(device) };
    let (user_id, login) = services.accounts.register(registration, authorization).await?;
    Ok(Reply(login.map_or_else(|| Response::new(user_id), logged_in)))
}

fn logged_in(login: LoggedIn) -> Response {
    let mut response = Response::new(login.user_id);
    response.access_token = Some(login.access_token);
    response.device_id = Some(login.device_id);
    response.refresh_token = login.refresh_token;
    response.expires_in = login.expires_in;
    response
}
