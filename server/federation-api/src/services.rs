//! What the handlers are made of.

use std::sync::Arc;

use myelin_accounts::Accounts;
use myelin_encryption::Encryption;
use myelin_http::{AuthError, Authenticator, Credentials, RateLimiter, Session};
use myelin_media::Media;
use myelin_rooms::Rooms;
use myelin_store::Store;
use myelin_sync::Sync;

use crate::{Inbound, Peers, RemoteWrites};

/// The state of the router: the capabilities.
#[derive(Clone)]
pub struct Services {
    /// What is kept.
    pub store: Arc<Store>,
    /// Our users.
    pub accounts: Arc<Accounts>,
    /// Rooms, to read.
    pub rooms: Arc<Rooms>,
    /// Rooms, to write: the same, most often.
    pub writes: Arc<dyn RemoteWrites>,
    /// Devices and their keys.
    pub encryption: Arc<Encryption>,
    /// Files.
    pub media: Arc<Media>,
    /// Typing, presence, receipts.
    pub sync: Arc<Sync>,
    /// Other servers.
    pub peers: Arc<dyn Peers>,
    /// What is under way.
    pub inbound: Arc<Inbound>,
    /// How often an address may ask for what anyone may ask for.
    pub rate_limiter: Arc<RateLimiter>,
    /// `false` answers nothing at all.
    pub is_enabled: bool,
}

/// For the endpoints that need no signature. None takes an access token.
impl Authenticator for Services {
    async fn authenticate(&self, _: Credentials<'_>) -> Result<Arc<Session>, AuthError> {
        Err(AuthError::UnknownToken { soft_logout: false })
    }

    fn rate_limiter(&self) -> Option<&RateLimiter> {
        Some(&self.rate_limiter)
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}
