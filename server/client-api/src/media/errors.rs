//! What a client is told when the media did not do what was asked.

use http::StatusCode;
use myelin_http::ApiError;
use myelin_media::Error;
use ruma::api::error::ErrorCode;

use crate::errors::{Refusal, of_store};

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(of_media(error))
    }
}

fn of_media(error: Error) -> ApiError {
    match error {
        Error::Store(error) => of_store(error),
        Error::TooLarge => ApiError::too_large("The file is larger than this server allows"),
        Error::Interrupted(_) => {
            ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "The file did not come to its end")
        }
        Error::Busy => ApiError::unavailable(error),
        Error::Disk { .. } => ApiError::unknown(error),
        Error::Lost { .. } => {
            tracing::error!(error = &error as &dyn std::error::Error, "{error}");
            ApiError::not_found("The content of this file is lost")
        }
    }
}
