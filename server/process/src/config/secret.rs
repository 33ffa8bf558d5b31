//! A text that must not be seen, and the file that it may stand in.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, Serializer};

/// A text that logs, error messages and dumps of the configuration do not show.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("read the secret file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is nothing in the file, or in the setting.
    #[error("the secret{} is empty", path.as_deref().map(|path| format!(" file {}", path.display())).unwrap_or_default())]
    Empty {
        /// The file, if it is one.
        path: Option<PathBuf>,
    },
}

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text. Never log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The secret that a setting or its `_file` twin gives; none if both are unset.
    ///
    /// White space at the ends of a file does not count. The setting wins over the file; [`Config::check`] refuses
    /// to have both.
    ///
    /// [`Config::check`]: super::Config::check
    pub(super) fn resolve(given: Option<&Self>, file: Option<&Path>) -> Result<Option<Self>, SecretError> {
        let (text, path) = match (given, file) {
            (Some(secret), _) => (secret.0.clone(), None),
            (None, None) => return Ok(None),
            (None, Some(path)) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| SecretError::Unreadable { path: path.to_owned(), source })?;
                (text.trim().to_owned(), Some(path.to_owned()))
            }
        };
        if text.is_empty() {
            return Err(SecretError::Empty { path });
        }
        Ok(Some(Self(text)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::{Secret, SecretError};

    /// A secret shows neither in debug output nor when the configuration is written out.
    #[test]
    fn is_not_shown() {
        let secret = Secret::new("hunter2".to_owned());
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(!toml::Value::try_from(&secret).unwrap().to_string().contains("hunter2"));
    }

    /// A file's last line break is not part of the secret; an empty or missing file is refused.
    #[test]
    fn is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        assert!(matches!(Secret::resolve(None, Some(&path)), Err(SecretError::Unreadable { .. })));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(Secret::resolve(None, Some(&path)), Err(SecretError::Empty { path: Some(_) })));
        std::fs::write(&path, "hunter2\n").unwrap();
        assert_eq!(Secret::resolve(None, Some(&path)).unwrap().unwrap().expose(), "hunter2");
        assert!(Secret::resolve(None, None).unwrap().is_none());
    }
}
