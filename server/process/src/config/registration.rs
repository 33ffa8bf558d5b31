//! `[registration]`

use std::path::PathBuf;

use super::{Secret, section::section};

section! {
    /// Who may make an account.
    pub struct Registration {
        /// People may register by themselves.
        pub enabled: bool = false,
        /// Who registers must know the registration token. With `false`, anyone may register.
        pub require_token: bool = true,
        /// The registration token: 1 to 64 letters, digits, `.`, `_`, `~` or `-`. Unset: one is made at the first
        /// start and kept in the database; `myelin user registration-token` prints it.
        pub token: Option<Secret> = None => "\"come-on-in\"",
        /// A file that holds the token, instead of `token`.
        pub token_file: Option<PathBuf> = None => "\"/etc/myelin/registration_token\"",
        /// People may look into public rooms without an account.
        pub guest_access: bool = false,
        /// The secret by which operators' tools register users at `/_synapse/admin/v1/register`. Unset: they
        /// cannot.
        pub shared_secret: Option<Secret> = None => "\"a long random text\"",
        /// A file that holds the secret, instead of `shared_secret`.
        pub shared_secret_file: Option<PathBuf> = None => "\"/etc/myelin/registration_secret\"",
    }
}
