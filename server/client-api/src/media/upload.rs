//! POST /_matrix/media/v3/upload and PUT /_matrix/media/v3/upload/{serverName}/{mediaId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav3upload>,
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixmediav3uploadservernamemediaid>

use axum::{
    body::Body,
    extract::{Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
};
use bytes::Bytes;
use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use myelin_http::{ApiError, Authenticated, ClientAddress, LimitKind, RawJson, Reply, Session};
use myelin_media::Upload;
use ruma::{ServerName, api::client::media::create_content::v3::Response};
use serde::Deserialize;

use crate::{Services, errors::Result};

#[derive(Debug, Deserialize)]
pub(crate) struct Parameters {
    filename: Option<String>,
}

type NameQuery = Result<Query<Parameters>, QueryRejection>;

/// Takes the body piece by piece: it may be larger than the memory that one request should take.
pub(crate) async fn upload(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    parameters: NameQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Reply<Response>> {
    let file_name = check(&services, &session, address, parameters, &headers)?;
    let uri = Box::pin(services.media.upload(about(&session, &headers, &file_name), body.into_data_stream())).await?;
    Ok(Reply(Response::new(uri)))
}

/// The same for an identifier that was given out before.
pub(crate) async fn fill(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    file: Result<Path<(String, String)>, PathRejection>,
    parameters: NameQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<RawJson> {
    let file_name = check(&services, &session, address, parameters, &headers)?;
    let Path((server_name, media_id)) = file.map_err(|error| ApiError::invalid_param(error.body_text()))?;
    let server_name =
        <&ServerName>::try_from(&*server_name).map_err(|error| ApiError::invalid_param(error.to_string()))?;
    let about = about(&session, &headers, &file_name);
    Box::pin(services.media.fill_pending(server_name, &media_id, about, body.into_data_stream())).await?;
    Ok(RawJson(Bytes::from_static(b"{}")))
}

/// Whether the user may upload, before anything is read. Answers the name of the file.
fn check(
    services: &Services,
    session: &Session,
    ClientAddress(address): ClientAddress,
    parameters: NameQuery,
    headers: &HeaderMap,
) -> Result<Option<String>> {
    session.require_full_account()?;
    session.require_good_standing()?;
    services.rate_limiter.check_caller(LimitKind::Other, Some(session), address)?;
    let Query(parameters) = parameters.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > services.media.upload_bytes_max()) {
        return Err(myelin_media::Error::TooLarge.into());
    }
    Ok(parameters.filename)
}

fn about<'a>(session: &Session, headers: &'a HeaderMap, file_name: &'a Option<String>) -> Upload<'a> {
    Upload {
        uploader_nid: session.user_nid,
        content_type: headers.get(CONTENT_TYPE).and_then(|content_type| content_type.to_str().ok()),
        file_name: file_name.as_deref(),
    }
}
