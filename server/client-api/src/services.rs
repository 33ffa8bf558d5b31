//! What the handlers are made of, and who may call them.

use std::sync::Arc;

use myelin_accounts::{Accounts, SessionError};
use myelin_encryption::Encryption;
use myelin_http::{AuthError, Authenticator, Credentials, RateLimiter, Session, Standing};
use myelin_media::Media;
use myelin_push::Pushers;
use myelin_rooms::Rooms;
use myelin_store::Store;
use myelin_sync::Sync;

use crate::voip::CallOptions;

/// The state of the router: the capabilities.
#[derive(Clone)]
pub struct Services {
    /// What is kept.
    pub store: Arc<Store>,
    /// Users, devices, sessions, profiles.
    pub accounts: Arc<Accounts>,
    /// Rooms.
    pub rooms: Arc<Rooms>,
    /// What clients are told.
    pub sync: Arc<Sync>,
    /// Keys, device lists, messages to devices.
    pub encryption: Arc<Encryption>,
    /// Files.
    pub media: Arc<Media>,
    /// Where devices want to be told of events.
    pub pushers: Arc<Pushers>,
    /// How often one may ask.
    pub rate_limiter: Arc<RateLimiter>,
    /// Where clients find this server.
    pub client_baseurl: Arc<str>,
    /// What calls need beside this server.
    pub calls: Arc<CallOptions>,
}

impl Authenticator for Services {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Arc<Session>, AuthError> {
        let address = Some(credentials.client_address).filter(|address| !address.is_unspecified());
        match self.accounts.session(credentials.token, address).await {
            Ok(session) => Ok(Arc::new(shown(&session))),
            Err(SessionError::Unknown) => Err(AuthError::UnknownToken { soft_logout: false }),
            Err(SessionError::Expired) => Err(AuthError::UnknownToken { soft_logout: true }),
            Err(SessionError::Unavailable(error)) => Err(AuthError::Unavailable(error.into())),
        }
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

fn shown(session: &myelin_accounts::Session) -> Session {
    Session {
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
    }
}

/// The other way: what the accounts ask for.
pub(crate) fn own(session: &Session) -> myelin_accounts::Session {
    myelin_accounts::Session {
        user_nid: session.user_nid,
        user_id: session.user_id.clone(),
        device_nid: session.device_nid,
        device_id: session.device_id.clone(),
        expires_ts: None,
        is_guest: session.is_guest,
        is_admin: session.is_admin,
        standing: match session.standing {
            Standing::Good => myelin_accounts::Standing::Good,
            Standing::Suspended => myelin_accounts::Standing::Suspended,
            Standing::Locked => myelin_accounts::Standing::Locked,
        },
    }
}
