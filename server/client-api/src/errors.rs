//! From causes to what a client is told: the one place where an error of a capability becomes a status and an errcode.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use myelin_http::ApiError;
use ruma::api::error::ErrorCode;

/// The result of a handler.
pub(crate) type Result<T, E = Refusal> = std::result::Result<T, E>;

/// Why a handler answers with an error. Errors of the capabilities become one by `?`.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        refusal.0
    }
}

impl From<myelin_store::Error> for Refusal {
    fn from(error: myelin_store::Error) -> Self {
        Self(of_store(error))
    }
}

impl From<myelin_rooms::Error> for Refusal {
    fn from(error: myelin_rooms::Error) -> Self {
        Self(of_rooms(error))
    }
}

/// What a client is told when the store did not do what was asked.
pub(crate) fn of_store(error: myelin_store::Error) -> ApiError {
    if error.is_invalid_text() {
        return ApiError::invalid_param("An identifier or a text has a NUL character, or is over its limit");
    }
    if error.is_unavailable() { ApiError::unavailable(error) } else { ApiError::unknown(error) }
}

/// What a client is told when a room did not do what was asked.
pub(crate) fn of_rooms(error: myelin_rooms::Error) -> ApiError {
    use myelin_rooms::Error;
    let bad_request = |errcode, message| ApiError::new(StatusCode::BAD_REQUEST, errcode, message);
    match error {
        Error::Store(error) => of_store(error),
        Error::Forbidden(reason) => ApiError::forbidden(reason),
        error @ Error::InviteBlocked => {
            ApiError::new(StatusCode::FORBIDDEN, ErrorCode::InviteBlocked, error.to_string())
        }
        Error::GuestsRefused => ApiError::guest_access_forbidden(),
        Error::NotFound(reason) => ApiError::not_found(reason),
        Error::TooLarge => ApiError::too_large("The event is larger than an event may be"),
        Error::BadJson(reason) => ApiError::bad_json(reason),
        Error::InvalidParam(reason) => ApiError::invalid_param(reason),
        error @ Error::UnsupportedRoomVersion(_) => bad_request(ErrorCode::UnsupportedRoomVersion, error.to_string()),
        Error::AliasTaken => bad_request(ErrorCode::RoomInUse, "The alias points to a room already".to_owned()),
        Error::BadAlias(reason) => bad_request(ErrorCode::BadAlias, reason),
        Error::InvalidRoomState(reason) => bad_request(ErrorCode::InvalidRoomState, reason),
        error @ Error::DuplicateAnnotation => bad_request(ErrorCode::DuplicateAnnotation, error.to_string()),
        error @ Error::NoThreadThere => bad_request(ErrorCode::Unknown, error.to_string()),
        Error::IncompatibleRoomVersion(version) => {
            bad_request(ErrorCode::UnsupportedRoomVersion, format!("Room version {version} is not supported"))
        }
        error @ (Error::UnableToAuthoriseJoin | Error::UnableToGrantJoin | Error::NotFederating) => {
            ApiError::forbidden(error.to_string())
        }
        Error::Remote(error) => of_remote(*error),
        Error::NotRecommended(error) => of_policy_server(*error),
        error @ (Error::Gap | Error::Refused(_)) => {
            ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, format!("The other server's answer: {error}"))
        }
        error @ (Error::Corrupt(_) | Error::Sign(_) | Error::Task(_)) => ApiError::unknown(error),
        error @ Error::Busy => ApiError::unavailable(error),
    }
}

/// What a client is told when another server did not do what was asked of it.
fn of_remote(error: myelin_rooms::remote::RemoteError) -> ApiError {
    use myelin_rooms::remote::RemoteError;
    match error {
        RemoteError::NotAllowed(_) => ApiError::forbidden(error.to_string()),
        RemoteError::Refused { status: 403, errcode, message, .. } if errcode == "M_INVITE_BLOCKED" => {
            ApiError::new(StatusCode::FORBIDDEN, ErrorCode::InviteBlocked, message)
        }
        RemoteError::Refused { status: 403, message, .. } => ApiError::forbidden(message),
        RemoteError::Refused { status: 404, .. } => ApiError::not_found("The other server knows nothing of it"),
        RemoteError::BackingOff { .. }
        | RemoteError::Unreachable { .. }
        | RemoteError::Refused { .. }
        | RemoteError::Nonsense { .. } => ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, error.to_string()),
    }
}

/// What a client is told whose event the room's policy server did not sign: "If the Policy Server returned an error, that
/// error SHOULD be provided to the client verbatim", as far as it is one that a policy server answers with.
fn of_policy_server(error: myelin_rooms::remote::RemoteError) -> ApiError {
    use myelin_rooms::remote::RemoteError;
    /// Fields of an error that are passed on.
    const FIELDS_MAX: usize = 16;
    let RemoteError::Refused { status, errcode, message, body, .. } = error else {
        let message = format!("The room's policy server could not be asked: {error}");
        return ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, message);
    };
    let status = match status {
        400 | 403 | 404 | 429 => StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST),
        _ => StatusCode::BAD_GATEWAY,
    };
    // It is no other server's business whether our users are logged in.
    let errcode = match errcode.as_str() {
        "M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN" | "M_USER_LOCKED" | "M_USER_SUSPENDED" | "M_USER_DEACTIVATED" => {
            ErrorCode::Forbidden
        }
        errcode => ErrorCode::from(errcode),
    };
    let fields = body.into_iter().flatten().filter(|(name, _)| name != "soft_logout").take(FIELDS_MAX);
    fields.fold(ApiError::new(status, errcode, message), |error, (name, value)| error.with_field(&name, value))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use myelin_rooms::remote::RemoteError;
    use serde_json::{Value, json};

    use super::*;

    /// What a policy server says is passed on as it is, but not what would end a client's session.
    #[tokio::test]
    async fn policy_servers_are_quoted() {
        let refused = |status, body: Value| RemoteError::Refused {
            server: "policy.test".try_into().unwrap(),
            status,
            errcode: body["errcode"].as_str().unwrap().to_owned(),
            message: body["error"].as_str().unwrap().to_owned(),
            body: body.as_object().cloned(),
        };
        let unreachable = RemoteError::Unreachable { server: "policy.test".try_into().unwrap(), reason: "x".into() };
        let spam = json!({ "errcode": "M_FORBIDDEN", "error": "Spam", "org.example.score": 9 });
        let later = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "Later", "retry_after_ms": 7 });
        let token = json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "Out", "soft_logout": false });
        let cases = [
            (refused(400, spam.clone()), 400, Some(spam)),
            (refused(429, later.clone()), 429, Some(later)),
            (refused(401, token), 502, Some(json!({ "errcode": "M_FORBIDDEN", "error": "Out" }))),
            (unreachable, 502, None),
        ];
        for (error, status, body) in cases {
            let answer = of_rooms(myelin_rooms::Error::NotRecommended(Box::new(error))).into_response();
            assert_eq!(answer.status(), status);
            let found: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert!(body.is_none_or(|body| body == found), "{found}");
        }
    }
}
