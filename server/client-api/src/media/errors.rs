//! What a client is told when the media did not do what was asked.

use std::{io, time::Duration};

use http::StatusCode;
use myelin_http::ApiError;
use myelin_media::{Error, FetchError};
use ruma::api::error::ErrorCode;

use crate::errors::{Refusal, of_store};

/// When a user with too many pending uploads may try again, if none of them is finished before.
const PENDING_RETRY: Duration = Duration::from_secs(60);

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
        Error::Stalled => ApiError::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unknown, "The file stopped coming"),
        Error::Quota => ApiError::forbidden("You have uploaded as much as you may"),
        Error::Blocked => ApiError::forbidden("This server does not take this file"),
        Error::NotYours => ApiError::forbidden("This identifier was given out to another user"),
        Error::TooManyPending => ApiError::limit_exceeded(PENDING_RETRY),
        Error::AlreadyUploaded => {
            ApiError::new(StatusCode::CONFLICT, ErrorCode::CannotOverwriteMedia, "The file is there already")
        }
        Error::UnknownId => ApiError::not_found("This identifier was not given out, or its time is over"),
        Error::NotYetUploaded => not_yet_uploaded(),
        Error::NoThumbnail(_) => {
            ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "No thumbnail can be made of this file")
        }
        Error::PictureTooLarge { is_remote } => {
            let status = if is_remote { StatusCode::BAD_GATEWAY } else { StatusCode::PAYLOAD_TOO_LARGE };
            ApiError::new(status, ErrorCode::TooLarge, "The picture is too large for a thumbnail")
        }
        Error::NoPreview { is_refused: true, .. } => {
            ApiError::forbidden("This server makes no previews of such addresses")
        }
        Error::NoPreview { reason, .. } => {
            tracing::debug!("there is no preview: {reason}");
            bad_gateway("The page could not be looked at")
        }
        Error::Fetch(error) => of_fetch(&error),
        Error::Shared(error) => match &*error {
            Error::Fetch(error) => of_fetch(error),
            Error::Stalled => bad_gateway("The file stopped coming from its server"),
            Error::Busy => ApiError::unavailable(error),
            _ => ApiError::unknown(error),
        },
        Error::Busy => ApiError::unavailable(error),
        Error::Disk { ref source, .. } if is_full(source) => {
            tracing::error!(error = &error as &dyn std::error::Error, "there is no room for files: {error}");
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, ErrorCode::Unknown, "This server has no room for the file")
        }
        Error::Disk { .. } => ApiError::unknown(error),
        Error::Lost { .. } => {
            tracing::error!(error = &error as &dyn std::error::Error, "{error}");
            ApiError::not_found("The content of this file is lost")
        }
    }
}

fn of_fetch(error: &FetchError) -> ApiError {
    match error {
        FetchError::NotFound => ApiError::not_found("There is no such file"),
        FetchError::NotAllowed => ApiError::not_found("This server does not federate with the file's"),
        FetchError::NotYetUploaded => not_yet_uploaded(),
        FetchError::TooLarge => {
            ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::TooLarge, "The file is larger than this server fetches")
        }
        FetchError::Unreachable(_) | FetchError::Refused { .. } | FetchError::Nonsense(_) => {
            tracing::debug!(error = error as &dyn std::error::Error, "a file cannot be fetched: {error}");
            bad_gateway("The file's server did not give it")
        }
    }
}

fn not_yet_uploaded() -> ApiError {
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::NotYetUploaded, "The file is not uploaded yet")
}

fn bad_gateway(message: &'static str) -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, message)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
