//! `[outbound]`

use super::section::section;

section! {
    /// Requests to push gateways and previewed pages. Those to identity servers and application services are not in this
    /// release.
    pub struct Outbound {
        /// Connect to private and loopback addresses, also without TLS.
        pub allow_private_addresses: bool = false,
        /// Accept certificates that nobody vouches for. For test networks only.
        pub accept_invalid_certificates: bool = false,
    }
}
