//! The front door with real sockets: what well-behaved clients get, and what hostile ones cannot do.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod acme;
mod addresses;
mod bind;
mod dns;
mod harness;
mod hostile;
mod pebble;
mod plain;
mod routing;
mod tls;
