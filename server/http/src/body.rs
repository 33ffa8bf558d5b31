//! Request bodies under a limit, and the first look at their JSON.

use std::error::Error;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ruma::api::error::ErrorCode;
use serde::de::IgnoredAny;

use crate::ApiError;

/// Reads a whole request body of at most `bytes_max` bytes; a larger one is refused with `M_TOO_LARGE`, before it is
/// read where it announces its length.
pub async fn read_body(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if is_length_limit(&*error) => Err(too_large(bytes_max)),
        Err(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "The request body ended early")),
    }
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::too_large(format!("The request body is over the limit of {bytes_max} bytes"))
}

fn is_length_limit(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// A JSON body that is at least an object, which every JSON body of the specification is; an empty body counts as an
/// empty object. Refuses what is not JSON (`M_NOT_JSON`) and what is not an object (`M_BAD_JSON`).
///
/// ruma's types alone do not tell the two apart: they stop at the first field that does not fit, some take any JSON
/// value, and those without fields never look at the body.
pub fn json_object(body: Bytes) -> Result<Bytes, ApiError> {
    if body.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    let text = std::str::from_utf8(&body).map_err(|_| ApiError::not_json("The request body is not UTF-8"))?;
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| ApiError::not_json(format!("The request body is not JSON: {error}")))?;
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(ApiError::bad_json("The request body is not a JSON object"));
    }
    Ok(body)
}
