//! Push notifications: where devices want to be told, and what their users were told of.

#[cfg(test)]
mod delivery_tests;
mod notifications;
mod pushers;
#[cfg(test)]
mod tests;

use axum::Router;
use http::StatusCode;
use myelin_http::{ApiError, Endpoints as _};
use myelin_push::Error;
use ruma::api::error::ErrorCode;

use crate::{
    Services,
    errors::{Refusal, of_store},
};

/// Adds the endpoints of this module.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(pushers::list).endpoint(pushers::set).endpoint(notifications::notifications)
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(match error {
            Error::Store(error) => of_store(error),
            error @ Error::UnknownKind(_) => {
                ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unrecognized, error.to_string())
            }
            error @ Error::Missing(_) => ApiError::missing_param(error.to_string()),
            Error::Invalid(reason) => ApiError::invalid_param(reason),
            Error::NoDevice => ApiError::unknown_token(false),
        })
    }
}
