//! How the program ends: a code for scripts and a sentence for people.

use std::{fmt, process::ExitCode};

/// Why the program ended, by the numbers of `sysexits.h`. They are documented in the manual's page on operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command line is wrong.
    Usage = 64,
    /// Something that the server needs is not to be had: the database is down, a port is taken.
    Unavailable = 69,
    /// A mistake in the program.
    Software = 70,
    /// The operating system refuses something.
    System = 71,
    /// A file or folder cannot be made.
    CannotCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// The server was told to end and something did not finish in time.
    Unfinished = 75,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An end that was not wanted.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For scripts.
    pub(crate) exit: Exit,
    /// What happened, with its causes.
    pub(crate) error: anyhow::Error,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    /// The same, with a sentence that says what to do.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "myelin: {:#}", self.error)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::{Exit, Failure};

    /// People see what was tried, why it failed, and what to do.
    #[test]
    fn tells_the_whole_story() {
        let error = Err::<(), _>(std::io::Error::other("it is cold")).context("open the door").unwrap_err();
        let failure = Failure::new(Exit::Io, error).hint("Wear a coat.");
        assert_eq!(failure.to_string(), "myelin: open the door: it is cold\n  Wear a coat.");
    }
}
