//! `[federation]`

use std::path::PathBuf;

use ruma::{OwnedServerName, owned_server_name};

use super::section::section;

section! {
    /// Talking to other homeservers.
    pub struct Federation {
        /// Send to other servers and accept what they send.
        pub enabled: bool = true,
        /// The servers that we talk with, as patterns: `*` stands for any characters, `?` for one. Ports are not
        /// looked at.
        pub allowed_servers: Vec<String> = vec!["*".to_owned()],
        /// The servers that we do not talk with, as patterns, even if they are allowed above.
        pub denied_servers: Vec<String> = Vec::new(),
        /// Servers that are asked for the keys of servers that do not answer. They are believed.
        pub trusted_key_servers: Vec<OwnedServerName> = vec![owned_server_name!("matrix.org")],
        /// Certificate authorities, in PEM, that are trusted besides those of the operating system.
        pub trusted_ca_file: Option<PathBuf> = None => "\"/etc/myelin/federation-ca.pem\"",
        /// Connect to servers at private and loopback addresses. For test networks.
        pub allow_private_addresses: bool = false,
        /// Connections to other servers at once.
        pub max_connections: u32 = 256,
    }
}
