//! What can go wrong with files.

use std::{io, path::PathBuf};

/// Some error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A result of the media.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is larger than a file may be.
    #[error("the file is too large")]
    TooLarge,
    /// The client went away before the end.
    #[error("receive a file")]
    Interrupted(#[source] BoxError),
    /// Too many files are being uploaded.
    #[error("too many files are being uploaded")]
    Busy,
    /// The disk did not do what was asked.
    #[error("{act} {}", path.display())]
    Disk {
        /// What was tried.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The database knows a file that is not on the disk.
    #[error("the content of the file {media_id} is lost")]
    Lost {
        /// Which one.
        media_id: String,
    },
    /// The database did not do what was asked.
    #[error("use the store")]
    Store(#[from] myelin_store::Error),
}
