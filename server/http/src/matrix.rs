//! The extractor of every Matrix endpoint.

use std::{net::IpAddr, sync::Arc};

use axum::extract::{FromRequest, FromRequestParts as _, RawPathParams, Request};
use bytes::Bytes;
use http::{Method, request::Parts};
use ruma::{
    IdParseError,
    api::{
        IncomingRequest, IncomingRequestExt as _, Metadata,
        error::{DeserializationError, FromHttpRequestError, HeaderDeserializationError},
        path_builder::PathBuilder as _,
    },
};

use crate::{
    ApiError, Authenticator, LayerOptions, LimitKind, RequestContext, RouteOptions, Scheme, Session, Standing,
    body::{json_object, read_body},
    route::BodyFormat,
    session::{Token, client_address, identify},
};

/// The specification's limit for every identifier: "The length of a user ID, including the @ character and the
/// domain, MUST NOT exceed 255 bytes", and the same for rooms, aliases and events, event types and state keys. Ours for
/// the other parts of paths.
const NAME_BYTES_MAX: usize = 255;

/// Whom an endpoint is called by: `Arc<Session>` where ruma says that it needs a token, `Option<Arc<Session>>` where
/// one is optional, `()` where there is none.
pub type CallerOf<R> = <<R as Metadata>::Authentication as Scheme>::Caller;

/// A request of ruma's type `R`, from a caller who was allowed to make it.
///
/// In this order, so that a caller without a right token learns nothing and costs little: the token is checked, the
/// rate limit counts, the path is taken apart, the body is read under the route's limit, and the whole is parsed.
pub struct Matrix<R>
where
    R: IncomingRequest,
    R::Authentication: Scheme,
{
    /// The request.
    pub body: R,
    /// Who sent it.
    pub caller: CallerOf<R>,
    /// Where it came from.
    pub client_address: IpAddr,
}

impl<R> Matrix<R>
where
    R: IncomingRequest,
    R::Authentication: Scheme<Caller = Arc<Session>>,
{
    /// The session that sent the request.
    pub fn session(&self) -> &Session {
        &self.caller
    }
}

impl<S, R> FromRequest<S> for Matrix<R>
where
    S: Authenticator,
    R: IncomingRequest + Send,
    R::Authentication: Scheme,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let endpoint = Endpoint {
            token: R::Authentication::TOKEN,
            rate_limited: R::RATE_LIMITED,
            has_body: R::METHOD != Method::GET,
            is_open_to_locked: is_logout::<R>,
        };
        let admit = |session: &Option<Arc<Session>>| R::Authentication::admit(session.clone());
        let (received, caller) = receive(state, request, endpoint, admit).await?;
        let Received { parts, path, body, client_address } = received;

        let body = parse(parts, &path, &body)?;
        Ok(Self { body, caller, client_address })
    }
}

/// What the common part of the extractor has to know about an endpoint.
struct Endpoint {
    token: Token,
    rate_limited: bool,
    has_body: bool,
    is_open_to_locked: fn() -> bool,
}

struct Received {
    parts: Parts,
    path: RawPathParams,
    body: Bytes,
    client_address: IpAddr,
}

/// Everything but the parsing, which alone differs from type to type.
async fn receive<S: Authenticator, C>(
    state: &S,
    request: Request,
    endpoint: Endpoint,
    admit: impl FnOnce(&Option<Arc<Session>>) -> Result<C, ApiError>,
) -> Result<(Received, C), ApiError> {
    let (mut parts, body) = request.into_parts();
    let options = parts.extensions.get::<RouteOptions>().copied().unwrap_or_default();
    let client_address = client_address(&parts);

    let session = identify(state, &mut parts, endpoint.token).await?;
    let caller = admit(&session)?;
    if session.as_ref().is_some_and(|session| session.standing == Standing::Locked) && !(endpoint.is_open_to_locked)() {
        return Err(ApiError::user_locked());
    }

    let limit = options.rate_limit.or(endpoint.rate_limited.then_some(LimitKind::Other));
    if let (Some(kind), Some(limiter)) = (limit, state.rate_limiter()) {
        limiter.check_caller(kind, session.as_deref(), client_address)?;
    }

    let path = take_path(&mut parts, endpoint.has_body).await?;

    let body = if endpoint.has_body {
        let bytes_max = options.body_bytes_max.unwrap_or_else(|| {
            let context = parts.extensions.get::<Arc<RequestContext>>();
            context.map_or(LayerOptions::default().json_body_bytes_max, |context| context.json_body_bytes_max())
        });
        let body = read_body(&parts.headers, body, bytes_max).await?;
        match options.body_format {
            BodyFormat::Json => json_object(body)?,
            BodyFormat::Raw => body,
        }
    } else {
        Bytes::new()
    };
    Ok((Received { parts, path, body, client_address }, caller))
}

/// The parts of a request's path, if each is one that an endpoint may have there. `writes` tells whether the endpoint
/// puts what the path names into a room.
pub async fn take_path(parts: &mut Parts, writes: bool) -> Result<RawPathParams, ApiError> {
    let path = RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    check_path(&path, writes)?;
    Ok(path)
}

/// A request of ruma's type `R` from what was received, or the refusal that belongs to what cannot be read.
pub fn parse<R: IncomingRequest>(parts: Parts, path: &RawPathParams, body: &[u8]) -> Result<R, ApiError> {
    let path: Vec<&str> = path.iter().map(|(_, value)| value).collect();
    R::try_from_http_request(http::Request::from_parts(parts, body), &path).map_err(refusal)
}

/// Names that are too long are refused here: ruma lets long identifiers pass, since such are in old rooms, and the others
/// are any text. No name has a NUL character, which PostgreSQL could not keep.
fn check_path(path: &RawPathParams, writes: bool) -> Result<(), ApiError> {
    for (name, value) in path {
        if value.contains('\0') {
            return Err(ApiError::invalid_param(format!("{name} has a NUL character")));
        }
        if value.len() <= NAME_BYTES_MAX {
            continue;
        }
        let message = format!("{name} is over {NAME_BYTES_MAX} bytes long");
        match name {
            // Of an event that would be too large.
            "event_type" | "state_key" if writes => return Err(ApiError::too_large(message)),
            "event_type" | "state_key" => {}
            // It has an errcode of its own, `M_KEY_TOO_LARGE`.
            "field" => {}
            _ => return Err(ApiError::invalid_param(message)),
        }
    }
    Ok(())
}

/// "servers MUST return a 401 Unauthorized error response […] on all but the following Client-Server APIs:
/// POST /logout, POST /logout/all".
fn is_logout<R: Metadata>() -> bool {
    R::METHOD == Method::POST
        && R::PATH_BUILDER.all_paths().any(|path| path.ends_with("/logout") || path.ends_with("/logout/all"))
}

/// The errcode for what ruma could not read.
fn refusal(error: FromHttpRequestError) -> ApiError {
    let error = match error {
        FromHttpRequestError::Deserialization(error) => error,
        FromHttpRequestError::MethodMismatch { .. } => return ApiError::wrong_method(),
        error => return ApiError::bad_json(error.to_string()),
    };
    let message = error.to_string();
    match error {
        DeserializationError::Json(_) if is_missing_field(&message) => ApiError::missing_param(message),
        DeserializationError::Json(_) if is_invalid_id(&message) => ApiError::invalid_param(message),
        DeserializationError::Json(_) => ApiError::bad_json(message),
        // The path and the query.
        DeserializationError::Query(_) if is_missing_field(&message) => ApiError::missing_param(message),
        DeserializationError::Header(HeaderDeserializationError::MissingHeader(_)) => ApiError::missing_param(message),
        _ => ApiError::invalid_param(message),
    }
}

/// serde tells a missing field from a wrong one by its words alone.
fn is_missing_field(message: &str) -> bool {
    message.starts_with("missing field")
}

/// So it is with ruma's identifiers inside of JSON.
fn is_invalid_id(message: &str) -> bool {
    [
        IdParseError::Empty,
        IdParseError::InvalidCharacters,
        IdParseError::InvalidServerName,
        IdParseError::MaximumLengthExceeded,
        IdParseError::MissingColon,
        IdParseError::MissingLeadingSigil,
    ]
    .iter()
    .any(|error| message.starts_with(&error.to_string()))
}
