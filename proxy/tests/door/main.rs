//! The front door with real sockets: what well-behaved clients get, and what hostile ones cannot do.

mod acme;
mod addresses;
mod harness;
mod hostile;
mod pebble;
mod plain;
mod routing;
mod tls;
