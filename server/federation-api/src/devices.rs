//! Devices of our users, their keys, and keys for a message each.
//!
//! <https://spec.matrix.org/v1.19/server-server-api/#device-management>

mod claim_keys;
mod list;
mod query_keys;
#[cfg(test)]
mod tests;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(list::list).endpoint(query_keys::query_keys).endpoint(claim_keys::claim_keys)
}
