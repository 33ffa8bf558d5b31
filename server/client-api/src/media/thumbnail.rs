//! GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}, and the deprecated path below /_matrix/media, which
//! needs no token.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediathumbnailservernamemediaid>

use axum::{
    extract::{Path, Query, State, rejection::PathRejection, rejection::QueryRejection},
    response::Response,
};
use http::HeaderMap;
use myelin_http::{ApiError, Authenticated, ClientAddress, LimitKind, Session};
use myelin_media::{Access, Method, Size};
use serde::Deserialize;

use super::{answer::answer, asked, asked::Asked};
use crate::{Services, errors::Result};

/// `animated` is not looked at: a thumbnail never moves, which the server may choose.
#[derive(Debug, Deserialize)]
pub(crate) struct Parameters {
    width: u32,
    height: u32,
    method: Option<String>,
}

impl Parameters {
    fn size(&self) -> Result<Size, ApiError> {
        let method = match self.method.as_deref() {
            None | Some("scale") => Method::Scale,
            Some("crop") => Method::Crop,
            Some(_) => return Err(ApiError::invalid_param("method is either crop or scale")),
        };
        if self.width == 0 || self.height == 0 {
            return Err(ApiError::invalid_param("width and height are more than nothing"));
        }
        Ok(Size { width: self.width, height: self.height, method })
    }
}

type File = Result<Path<(String, String)>, PathRejection>;
type SizeQuery = Result<Query<Parameters>, QueryRejection>;
type AskedQuery = Result<Query<asked::Parameters>, QueryRejection>;

pub(crate) async fn authenticated(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    file: File,
    size: SizeQuery,
    parameters: AskedQuery,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, Some(&session), address, file, (size, parameters), &headers).await
}

pub(crate) async fn deprecated(
    State(services): State<Services>,
    address: ClientAddress,
    file: File,
    size: SizeQuery,
    parameters: AskedQuery,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, None, address, file, (size, parameters), &headers).await
}

async fn send(
    services: &Services,
    session: Option<&Session>,
    ClientAddress(address): ClientAddress,
    file: File,
    (size, parameters): (SizeQuery, AskedQuery),
    headers: &HeaderMap,
) -> Result<Response> {
    services.rate_limiter.check_caller(LimitKind::Other, session, address)?;
    let Path((server_name, media_id)) = file.map_err(|error| ApiError::invalid_param(error.body_text()))?;
    let bad_query = |error: QueryRejection| ApiError::invalid_param(error.body_text());
    let Query(parameters) = parameters.map_err(bad_query)?;
    let Query(size) = size.map_err(bad_query)?;
    let access = if session.is_some() { Access::Authenticated } else { Access::Anonymous };
    let asked = Asked::new(&server_name, media_id, &parameters, access)?;
    let thumbnail = Box::pin(services.media.thumbnail(&asked.wanted(), size.size()?)).await?;
    let thumbnail = thumbnail.ok_or_else(|| ApiError::not_found("There is no such file"))?;
    answer(thumbnail, None, headers).await
}
