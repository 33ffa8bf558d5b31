//! How this server talks with others.

use std::{path::PathBuf, sync::Arc, time::Duration};

use myelin_process::config;
use ruma::{OwnedServerName, ServerName, events::room::server_acl::RoomServerAclEventContent};

use crate::discovery::{Dns, SystemDns};

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The additional certificate authorities cannot be read.
    #[error("read the certificate authorities in {}", path.display())]
    TrustedCa {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// There is nothing, or something that is no certificate, among the additional authorities.
    #[error("{} holds no certificate that can be used", path.display())]
    NoTrustedCa {
        /// The file.
        path: PathBuf,
    },
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// The resolver cannot be set up.
    #[error("set up the resolver of names: {0}")]
    Dns(String),
    /// The signing key cannot be had.
    #[error("read the signing key")]
    Store(#[from] myelin_store::Error),
    /// The signing key is damaged.
    #[error("the signing key {version} in the database is damaged: {reason}")]
    SigningKey {
        /// The version of the key.
        version: String,
        /// What is wrong.
        reason: String,
    },
}

/// The settings of a [`Client`](crate::Client).
#[derive(Clone)]
pub struct ClientOptions {
    /// Our name.
    pub server_name: OwnedServerName,
    /// Talk with others at all.
    pub enabled: bool,
    /// Which servers we talk with.
    pub allowed: AllowedServers,
    /// Who is asked for keys that cannot be had from their server.
    pub trusted_key_servers: Vec<OwnedServerName>,
    /// Certificate authorities, in PEM, besides those of the operating system.
    pub trusted_ca_file: Option<PathBuf>,
    /// Trust only what is in `trusted_ca_file`. For private federations and tests.
    pub only_trusted_ca_file: bool,
    /// Connect to private and loopback addresses.
    pub allow_private_addresses: bool,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections to one server at once, and requests on their way to it.
    pub connections_per_server_max: usize,
    /// The time to connect to one address, TLS included.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_max: Duration,
    /// Where names are looked up; `None` is the system's resolver.
    pub dns: Option<Arc<dyn Dns>>,
    /// The ports that the specification fixes; tests take others.
    pub ports: Ports,
    /// The bound on remembered keys of other servers, in bytes.
    pub key_cache_bytes: u64,
}

/// The ports that the specification fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Of servers that say nothing else: 8448.
    pub federation: u16,
    /// Of `.well-known` files: 443.
    pub https: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { federation: 8448, https: 443 }
    }
}

impl ClientOptions {
    /// The defaults.
    #[must_use]
    pub fn new(server_name: OwnedServerName) -> Self {
        Self {
            server_name,
            enabled: true,
            allowed: AllowedServers::default(),
            trusted_key_servers: Vec::new(),
            trusted_ca_file: None,
            only_trusted_ca_file: false,
            allow_private_addresses: false,
            connections_max: 256,
            connections_per_server_max: 16,
            connect_timeout: Duration::from_secs(10),
            idle_max: Duration::from_secs(60),
            dns: None,
            ports: Ports::default(),
            key_cache_bytes: 8 * 1024 * 1024,
        }
    }

    /// What the configuration says.
    #[must_use]
    pub fn from_config(server_name: OwnedServerName, config: &config::Federation) -> Self {
        Self {
            enabled: config.enabled,
            allowed: AllowedServers::new(config.allowed_servers.clone(), config.denied_servers.clone()),
            trusted_key_servers: config.trusted_key_servers.clone(),
            trusted_ca_file: config.trusted_ca_file.clone(),
            allow_private_addresses: config.allow_private_addresses,
            connections_max: usize::try_from(config.max_connections).unwrap_or(usize::MAX).max(1),
            ..Self::new(server_name)
        }
    }

    pub(crate) fn dns(&self) -> Result<Arc<dyn Dns>, SetupError> {
        match &self.dns {
            Some(dns) => Ok(Arc::clone(dns)),
            None => Ok(Arc::new(SystemDns::new().map_err(SetupError::Dns)?)),
        }
    }
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientOptions").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The servers that the operator lets us talk with, by the patterns of server ACLs.
#[derive(Clone, Debug)]
pub struct AllowedServers(RoomServerAclEventContent);

impl AllowedServers {
    /// Those that match a pattern of `allowed` and none of `denied`.
    #[must_use]
    pub fn new(allowed: Vec<String>, denied: Vec<String>) -> Self {
        Self(RoomServerAclEventContent::new(true, allowed, denied))
    }

    /// Whether we talk with this server.
    #[must_use]
    pub fn contains(&self, server: &ServerName) -> bool {
        self.0.is_allowed(server)
    }
}

impl Default for AllowedServers {
    fn default() -> Self {
        Self::new(vec!["*".to_owned()], Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::AllowedServers;

    /// Patterns are of the host alone; what is denied is denied even if it is allowed.
    #[test]
    fn allowed_and_denied() {
        let all = AllowedServers::default();
        assert!(all.contains(server_name!("a.example:8448")) && all.contains(server_name!("[::1]")));
        let some = AllowedServers::new(vec!["*.example".to_owned(), "10.0.0.?".to_owned()], vec!["bad.*".to_owned()]);
        for yes in ["a.example", "a.b.example:1", "10.0.0.1:8448"] {
            assert!(some.contains(yes.try_into().unwrap()), "{yes}");
        }
        for no in ["example", "bad.example", "bad.example:1", "10.0.0.12", "a.example.org"] {
            assert!(!some.contains(no.try_into().unwrap()), "{no}");
        }
    }
}
