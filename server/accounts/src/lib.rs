//! Users, devices, sessions, user-interactive authentication and profiles.
//!
//! [`Accounts`] is the one door. It knows no HTTP: its errors are causes, which the edge turns into statuses.

mod clock;
mod devices;
mod error;
mod filters;
mod login;
mod openid;
mod passwords;
mod profiles;
mod register;
mod rendezvous;
mod sessions;
mod shared_secret;
mod standing;
#[cfg(test)]
mod testing;
mod tokens;
mod uia;
mod usernames;

use std::{sync::Arc, time::Duration};

use myelin_store::Store;
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use tokio::{sync::watch, task::JoinHandle};

pub use self::{
    clock::Clock,
    devices::DEVICE_NAME_BYTES_MAX,
    error::{Error, Result},
    filters::FILTER_BYTES_MAX,
    login::{LoggedIn, LoginToken, NewDevice},
    openid::OpenIdToken,
    passwords::PasswordCost,
    profiles::{BoxFuture, Field, MemberProfile, PROFILE_BYTES_MAX, ProfileObserver},
    register::{NewUser, Registration},
    rendezvous::{RENDEZVOUS_BYTES_MAX, RendezvousError, RendezvousMark, RendezvousMessage},
    sessions::{Session, SessionError, Standing},
    shared_secret::SharedSecretRegistration,
    uia::{Authorization, Operation, Stage, UiaError},
};
use self::{filters::FilterCache, passwords::Passwords, sessions::Sessions};

/// How accounts are kept.
#[derive(Clone, Debug)]
pub struct AccountsOptions {
    /// The name behind the colon of every user.
    pub server_name: OwnedServerName,
    /// People may register by themselves.
    pub registration: bool,
    /// Who registers must show a registration token.
    pub require_registration_token: bool,
    /// The operator's registration token. Without one, the token that was made at the first start counts.
    pub registration_token: Option<String>,
    /// Guests may be made.
    pub guest_access: bool,
    /// The secret of operators' registration tools.
    pub shared_secret: Option<String>,
    /// How long a session is believed without asking the database whether it has ended. It is asked less than once in
    /// this time; what ends a session is told to all replicas besides.
    pub session_freshness: Duration,
    /// How long an access token lives that comes with a refresh token. Those without live until the logout.
    pub access_token_lifetime: Duration,
    /// The bound of the caches of sessions and filters together, in bytes.
    pub cache_bytes: u64,
    /// What hashing a password costs.
    pub password_cost: PasswordCost,
    /// Tells the time.
    pub clock: Clock,
}

impl AccountsOptions {
    /// The defaults: nobody registers, access tokens that can be refreshed live for an hour.
    pub fn new(server_name: OwnedServerName) -> Self {
        Self {
            server_name,
            registration: false,
            require_registration_token: true,
            registration_token: None,
            guest_access: false,
            shared_secret: None,
            session_freshness: Duration::from_secs(300),
            access_token_lifetime: Duration::from_secs(60 * 60),
            cache_bytes: 16 * 1024 * 1024,
            password_cost: PasswordCost::default(),
            clock: Clock::system(),
        }
    }
}

/// Our own users and all that belongs to them: one for a process.
pub struct Accounts {
    store: Arc<Store>,
    options: AccountsOptions,
    registration_token: String,
    passwords: Passwords,
    sessions: Arc<Sessions>,
    filters: Cache<(i64, i64), Arc<filters::Kept>, FilterCache>,
    observers: RwLock<Vec<Arc<dyn ProfileObserver>>>,
    stop: watch::Sender<bool>,
    keeper: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Accounts {
    /// Opens the accounts of a store. Makes the registration token at the first start, if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] if the database is away.
    pub async fn open(store: Arc<Store>, options: AccountsOptions) -> Result<Arc<Self>> {
        let registration_token = match &options.registration_token {
            Some(token) => token.clone(),
            None => store.default_registration_token(&tokens::readable(24)).await?,
        };
        let passwords = Passwords::new(&options.password_cost)?;
        let (clock, bytes) = (options.clock.clone(), options.cache_bytes / 4 * 3);
        let sessions = Arc::new(Sessions::new(store.clone(), clock, options.session_freshness, bytes));
        store.observe(Arc::new(sessions::Listener(Arc::downgrade(&sessions))));
        let filter_bytes = options.cache_bytes / 4;
        let (stop, stopped) = watch::channel(false);
        let keeper = tokio::spawn(sessions::keep(sessions.clone(), stopped));
        Ok(Arc::new(Self {
            filters: Cache::with_weighter((filter_bytes / 512).max(16) as usize, filter_bytes, FilterCache),
            store,
            options,
            registration_token,
            passwords,
            sessions,
            observers: RwLock::new(Vec::new()),
            stop,
            keeper: parking_lot::Mutex::new(Some(keeper)),
        }))
    }

    /// The name behind the colon of every user.
    pub fn server_name(&self) -> &ServerName {
        &self.options.server_name
    }

    /// The token that lets people register: the operator's, or the one of the first start. Secret.
    pub fn registration_token(&self) -> &str {
        &self.registration_token
    }

    /// Adds someone who has to know of changed profiles and ended accounts.
    pub fn observe(&self, observer: Arc<dyn ProfileObserver>) {
        self.observers.write().push(observer);
    }

    /// Bytes in the caches: sessions, filters.
    pub fn cache_weights(&self) -> [(&'static str, u64); 2] {
        [("sessions", self.sessions.weight()), ("filters", self.filters.weight())]
    }

    /// Hits and misses of the cache of sessions.
    pub fn session_hits(&self) -> (u64, u64) {
        self.sessions.hits()
    }

    /// Writes down what is still in memory (when devices were seen last) and stops.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        let keeper = self.keeper.lock().take();
        if let Some(keeper) = keeper
            && let Err(error) = keeper.await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the keeper of sessions failed");
        }
    }

    fn now_ms(&self) -> i64 {
        self.options.clock.now_ms()
    }
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("server_name", &self.options.server_name).finish_non_exhaustive()
    }
}
