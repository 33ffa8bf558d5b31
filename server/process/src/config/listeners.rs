//! `[[listeners]]`

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{Problem, network::Network, section::section};

section! {
    /// An address to listen on. Write `[[listeners]]` once for each; the first one replaces the defaults.
    pub struct Listener {
        /// IP address and port, such as `0.0.0.0:8008` or `[::]:8008`.
        pub address: SocketAddr = (Ipv4Addr::LOCALHOST, 8008).into(),
        /// What is answered here: `client`, `federation`, `well_known`, `admin`, `health`, `metrics`.
        pub resources: Vec<Resource> = vec![Resource::Client, Resource::WellKnown, Resource::Health],
        /// Speak TLS here, with the certificate of the section `[tls]`.
        pub tls: bool = false,
        /// Answer every request with the same address at `https://`, but for the questions of ACME. `resources` may be
        /// empty then.
        pub redirect_to_https: bool = false,
        /// Proxies in front of this server: addresses, and networks such as `10.0.0.0/8`. They are believed when they
        /// tell the client's address, which the rate limits count; nobody else is.
        pub trusted_proxies: Vec<Network> = Vec::new(),
        /// The header in which trusted proxies write the client's address: `x_forwarded_for` or `forwarded`.
        pub client_address_header: ForwardedHeader = ForwardedHeader::XForwardedFor,
        /// Every connection begins with a header of the PROXY protocol, version 1 or 2, from a trusted proxy; others
        /// are closed.
        pub proxy_protocol: bool = false,
    }
}

impl Listener {
    /// What is listened on if the configuration names nothing.
    pub(super) fn defaults() -> Vec<Self> {
        let metrics = Self {
            address: (Ipv4Addr::LOCALHOST, 9000).into(),
            resources: vec![Resource::Metrics, Resource::Health],
            ..Self::default()
        };
        vec![Self::default(), metrics]
    }

    /// What is wrong with how connections are taken here.
    pub(super) fn check_connections(&self, key: impl Fn(&str) -> String, found: &mut Vec<Problem>) {
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            let message = "it needs `trusted_proxies`: from anybody else, the header is not believed";
            found.push(Problem::error(&key("proxy_protocol"), message));
        }
        if self.redirect_to_https && self.tls {
            found.push(Problem::error(&key("redirect_to_https"), "it is for a listener without TLS"));
        }
        if self.redirect_to_https && !self.resources.is_empty() {
            let message = "nothing of `resources` is answered here, since every request is redirected";
            found.push(Problem::warning(&key("redirect_to_https"), message));
        }
    }
}

/// The header in which proxies tell the client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, which nearly all write.
    #[default]
    XForwardedFor,
    /// `Forwarded`, the standard's.
    Forwarded,
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
