//! Key backups.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

mod keys;
#[cfg(test)]
mod tests;
mod versions;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

/// Adds the endpoints of this module.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .endpoint(versions::create)
        .endpoint(versions::latest)
        .endpoint(versions::show)
        .endpoint(versions::update)
        .endpoint(versions::delete)
        .endpoint(keys::put)
        .endpoint(keys::put_room)
        .endpoint(keys::put_session)
        .endpoint(keys::all)
        .endpoint(keys::of_room)
        .endpoint(keys::of_session)
        .endpoint(keys::delete)
        .endpoint(keys::delete_room)
        .endpoint(keys::delete_session)
}
