//! Messages to devices.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

mod send;
#[cfg(test)]
mod tests;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

/// Adds the endpoint of this module.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(send::send)
}
