//! What can go wrong with what clients are told.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("use the store")]
    Store(#[from] myelin_store::Error),
    /// The rooms did not do what was asked.
    #[error("read rooms")]
    Rooms(#[from] myelin_rooms::Error),
    /// What was to be told could not be written as JSON.
    #[error("write an answer")]
    Write(#[source] serde_json::Error),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// There is no such thing, or the caller may not know of it.
    #[error("{0}")]
    NotFound(&'static str),
    /// A value is not one that the specification allows.
    #[error("{0}")]
    InvalidParam(String),
    /// A position of sliding sync that this server did not give, or does not know any more: the client begins anew.
    #[error("the position is unknown or has expired")]
    UnknownPos,
    /// There is no push rule to put another one before or after.
    #[error("{0}")]
    UnknownRule(String),
    /// There is too much of it.
    #[error("{0}")]
    TooLarge(String),
    /// The JSON is not of the right shape.
    #[error("{0}")]
    BadJson(String),
    /// The type of account data is one that only the server sets.
    #[error("{0} cannot be set through this API")]
    ServerManaged(String),
}

impl From<myelin_store::state_tree::Error<myelin_store::Error>> for Error {
    fn from(error: myelin_store::state_tree::Error<myelin_store::Error>) -> Self {
        Self::Store(error.into())
    }
}
