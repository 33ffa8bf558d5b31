//! `[tls]`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Problem, check::check_readable, section::section};

section! {
    /// The certificate of listeners with `tls = true`.
    pub struct Tls {
        /// Where the certificate comes from: `files`, `acme` (see the section `[acme]`), or `self_signed` (made at each
        /// start, for trying it out: nobody trusts it).
        pub mode: TlsMode = TlsMode::Files,
        /// The certificate and its chain, in PEM. The file is watched: a new certificate is taken over without a
        /// restart.
        pub certificate: Option<PathBuf> = None => "\"/etc/myelin/tls/fullchain.pem\"",
        /// The certificate's private key, in PEM, not encrypted.
        pub private_key: Option<PathBuf> = None => "\"/etc/myelin/tls/key.pem\"",
        /// For how many seconds browsers remember that they must never use `http://` here (the header
        /// `Strict-Transport-Security` of answers over TLS). 0: no header.
        pub strict_transport_security_seconds: u64 = 0,
    }
}

/// Where the certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Issued by a certificate authority over ACME.
    Acme,
    /// Read from files.
    Files,
    /// Made at start, for tests.
    SelfSigned,
}

impl Tls {
    /// What is wrong, as far as it can be seen without reading certificates.
    pub(super) fn check(&self, found: &mut Vec<Problem>) {
        match self.mode {
            TlsMode::Files => {
                for (key, path) in [("tls.certificate", &self.certificate), ("tls.private_key", &self.private_key)] {
                    match path {
                        Some(path) => check_readable(found, key, path),
                        None => found.push(Problem::error(key, "it is missing, and tls.mode is \"files\"")),
                    }
                }
            }
            TlsMode::SelfSigned | TlsMode::Acme => {}
        }
    }
}
