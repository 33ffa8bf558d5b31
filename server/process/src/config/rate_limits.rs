//! `[rate_limits]`

use serde::{Deserialize, Serialize};

use super::section::section;

section! {
    /// How often a user, or an address without a user, may ask. Who asks more often is told when to come back.
    pub struct RateLimits {
        /// `false` turns every limit of this section off.
        pub enabled: bool = true,
        /// Attempts to log in, for each address and each account.
        pub login: RateLimit = RateLimit { per_second: 0.2, burst: 10 },
        /// Attempts to register, for each address.
        pub registration: RateLimit = RateLimit { per_second: 0.2, burst: 10 },
        /// Joins, for each user.
        pub joins: RateLimit = RateLimit { per_second: 0.5, burst: 20 },
        /// Messages and other events, for each user.
        pub messages: RateLimit = RateLimit { per_second: 10.0, burst: 100 },
        /// Every other request, for each user or address.
        pub other: RateLimit = RateLimit { per_second: 50.0, burst: 500 },
    }
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// How many requests a second are allowed in the long run.
    pub per_second: f64,
    /// How many may come at once after a quiet time.
    pub burst: u32,
}
