//! The shape of every Matrix HTTP endpoint: request and response types, authentication, errors, limits.
//!
//! An endpoint is an `async fn(State<S>, Matrix<R>) -> Result<Reply<Response>, ApiError>`, where `R` is one of ruma's
//! request types. [`Endpoints::endpoint`] registers it on every path that `R` ever had, and [`layers`] closes the
//! router with what every answer needs: CORS, a request id, metrics, a deadline, and an answer in place of a panic.
//!
//! ```
//! # use axum::{Router, extract::State};
//! # use myelin_http::{ApiError, Authenticator, Endpoints, Matrix, Reply, layers};
//! use ruma::api::client::account::whoami;
//!
//! async fn who_am_i<S>(
//!     _: State<S>,
//!     request: Matrix<whoami::v3::Request>,
//! ) -> Result<Reply<whoami::v3::Response>, ApiError> {
//!     Ok(Reply(whoami::v3::Response::new(request.session().user_id.clone(), false)))
//! }
//!
//! fn router<S: Authenticator + Clone>() -> Router<S> {
//!     layers(Router::new().endpoint(who_am_i::<S>))
//! }
//! ```

mod body;
mod context;
mod error;
mod layers;
mod matrix;
mod metrics;
mod panics;
mod rate_limit;
mod reply;
mod route;
mod session;
#[cfg(test)]
mod tests;

pub use self::{
    body::{json_object, read_body},
    context::{RequestContext, RequestId},
    error::{ApiError, BoxError},
    layers::{LayerOptions, RENDEZVOUS_PATH, layers, layers_with},
    matrix::{CallerOf, Matrix, parse, take_path},
    rate_limit::{LimitKey, LimitKind, RateLimit, RateLimiter, RateLimits, RateLimitsError},
    reply::{RawJson, Reply},
    route::{EndpointArguments, Endpoints, NamesEndpoint, RouteOptions, paths, route},
    session::{AuthError, Authenticated, Authenticator, ClientAddress, Credentials, Scheme, Session, Standing},
};
