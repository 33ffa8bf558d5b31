//! Answers of success.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header::CONTENT_TYPE};
use ruma::api::{OutgoingResponse, OutgoingResponseExt as _};

use crate::ApiError;

/// One of ruma's responses, serialised once.
#[derive(Clone, Copy, Debug)]
pub struct Reply<T>(pub T);

impl<T: OutgoingResponse> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<BytesMut>() {
            Ok(response) => response.map(|body| Body::from(body.freeze())),
            Err(error) => ApiError::unknown(error).into_response(),
        }
    }
}

/// A JSON body that is already bytes, for answers that are spliced from stored JSON.
#[derive(Clone, Debug)]
pub struct RawJson(pub Bytes);

impl<T: Into<Bytes>> From<T> for RawJson {
    fn from(json: T) -> Self {
        Self(json.into())
    }
}

impl IntoResponse for RawJson {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.0));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
