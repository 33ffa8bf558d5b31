//! The operators' API.
//!
//! For now, what existing tools use to make users, `/_synapse/admin/v1/register`, and what users have reported,
//! `/_myelin/admin/v1/reports`.

mod register;
mod reports;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Router,
    routing::{delete, get},
};
use myelin_accounts::{Accounts, SessionError};
use myelin_http::{AuthError, Authenticator, Credentials, RateLimiter, Session, Standing};
use myelin_store::Store;

/// The state of the router.
#[derive(Clone)]
pub struct AdminServices {
    /// Users.
    pub accounts: Arc<Accounts>,
    /// What is kept.
    pub store: Arc<Store>,
    /// How often one may ask.
    pub rate_limiter: Arc<RateLimiter>,
}

impl std::fmt::Debug for AdminServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminServices").finish_non_exhaustive()
    }
}

impl Authenticator for AdminServices {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Arc<Session>, AuthError> {
        let address = Some(credentials.client_address).filter(|address| !address.is_unspecified());
        let session = match self.accounts.session(credentials.token, address).await {
            Ok(session) => session,
            Err(SessionError::Unknown) => return Err(AuthError::UnknownToken { soft_logout: false }),
            Err(SessionError::Expired) => return Err(AuthError::UnknownToken { soft_logout: true }),
            Err(SessionError::Unavailable(error)) => return Err(AuthError::Unavailable(error.into())),
        };
        Ok(Arc::new(Session {
            user_nid: session.user_nid,
            user_id: session.user_id.clone(),
            device_nid: session.device_nid,
            device_id: session.device_id.clone(),
            is_guest: session.is_guest,
            is_admin: session.is_admin,
            standing: match session.standing {
                myelin_accounts::Standing::Good => Standing::Good,
                myelin_accounts::Standing::Suspended => Standing::Suspended,
                myelin_accounts::Standing::Locked => Standing::Locked,
            },
            appservice_id: None,
            is_rate_limit_exempt: false,
        }))
    }

    fn rate_limiter(&self) -> Option<&RateLimiter> {
        Some(&self.rate_limiter)
    }
}

/// All endpoints, to be closed by [`myelin_http::layers`] together with what else the listener answers.
pub fn router(services: AdminServices) -> Router {
    Router::new()
        .route("/_synapse/admin/v1/register", get(register::nonce).post(register::register))
        .route("/_myelin/admin/v1/reports", get(reports::list))
        .route("/_myelin/admin/v1/reports/{id}", delete(reports::delete))
        .with_state(services)
}
