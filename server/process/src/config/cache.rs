//! `[cache]`

use super::section::section;

section! {
    /// Memory for what was read from the database.
    pub struct Cache {
        /// Bytes for all caches together.
        pub memory: u64 = 128 * 1024 * 1024,
    }
}
