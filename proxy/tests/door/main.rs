//! The front door with real sockets: what well-behaved clients get, and what hostile ones cannot do.

mod harness;
mod plain;
mod tls;
