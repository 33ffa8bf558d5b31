//! What this server calls on other servers: finding them, signed requests, their keys, and the outgoing queues.

mod backoff;
mod client;
mod devices;
mod discovery;
pub mod doctor;
mod http;
mod keys;
mod kind;
mod media;
mod options;
pub mod sender;
#[cfg(test)]
mod testing;
mod tls;
mod web;

pub use self::{
    client::Client,
    devices::DeviceEdus,
    discovery::{Dns, DnsError, Srv, Step},
    http::Limits,
    keys::{KeyQuery, OwnKeyError},
    options::{AllowedServers, ClientOptions, Ports, SetupError},
    web::WebClient,
};
