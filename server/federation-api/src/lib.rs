//! What other servers call on this one: `/_matrix/federation` and `/_matrix/key`.
//!
//! One file an endpoint. A handler takes a signed request apart, makes one call, and puts the answer
//! together; what is allowed is decided by the capabilities in [`Services`].

mod canonical;
mod devices;
mod errors;
mod inbound;
mod json;
mod keys;
mod media;
mod metrics;
mod openid;
mod own;
mod peers;
mod public_rooms;
mod query;
mod rooms;
mod services;
mod signed;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod third_party;
mod transactions;
mod version;
mod x_matrix;

pub use self::{
    inbound::Inbound,
    peers::{Peers, RemoteWrites},
    services::Services,
};
use axum::Router;

/// All endpoints, to be closed by [`myelin_http::layers`] together with what else the listener answers. There are none
/// where federation is off.
pub fn router(services: Services) -> Router {
    if !services.is_enabled {
        return Router::new();
    }
    metrics::show();
    let modules = [
        devices::routes,
        keys::routes,
        media::routes,
        openid::routes,
        public_rooms::routes,
        query::routes,
        rooms::routes,
        third_party::routes,
        transactions::routes,
        version::routes,
    ];
    modules.into_iter().fold(Router::new(), |router, routes| routes(router)).with_state(services)
}
