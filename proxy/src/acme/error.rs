//! Why there is no certificate.

use std::time::{Duration, SystemTime};

use super::DnsError;
use crate::CertificateError;

/// What keeps the account, the certificate and the proofs cannot be used.
pub type StorageError = Box<dyn std::error::Error + Send + Sync>;

/// Why an attempt to get a certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The certificate authority refused, or answered what cannot be understood.
    #[error("{0}")]
    Protocol(#[from] instant_acme::Error),
    /// The authority could not be reached.
    #[error("reach {host}: {reason}")]
    Unreachable {
        /// The authority.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The authority asks to be left alone for a while.
    #[error("the certificate authority limits requests: {0}")]
    RateLimited(String, Option<SystemTime>),
    /// The authority offers no kind of proof that we can give.
    #[error("for {name} the certificate authority accepts {offered}, and none of it can be done here")]
    NoChallenge {
        /// The name.
        name: String,
        /// What it accepts.
        offered: String,
    },
    /// The authority was not convinced.
    #[error("the certificate authority could not see that {name} is ours, by {kind}: {reason}")]
    NotProven {
        /// The name.
        name: String,
        /// The kind of proof.
        kind: &'static str,
        /// What the authority saw.
        reason: String,
    },
    /// What was issued cannot be used.
    #[error("the certificate that was issued: {0}")]
    Certificate(#[from] CertificateError),
    /// The certificates of authorities cannot be read.
    #[error("read the trusted certificate authorities: {0}")]
    Roots(String),
    /// The DNS records of a proof could not be made.
    #[error("make the DNS record: {0}")]
    Dns(#[from] DnsError),
    /// The external account's key is no base64.
    #[error("the external account's key is not base64url")]
    ExternalAccountKey,
    /// What is kept could not be read or written.
    #[error("keep what belongs to the certificate: {0}")]
    Storage(#[from] StorageError),
    /// Another replica has taken over.
    #[error("another replica has taken over")]
    LeaseLost,
    /// It took too long.
    #[error("it was not done within {} minutes", .0.as_secs() / 60)]
    Timeout(Duration),
}

impl AcmeError {
    /// The cause in one word, for metrics.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Protocol(instant_acme::Error::Api(_)) => "refused",
            Self::Protocol(_) => "protocol",
            Self::Unreachable { .. } => "unreachable",
            Self::RateLimited(..) => "rate_limited",
            Self::NoChallenge { .. } | Self::NotProven { .. } => "challenge",
            Self::Certificate(_) => "certificate",
            Self::Roots(_) | Self::ExternalAccountKey => "configuration",
            Self::Dns(_) => "dns",
            Self::Storage(_) => "storage",
            Self::LeaseLost => "lease",
            Self::Timeout(_) => "timeout",
        }
    }

    /// Whether the authority has forgotten our account.
    pub(super) fn is_lost_account(&self) -> bool {
        matches!(self.problem(), Some("urn:ietf:params:acme:error:accountDoesNotExist"))
    }

    pub(super) fn problem(&self) -> Option<&str> {
        match self {
            Self::Protocol(instant_acme::Error::Api(problem)) => problem.r#type.as_deref(),
            _ => None,
        }
    }
}
