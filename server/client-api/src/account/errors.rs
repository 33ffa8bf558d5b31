//! What a client is told when an account did not do what was asked.

use std::time::Duration;

use http::StatusCode;
use myelin_accounts::Error;
use myelin_http::ApiError;
use ruma::api::error::ErrorCode;

use crate::errors::{Refusal, of_store};

/// When a client may come back that met a crowd.
const CROWD: Duration = Duration::from_secs(1);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(of_accounts(error))
    }
}

fn of_accounts(error: Error) -> ApiError {
    let bad = |errcode, error: Error| ApiError::new(StatusCode::BAD_REQUEST, errcode, error.to_string());
    match error {
        Error::Store(error) => of_store(error),
        Error::Hash(_) | Error::HashParameters(_) | Error::HashThread(_) => ApiError::unknown(error),
        Error::Busy => ApiError::limit_exceeded(CROWD),
        Error::InvalidUsername => bad(ErrorCode::InvalidUsername, error),
        Error::UserInUse => bad(ErrorCode::UserInUse, error),
        Error::EmptyPassword => bad(ErrorCode::WeakPassword, error),
        Error::PasswordTooLong | Error::InvalidDeviceId | Error::DeviceNameTooLong | Error::InvalidFieldName => {
            bad(ErrorCode::InvalidParam, error)
        }
        Error::FieldNameTooLong => bad(ErrorCode::KeyTooLarge, error),
        Error::InvalidFieldValue(_) => bad(ErrorCode::BadJson, error),
        Error::ProfileTooLarge => bad(ErrorCode::ProfileTooLarge, error),
        Error::FilterTooLarge => ApiError::too_large(error.to_string()),
        Error::Deactivated => ApiError::new(StatusCode::FORBIDDEN, ErrorCode::UserDeactivated, error.to_string()),
        Error::Locked => ApiError::user_locked(),
        Error::InvalidRefreshToken => ApiError::unknown_token(false),
        Error::UnknownDevice => ApiError::not_found(error.to_string()),
        Error::RegistrationDisabled
        | Error::GuestAccessDisabled
        | Error::InvalidRegistrationToken
        | Error::WrongPassword
        | Error::InvalidLoginToken
        | Error::UnknownThirdPartyIdentifier
        | Error::OperationChanged
        | Error::SharedSecretDisabled
        | Error::InvalidNonce
        | Error::WrongMac => ApiError::forbidden(error.to_string()),
    }
}
