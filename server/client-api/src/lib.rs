//! The client-server API: /_matrix/client and /_matrix/media.
//!
//! One module a module of the specification, one file an endpoint. A handler takes its request apart, makes one call,
//! and puts the answer together; what is allowed is decided by the capabilities in [`Services`].

mod account;
mod admin;
mod backup;
mod device;
mod discovery;
mod errors;
mod filter;
mod keys;
mod login_fallback;
mod media;
mod mutual_rooms;
mod old_sync;
#[cfg(test)]
mod operations;
mod own;
mod profile;
mod push;
mod rendezvous;
mod report;
mod rooms;
mod search;
mod services;
mod session;
mod sync;
#[cfg(test)]
mod testing;
mod third_party_networks;
mod to_device;
mod uiaa;
mod user_directory;
mod voip;

pub use self::{
    rooms::RoomProfiles,
    services::Services,
    voip::{CallOptions, TurnOptions},
};
use axum::Router;

/// All endpoints, to be closed by [`myelin_http::layers`] together with what else the listener answers.
pub fn router(services: Services) -> Router {
    let modules = [
        account::routes,
        admin::routes,
        backup::routes,
        device::routes,
        discovery::routes,
        filter::routes,
        keys::routes,
        login_fallback::routes,
        media::routes,
        mutual_rooms::routes,
        old_sync::routes,
        profile::routes,
        push::routes,
        rendezvous::routes,
        report::routes,
        rooms::routes,
        search::routes,
        session::routes,
        sync::routes,
        third_party_networks::routes,
        to_device::routes,
        user_directory::routes,
        voip::routes,
    ];
    modules.into_iter().fold(Router::new(), |router, routes| routes(router)).with_state(services)
}
