//! What can go wrong with files.

use std::{io, path::PathBuf, sync::Arc};

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
    /// Nothing came for a while in the middle of a file.
    #[error("the file stopped coming in")]
    Stalled,
    /// Too many files are being uploaded, fetched or made smaller.
    #[error("too many files are being worked on")]
    Busy,
    /// The user has uploaded as much as a user may.
    #[error("the user has no room for more files")]
    Quota,
    /// Nobody may bring this content.
    #[error("this content is blocked")]
    Blocked,
    /// The user has too many identifiers without a file.
    #[error("too many uploads of the user are pending")]
    TooManyPending,
    /// The identifier was given out to somebody else.
    #[error("the identifier was given out to another user")]
    NotYours,
    /// There is a file already.
    #[error("the file is there already")]
    AlreadyUploaded,
    /// The identifier was never given out, or its time is over.
    #[error("the identifier is unknown")]
    UnknownId,
    /// The identifier was given out, and the file did not come in the time that the asker has.
    #[error("the file is not uploaded yet")]
    NotYetUploaded,
    /// No smaller picture can be made of it.
    #[error("no thumbnail can be made of the file: {0}")]
    NoThumbnail(String),
    /// The picture is too large to be made smaller.
    #[error("the picture is too large for a thumbnail")]
    PictureTooLarge {
        /// Whether it is another server's.
        is_remote: bool,
    },
    /// There is no preview of an address.
    #[error("no preview: {reason}")]
    NoPreview {
        /// Whether we do not look at such addresses.
        is_refused: bool,
        /// What happened.
        reason: String,
    },
    /// Another server did not give its file.
    #[error("fetch a file of another server")]
    Fetch(#[from] FetchError),
    /// The same, as it was told to all who asked at a time.
    #[error("fetch a file of another server")]
    Shared(#[source] Arc<Error>),
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

/// Why another server's file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server says that there is none.
    #[error("there is no such file")]
    NotFound,
    /// The server says that it is to come.
    #[error("the file is not uploaded yet")]
    NotYetUploaded,
    /// It is larger than we fetch.
    #[error("the file is too large")]
    TooLarge,
    /// We do not talk with the server.
    #[error("this server does not federate with the file's")]
    NotAllowed,
    /// The server cannot be reached, or failed lately.
    #[error("{0}")]
    Unreachable(String),
    /// The server refused.
    #[error("the server answered {status} {errcode}")]
    Refused {
        /// The status of the answer.
        status: u16,
        /// Its error code.
        errcode: String,
    },
    /// The answer is not what the specification says.
    #[error("{0}")]
    Nonsense(String),
}
