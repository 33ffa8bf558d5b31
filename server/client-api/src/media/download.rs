//! GET /_matrix/client/v1/media/download/{serverName}/{mediaId}, with `/{fileName}` or without, and the deprecated
//! paths below /_matrix/media, which need no token.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>

use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use myelin_http::{ApiError, Authenticated, ClientAddress, LimitKind, Session};
use myelin_media::Download;
use ruma::{
    ServerName,
    http_headers::{ContentDisposition, ContentDispositionType},
};

use crate::{Services, errors::Result};

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// "The recommended policy".
const POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                      style-src 'unsafe-inline'; object-src 'self';";
/// A content type that tells nothing.
const ANY: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// "Servers SHOULD restrict Content-Type headers to one of the following values when serving content with
/// Content-Disposition: inline".
const INLINE: &[&str] = &[
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

type File = Result<Path<(String, String)>, PathRejection>;
type NamedFile = Result<Path<(String, String, String)>, PathRejection>;

pub(crate) async fn authenticated(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    file: File,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, Some(&session), address, without_name(file), &headers).await
}

pub(crate) async fn authenticated_with_name(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    address: ClientAddress,
    file: NamedFile,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, Some(&session), address, with_name(file), &headers).await
}

pub(crate) async fn deprecated(
    State(services): State<Services>,
    address: ClientAddress,
    file: File,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, None, address, without_name(file), &headers).await
}

pub(crate) async fn deprecated_with_name(
    State(services): State<Services>,
    address: ClientAddress,
    file: NamedFile,
    headers: HeaderMap,
) -> Result<Response> {
    send(&services, None, address, with_name(file), &headers).await
}

/// Which file is asked for, and the name that it is to have.
struct Asked {
    server_name: String,
    media_id: String,
    file_name: Option<String>,
}

fn without_name(file: File) -> Result<Asked, ApiError> {
    let Path((server_name, media_id)) = file.map_err(bad_path)?;
    Ok(Asked { server_name, media_id, file_name: None })
}

fn with_name(file: NamedFile) -> Result<Asked, ApiError> {
    let Path((server_name, media_id, file_name)) = file.map_err(bad_path)?;
    Ok(Asked { server_name, media_id, file_name: Some(file_name) })
}

fn bad_path(rejection: PathRejection) -> ApiError {
    ApiError::invalid_param(rejection.body_text())
}

async fn send(
    services: &Services,
    session: Option<&Session>,
    ClientAddress(address): ClientAddress,
    asked: Result<Asked, ApiError>,
    headers: &HeaderMap,
) -> Result<Response> {
    services.rate_limiter.check_caller(LimitKind::Other, session, address)?;
    let Asked { server_name, media_id, file_name } = asked?;
    let server_name =
        <&ServerName>::try_from(&*server_name).map_err(|error| ApiError::invalid_param(error.to_string()))?;
    let download = services.media.download(server_name, &media_id).await?;
    let download = download.ok_or_else(|| ApiError::not_found("There is no such file"))?;
    let tag = download.entity_tag();
    let is_known =
        headers.get_all(IF_NONE_MATCH).iter().any(|known| known.to_str().is_ok_and(|known| lists(known, &tag)));
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { content(download, file_name) };
    let headers = response.headers_mut();
    headers.insert(ETAG, HeaderValue::try_from(tag).map_err(ApiError::unknown)?);
    // The content behind an identifier never changes.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=86400, immutable"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    Ok(response)
}

fn content(download: Download, file_name: Option<String>) -> Response {
    let about = &download.about;
    let content_type = about.content_type.as_deref();
    let disposition =
        ContentDisposition::new(disposition(content_type)).with_filename(file_name.or_else(|| about.file_name.clone()));
    let content_type = content_type.and_then(|content_type| HeaderValue::try_from(content_type).ok()).unwrap_or(ANY);
    let content_length = HeaderValue::from(about.size);
    // A name that no header can hold is left out.
    let disposition = HeaderValue::try_from(disposition.to_string()).unwrap_or(HeaderValue::from_static("attachment"));
    let mut response = Response::new(Body::from_stream(download.into_stream()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_LENGTH, content_length);
    headers.insert(CONTENT_DISPOSITION, disposition);
    response
}

fn disposition(content_type: Option<&str>) -> ContentDispositionType {
    let essence = content_type.and_then(|content_type| content_type.split(';').next()).unwrap_or_default().trim();
    if INLINE.iter().any(|inline| essence.eq_ignore_ascii_case(inline)) {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    }
}

/// Whether the list of an `If-None-Match` header has this tag.
fn lists(known: &str, tag: &str) -> bool {
    known.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}
