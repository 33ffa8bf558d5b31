//! `[limits]`

use std::time::Duration;

use super::section::section;

section! {
    /// Bounds on requests.
    pub struct Limits {
        /// The largest JSON body of a request, in bytes.
        pub max_body_bytes: u64 = 1024 * 1024,
        /// Seconds until a request that is not a long poll is given up.
        pub request_deadline_seconds: u64 = 30,
        /// The longest that a client may let `/sync` wait, in seconds.
        pub max_sync_timeout_seconds: u64 = 300,
        /// Seconds that requests under way have to finish when the server stops.
        pub shutdown_seconds: u64 = 30,
        /// Connections at once from one address (of IPv6, from one network of 64 bits). Loopback addresses and the
        /// `trusted_proxies` of listeners have no such bound.
        pub max_connections_per_address: u64 = 1000,
    }
}

impl Limits {
    /// The time until a request that is not a long poll is given up.
    #[must_use]
    pub fn request_deadline(&self) -> Duration {
        Duration::from_secs(self.request_deadline_seconds)
    }

    /// The longest that a client may let `/sync` wait.
    #[must_use]
    pub fn max_sync_timeout(&self) -> Duration {
        Duration::from_secs(self.max_sync_timeout_seconds)
    }

    /// The time that requests under way have when the server stops.
    #[must_use]
    pub fn shutdown(&self) -> Duration {
        Duration::from_secs(self.shutdown_seconds)
    }
}
