//! `[turn]`

use std::path::PathBuf;

use super::{Secret, section::section};

section! {
    /// A TURN server, by which people call each other who cannot reach each other directly. Unset: clients are told
    /// that there is none.
    pub struct Turn {
        /// Its addresses, such as `["turn:turn.example.org?transport=udp", "turns:turn.example.org"]`.
        pub uris: Vec<String> = Vec::new(),
        /// The secret that it has too: `static-auth-secret` of coturn.
        pub shared_secret: Option<Secret> = None => "\"a long random text\"",
        /// A file that holds the secret, instead of `shared_secret`.
        pub shared_secret_file: Option<PathBuf> = None => "\"/etc/myelin/turn_secret\"",
        /// Seconds for which what a client is given is good.
        pub lifetime_seconds: u64 = 24 * 60 * 60,
        /// Guests may use it.
        pub allow_guests: bool = false,
    }
}
