//! POST /_matrix/media/v3/upload
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav3upload>

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
};
use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use myelin_http::{ApiError, Authenticated, ClientAddress, LimitKind, Reply};
use myelin_media::Upload;
use ruma::api::client::media::create_content::v3::Response;
use serde::Deserialize;

use crate::{Services, errors::Result};

#[derive(Debug, Deserialize)]
pub(crate) struct Parameters {
    filename: Option<String>,
}

/// Takes the body piece by piece: it may be larger than the memory that one request should take.
pub(crate) async fn upload(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    ClientAddress(address): ClientAddress,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Reply<Response>> {
    session.require_full_account()?;
    session.require_good_standing()?;
    services.rate_limiter.check_caller(LimitKind::Other, Some(&session), address)?;
    let Query(parameters) = parameters.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > services.media.upload_bytes_max()) {
        return Err(myelin_media::Error::TooLarge.into());
    }
    let upload = Upload {
        uploader_nid: session.user_nid,
        content_type: headers.get(CONTENT_TYPE).and_then(|content_type| content_type.to_str().ok()),
        file_name: parameters.filename.as_deref(),
    };
    let uri = services.media.upload(upload, body.into_data_stream()).await?;
    Ok(Reply(Response::new(uri)))
}
