//! Files: those that users upload, copies of other servers', smaller pictures of both.
//!
//! The bytes of a file are at `ab/cd/abcd…` below one folder, where `abcd…` is the SHA-256 hash of the content in
//! hexadecimal digits, once however many files have this content; what is known of the files is in the database. An
//! upload is acknowledged once its bytes, their name on the disk and the row in the database are durable. A content goes
//! when its last row is gone.

mod disk;
mod download;
mod error;
mod lifecycle;
mod names;
mod options;
mod previews;
mod remote;
#[cfg(test)]
mod tests;
mod thumbnails;
mod upload;

use std::{
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use myelin_store::Store;
use ruma::ServerName;
use tokio::sync::{Semaphore, watch};

use self::{disk::Folder, previews::Previews, remote::Fetches, thumbnails::Workers};
pub use self::{
    download::{About, Access, Download, Wanted},
    error::{BoxError, Error, FetchError, Result},
    lifecycle::{Owner, Verification},
    options::MediaOptions,
    previews::{Page, Web, WebError},
    remote::{RemoteFile, RemoteFiles},
    thumbnails::{Method, Size},
    upload::{Pending, Upload},
};

/// Uploads at once, at the most.
const UPLOADS_MAX: usize = 64;
/// The longest identifier of a file that is looked at, in bytes.
const MEDIA_ID_BYTES_MAX: usize = 255;

/// The files: one for a process.
pub struct Media {
    store: Arc<Store>,
    folder: Folder,
    options: MediaOptions,
    uploads: Semaphore,
    /// Changes when a file came whose identifier was given out before.
    arrivals: watch::Sender<u64>,
    waiting: Semaphore,
    remote: OnceLock<Arc<dyn RemoteFiles>>,
    fetches: Fetches,
    workers: Workers,
    previews: OnceLock<Previews>,
    /// From when on files are to be had with a token only, in milliseconds since 1970.
    frozen_ts: Option<i64>,
}

impl Media {
    /// Opens the folder; removes what uploads left behind that never came to their end.
    ///
    /// # Errors
    ///
    /// [`Error::Disk`] if the folder cannot be made or read, [`Error::Store`].
    pub async fn open(store: Arc<Store>, options: MediaOptions) -> Result<Arc<Self>> {
        let folder = Folder::open(&options.folder).await?;
        let frozen_ts = match options.freeze_unauthenticated {
            true => Some(store.freeze_media(now_ms()).await?),
            false => None,
        };
        Ok(Arc::new(Self {
            store,
            folder,
            options,
            uploads: Semaphore::new(UPLOADS_MAX),
            arrivals: watch::Sender::new(0),
            waiting: Semaphore::new(download::WAITING_MAX),
            remote: OnceLock::new(),
            fetches: Fetches::default(),
            workers: Workers::default(),
            previews: OnceLock::new(),
            frozen_ts,
        }))
    }

    /// Shows where other servers' files are to be had. Without, there are none. The first that is shown counts.
    pub fn connect(&self, remote: Arc<dyn RemoteFiles>) {
        if self.remote.set(remote).is_err() {
            tracing::warn!("other servers' files are fetched already; the second way to them is not used");
        }
    }

    /// The server name of the files.
    pub fn server_name(&self) -> &ServerName {
        &self.options.server_name
    }

    /// The largest file, in bytes.
    pub fn upload_bytes_max(&self) -> u64 {
        self.options.upload_bytes_max
    }
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Media").field("options", &self.options).finish_non_exhaustive()
    }
}

/// "The media-id segment MUST consist of only alphanumeric (A-Za-z0-9), _ and - characters."
fn is_media_id(media_id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=MEDIA_ID_BYTES_MAX).contains(&media_id.len()) && media_id.bytes().all(is_allowed)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}
