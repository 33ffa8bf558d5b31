//! The operators' API.
//!
//! For now, what existing tools use to make users: `/_synapse/admin/v1/register`.

mod register;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{Router, routing::get};
use myelin_accounts::Accounts;
use myelin_http::RateLimiter;

/// The state of the router.
#[derive(Clone)]
pub struct AdminServices {
    /// Users.
    pub accounts: Arc<Accounts>,
    /// How often one may ask.
    pub rate_limiter: Arc<RateLimiter>,
}

impl std::fmt::Debug for AdminServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminServices").finish_non_exhaustive()
    }
}

/// All endpoints, to be closed by [`myelin_http::layers`] together with what else the listener answers.
pub fn router(services: AdminServices) -> Router {
    Router::new()
        .route("/_synapse/admin/v1/register", get(register::nonce).post(register::register))
        .with_state(services)
}
