//! `[database]`

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Secret, section::section};

section! {
    /// The database: SQLite for one process, PostgreSQL for any number of them.
    pub struct Database {
        /// `sqlite:///path/to/file` or `postgres://user:password@host/database`. Unset: SQLite, in the file
        /// `myelin.db` of the data folder.
        pub url: Option<Secret> = None => "\"postgres://myelin:secret@localhost/myelin\"",
        /// A file that holds the URL, instead of `url`.
        pub url_file: Option<PathBuf> = None => "\"/etc/myelin/database_url\"",
        /// The most connections to PostgreSQL, or readers of SQLite, that are open at once.
        pub max_connections: u32 = 16,
    }
}

/// The URL of the database in `data_dir`.
pub(super) fn embedded_url(data_dir: &Path) -> Secret {
    let mut url = String::from("sqlite://");
    for c in data_dir.join("myelin.db").to_string_lossy().chars() {
        match c {
            // These would end the path or start an escape.
            '?' | '#' | '%' => write!(url, "%{:02X}", u32::from(c)).expect("a String takes every write"),
            c => url.push(c),
        }
    }
    Secret::new(url)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// A folder's name is a path and never turns into URL parameters.
    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(super::embedded_url(Path::new("/a b/50%?#")).expose(), "sqlite:///a b/50%25%3F%23/myelin.db");
    }
}
