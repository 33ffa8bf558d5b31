//! `[tls]`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::section::section;

section! {
    /// Certificates for listeners with `tls = true`. Not in this release.
    pub struct Tls {
        /// Where the certificate comes from: `acme`, `files` or `self_signed`.
        pub mode: TlsMode = TlsMode::Files,
        /// The certificate and its chain, in PEM.
        pub certificate: Option<PathBuf> = None => "\"/etc/myelin/tls/fullchain.pem\"",
        /// The certificate's private key, in PEM.
        pub private_key: Option<PathBuf> = None => "\"/etc/myelin/tls/key.pem\"",
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
