//! What can go wrong with the store.

use std::{path::PathBuf, sync::Arc};

/// A result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL names no engine that we know.
    #[error("the database URL must start with sqlite: or postgres:")]
    UnknownEngine,
    /// The folder of an embedded database could not be made.
    #[error("create the database's folder {}", folder.display())]
    CreateFolder {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The database did not do what was asked: it is down, full, or the query failed.
    #[error("use the database")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("migrate the database")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// Another replica did not finish its migration in time.
    #[error("another replica holds the migration lock for too long")]
    MigrationLock,
    /// The database was migrated by a newer release.
    #[error("the database is at migration {version}, which this release does not know: it was used by a newer release")]
    NewerDatabase {
        /// The first unknown migration.
        version: i64,
    },
    /// The database belongs to another server name.
    #[error("the database belongs to the server name {pinned}, and the configuration says {configured}")]
    ServerName {
        /// The name at first start.
        pinned: String,
        /// The name now.
        configured: String,
    },
    /// Another process serves the embedded database.
    #[error("another process serves this database")]
    Served,
    /// Another writer was faster; load anew and try again.
    #[error("the room was written by someone else meanwhile")]
    Conflict,
    /// The batch that this write was part of failed.
    #[error("commit the batch")]
    Batch(#[source] Arc<Error>),
    /// The database took too long; whether it did what was asked is not known.
    #[error("the database took too long")]
    Timeout,
    /// The committer has stopped.
    #[error("the store is shutting down")]
    Closed,
    /// What is stored cannot be read.
    #[error("the database holds a corrupt {what}")]
    Corrupt {
        /// What could not be read.
        what: &'static str,
    },
    /// A name that cannot be kept: over 255 bytes, or with a NUL character, which PostgreSQL has no place for.
    #[error("an identifier is over 255 bytes or has a NUL character")]
    InvalidName,
    /// An update that was meant for one row hit none.
    #[error("there is no such {what}")]
    Missing {
        /// What there is none of.
        what: &'static str,
    },
}

impl Error {
    /// True when the same call may go through later: the database is away, or the server stops.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Database(error) => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::Protocol(_)
                | sqlx::Error::WorkerCrashed => true,
                // Class 57: operator intervention; 08: connection; 53: insufficient resources.
                sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                    ["57", "08", "53"].iter().any(|class| code.len() == 5 && code.starts_with(class))
                }),
                _ => false,
            },
            Self::Batch(error) => error.is_unavailable(),
            Self::Closed | Self::Timeout => true,
            _ => false,
        }
    }

    /// True when the call can never go through: a text that cannot be kept.
    pub fn is_invalid_text(&self) -> bool {
        match self {
            Self::InvalidName => true,
            // character_not_in_repertoire and untranslatable_character: PostgreSQL's words for a NUL.
            Self::Database(sqlx::Error::Database(error)) => {
                matches!(error.code().as_deref(), Some("22021" | "22P05"))
            }
            Self::Batch(error) => error.is_invalid_text(),
            _ => false,
        }
    }

    pub(crate) fn is_constraint(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                error.is_unique_violation() || error.is_foreign_key_violation() || error.is_check_violation()
            }
            Self::Batch(error) => error.is_constraint(),
            _ => false,
        }
    }
}

impl From<crate::state_tree::Error<Error>> for Error {
    fn from(error: crate::state_tree::Error<Error>) -> Self {
        match error {
            crate::state_tree::Error::Source(error) => error,
            crate::state_tree::Error::Corrupt { .. } => Self::Corrupt { what: "state node" },
            crate::state_tree::Error::Missing { .. } => Self::Missing { what: "state node" },
        }
    }
}
