//! `[[listeners]]`

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::section::section;

section! {
    /// An address to listen on. Write `[[listeners]]` once for each; the first one replaces the defaults.
    pub struct Listener {
        /// IP address and port, such as `0.0.0.0:8008` or `[::]:8008`.
        pub address: SocketAddr = (Ipv4Addr::LOCALHOST, 8008).into(),
        /// What is answered here: `client`, `federation`, `well_known`, `admin`, `health`, `metrics`.
        pub resources: Vec<Resource> = vec![Resource::Client, Resource::WellKnown, Resource::Health],
        /// Speak TLS here, with the certificate of the section `[tls]`.
        pub tls: bool = false,
    }
}

impl Listener {
    /// What is listened on if the configuration names nothing.
    pub(super) fn defaults() -> Vec<Self> {
        let metrics = Self {
            address: (Ipv4Addr::LOCALHOST, 9000).into(),
            resources: vec![Resource::Metrics, Resource::Health],
            tls: false,
        };
        vec![Self::default(), metrics]
    }
}

/// A group of paths that a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// `/_matrix/client` and `/_matrix/media`, and the page at `/`.
    Client,
    /// `/_matrix/federation` and `/_matrix/key`.
    Federation,
    /// `/.well-known/matrix`.
    WellKnown,
    /// The operators' API.
    Admin,
    /// `/health/live` and `/health/ready`.
    Health,
    /// `/metrics`.
    Metrics,
}

impl Resource {
    /// The name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Federation => "federation",
            Self::WellKnown => "well_known",
            Self::Admin => "admin",
            Self::Health => "health",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
