//! Uploaded files: kept by the hash of their content.
//!
//! The bytes of a file are at `ab/cd/abcd…` below one folder, where `abcd…` is the SHA-256 hash of the content in
//! hexadecimal digits; who uploaded it under which name is in the database. An upload is acknowledged once its bytes,
//! their name on the disk and the row in the database are durable.

mod disk;
mod error;
mod names;

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use myelin_store::{MediaFile, Store};
use prometheus::{IntCounter, register_int_counter};
use rand::{Rng as _, distr::Alphanumeric};
use ruma::{MxcUri, OwnedMxcUri, OwnedServerName, ServerName};
use tokio::{fs::File, sync::Semaphore};
use tokio_util::io::ReaderStream;

use self::disk::Folder;
pub use self::error::{BoxError, Error, Result};

/// Uploads at once, at the most.
const UPLOADS_MAX: usize = 64;
/// How many bytes are read from the disk at once.
const READ_BYTES: usize = 64 * 1024;
const MEDIA_ID_LENGTH: usize = 24;

static UPLOADED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_media_uploaded_bytes_total", "Bytes of files that were uploaded.")
        .expect("metric names are unique")
});
static DOWNLOADS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_media_downloads_total", "Files that were opened to be sent to a client.")
        .expect("metric names are unique")
});

/// Where files are kept, and how large they may be.
#[derive(Clone, Debug)]
pub struct MediaOptions {
    /// The server name in the files' `mxc://` URIs.
    pub server_name: OwnedServerName,
    /// The folder of the files. Made if it is not there; shared by all replicas.
    pub folder: PathBuf,
    /// The largest file, in bytes.
    pub upload_bytes_max: u64,
}

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

/// A file that is being sent.
#[derive(Debug)]
pub struct Download {
    /// What is known of it.
    pub about: MediaFile,
    file: File,
}

impl Download {
    /// The content, in pieces.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        ReaderStream::with_capacity(self.file, READ_BYTES)
    }

    /// The hash of the content, as an entity tag in quotes.
    pub fn entity_tag(&self) -> String {
        format!("\"{}\"", disk::hex(&self.about.sha256))
    }
}

/// The files: one for a process.
#[derive(Debug)]
pub struct Media {
    store: Arc<Store>,
    folder: Folder,
    options: MediaOptions,
    uploads: Semaphore,
}

impl Media {
    /// Opens the folder; removes what uploads left behind that never came to their end.
    ///
    /// # Errors
    ///
    /// [`Error::Disk`] if the folder cannot be made or read.
    pub async fn open(store: Arc<Store>, options: MediaOptions) -> Result<Arc<Self>> {
        let folder = Folder::open(&options.folder).await?;
        Ok(Arc::new(Self { store, folder, options, uploads: Semaphore::new(UPLOADS_MAX) }))
    }

    /// The server name of the files.
    pub fn server_name(&self) -> &ServerName {
        &self.options.server_name
    }

    /// The largest file, in bytes.
    pub fn upload_bytes_max(&self) -> u64 {
        self.options.upload_bytes_max
    }

    /// Keeps a file, piece by piece as it comes.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] as soon as it is, [`Error::Interrupted`] if it does not come to its end, [`Error::Busy`],
    /// [`Error::Disk`], [`Error::Store`].
    pub async fn upload<E: Into<BoxError>>(
        &self,
        upload: Upload<'_>,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<OwnedMxcUri> {
        let _permit = self.uploads.try_acquire().map_err(|_| Error::Busy)?;
        let mut file = self.folder.create().await?;
        let mut content = std::pin::pin!(content);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|error| Error::Interrupted(error.into()))?;
            if file.bytes() + piece.len() as u64 > self.options.upload_bytes_max {
                return Err(Error::TooLarge);
            }
            file.write(&piece).await?;
        }
        let size = file.bytes();
        let sha256 = file.keep().await?;
        UPLOADED.inc_by(size);
        let media_id: String = rand::rng().sample_iter(Alphanumeric).take(MEDIA_ID_LENGTH).map(char::from).collect();
        let about = MediaFile {
            media_id,
            uploader_nid: upload.uploader_nid,
            content_type: upload.content_type.and_then(names::content_type),
            file_name: upload.file_name.and_then(names::file_name),
            size: i64::try_from(size).map_err(|_| Error::TooLarge)?,
            sha256: sha256.to_vec(),
            created_ts: now_ms(),
        };
        self.store.create_media(&about).await?;
        Ok(format!("mxc://{}/{}", self.options.server_name, about.media_id).into())
    }

    /// Opens a file. `None` if there is none of this identifier, here or, for now, anywhere else.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the database knows it and the folder does not.
    pub async fn download(&self, server_name: &ServerName, media_id: &str) -> Result<Option<Download>> {
        // "The media-id segment MUST consist of only alphanumeric (A-Za-z0-9), _ and - characters."
        let is_id = |media_id: &str| MxcUri::is_valid(format!("mxc://{server_name}/{media_id}").as_str().into());
        if server_name != self.options.server_name || !is_id(media_id) {
            return Ok(None);
        }
        let Some(about) = self.store.media(media_id).await? else { return Ok(None) };
        let Some(file) = self.folder.read(&about.sha256).await? else {
            return Err(Error::Lost { media_id: about.media_id });
        };
        DOWNLOADS.inc();
        Ok(Some(Download { about, file }))
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        path::{Path, PathBuf},
        sync::Arc,
    };

    use bytes::Bytes;
    use futures_util::{TryStreamExt as _, stream};
    use myelin_store::testing::Fresh;
    use ruma::{MxcUri, owned_server_name, server_name, user_id};

    use super::{Error, Media, MediaOptions, Upload};

    const UPLOAD: Upload<'static> =
        Upload { uploader_nid: 0, content_type: Some("text/plain"), file_name: Some("a\n.txt") };

    async fn with_media(test: impl AsyncFn(&Arc<Media>, Upload<'_>, &Path)) {
        for fresh in Fresh::each().await {
            let store = fresh.open().await;
            let folder = tempfile::tempdir().unwrap();
            let options = MediaOptions {
                server_name: owned_server_name!("example.org"),
                folder: folder.path().join("media"),
                upload_bytes_max: 10,
            };
            let media = Media::open(store.clone(), options).await.unwrap();
            let uploader_nid = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
            test(&media, Upload { uploader_nid, ..UPLOAD }, &folder.path().join("media")).await;
            store.close().await;
        }
    }

    async fn upload(media: &Media, upload: Upload<'_>, pieces: &[&'static str]) -> Result<String, Error> {
        let content = stream::iter(pieces.iter().map(|piece| Ok::<_, io::Error>(Bytes::from_static(piece.as_bytes()))));
        let uri = media.upload(upload, content).await?;
        Ok(<&MxcUri>::from(uri.as_str()).media_id().unwrap().to_owned())
    }

    async fn content(media: &Media, media_id: &str) -> Option<(Vec<u8>, Option<String>)> {
        let download = media.download(server_name!("example.org"), media_id).await.unwrap()?;
        let name = download.about.file_name.clone();
        let pieces: Vec<Bytes> = download.into_stream().try_collect().await.unwrap();
        Some((pieces.concat(), name))
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found
    }

    /// What goes in comes out; the same content is on the disk once.
    #[tokio::test]
    async fn files_come_back() {
        with_media(async |media, about, folder| {
            let one = upload(media, about, &["hello", "", " you"]).await.unwrap();
            let two = upload(media, about, &["hello you"]).await.unwrap();
            let empty = upload(media, about, &[]).await.unwrap();
            assert_ne!(one, two);
            assert_eq!(content(media, &one).await.unwrap(), (b"hello you".to_vec(), Some("a.txt".to_owned())));
            assert_eq!(content(media, &two).await.unwrap().0, b"hello you");
            assert_eq!(content(media, &empty).await.unwrap().0, b"");
            assert_eq!(files(folder).len(), 2);
        })
        .await;
    }

    /// Too much, or half of it, is refused and leaves nothing behind.
    #[tokio::test]
    async fn refused_uploads_leave_nothing() {
        with_media(async |media, about, folder| {
            assert!(matches!(upload(media, about, &["0123456789", "0"]).await, Err(Error::TooLarge)));
            let broken = stream::iter([Ok(Bytes::from_static(b"half")), Err(io::Error::other("gone"))]);
            assert!(matches!(media.upload(about, broken).await, Err(Error::Interrupted(_))));
            assert!(files(folder).is_empty());
            upload(media, about, &["0123456789"]).await.unwrap();
        })
        .await;
    }

    /// Unknown files, other servers' and names that would lead out of the folder are not there; a lost file is told.
    #[tokio::test]
    async fn unknown_files_are_not_there() {
        with_media(async |media, about, folder| {
            for strange in ["nothing", "", "..", "../../etc/passwd", "a/b", "a\0b"] {
                assert!(media.download(server_name!("example.org"), strange).await.unwrap().is_none(), "{strange:?}");
            }
            let id = upload(media, about, &["x"]).await.unwrap();
            assert!(media.download(server_name!("elsewhere.org"), &id).await.unwrap().is_none());
            std::fs::remove_dir_all(folder).unwrap();
            let lost = media.download(server_name!("example.org"), &id).await;
            assert!(matches!(lost, Err(Error::Lost { .. })));
        })
        .await;
    }
}
