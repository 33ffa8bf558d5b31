//! The client-server API: /_matrix/client and /_matrix/media.
//!
//! One module a module of the specification, one file an endpoint. A handler takes its request apart, makes one call,
//! and puts the answer together; what is allowed is decided by the capabilities in [`Services`].

mod account;
mod device;
mod discovery;
mod errors;
mod filter;
mod media;
mod profile;
mod rooms;
mod services;
mod session;
mod sync;
#[cfg(test)]
mod testing;
mod uiaa;

use axum::Router;
use myelin_http::layers_with;

pub use self::{rooms::RoomProfiles, services::Services};

/// All endpoints, with what surrounds them: CORS, request ids, metrics, deadlines, the answers for what is not there.
pub fn router(services: Services) -> Router {
    let modules = [
        account::routes,
        device::routes,
        discovery::routes,
        filter::routes,
        media::routes,
        profile::routes,
        rooms::routes,
        session::routes,
        sync::routes,
    ];
    let router = modules.into_iter().fold(Router::new(), |router, routes| routes(router));
    layers_with(router, services.layers).with_state(services)
}
