//! `[appservices]`

use std::path::PathBuf;

use super::section::section;

section! {
    /// Application services (bridges and bots). Not in this release.
    pub struct Appservices {
        /// Their registration files, in YAML.
        pub registration_files: Vec<PathBuf> = Vec::new(),
    }
}
