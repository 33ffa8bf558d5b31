//! `[media]`

use super::section::section;

section! {
    /// Files: uploaded ones, copies of other servers' files, and thumbnails.
    pub struct Media {
        /// The largest file that a user may upload, in bytes.
        pub max_upload_bytes: u64 = 100 * 1024 * 1024,
        /// The largest file that is fetched from another server, in bytes.
        pub max_remote_bytes: u64 = 100 * 1024 * 1024,
        /// Days that a copy of another server's file is kept after somebody last asked for it. 0 keeps it for ever.
        pub remote_retention_days: u32 = 90,
        /// Bytes of all files that a user has uploaded. 0 is no limit.
        pub max_user_bytes: u64 = 0,
        /// Uploads that a user may have announced and not made, at a time.
        pub max_pending_uploads: u32 = 10,
        /// Hours that an announced upload is waited for.
        pub pending_upload_hours: u32 = 24,
        /// Pixels of the largest picture that thumbnails are made of. Two are worked on at a time, and each takes up to
        /// eight bytes of memory for a pixel.
        pub max_thumbnail_pixels: u64 = 32_000_000,
        /// Give files that come from now on only to who has a token. Those that were there when this was first set
        /// stay accessible on the deprecated paths.
        pub freeze_unauthenticated: bool = false,
        /// Look at web pages that people link to, so that clients can show what they say of themselves. Only pages at
        /// public addresses are looked at. The server that a page is on learns that somebody shared the link.
        pub url_previews: bool = false,
        /// Hosts whose pages are not looked at, as patterns: `*` stands for any characters.
        pub denied_preview_hosts: Vec<String> = Vec::new(),
    }
}
