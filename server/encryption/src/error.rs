//! What can go wrong.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("use the store")]
    Store(#[from] myelin_store::Error),
    /// What is stored cannot be read.
    #[error("the database holds a corrupt {0}")]
    Corrupt(&'static str),
    /// An object is not of the form that it has to be of.
    #[error("{0}")]
    BadJson(String),
    /// Something is not what it has to be.
    #[error("{0}")]
    InvalidParam(String),
    /// Something is missing that has to be there.
    #[error("{0}")]
    MissingParam(&'static str),
    /// A signature is not by the key that it names.
    #[error("{0}")]
    InvalidSignature(String),
    /// Not allowed.
    #[error("{0}")]
    Forbidden(&'static str),
    /// There is none.
    #[error("{0}")]
    NotFound(&'static str),
    /// Too much at once.
    #[error("{0}")]
    TooLarge(&'static str),
    /// Keys can be put into the newest backup only.
    #[error("this is not the newest backup, which is {current}")]
    WrongBackup {
        /// The newest one.
        current: String,
    },
}
