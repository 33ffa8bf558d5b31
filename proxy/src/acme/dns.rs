//! The TXT records of DNS-01: made by a program, or by updates of the zone.

mod command;
mod update;

use std::time::Duration;

pub use self::{
    command::DnsCommand,
    update::{DnsKey, DnsKeyAlgorithm, DnsKeyError, DnsUpdate},
};

/// What makes DNS records.
#[derive(Clone, Debug)]
pub enum Dns {
    /// A program.
    Command(DnsCommand),
    /// Updates, which one of the zone's servers takes.
    Update(DnsUpdate),
}

/// A TXT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TxtRecord {
    /// Such as `_acme-challenge.example.org`.
    pub(super) name: String,
    pub(super) value: String,
}

/// Why a DNS record could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The program did not do it.
    #[error("{call}: {reason}")]
    Command {
        /// What was called.
        call: String,
        /// What it came to.
        reason: String,
    },
    /// What is no name for DNS.
    #[error("`{0}` is no name for DNS")]
    Name(String),
    /// The key is of no use.
    #[error(transparent)]
    Key(#[from] DnsKeyError),
    /// The server could not be asked.
    #[error("ask the DNS server {server}: {reason}")]
    Unreachable {
        /// Which one.
        server: String,
        /// Why not.
        reason: String,
    },
    /// The server answered what cannot be understood, or what is not signed by it.
    #[error("the DNS server {server} gave an answer that does not count: {reason}")]
    Answer {
        /// Which one.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused.
    #[error("the DNS server {server} refused the update of {name}: {reason}")]
    Refused {
        /// Which one.
        server: String,
        /// Of which name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The server has no zone for the name.
    #[error("{name} is in no zone of the DNS server {server}")]
    NoZone {
        /// Which one.
        server: String,
        /// Which name.
        name: String,
    },
    /// A server of the zone did not learn of the record.
    #[error("the DNS server {server} does not show the record of {name} after {} seconds", .time.as_secs())]
    NotShown {
        /// Which one.
        server: String,
        /// Of which name.
        name: String,
        /// How long it had.
        time: Duration,
    },
}

impl Dns {
    /// What distinguishes it, in one text.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Command(command) => command.program.display().to_string(),
            Self::Update(update) => update.describe(),
        }
    }

    /// Makes the record.
    pub(super) async fn set(&self, record: &TxtRecord) -> Result<(), DnsError> {
        match self {
            Self::Command(command) => command.call("set", record).await,
            Self::Update(update) => update.set(record).await,
        }
    }

    /// Waits until the authority will find the records.
    pub(super) async fn wait(&self, records: &[TxtRecord]) -> Result<(), DnsError> {
        match self {
            Self::Command(command) => {
                tokio::time::sleep(command.wait).await;
                Ok(())
            }
            Self::Update(update) => update.wait(records).await,
        }
    }

    /// Takes the record away.
    pub(super) async fn clear(&self, record: &TxtRecord) -> Result<(), DnsError> {
        match self {
            Self::Command(command) => command.call("clear", record).await,
            Self::Update(update) => update.clear(record).await,
        }
    }
}
