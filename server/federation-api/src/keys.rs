//! Keys: ours, and those of others with our word that they are theirs.
//!
//! <https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys>

mod publish;
mod query;
#[cfg(test)]
mod tests;

use axum::Router;
use myelin_http::{Endpoints as _, LimitKind, RouteOptions};

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    // Anyone may ask, and each question makes us sign, or ask others.
    let anyone = RouteOptions::new().rate_limit(LimitKind::Other);
    router
        .endpoint_with(anyone, publish::publish)
        .endpoint_with(anyone, query::one)
        .endpoint_with(anyone, query::several)
}
