//! Smaller pictures, made when somebody asks for them and kept like files.

mod render;
mod size;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use myelin_process::metrics::{self, HistogramVec, IntGauge};
use myelin_store::MediaThumbnail;
use tokio::{sync::Semaphore, task, time};

pub use self::size::{Method, Size};
use self::{
    render::{Bounds, Rendered, Unrendered, render},
    size::Target,
};
use crate::{About, Download, Error, Media, Result, Wanted, now_ms, upload::Kept};

/// Pictures that are decoded at once. Each may take `thumbnail_pixels_max` times eight bytes of memory.
const WORKERS: usize = 2;
/// Pictures that wait for a worker.
const WAITING_MAX: usize = 128;
/// How long an asker waits for a worker, and how long for its work.
const PATIENCE: Duration = Duration::from_secs(20);
/// The largest file that is looked into, in bytes.
const SOURCE_BYTES_MAX: i64 = 64 * 1024 * 1024;
/// The largest thumbnail, in bytes: more than any picture of 800 by 800 pixels has.
const THUMBNAIL_BYTES_MAX: u64 = 16 * 1024 * 1024;

static SECONDS: LazyLock<HistogramVec> = metrics::seconds!(
    "myelin_media_thumbnail_seconds",
    "Time to make a thumbnail, without waiting, by outcome: ok, refused, late.",
    ["outcome"]
);
static WAITING: LazyLock<IntGauge> =
    metrics::gauge!("myelin_media_thumbnails_waiting", "Thumbnails that are being made, or wait for it.");

/// One of those that wait, also when its asker goes away.
struct Counted;

impl Counted {
    fn one() -> Self {
        WAITING.inc();
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        WAITING.dec();
    }
}

/// Who decodes pictures.
#[derive(Debug)]
pub(crate) struct Workers {
    free: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Workers {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(WORKERS)), waiting: Semaphore::new(WAITING_MAX) }
    }
}

impl Media {
    /// Opens a smaller picture of a file, or the picture itself if it is small. `None` if there is no such file, or none
    /// that the asker may have. It never moves.
    ///
    /// # Errors
    ///
    /// [`Error::NoThumbnail`], [`Error::PictureTooLarge`], and those of [`download`](Self::download).
    pub async fn thumbnail(self: &Arc<Self>, wanted: &Wanted<'_>, size: Size) -> Result<Option<Download>> {
        let Some(about) = self.find(wanted).await? else { return Ok(None) };
        let target = size.target();
        if let Some(download) = self.open_thumbnail(&about, target).await? {
            return Ok(Some(download));
        }
        if about.size > SOURCE_BYTES_MAX {
            return Err(Error::PictureTooLarge { is_remote: about.is_remote });
        }
        if about.is_remote && self.folder.read(&about.sha256).await?.is_none() && wanted.allow_remote {
            self.fetch(wanted.server_name, wanted.media_id).await?;
        }
        self.make_thumbnail(&about, target).await?;
        self.open_thumbnail(&about, target).await
    }

    async fn open_thumbnail(&self, source: &About, target: Target) -> Result<Option<Download>> {
        let (width, height) = (i64::from(target.width), i64::from(target.height));
        let found = self.store.media_thumbnail(&source.sha256, width, height, target.method.as_str()).await?;
        let Some(found) = found else { return Ok(None) };
        // One that was lost can be made again.
        let Some(file) = self.folder.read(&found.sha256).await? else { return Ok(None) };
        self.count_thumbnail();
        let extension = found.content_type.rsplit('/').next().unwrap_or("bin");
        let about = About {
            file_name: Some(format!("thumbnail.{extension}")),
            content_type: Some(found.content_type.clone()),
            size: found.size,
            sha256: found.sha256,
            ..source.clone()
        };
        Ok(Some(Download { about, file }))
    }

    async fn make_thumbnail(&self, source: &About, target: Target) -> Result<()> {
        let _waiting = self.workers.waiting.try_acquire().map_err(|_| Error::Busy)?;
        let _counted = Counted::one();
        let free = Arc::clone(&self.workers.free);
        let waited = time::timeout(PATIENCE, free.acquire_owned()).await;
        // The semaphore is never closed.
        let permit = waited.map_err(|_| Error::Busy)?.map_err(|_| Error::Busy)?;
        // Another asker may have had it made meanwhile.
        if self.open_thumbnail(source, target).await?.is_some() {
            return Ok(());
        }
        let lost = || Error::Lost { media_id: source.media_id.clone() };
        let file = self.folder.read(&source.sha256).await?.ok_or_else(lost)?.into_std().await;
        let bounds = Bounds { pixels_max: self.options.thumbnail_pixels_max };
        let began = time::Instant::now();
        let work = task::spawn_blocking(move || {
            let rendered = render(file, target, bounds);
            // A worker whose asker went away is still one.
            drop(permit);
            rendered
        });
        let rendered = match time::timeout(PATIENCE, work).await {
            Ok(Ok(rendered)) => rendered,
            Ok(Err(error)) => Err(Unrendered::Nonsense(format!("the decoder failed: {error}"))),
            Err(_) => {
                SECONDS.with_label_values(&["late"]).observe(began.elapsed().as_secs_f64());
                return Err(Error::Busy);
            }
        };
        let outcome = if rendered.is_ok() { "ok" } else { "refused" };
        SECONDS.with_label_values(&[outcome]).observe(began.elapsed().as_secs_f64());
        match rendered {
            Ok(rendered) => self.keep_thumbnail(source, target, rendered).await,
            Err(Unrendered::TooLarge) => Err(Error::PictureTooLarge { is_remote: source.is_remote }),
            Err(Unrendered::Nonsense(reason)) => Err(Error::NoThumbnail(reason)),
        }
    }

    async fn keep_thumbnail(&self, source: &About, target: Target, rendered: Rendered) -> Result<()> {
        let (content_type, size, sha256) = match rendered {
            Rendered::Original { content_type } => (content_type, source.size, source.sha256.clone()),
            Rendered::Smaller { content_type, bytes } => {
                let content = stream::once(async { Ok(Bytes::from(bytes)) });
                let Kept { sha256, size } = self.keep(content, THUMBNAIL_BYTES_MAX).await?;
                (content_type, size, sha256.to_vec())
            }
        };
        let thumbnail = MediaThumbnail {
            source_sha256: source.sha256.clone(),
            width: i64::from(target.width),
            height: i64::from(target.height),
            method: target.method.as_str().to_owned(),
            content_type: content_type.to_owned(),
            size,
            sha256,
            created_ts: now_ms(),
        };
        Ok(self.store.keep_media_thumbnail(&thumbnail).await?)
    }
}
