//! Queries about users and rooms.
//!
//! <https://spec.matrix.org/v1.19/server-server-api/#querying-for-information>

mod directory;
mod other;
mod profile;
#[cfg(test)]
mod tests;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(directory::directory).endpoint(profile::profile).endpoint(other::other)
}
