//! The operators' API.
//!
//! For now, what existing tools use to make users: `/_synapse/admin/v1/register`.

mod register;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{Router, routing::get};
use myelin_accounts::Accounts;
use myelin_http::{LayerOptions, RateLimiter, layers_with};

/// The state of the router.
#[derive(Clone)]
pub struct AdminServices {
    /// Users.
    pub accounts: Arc<Accounts>,
    /// How often one may ask.
    pub rate_limiter: Arc<RateLimiter>,
    /// How long a request may take.
    pub layers: LayerOptions,
}

impl std::fmt::Debug for AdminServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminServices").finish_non_exhaustive()
    }
}

/// All endpoints, with what surrounds them.
pub fn router(services: AdminServices) -> Router {
    layers_with(routes(Router::new()), services.layers).with_state(services)
}

/// All endpoints, for a router that has others too.
pub fn routes(router: Router<AdminServices>) -> Router<AdminServices> {
    router.route("/_synapse/admin/v1/register", get(register::nonce).post(register::register))
}
