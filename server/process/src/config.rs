//! What the operator wants: defaults, below TOML files, below the environment.
//!
//! A key that nobody knows is an error that names the key and where it stands. Sections are one file each; a
//! setting's doc comment is also what `myelin config generate` writes above it, so there is one text for both.

mod acme;
mod appservices;
mod cache;
mod check;
mod database;
mod federation;
mod generate;
mod limits;
mod listeners;
mod load;
mod log;
mod media;
mod network;
mod outbound;
mod presence;
mod rate_limits;
mod registration;
mod rtc;
mod secret;
mod section;
mod tls;
mod turn;
mod well_known;

use std::{net::SocketAddr, path::PathBuf};

use ruma::{OwnedServerName, owned_server_name};
use url::Url;

use section::section;

pub use self::{
    acme::{Acme, AcmeChallenge, DnsKeyAlgorithm},
    appservices::Appservices,
    cache::Cache,
    check::{Problem, Severity},
    database::Database,
    federation::Federation,
    limits::Limits,
    listeners::{ForwardedHeader, Listener, Resource},
    load::LoadError,
    log::{Log, LogFormat},
    media::Media,
    network::{Network, NotANetwork},
    outbound::Outbound,
    presence::Presence,
    rate_limits::{RateLimit, RateLimits},
    registration::Registration,
    rtc::Rtc,
    secret::{Secret, SecretError},
    tls::{Tls, TlsMode},
    turn::Turn,
    well_known::{Contact, WellKnown},
};

section! {
    /// The settings of a Myelin server.
    pub struct Config {
        /// The name behind the colon of every user and room of this server. It can never change: it is pinned in
        /// the database at the first start, and another one is refused from then on.
        pub server_name: OwnedServerName = owned_server_name!("localhost"),
        /// The address that clients are told to use. Unset: `https://` and the server name.
        pub public_baseurl: Option<Url> = None => "\"https://matrix.example.org/\"",
        /// The folder of what is not in the database: uploaded media, and the embedded database itself. A relative
        /// path counts from the folder that the server is started in.
        pub data_dir: PathBuf = PathBuf::from("./myelin-data"),
        /// The database.
        pub database: Database = Database::default(),
        /// The addresses to listen on, and what is answered there.
        pub listeners: Vec<Listener> = Listener::defaults(),
        /// Certificates for listeners with `tls = true`.
        pub tls: Tls = Tls::default(),
        /// The certificate authority.
        pub acme: Acme = Acme::default(),
        /// What is told at `/.well-known/matrix`.
        pub well_known: WellKnown = WellKnown::default(),
        /// Who may make an account.
        pub registration: Registration = Registration::default(),
        /// Talking to other homeservers.
        pub federation: Federation = Federation::default(),
        /// Requests that this server makes, other than federation.
        pub outbound: Outbound = Outbound::default(),
        /// Application services (bridges and bots).
        pub appservices: Appservices = Appservices::default(),
        /// How often a user or an address may ask.
        pub rate_limits: RateLimits = RateLimits::default(),
        /// Memory for what was read from the database.
        pub cache: Cache = Cache::default(),
        /// Logs.
        pub log: Log = Log::default(),
        /// Who is online.
        pub presence: Presence = Presence::default(),
        /// A TURN server for calls.
        pub turn: Turn = Turn::default(),
        /// Calls of many people.
        pub rtc: Rtc = Rtc::default(),
        /// Uploaded files.
        pub media: Media = Media::default(),
        /// Bounds on requests.
        pub limits: Limits = Limits::default(),
    }
}

impl Config {
    /// The settings of `myelin serve` without a configuration file: for trying it out on one's own machine.
    ///
    /// Registration is open to whoever holds the registration token.
    #[must_use]
    pub fn embedded_default() -> Self {
        Self {
            registration: Registration { enabled: true, ..Registration::default() },
            // No other server can find one called localhost, and most would not believe it.
            federation: Federation { enabled: false, ..Federation::default() },
            ..Self::default()
        }
    }

    /// The address that clients are told to use.
    ///
    /// `public_baseurl` if it is set; else, for the server name `localhost`, the first listener for clients; else
    /// `https://` and the server name.
    #[must_use]
    pub fn client_baseurl(&self) -> Url {
        if let Some(url) = &self.public_baseurl {
            return url.clone();
        }
        let own = if self.server_name == "localhost" {
            let listener = self.listeners.iter().find(|listener| listener.resources.contains(&Resource::Client));
            let (scheme, port) = match listener {
                Some(listener) => (if listener.tls { "https" } else { "http" }, listener.address.port()),
                None => ("http", 8008),
            };
            format!("{scheme}://localhost:{port}/")
        } else {
            format!("https://{}/", self.server_name)
        };
        Url::parse(&own).expect("a server name is a host with an optional port, and `https://` before it makes a URL")
    }

    /// The address of the first listener that answers for `resource`.
    #[must_use]
    pub fn listener_for(&self, resource: Resource) -> Option<SocketAddr> {
        self.listeners.iter().find(|listener| listener.resources.contains(&resource)).map(|listener| listener.address)
    }

    /// The database's URL: `database.url`, or what is in `database.url_file`, or SQLite in the data folder.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn database_url(&self) -> Result<Secret, SecretError> {
        let given = Secret::resolve(self.database.url.as_ref(), self.database.url_file.as_deref())?;
        Ok(given.unwrap_or_else(|| database::embedded_url(&self.data_dir)))
    }

    /// The registration token that the operator chose, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn registration_token(&self) -> Result<Option<Secret>, SecretError> {
        Secret::resolve(self.registration.token.as_ref(), self.registration.token_file.as_deref())
    }

    /// The secret of operators' registration tools, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn registration_shared_secret(&self) -> Result<Option<Secret>, SecretError> {
        Secret::resolve(self.registration.shared_secret.as_ref(), self.registration.shared_secret_file.as_deref())
    }

    /// The secret of the TURN server, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn turn_shared_secret(&self) -> Result<Option<Secret>, SecretError> {
        Secret::resolve(self.turn.shared_secret.as_ref(), self.turn.shared_secret_file.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, Resource};

    /// Without a setting, clients on one's own machine are sent to the listener that answers them.
    #[test]
    fn baseurl_follows_the_server_name() {
        let mut config = Config::embedded_default();
        assert_eq!(config.client_baseurl().as_str(), "http://localhost:8008/");
        config.server_name = "example.org".try_into().unwrap();
        assert_eq!(config.client_baseurl().as_str(), "https://example.org/");
        config.server_name = "[2001:db8::1]:8448".try_into().unwrap();
        assert_eq!(config.client_baseurl().as_str(), "https://[2001:db8::1]:8448/");
    }

    /// What is promised of a server without a configuration file.
    #[test]
    fn embedded_default_is_private_and_by_token() {
        let config = Config::embedded_default();
        assert!(config.registration.enabled && config.registration.require_token);
        assert!(config.listeners.iter().all(|listener| listener.address.ip().is_loopback()));
        assert_eq!(config.listener_for(Resource::Client).unwrap().port(), 8008);
        assert_eq!(config.listener_for(Resource::Metrics).unwrap().port(), 9000);
        assert_eq!(config.database_url().unwrap().expose(), "sqlite://./myelin-data/myelin.db");
        assert!(config.check().is_empty(), "{:?}", config.check());
    }
}
