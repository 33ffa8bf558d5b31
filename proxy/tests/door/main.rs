//! The front door with real sockets: what well-behaved clients get, and what hostile ones cannot do.

mod addresses;
mod harness;
mod hostile;
mod plain;
mod tls;
