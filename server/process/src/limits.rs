//! Limits that the operating system sets.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files and connections the process may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// What was allowed at start; none if there was no limit.
    pub before: Option<u64>,
    /// What is allowed now; none if there is no limit.
    pub now: Option<u64>,
}

/// Raises the number of files and connections that may be open to the most that the system lets this process have,
/// and logs it.
///
/// # Errors
/// If the system refuses.
pub fn raise_open_files() -> io::Result<OpenFiles> {
    let Rlimit { current: before, maximum } = getrlimit(Resource::Nofile);
    if before != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    let now = getrlimit(Resource::Nofile).current;
    let shown = now.map_or_else(|| "any number of".to_owned(), |limit| limit.to_string());
    tracing::info!(before, now, "{shown} files and connections may be open");
    Ok(OpenFiles { before, now })
}

#[cfg(test)]
mod tests {
    /// After the call, the process has all that it may have; a second call changes nothing.
    #[test]
    fn reaches_the_hard_limit() {
        let raised = super::raise_open_files().unwrap();
        let hard = super::getrlimit(super::Resource::Nofile).maximum;
        assert_eq!(raised.now, hard);
        assert_eq!(super::raise_open_files().unwrap().before, hard);
    }
}
