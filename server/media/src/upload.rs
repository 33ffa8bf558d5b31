//! Files that come in: all at once, or behind an identifier that was given out before.

use std::sync::LazyLock;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use myelin_process::metrics::{self, IntCounter};
use myelin_store::{MediaFile, MediaReservation};
use rand::{Rng as _, distr::Alphanumeric};
use ruma::{OwnedMxcUri, ServerName};
use tokio::time;

use crate::{BoxError, Error, Media, Result, is_media_id, names, now_ms};

const MEDIA_ID_LENGTH: usize = 24;

static UPLOADED: LazyLock<IntCounter> =
    metrics::counter!("myelin_media_uploaded_bytes_total", "Bytes of files that were uploaded.");
static REFUSED: LazyLock<metrics::IntCounterVec> = metrics::counter!(
    "myelin_media_refused_uploads_total",
    "Uploads that were refused, by reason: too_large, interrupted, stalled, busy, quota, blocked, disk.",
    ["reason"]
);

/// A file that someone brings.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// Who brings it.
    pub uploader_nid: i64,
    /// What they say it is.
    pub content_type: Option<&'a str>,
    /// What they call it. Control characters and what is too long are left out.
    pub file_name: Option<&'a str>,
}

/// An identifier whose file is to come.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The identifier.
    pub uri: OwnedMxcUri,
    /// Until when the file has to be there, in milliseconds since 1970.
    pub expires_ts: i64,
}

/// A content that is on the disk, and has no row yet.
pub(crate) struct Kept {
    pub(crate) sha256: [u8; 32],
    pub(crate) size: i64,
}

impl Media {
    /// Keeps a file, piece by piece as it comes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] as soon as it is, [`Error::Interrupted`] if it does not come to its end, [`Error::Stalled`],
    /// [`Error::Busy`], [`Error::Quota`], [`Error::Blocked`], [`Error::Disk`], [`Error::Store`].
    pub async fn upload<E: Into<BoxError>>(
        &self,
        upload: Upload<'_>,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<OwnedMxcUri> {
        let file = self.receive(random_media_id(), upload, content).await?;
        self.store.create_media(&file).await?;
        Ok(self.uri(&file.media_id))
    }

    /// Gives out an identifier for a file that is to come.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyPending`], [`Error::Store`].
    pub async fn create_pending(&self, uploader_nid: i64) -> Result<Pending> {
        let now = now_ms();
        let life = i64::try_from(self.options.pending_upload_life.as_millis()).unwrap_or(i64::MAX);
        let reservation = MediaReservation { uploader_nid, expires_ts: now.saturating_add(life) };
        let media_id = random_media_id();
        let pending_max = i64::from(self.options.pending_uploads_max);
        if !self.store.reserve_media(&media_id, reservation, pending_max, now).await? {
            return Err(Error::TooManyPending);
        }
        Ok(Pending { uri: self.uri(&media_id), expires_ts: reservation.expires_ts })
    }

    /// Keeps the file of an identifier that was given out before.
    ///
    /// # Errors
    ///
    /// Those of [`upload`](Self::upload), and [`Error::UnknownId`], [`Error::NotYours`], [`Error::AlreadyUploaded`],
    /// which are found before anything is read.
    pub async fn fill_pending<E: Into<BoxError>>(
        &self,
        server_name: &ServerName,
        media_id: &str,
        upload: Upload<'_>,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<()> {
        self.check_pending(server_name, media_id, upload.uploader_nid).await?;
        let file = self.receive(media_id.to_owned(), upload, content).await?;
        if !self.store.fill_media(&file).await? {
            // Somebody was faster, or the time ran out meanwhile.
            self.check_pending(server_name, media_id, upload.uploader_nid).await?;
            return Err(Error::UnknownId);
        }
        self.arrivals.send_modify(|arrivals| *arrivals = arrivals.wrapping_add(1));
        Ok(())
    }

    async fn check_pending(&self, server_name: &ServerName, media_id: &str, uploader_nid: i64) -> Result<()> {
        if server_name != self.options.server_name || !is_media_id(media_id) {
            return Err(Error::UnknownId);
        }
        if let Some(reservation) = self.store.media_reservation(media_id, now_ms()).await? {
            return if reservation.uploader_nid == uploader_nid { Ok(()) } else { Err(Error::NotYours) };
        }
        match self.store.media(media_id).await? {
            Some(file) if file.uploader_nid == uploader_nid => Err(Error::AlreadyUploaded),
            Some(_) => Err(Error::NotYours),
            None => Err(Error::UnknownId),
        }
    }

    async fn receive<E: Into<BoxError>>(
        &self,
        media_id: String,
        upload: Upload<'_>,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<MediaFile> {
        let received = self.receive_content(upload.uploader_nid, content).await;
        let Kept { sha256, size } = received.inspect_err(|error| REFUSED.with_label_values(&[reason(error)]).inc())?;
        UPLOADED.inc_by(size.unsigned_abs());
        Ok(MediaFile {
            media_id,
            uploader_nid: upload.uploader_nid,
            content_type: upload.content_type.and_then(names::content_type),
            file_name: upload.file_name.and_then(names::file_name),
            size,
            sha256: sha256.to_vec(),
            created_ts: now_ms(),
            quarantined_ts: None,
        })
    }

    async fn receive_content<E: Into<BoxError>>(
        &self,
        uploader_nid: i64,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Kept> {
        let _permit = self.uploads.try_acquire().map_err(|_| Error::Busy)?;
        let (bytes_max, too_many) = self.room_of(uploader_nid).await?;
        let interrupted = |error: E| Error::Interrupted(error.into());
        let kept = self.keep(content.map(|piece| piece.map_err(interrupted)), bytes_max).await;
        kept.map_err(|error| if matches!(error, Error::TooLarge) { too_many } else { error })
    }

    /// How many bytes a user may still upload, and what more of them is.
    async fn room_of(&self, uploader_nid: i64) -> Result<(u64, Error)> {
        let largest = self.options.upload_bytes_max;
        let Some(user_bytes_max) = self.options.user_bytes_max else { return Ok((largest, Error::TooLarge)) };
        let used = self.store.uploaded_bytes(uploader_nid).await?.unsigned_abs();
        let left = user_bytes_max.saturating_sub(used);
        if left == 0 {
            return Err(Error::Quota);
        }
        Ok(if left < largest { (left, Error::Quota) } else { (largest, Error::TooLarge) })
    }

    /// Writes a content to the disk.
    pub(crate) async fn keep(&self, content: impl Stream<Item = Result<Bytes>>, bytes_max: u64) -> Result<Kept> {
        let mut file = self.folder.create().await?;
        let mut content = std::pin::pin!(content);
        while let Some(piece) = time::timeout(self.options.stall, content.next()).await.map_err(|_| Error::Stalled)? {
            let piece = piece?;
            if file.bytes() + piece.len() as u64 > bytes_max {
                return Err(Error::TooLarge);
            }
            file.write(&piece).await?;
        }
        let size = i64::try_from(file.bytes()).map_err(|_| Error::TooLarge)?;
        if self.store.is_media_blocked(&file.hash_so_far()).await? {
            return Err(Error::Blocked);
        }
        Ok(Kept { sha256: file.keep().await?, size })
    }

    pub(crate) fn uri(&self, media_id: &str) -> OwnedMxcUri {
        format!("mxc://{}/{media_id}", self.options.server_name).into()
    }
}

pub(crate) fn random_media_id() -> String {
    rand::rng().sample_iter(Alphanumeric).take(MEDIA_ID_LENGTH).map(char::from).collect()
}

fn reason(error: &Error) -> &'static str {
    match error {
        Error::TooLarge => "too_large",
        Error::Interrupted(_) => "interrupted",
        Error::Stalled => "stalled",
        Error::Busy => "busy",
        Error::Quota => "quota",
        Error::Blocked => "blocked",
        Error::Disk { .. } => "disk",
        _ => "other",
    }
}
