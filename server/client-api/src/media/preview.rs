//! GET /_matrix/client/v1/media/preview_url and GET /_matrix/media/v3/preview_url
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediapreview_url>

use axum::extract::State;
use bytes::Bytes;
use myelin_http::{ApiError, Matrix, RawJson};
use ruma::api::client::{authenticated_media::get_media_preview as current, media::get_media_preview as deprecated};

use crate::{Services, errors::Result};

/// `ts` is not looked at: "The server may return a newer version if it does not have the requested version available."
pub(crate) async fn show(State(services): State<Services>, request: Matrix<current::v1::Request>) -> Result<RawJson> {
    request.session().require_full_account()?;
    preview(&services, &request.body.url).await
}

#[expect(deprecated, reason = "clients in use still speak it")]
pub(crate) async fn show_deprecated(
    State(services): State<Services>,
    request: Matrix<deprecated::v3::Request>,
) -> Result<RawJson> {
    request.session().require_full_account()?;
    preview(&services, &request.body.url).await
}

async fn preview(services: &Services, url: &str) -> Result<RawJson> {
    // Where it is off, there is no such endpoint.
    let preview = Box::pin(services.media.preview(url)).await?.ok_or_else(ApiError::unrecognized)?;
    Ok(RawJson(Bytes::from(preview)))
}
