//! Certificates from an authority that speaks ACME (RFC 8555), such as Let's Encrypt.
//!
//! [`Acme`] keeps one certificate for some names. Everything durable is in a [`Storage`] that all replicas share; one
//! of them at a time asks the authority, and the others take over what it got.

mod challenges;
mod client;
mod dns;
mod driver;
mod error;
mod folder;
mod order;
mod schedule;
mod settings;
mod storage;

pub(crate) use self::challenges::{ACME_TLS, tls_alpn_certificate};
pub use self::{
    challenges::Challenges,
    dns::{Dns, DnsCommand, DnsError, DnsKey, DnsKeyAlgorithm, DnsKeyError, DnsUpdate},
    driver::Acme,
    error::{AcmeError, StorageError},
    folder::Folder,
    settings::{AcmeSettings, ChallengeKind, ExternalAccount, Pace},
    storage::{Issued, Proof, Record, Storage},
};
