//! The front door: connections, TLS, certificates, routing by host and path, forwarding.
