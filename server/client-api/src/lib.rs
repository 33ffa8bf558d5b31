//! The client-server API: /_matrix/client and /_matrix/media.
//!
//! One module a module of the specification, one file an endpoint. A handler takes its request apart, makes one call,
//! and puts the answer together; what is allowed is decided by the capabilities in [`Services`].

mod account;
mod backup;
mod device;
mod discovery;
mod errors;
mod filter;
mod keys;
mod media;
mod own;
mod profile;
mod rendezvous;
mod rooms;
mod services;
mod session;
mod sync;
#[cfg(test)]
mod testing;
mod to_device;
mod uiaa;

pub use self::{rooms::RoomProfiles, services::Services};
use axum::Router;

/// All endpoints, to be closed by [`myelin_http::layers`] together with what else the listener answers.
pub fn router(services: Services) -> Router {
    let modules = [
        account::routes,
        backup::routes,
        device::routes,
        discovery::routes,
        filter::routes,
        keys::routes,
        media::routes,
        profile::routes,
        rendezvous::routes,
        rooms::routes,
        session::routes,
        sync::routes,
        to_device::routes,
    ];
    modules.into_iter().fold(Router::new(), |router, routes| routes(router)).with_state(services)
}
