//! `[federation]`

use std::path::PathBuf;

use super::section::section;

section! {
    /// Talking to other homeservers. Not in this release: the settings are read and have no effect.
    pub struct Federation {
        /// Send to other servers and accept what they send.
        pub enabled: bool = true,
        /// Certificate authorities, in PEM, that are trusted besides those of the operating system.
        pub trusted_ca_file: Option<PathBuf> = None => "\"/etc/myelin/federation-ca.pem\"",
        /// Connect to servers at private and loopback addresses. For test networks.
        pub allow_private_addresses: bool = false,
    }
}
