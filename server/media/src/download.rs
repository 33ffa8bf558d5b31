//! Files that go out: our own, those that are still to come, and other servers'.

use std::{
    io::SeekFrom,
    ops::Range,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use myelin_process::metrics::{self, IntCounterVec};
use myelin_store::{MediaFile, RemoteMediaFile};
use ruma::ServerName;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    time::{self, Instant},
};
use tokio_util::io::ReaderStream;

use crate::{Error, Media, Result, disk, is_media_id, now_ms};

/// How many bytes are read from the disk at once.
const READ_BYTES: usize = 64 * 1024;
/// Askers that wait for files to be uploaded, at once. Others are told at once that there is none yet.
pub(crate) const WAITING_MAX: usize = 1024;
/// The longest time that somebody waits for a file to be uploaded.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Another replica's arrivals are seen by looking.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// That a copy was used is noted this often, in milliseconds.
const USE_NOTED: i64 = 60 * 60 * 1000;

static DOWNLOADS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_media_downloads_total",
    "Files that were opened to be sent, by kind: local, remote, thumbnail.",
    ["kind"]
);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Somebody with a token, or another server with a signature.
    Authenticated,
    /// Anybody.
    Anonymous,
}

/// Which file is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Whose it is.
    pub server_name: &'a ServerName,
    /// The part of the `mxc://` URI behind the server's name.
    pub media_id: &'a str,
    /// How long the asker waits for a file that is still to be uploaded.
    pub timeout: Duration,
    /// Whether it may be fetched from its server.
    pub allow_remote: bool,
    /// Who asks.
    pub access: Access,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The part of the `mxc://` URI behind the server's name.
    pub media_id: String,
    /// What it is said to be.
    pub content_type: Option<String>,
    /// What it is called.
    pub file_name: Option<String>,
    /// Its length in bytes.
    pub size: i64,
    /// The SHA-256 hash of its content.
    pub sha256: Vec<u8>,
    /// Since when it is here, in milliseconds since 1970.
    pub since_ts: i64,
    /// Whether it is another server's.
    pub is_remote: bool,
}

/// A file that is being sent.
#[derive(Debug)]
pub struct Download {
    /// What is known of it.
    pub about: About,
    pub(crate) file: File,
}

impl Download {
    /// The content, in pieces.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        ReaderStream::with_capacity(self.file, READ_BYTES)
    }

    /// A part of the content, in pieces.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the disk does not give it.
    pub async fn into_part(
        mut self,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
        let sought = self.file.seek(SeekFrom::Start(range.start)).await;
        sought.map_err(|error| {
            tracing::error!(%error, "a file cannot be read from the middle: {error}");
            Error::Lost { media_id: self.about.media_id }
        })?;
        Ok(ReaderStream::with_capacity(self.file.take(range.end.saturating_sub(range.start)), READ_BYTES))
    }

    /// The hash of the content, as an entity tag in quotes.
    pub fn entity_tag(&self) -> String {
        format!("\"{}\"", disk::hex(&self.about.sha256))
    }
}

impl Media {
    /// Opens a file, which is fetched from its server or waited for if need be. `None` if there is none, or none that the
    /// asker may have.
    ///
    /// # Errors
    ///
    /// [`Error::NotYetUploaded`], [`Error::Fetch`], [`Error::Shared`], [`Error::Lost`] if the database knows it and the
    /// folder does not, [`Error::Busy`], [`Error::Disk`], [`Error::Store`].
    pub async fn download(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Option<Download>> {
        let Some(mut about) = self.find(wanted).await? else { return Ok(None) };
        let mut file = self.folder.read(&about.sha256).await?;
        // Another server's file can be had again.
        if file.is_none() && about.is_remote && wanted.allow_remote {
            self.fetch(wanted.server_name, wanted.media_id).await?;
            let Some(again) = self.find(wanted).await? else { return Ok(None) };
            about = again;
            file = self.folder.read(&about.sha256).await?;
        }
        let Some(file) = file else { return Err(Error::Lost { media_id: about.media_id }) };
        DOWNLOADS.with_label_values(&[if about.is_remote { "remote" } else { "local" }]).inc();
        Ok(Some(Download { about, file }))
    }

    /// What is known of a file whose content is here, or was.
    pub(crate) async fn find(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Option<About>> {
        if !is_media_id(wanted.media_id) {
            return Ok(None);
        }
        let found = if wanted.server_name == self.options.server_name {
            self.find_local(wanted).await?
        } else {
            self.find_remote(wanted).await?
        };
        // "any media uploaded after (or during) the freeze SHOULD only be accessible through the new, authenticated,
        // endpoints."
        let is_frozen = |about: &About| {
            wanted.access == Access::Anonymous && self.frozen_ts.is_some_and(|frozen_ts| about.since_ts >= frozen_ts)
        };
        Ok(found.filter(|about| !is_frozen(about)))
    }

    pub(crate) fn count_thumbnail(&self) {
        DOWNLOADS.with_label_values(&["thumbnail"]).inc();
    }

    async fn find_local(&self, wanted: &Wanted<'_>) -> Result<Option<About>> {
        if let Some(file) = self.store.media(wanted.media_id).await? {
            return Ok(shown(file));
        }
        if self.store.media_reservation(wanted.media_id, now_ms()).await?.is_some() {
            return self.wait_for(wanted).await;
        }
        // It may have come between the two looks.
        if let Some(file) = self.store.media(wanted.media_id).await? {
            return Ok(shown(file));
        }
        // Pictures of web pages are copies too, under our own name.
        let kept = self.store.remote_media(wanted.server_name.as_str(), wanted.media_id).await?;
        let Some(kept) = kept else { return Ok(None) };
        self.note_use(&kept).await?;
        Ok(copied(kept).map(|about| About { is_remote: false, ..about }))
    }

    /// Waits until a file is uploaded, as long as the asker does.
    async fn wait_for(&self, wanted: &Wanted<'_>) -> Result<Option<About>> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Error::NotYetUploaded)?;
        let until = Instant::now() + wanted.timeout.min(WAIT_MAX);
        let mut arrivals = self.arrivals.subscribe();
        loop {
            if let Some(file) = self.store.media(wanted.media_id).await? {
                return Ok(shown(file));
            }
            let now = Instant::now();
            if now >= until {
                return Err(Error::NotYetUploaded);
            }
            // Whether an arrival or the time ends it, the look tells.
            let _ = time::timeout(LOOK_AGAIN.min(until - now), arrivals.changed()).await;
        }
    }

    async fn find_remote(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Option<About>> {
        let (server_name, media_id) = (wanted.server_name, wanted.media_id);
        let kept = self.store.remote_media(server_name.as_str(), media_id).await?;
        let kept = match kept {
            Some(kept) => {
                self.note_use(&kept).await?;
                Some(kept)
            }
            // Whoever has no token would not get what is fetched now.
            None if wanted.access == Access::Anonymous && self.frozen_ts.is_some() => None,
            None if wanted.allow_remote => {
                self.fetch(server_name, media_id).await?;
                self.store.remote_media(server_name.as_str(), media_id).await?
            }
            None => None,
        };
        Ok(kept.and_then(copied))
    }

    async fn note_use(&self, kept: &RemoteMediaFile) -> Result<()> {
        let now = now_ms();
        if now - kept.used_ts > USE_NOTED {
            self.store.use_remote_media(&kept.server_name, &kept.media_id, now).await?;
        }
        Ok(())
    }
}

fn copied(kept: RemoteMediaFile) -> Option<About> {
    kept.quarantined_ts.is_none().then_some(About {
        media_id: kept.media_id,
        content_type: kept.content_type,
        file_name: kept.file_name,
        size: kept.size,
        sha256: kept.sha256,
        since_ts: kept.fetched_ts,
        is_remote: true,
    })
}

fn shown(file: MediaFile) -> Option<About> {
    file.quarantined_ts.is_none().then_some(About {
        media_id: file.media_id,
        content_type: file.content_type,
        file_name: file.file_name,
        size: file.size,
        sha256: file.sha256,
        since_ts: file.created_ts,
        is_remote: false,
    })
}
