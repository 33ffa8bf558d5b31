//! The front door: connections, TLS, certificates, routing by host and path, forwarding.
//!
//! - [`FrontDoor`]: accepts connections, bounds them, speaks HTTP/1.1 and HTTP/2 with them, and drains them.
//! - [`Serve`]: what answers the requests; [`Manners`]: what happens to each request before.
//! - [`Certificates`]: the certificate of a process, which may be exchanged while connections are open. It comes from
//!   files ([`certificate_files`]), from an authority ([`acme`]), or is made by the process itself
//!   ([`Certificate::self_signed`]).

mod accept;
pub mod acme;
mod admission;
mod certificate;
pub mod certificate_files;
mod connection;
mod forwarded;
mod http;
mod linger;
mod manners;
mod proxy_protocol;
mod refusal;
mod request_body;
mod route;
mod static_files;
mod tls;
mod upstream;
pub mod well_known;

pub use self::{
    accept::{Binder, FrontDoor, Limits, Listening, bind},
    certificate::{Certificate, CertificateError, Certificates},
    forwarded::TrustedProxies,
    http::Serve,
    manners::{HostHeaders, Manners},
    request_body::RequestBody,
    route::{Route, Router, Target},
    static_files::StaticFiles,
    tls::{Tls, TlsError},
    upstream::{AnswerBody, BodyError, NotAnUpstream, UpstreamAddress, Upstreams},
};
