//! POST /_matrix/client/v3/login
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3login>

use axum::extract::State;
use http::StatusCode;
use myelin_accounts::NewDevice;
use myelin_http::{ApiError, LimitKind, Matrix, Reply};
use ruma::api::{
    IncomingRequest, Metadata,
    client::{
        session::login::v3::{LoginInfo, Password, Request, Response},
        uiaa::UserIdentifier,
    },
    error::{DeserializationError, ErrorCode},
};
use serde::{Deserialize, de::IgnoredAny};

use crate::{Services, errors::Result};

pub(crate) async fn log_in(
    State(services): State<Services>,
    Matrix { body: TypedLogin(body), .. }: Matrix<TypedLogin>,
) -> Result<Reply<Response>> {
    let device = NewDevice {
        device_id: body.device_id.as_deref(),
        initial_display_name: body.initial_device_display_name.as_deref(),
        can_refresh: body.refresh_token,
    };
    let login = match &body.login_info {
        LoginInfo::Password(info) => {
            let name = named(info)?;
            let key = services.accounts.login_key(name);
            services.rate_limiter.check(LimitKind::Login, services.rate_limiter.account(&key))?;
            services.accounts.log_in_by_password(name, &info.password, device).await?
        }
        LoginInfo::Token(info) => services.accounts.log_in_by_token(&info.token, device).await?,
        other => {
            let message = format!("Unknown login type {}", other.login_type());
            return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, message).into());
        }
    };
    let mut response = Response::new(login.user_id, login.access_token, login.device_id);
    response.refresh_token = login.refresh_token;
    response.expires_in = login.expires_in;
    Ok(Reply(response))
}

/// The user's name, in full or in part.
fn named(info: &Password) -> Result<&str> {
    match &info.identifier {
        Some(UserIdentifier::Matrix(identifier)) => Ok(&identifier.user),
        // "In the case that the homeserver does not know about the supplied 3PID, the homeserver must respond with
        // 403 Forbidden." We know none.
        Some(_) => Err(ApiError::forbidden("Unknown third-party identifier").into()),
        None => {
            #[expect(deprecated, reason = "clients in use still send it")]
            let user = info.user.as_deref();
            user.ok_or_else(|| ApiError::missing_param("missing field `identifier`").into())
        }
    }
}

/// ruma's request, once it is sure that there is a `type`: without one ruma panics.
#[derive(Debug)]
pub(crate) struct TypedLogin(Request);

impl Metadata for TypedLogin {
    const METHOD: http::Method = <Request as Metadata>::METHOD;
    const RATE_LIMITED: bool = <Request as Metadata>::RATE_LIMITED;
    type Authentication = <Request as Metadata>::Authentication;
    type PathBuilder = <Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = <Request as Metadata>::PATH_BUILDER;
}

impl IncomingRequest for TypedLogin {
    type EndpointError = <Request as IncomingRequest>::EndpointError;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Typed {
            #[serde(rename = "type")]
            _login_type: IgnoredAny,
        }
        let body = if request.body().is_empty() { b"{}" } else { *request.body() };
        serde_json::from_slice::<Typed>(body)?;
        Request::try_from_http_request_inner(request, path_args).map(Self)
    }
}
