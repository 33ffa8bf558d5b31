//! Keys of devices and users, and devices that wait to be taken over.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption>

mod changes;
mod claim;
mod dehydrated;
mod device_signing;
mod query;
mod signatures;
#[cfg(test)]
pub(crate) mod tests;
mod upload;

use axum::Router;
use http::StatusCode;
use myelin_encryption::{Error, Owner};
use myelin_http::{ApiError, Endpoints as _, Session};
use ruma::api::error::{ErrorCode, ErrorKind, WrongRoomKeysVersionErrorData};

use crate::{
    Services,
    errors::{Refusal, of_store},
};

/// Adds the endpoints of this module.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .endpoint(upload::upload)
        .endpoint(query::query)
        .endpoint(claim::claim)
        .endpoint(changes::changes)
        .endpoint(device_signing::upload)
        .endpoint(signatures::upload)
        .endpoint(dehydrated::put)
        .endpoint(dehydrated::show)
        .endpoint(dehydrated::delete)
        .endpoint(dehydrated::events)
}

/// The device that asks.
pub(crate) fn owner(session: &Session) -> Owner {
    Owner {
        user_nid: session.user_nid,
        user_id: session.user_id.clone(),
        device_nid: session.device_nid,
        device_id: session.device_id.clone(),
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(of_encryption(error))
    }
}

fn of_encryption(error: Error) -> ApiError {
    match error {
        Error::Store(error) => of_store(error),
        error @ Error::Corrupt(_) => ApiError::unknown(error),
        Error::BadJson(reason) => ApiError::bad_json(reason),
        Error::InvalidParam(reason) => ApiError::invalid_param(reason),
        Error::MissingParam(reason) => ApiError::missing_param(reason),
        Error::InvalidSignature(reason) => {
            ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::from("M_INVALID_SIGNATURE"), reason)
        }
        Error::Forbidden(reason) => ApiError::forbidden(reason),
        Error::NotFound(reason) => ApiError::not_found(reason),
        Error::TooLarge(reason) => ApiError::too_large(reason),
        Error::WrongBackup { ref current } => {
            let kind = ErrorKind::WrongRoomKeysVersion(WrongRoomKeysVersionErrorData::new(current.clone()));
            ApiError::from_kind(StatusCode::FORBIDDEN, kind, error.to_string())
        }
    }
}
