//! The error envelope: what a client is told, and what the log learns.

use std::{borrow::Cow, error::Error, fmt, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use ruma::api::error::{ErrorCode, ErrorKind, StandardErrorBody};
use serde::Serialize;
use serde_json::{Map, Value};

/// The cause of an [`ApiError`] that is the server's own fault.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A refusal in the form of the specification's [standard error response]; the one error type of all handlers.
///
/// Clients learn the status, the errcode and the message; a cause goes to the log alone, once, when the answer is
/// made.
///
/// [standard error response]: https://spec.matrix.org/v1.19/client-server-api/#standard-error-response
pub struct ApiError(Box<Refusal>);

struct Refusal {
    status: StatusCode,
    body: RefusalBody,
    retry_after: Option<Duration>,
    cause: Option<Cause>,
}

enum RefusalBody {
    Standard { errcode: ErrorCode, message: Cow<'static, str>, fields: Map<String, Value> },
    UserInteractive(Value),
}

enum Cause {
    /// Someone must act.
    Fault(BoxError),
    /// Something that we lean on is away; it comes back by itself.
    Outage(BoxError),
}

impl ApiError {
    /// A refusal with this status, errcode and message.
    pub fn new(status: StatusCode, errcode: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        let body = RefusalBody::Standard { errcode, message: message.into(), fields: Map::new() };
        Self(Box::new(Refusal { status, body, retry_after: None, cause: None }))
    }

    /// A refusal with ruma's description of it, including the fields that belong to its errcode.
    pub fn from_kind(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        let body = StandardErrorBody::new(kind, message.into());
        let mut error = Self::new(status, body.kind.errcode(), body.message.clone());
        if let Ok(Value::Object(fields)) = serde_json::to_value(&body) {
            for (name, value) in fields {
                error = error.with_field(&name, value);
            }
        }
        error
    }

    /// Adds a field to the body, as some errcodes ask for (`room_version`, `current_version`, …).
    #[must_use]
    pub fn with_field(mut self, name: &str, value: impl Into<Value>) -> Self {
        if let RefusalBody::Standard { fields, .. } = &mut self.0.body
            && !matches!(name, "errcode" | "error")
        {
            fields.insert(name.to_owned(), value.into());
        }
        self
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message)
    }

    /// 404 `M_UNRECOGNIZED`: an endpoint that we do not have.
    pub fn unrecognized() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::Unrecognized, "Unknown endpoint")
    }

    /// 405 `M_UNRECOGNIZED`: an endpoint that we have, asked with another method.
    pub fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unrecognized, "Wrong method for this endpoint")
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::MissingParam, message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidParam, message)
    }

    /// 400 `M_NOT_JSON`.
    pub fn not_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::NotJson, message)
    }

    /// 400 `M_BAD_JSON`.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadJson, message)
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, message)
    }

    /// 401 `M_MISSING_TOKEN`.
    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::MissingToken, "Missing access token")
    }

    /// 401 `M_UNKNOWN_TOKEN`; `soft_logout` tells the client that it may log in again with the same device.
    pub fn unknown_token(soft_logout: bool) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, "Unknown access token")
            .with_field("soft_logout", soft_logout)
    }

    /// 401 `M_USER_LOCKED`.
    pub fn user_locked() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::UserLocked, "This account has been locked")
            .with_field("soft_logout", true)
    }

    /// 403 `M_USER_SUSPENDED`.
    pub fn user_suspended() -> Self {
        let message = "You cannot perform this action while suspended.";
        Self::new(StatusCode::FORBIDDEN, ErrorCode::UserSuspended, message)
    }

    /// 403 `M_GUEST_ACCESS_FORBIDDEN`.
    pub fn guest_access_forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::GuestAccessForbidden, "Guests cannot do this")
    }

    /// 429 `M_LIMIT_EXCEEDED`, with the time to wait as a `Retry-After` header and in the body.
    pub fn limit_exceeded(retry_after: Duration) -> Self {
        let retry_after_ms = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::LimitExceeded, "Too many requests")
            .with_field("retry_after_ms", retry_after_ms);
        error.0.retry_after = Some(retry_after);
        error
    }

    /// 500 `M_UNKNOWN`: a fault of ours. The client sees none of the cause; the log has its whole chain.
    pub fn unknown(cause: impl Into<BoxError>) -> Self {
        Self::internal(Some(Cause::Fault(cause.into())))
    }

    /// 500 `M_UNKNOWN` for a fault that is already in the log.
    pub fn unknown_logged() -> Self {
        Self::internal(None)
    }

    fn internal(cause: Option<Cause>) -> Self {
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "Internal server error");
        error.0.cause = cause;
        error
    }

    /// 503 `M_UNKNOWN`: what we lean on (the database, most often) is away for now.
    pub fn unavailable(cause: impl Into<BoxError>) -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unknown,
            "The server cannot answer this now, try again later",
        );
        error.0.cause = Some(Cause::Outage(cause.into()));
        error
    }

    /// 401 with the body of [user-interactive authentication]: what is left to do, and what went wrong, if anything.
    ///
    /// [user-interactive authentication]: https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api
    pub fn uiaa(info: &impl Serialize) -> Self {
        let info = match serde_json::to_value(info) {
            Ok(info) => info,
            Err(error) => return Self::unknown(error),
        };
        let body = RefusalBody::UserInteractive(info);
        Self(Box::new(Refusal { status: StatusCode::UNAUTHORIZED, body, retry_after: None, cause: None }))
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The errcode of the answer; `None` for a stage of user-interactive authentication.
    pub fn errcode(&self) -> Option<&ErrorCode> {
        match &self.0.body {
            RefusalBody::Standard { errcode, .. } => Some(errcode),
            RefusalBody::UserInteractive(_) => None,
        }
    }
}

impl Refusal {
    fn into_body(self) -> Value {
        match self.body {
            RefusalBody::Standard { errcode, message, mut fields } => {
                fields.insert("errcode".to_owned(), errcode.as_str().into());
                fields.insert("error".to_owned(), message.into_owned().into());
                Value::Object(fields)
            }
            RefusalBody::UserInteractive(info) => info,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self.0.cause {
            None => {}
            Some(Cause::Fault(cause)) => tracing::error!(error = %Chain(cause), "request failed: {}", Chain(cause)),
            Some(Cause::Outage(cause)) => tracing::warn!(error = %Chain(cause), "request refused: {}", Chain(cause)),
        }
        let status = self.0.status;
        let retry_after = self.0.retry_after;
        let mut response = Response::new(Body::from(self.0.into_body().to_string()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = retry_after {
            // Whole seconds, rounded up: a client that comes back earlier is refused again.
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.body {
            RefusalBody::Standard { errcode, message, .. } => {
                write!(f, "ApiError({} {errcode}: {message})", self.0.status)
            }
            RefusalBody::UserInteractive(_) => write!(f, "ApiError({} user-interactive)", self.0.status),
        }
    }
}

/// An error and what caused it, on one line.
struct Chain<'a>(&'a BoxError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
