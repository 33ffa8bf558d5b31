//! Where files are kept, and within which bounds.

use std::{path::PathBuf, time::Duration};

use ruma::OwnedServerName;

const MIB: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where files are kept, how large they may be, and how long.
#[derive(Clone, Debug)]
pub struct MediaOptions {
    /// The server name in the files' `mxc://` URIs.
    pub server_name: OwnedServerName,
    /// The folder of the files. Made if it is not there; shared by all replicas.
    pub folder: PathBuf,
    /// The largest file, in bytes.
    pub upload_bytes_max: u64,
    /// The largest file of another server, in bytes.
    pub remote_bytes_max: u64,
    /// How long copies of other servers' files are kept that nobody asks for; `None` for ever.
    pub remote_retention: Option<Duration>,
    /// Bytes of all uploads of a user; `None` for any.
    pub user_bytes_max: Option<u64>,
    /// Identifiers without a file that a user may have at a time.
    pub pending_uploads_max: u32,
    /// How long such an identifier waits for its file.
    pub pending_upload_life: Duration,
    /// Pixels of a picture that thumbnails are made of.
    pub thumbnail_pixels_max: u64,
    /// Whether what comes from now on is to be had with a token only.
    pub freeze_unauthenticated: bool,
    /// How long an upload or a fetched file may pause.
    pub stall: Duration,
}

impl MediaOptions {
    /// The defaults.
    #[must_use]
    pub fn new(server_name: OwnedServerName, folder: PathBuf) -> Self {
        Self {
            server_name,
            folder,
            upload_bytes_max: 100 * MIB,
            remote_bytes_max: 100 * MIB,
            remote_retention: Some(90 * DAY),
            user_bytes_max: None,
            pending_uploads_max: 10,
            pending_upload_life: DAY,
            thumbnail_pixels_max: 32_000_000,
            freeze_unauthenticated: false,
            stall: Duration::from_secs(30),
        }
    }
}
