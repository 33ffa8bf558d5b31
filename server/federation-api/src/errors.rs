//! From causes to what another server is told: the one place where an error of a capability becomes a status and an
//! errcode.

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

impl From<myelin_accounts::Error> for Refusal {
    fn from(error: myelin_accounts::Error) -> Self {
        Self(match error {
            myelin_accounts::Error::Store(error) => of_store(error),
            error => ApiError::unknown(error),
        })
    }
}

impl From<myelin_encryption::Error> for Refusal {
    fn from(error: myelin_encryption::Error) -> Self {
        Self(of_encryption(error))
    }
}

/// What another server is told when keys were not had.
fn of_encryption(error: myelin_encryption::Error) -> ApiError {
    use myelin_encryption::Error;
    match error {
        Error::Store(error) => of_store(error),
        error @ Error::Corrupt(_) => ApiError::unknown(error),
        Error::BadJson(reason) => ApiError::bad_json(reason),
        Error::InvalidParam(reason) | Error::InvalidSignature(reason) => ApiError::invalid_param(reason),
        Error::MissingParam(reason) => ApiError::missing_param(reason),
        Error::Forbidden(reason) => ApiError::forbidden(reason),
        Error::NotFound(reason) => ApiError::not_found(reason),
        Error::TooLarge(reason) => ApiError::too_large(reason),
        error @ Error::WrongBackup { .. } => ApiError::unknown(error),
    }
}

/// What another server is told when the store did not do what was asked.
pub(crate) fn of_store(error: myelin_store::Error) -> ApiError {
    if error.is_invalid_text() {
        return ApiError::invalid_param("An identifier or a text has a NUL character, or is over its limit");
    }
    if error.is_unavailable() { ApiError::unavailable(error) } else { ApiError::unknown(error) }
}

/// What another server is told when a room did not do what was asked.
pub(crate) fn of_rooms(error: myelin_rooms::Error) -> ApiError {
    use myelin_rooms::Error;
    let bad_request = |errcode, message| ApiError::new(StatusCode::BAD_REQUEST, errcode, message);
    match error {
        Error::Store(error) => of_store(error),
        Error::Forbidden(reason) => ApiError::forbidden(reason),
        error @ Error::InviteBlocked => {
            ApiError::new(StatusCode::FORBIDDEN, ErrorCode::InviteBlocked, error.to_string())
        }
        error @ Error::GuestsRefused => ApiError::forbidden(error.to_string()),
        Error::NotFound(reason) => ApiError::not_found(reason),
        Error::TooLarge => ApiError::too_large("The event is larger than an event may be"),
        Error::BadJson(reason) => ApiError::bad_json(reason),
        Error::InvalidParam(reason) => ApiError::invalid_param(reason),
        Error::UnsupportedRoomVersion(version) => incompatible(&version),
        Error::IncompatibleRoomVersion(version) => incompatible(version.as_str()),
        error @ Error::UnableToAuthoriseJoin => bad_request(ErrorCode::UnableToAuthorizeJoin, error.to_string()),
        error @ Error::UnableToGrantJoin => bad_request(ErrorCode::UnableToGrantJoin, error.to_string()),
        Error::AliasTaken => bad_request(ErrorCode::RoomInUse, "The alias points to a room already".to_owned()),
        Error::BadAlias(reason) => bad_request(ErrorCode::BadAlias, reason),
        error @ (Error::DuplicateAnnotation | Error::NoThreadThere) => {
            bad_request(ErrorCode::InvalidParam, error.to_string())
        }
        Error::InvalidRoomState(reason) => bad_request(ErrorCode::InvalidRoomState, reason),
        // The events before it are not ours to make up; who sent it has them.
        error @ Error::Gap => bad_request(ErrorCode::InvalidParam, error.to_string()),
        // "A specific error code is not mandated, but servers SHOULD return M_INVALID_PARAM"
        Error::Refused(refusal) => ApiError::invalid_param(refusal.to_string()),
        error @ (Error::NotFederating | Error::NotRecommended(_)) => ApiError::forbidden(error.to_string()),
        error @ (Error::Corrupt(_) | Error::Sign(_) | Error::Task(_)) => ApiError::unknown(error),
        error @ (Error::Busy | Error::Remote(_)) => ApiError::unavailable(error),
    }
}

fn incompatible(room_version: &str) -> ApiError {
    let message = format!("Your homeserver or ours does not support the version of this room, {room_version}");
    ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::IncompatibleRoomVersion, message)
        .with_field("room_version", room_version)
}
