//! The front door: connections, TLS, certificates, routing by host and path, forwarding.
//!
//! - [`FrontDoor`]: accepts connections, bounds them, speaks HTTP/1.1 and HTTP/2 with them, and drains them.
//! - [`Serve`]: what answers the requests.
//! - [`Certificates`]: the certificate of a process, which may be exchanged while connections are open. It comes from
//!   files ([`certificate_files`]) or is made by the process itself ([`Certificate::self_signed`]).

mod accept;
mod certificate;
pub mod certificate_files;
mod connection;
mod http;
mod tls;

pub use self::{
    accept::{FrontDoor, Limits, Listening, bind},
    certificate::{Certificate, CertificateError, Certificates},
    http::Serve,
    tls::Tls,
};
