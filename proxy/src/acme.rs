//! Certificates from an authority that speaks ACME (RFC 8555), such as Let's Encrypt.

mod challenges;

pub use self::challenges::Challenges;
pub(crate) use self::challenges::{ACME_TLS, tls_alpn_certificate};
