//! `[outbound]`

use super::section::section;

section! {
    /// Requests to push gateways, previewed pages, identity servers and application services. Nothing in this
    /// release makes such a request yet.
    pub struct Outbound {
        /// Connect to private and loopback addresses.
        pub allow_private_addresses: bool = false,
        /// Accept certificates that nobody vouches for. For test networks only.
        pub accept_invalid_certificates: bool = false,
    }
}
