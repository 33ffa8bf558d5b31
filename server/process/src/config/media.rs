//! `[media]`

use super::section::section;

section! {
    /// Uploaded files.
    pub struct Media {
        /// The largest file that a user may upload, in bytes.
        pub max_upload_bytes: u64 = 100 * 1024 * 1024,
    }
}
