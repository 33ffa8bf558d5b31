//! GET /_matrix/client/v1/media/download/{serverName}/{mediaId}, with `/{fileName}` or without, and the deprecated
//! paths below /_matrix/media, which need no token.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>

use axum::{
    extract::{Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
    response::Response,
};
use http::HeaderMap;
use myelin_http::{ApiError, Authenticated, ClientAddress, LimitKind, Session};
use myelin_media::Access;

use super::{answer::answer, asked::Asked};
use crate::{Services, errors::Result};

type File = Result<Path<(String, String)>, PathRejection>;
type NamedFile = Result<Path<(String, String, String)>, PathRejection>;
type Parameters = Result<Query<super::asked::Parameters>, QueryRejection>;

pub(crate) async fn authenticated(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    file: File,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, Some(&session), address, without_name(file), parameters, &headers).await
}

pub(crate) async fn authenticated_with_name(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    file: NamedFile,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, Some(&session), address, with_name(file), parameters, &headers).await
}

pub(crate) async fn deprecated(
    State(services): State<Services>,
    address: ClientAddress,
    file: File,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, None, address, without_name(file), parameters, &headers).await
}

pub(crate) async fn deprecated_with_name(
    State(services): State<Services>,
    address: ClientAddress,
    file: NamedFile,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, None, address, with_name(file), parameters, &headers).await
}

/// Which file is asked for, and the name that it is to have.
type Named = (String, String, Option<String>);

fn without_name(file: File) -> Result<Named, PathRejection> {
    file.map(|Path((server_name, media_id))| (server_name, media_id, None))
}

fn with_name(file: NamedFile) -> Result<Named, PathRejection> {
    file.map(|Path((server_name, media_id, file_name))| (server_name, media_id, Some(file_name)))
}

async fn send(
    services: &Services,
    session: Option<&Session>,
    ClientAddress(address): ClientAddress,
    file: Result<Named, PathRejection>,
    parameters: Parameters,
    headers: &HeaderMap,
) -> Result<Response> {
    services.rate_limiter.check_caller(LimitKind::Other, session, address)?;
    let (server_name, media_id, file_name) = file.map_err(|error| ApiError::invalid_param(error.body_text()))?;
    let Query(parameters) = parameters.map_err(|error| ApiError::invalid_param(error.body_text()))?;
    let access = if session.is_some() { Access::Authenticated } else { Access::Anonymous };
    let asked = Asked::new(&server_name, media_id, &parameters, access)?;
    let download = Box::pin(services.media.download(&asked.wanted())).await?;
    let download = download.ok_or_else(|| ApiError::not_found("There is no such file"))?;
    answer(download, file_name, headers).await
}
