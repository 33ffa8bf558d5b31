//! Where the account, the certificate and the proofs are kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::StorageError;
use crate::{Certificate, CertificateError};

/// The certificate and what is known of its renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The certificate, if there is one.
    pub issued: Option<Issued>,
    /// What the failures were about: who asks for another thing need not wait for what failed.
    pub wanted: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// No attempt before this time, in milliseconds since 1970.
    pub next_attempt_ts: i64,
    /// The last failure.
    pub last_error: Option<String>,
    /// Somebody asked for a new certificate.
    pub renewal_asked: bool,
}

/// A certificate as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The names that it was asked for.
    pub names: Vec<String>,
    /// The directory of the authority.
    pub directory: String,
    /// The chain, in PEM.
    pub chain: String,
    /// The private key, in PEM.
    pub private_key: String,
    /// When it was issued, in milliseconds since 1970.
    pub issued_ts: i64,
}

impl Issued {
    /// The certificate, decoded.
    pub fn certificate(&self) -> Result<Certificate, CertificateError> {
        Certificate::from_pem(self.chain.as_bytes(), self.private_key.as_bytes())
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("names", &self.names).field("issued_ts", &self.issued_ts).finish_non_exhaustive()
    }
}

/// A proof that is shown to the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// `http-01` or `tls-alpn-01`.
    pub kind: &'static str,
    /// What is asked for: a token, or a name.
    pub subject: String,
    /// What is shown.
    pub value: String,
}

/// Keeps things. All replicas see the same.
///
/// Whoever writes holds the lease, and writes nothing once another one has it.
pub trait Storage: Send + Sync + 'static {
    /// Shows that this process is the one that asks for certificates.
    type Lease: Send + Sync;

    /// Takes the lease, or none if another process has it.
    fn take_lease(&self, time: Duration) -> impl Future<Output = Result<Option<Self::Lease>, StorageError>> + Send;
    /// Holds the lease for longer; false if it is lost.
    fn renew_lease(
        &self,
        lease: &Self::Lease,
        time: Duration,
    ) -> impl Future<Output = Result<bool, StorageError>> + Send;
    /// Gives the lease back.
    fn release_lease(&self, lease: Self::Lease) -> impl Future<Output = Result<(), StorageError>> + Send;

    /// The record.
    fn record(&self) -> impl Future<Output = Result<Record, StorageError>> + Send;
    /// Writes the record; false if the lease is lost.
    fn save_record(
        &self,
        lease: &Self::Lease,
        record: &Record,
    ) -> impl Future<Output = Result<bool, StorageError>> + Send;
    /// The credentials of the account at a directory, in JSON.
    fn account(&self, directory: &str) -> impl Future<Output = Result<Option<String>, StorageError>> + Send;
    /// Keeps them.
    fn save_account(&self, directory: &str, credentials: &str)
    -> impl Future<Output = Result<(), StorageError>> + Send;
    /// A proof that is asked for.
    fn proof(&self, kind: &str, subject: &str) -> impl Future<Output = Result<Option<String>, StorageError>> + Send;
    /// Keeps a proof, and forgets those that are older than an hour.
    fn save_proof(&self, proof: &Proof) -> impl Future<Output = Result<(), StorageError>> + Send;
    /// Forgets a proof.
    fn forget_proof(&self, proof: &Proof) -> impl Future<Output = Result<(), StorageError>> + Send;
}

/// Milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
