//! Places where two devices of a person meet while one of them signs in by a QR code (MSC4108).
//!
//! What they leave there is encrypted between them, and nobody has logged in yet, so whoever knows a place's name may
//! use it. It is small and lives for minutes.

use std::time::Duration;

use myelin_store::RendezvousWrite;
use ruma::MilliSecondsSinceUnixEpoch;

use crate::{Accounts, Result, tokens, tokens::Token};

/// How long a place lives.
const LIFETIME: Duration = Duration::from_secs(5 * 60);
/// The most bytes of a message.
pub const RENDEZVOUS_BYTES_MAX: usize = 4096;

/// What there is in such a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RendezvousMessage {
    /// The message, as it was left.
    pub content: Vec<u8>,
    /// Its mark.
    pub mark: RendezvousMark,
}

/// By what the devices know which message they have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RendezvousMark {
    /// Another one for each message.
    pub version: i64,
    /// When the message was left.
    pub modified: MilliSecondsSinceUnixEpoch,
    /// When the place ends.
    pub expires: MilliSecondsSinceUnixEpoch,
}

/// Why a message cannot be left.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    /// There is no such place, or it has ended.
    #[error("there is no such rendezvous, or it has ended")]
    Unknown,
    /// Another message was left since.
    #[error("another message was left here since")]
    Changed {
        /// The version of the message that is there.
        version: i64,
    },
    /// The message is over [`RENDEZVOUS_BYTES_MAX`].
    #[error("the message is over {RENDEZVOUS_BYTES_MAX} bytes")]
    TooLarge,
    /// There are as many places as there may be.
    #[error("there are too many of them: try again in some minutes")]
    Full,
    /// The database is away.
    #[error(transparent)]
    Store(#[from] myelin_store::Error),
}

impl Accounts {
    /// Makes a place with a first message, and tells its name.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::TooLarge`], [`RendezvousError::Full`], [`RendezvousError::Store`].
    pub async fn create_rendezvous(&self, content: &[u8]) -> Result<(String, RendezvousMark), RendezvousError> {
        check_size(content)?;
        let id = Token::rendezvous();
        let now_ms = self.now_ms();
        let expires_ts = now_ms + LIFETIME.as_millis() as i64;
        if !self.store.create_rendezvous(&id.hash, content, expires_ts, now_ms).await? {
            return Err(RendezvousError::Full);
        }
        Ok((id.text, mark(0, now_ms, expires_ts)))
    }

    /// What lies in a place.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::Unknown`], [`RendezvousError::Store`].
    pub async fn rendezvous(&self, id: &str) -> Result<RendezvousMessage, RendezvousError> {
        let found = self.store.rendezvous(&tokens::hash(id), self.now_ms()).await?.ok_or(RendezvousError::Unknown)?;
        let mark = mark(found.version, found.modified_ts, found.expires_ts);
        Ok(RendezvousMessage { content: found.content, mark })
    }

    /// Leaves a message in the place of the one that the writer has `seen`.
    ///
    /// # Errors
    ///
    /// All of [`RendezvousError`] but `Full`.
    pub async fn write_rendezvous(
        &self,
        id: &str,
        seen: i64,
        content: &[u8],
    ) -> Result<RendezvousMark, RendezvousError> {
        check_size(content)?;
        let now_ms = self.now_ms();
        match self.store.write_rendezvous(&tokens::hash(id), seen, content, now_ms).await? {
            RendezvousWrite::Done { expires_ts } => Ok(mark(seen.saturating_add(1), now_ms, expires_ts)),
            RendezvousWrite::Changed { version } => Err(RendezvousError::Changed { version }),
            RendezvousWrite::Unknown => Err(RendezvousError::Unknown),
        }
    }

    /// Ends a place.
    ///
    /// # Errors
    ///
    /// [`RendezvousError::Unknown`], [`RendezvousError::Store`].
    pub async fn delete_rendezvous(&self, id: &str) -> Result<(), RendezvousError> {
        let gone = self.store.delete_rendezvous(&tokens::hash(id), self.now_ms()).await?;
        if gone { Ok(()) } else { Err(RendezvousError::Unknown) }
    }
}

fn check_size(content: &[u8]) -> Result<(), RendezvousError> {
    if content.len() > RENDEZVOUS_BYTES_MAX { Err(RendezvousError::TooLarge) } else { Ok(()) }
}

fn mark(version: i64, modified_ts: i64, expires_ts: i64) -> RendezvousMark {
    let time = |ms: i64| MilliSecondsSinceUnixEpoch(ms.try_into().unwrap_or_default());
    RendezvousMark { version, modified: time(modified_ts), expires: time(expires_ts) }
}
