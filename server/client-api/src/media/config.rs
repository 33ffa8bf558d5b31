//! GET /_matrix/client/v1/media/config and GET /_matrix/media/v3/config
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediaconfig>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::{
    UInt,
    api::client::{authenticated_media::get_media_config as current, media::get_media_config as deprecated},
};

use crate::{Services, errors::Result};

pub(crate) async fn show(
    State(services): State<Services>,
    _: Matrix<current::v1::Request>,
) -> Result<Reply<current::v1::Response>> {
    Ok(Reply(current::v1::Response::new(upload_size(&services))))
}

#[expect(deprecated, reason = "clients in use still speak it")]
pub(crate) async fn show_deprecated(
    State(services): State<Services>,
    _: Matrix<deprecated::v3::Request>,
) -> Result<Reply<deprecated::v3::Response>> {
    Ok(Reply(deprecated::v3::Response::new(upload_size(&services))))
}

fn upload_size(services: &Services) -> UInt {
    UInt::try_from(services.media.upload_bytes_max()).unwrap_or(UInt::MAX)
}
