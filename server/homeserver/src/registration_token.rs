//! The registration token of a server whose operator chose none.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use myelin_process::config::{Config, Secret};
use rand::distr::{Alphanumeric, SampleString as _};

/// Letters and digits of a token: 142 bits of chance.
const LENGTH: usize = 24;

/// Where the token of this server is kept.
pub(crate) fn path(config: &Config) -> PathBuf {
    config.data_dir.join("registration_token")
}

/// The token that who registers must know; none if nobody needs one.
///
/// The operator's, if the configuration has one; else the one in the data folder, made now if there is none.
pub(crate) fn load_or_make(config: &Config) -> anyhow::Result<Option<Secret>> {
    if !config.registration.enabled || !config.registration.require_token {
        return Ok(None);
    }
    if let Some(chosen) = config.registration_token().context("read the registration token")? {
        return Ok(Some(chosen));
    }
    let path = path(config);
    let kept = match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if !kept.is_empty() {
        return Ok(Some(Secret::new(kept)));
    }
    let made = Alphanumeric.sample_string(&mut rand::rng(), LENGTH);
    keep(&path, &made).with_context(|| format!("write {}", path.display()))?;
    Ok(Some(Secret::new(made)))
}

/// Writes the file whole or not at all, for its owner's eyes only.
fn keep(path: &Path, token: &str) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use myelin_process::config::{Config, Secret};

    fn config(folder: &tempfile::TempDir) -> Config {
        Config { data_dir: folder.path().to_owned(), ..Config::embedded_default() }
    }

    /// The token that was printed yesterday is the one of today, and only the owner can read its file.
    #[test]
    fn stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(&folder);
        let first = super::load_or_make(&config).unwrap().unwrap();
        assert_eq!(first.expose().len(), super::LENGTH);
        assert_eq!(super::load_or_make(&config).unwrap().unwrap(), first);
        let mode = std::fs::metadata(super::path(&config)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// The operator's choice wins, and nothing is made where nobody needs a token.
    #[test]
    fn is_made_only_if_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder);
        config.registration.token = Some(Secret::new("chosen".to_owned()));
        assert_eq!(super::load_or_make(&config).unwrap().unwrap().expose(), "chosen");
        config.registration.token = None;
        config.registration.require_token = false;
        assert!(super::load_or_make(&config).unwrap().is_none());
        config.registration.require_token = true;
        config.registration.enabled = false;
        assert!(super::load_or_make(&config).unwrap().is_none());
        assert!(!super::path(&config).exists());
    }
}
