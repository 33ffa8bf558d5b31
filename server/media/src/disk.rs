//! The folder of the files.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rand::{Rng as _, distr::Alphanumeric};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File},
    io::{AsyncWriteExt as _, BufWriter},
};

use crate::{Error, Result};

/// Where uploads are while they come in.
const UNFINISHED: &str = "unfinished";
/// An upload that is as old as this has been given up.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const WRITE_BYTES: usize = 256 * 1024;
/// A file that was written in this time may have a row that is not committed yet.
pub(crate) const YOUNG: Duration = Duration::from_secs(60 * 60);

/// What came of removing a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is not there any more.
    Gone,
    /// Somebody needs it.
    Needed,
    /// It was written just now: ask again later.
    TooYoung,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// A file that is coming in. Dropped before [`Unfinished::keep`], it is gone.
pub(crate) struct Unfinished<'f> {
    folder: &'f Folder,
    path: RemovedAtEnd,
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Folder {
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let unfinished = path.join(UNFINISHED);
        fs::create_dir_all(&unfinished).await.map_err(at("make the folder", &unfinished))?;
        let mut entries = fs::read_dir(&unfinished).await.map_err(at("read the folder", &unfinished))?;
        while let Some(entry) = entries.next_entry().await.map_err(at("read the folder", &unfinished))? {
            // A younger one may be another replica's.
            let modified = entry.metadata().await.and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age > UNFINISHED_AGE_MAX)
                && let Err(error) = fs::remove_file(entry.path()).await
            {
                tracing::warn!(path = %entry.path().display(), %error, "could not remove an upload that was given up");
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    pub(crate) async fn create(&self) -> Result<Unfinished<'_>> {
        let path = self.path.join(UNFINISHED).join(random_name());
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .await
            .map_err(at("create the file", &path))?;
        Ok(Unfinished {
            folder: self,
            path: RemovedAtEnd(Some(path)),
            file: BufWriter::with_capacity(WRITE_BYTES, file),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Removes a content that nobody needs. Whoever keeps the same content meanwhile is not harmed: a file that is younger
    /// than [`YOUNG`] stays, and once it is out of the way it is asked again whether somebody needs it.
    pub(crate) async fn remove(
        &self,
        sha256: &[u8],
        is_needed: impl Future<Output = Result<bool>> + Send,
    ) -> Result<Removal> {
        let place = self.place(sha256);
        let modified = match fs::metadata(&place).await.and_then(|metadata| metadata.modified()) {
            Ok(modified) => modified,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removal::Gone),
            Err(error) => return Err(at("look at the file", &place)(error)),
        };
        if SystemTime::now().duration_since(modified).is_ok_and(|age| age < YOUNG) {
            return Ok(Removal::TooYoung);
        }
        let aside = self.path.join(UNFINISHED).join(random_name());
        fs::rename(&place, &aside).await.map_err(at("move aside the file", &place))?;
        if is_needed.await? {
            fs::rename(&aside, &place).await.map_err(at("put back the file", &place))?;
            return Ok(Removal::Needed);
        }
        fs::remove_file(&aside).await.map_err(at("remove the file", &aside))?;
        Ok(Removal::Gone)
    }

    /// Opens a file; none if it is not there.
    pub(crate) async fn read(&self, sha256: &[u8]) -> Result<Option<File>> {
        let path = self.place(sha256);
        match File::open(&path).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at("open the file", &path)(error)),
        }
    }

    fn place(&self, sha256: &[u8]) -> PathBuf {
        let name = hex(sha256);
        // Slices of hexadecimal digits; a hash from the database that is too short leads to no file.
        let part = |range| name.get(range).unwrap_or("00");
        self.path.join(part(0..2)).join(part(2..4)).join(&name)
    }
}

impl Unfinished<'_> {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) async fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
        self.file.write_all(piece).await.map_err(at("write to the file", self.path.path()))
    }

    /// The hash of what has come.
    pub(crate) fn hash_so_far(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// Moves the file to its place, durably; answers its hash.
    pub(crate) async fn keep(mut self) -> Result<[u8; 32]> {
        let sha256: [u8; 32] = self.hash.finalize_reset().into();
        let from = self.path.path().to_owned();
        self.file.flush().await.map_err(at("write to the file", &from))?;
        self.file.get_ref().sync_all().await.map_err(at("make the file durable", &from))?;
        let to = self.folder.place(&sha256);
        let folders = [to.parent(), to.parent().and_then(Path::parent), Some(self.folder.path.as_path())];
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).await.map_err(at("make the folder", parent))?;
        }
        fs::rename(&from, &to).await.map_err(at("move a file to", &to))?;
        self.path.0 = None;
        // The name is in the folder's own pages, which are written apart from the file's.
        for folder in folders.into_iter().flatten() {
            let opened = File::open(folder).await.map_err(at("open the folder", folder))?;
            opened.sync_all().await.map_err(at("make the folder durable", folder))?;
        }
        Ok(sha256)
    }
}

fn random_name() -> String {
    rand::rng().sample_iter(Alphanumeric).take(24).map(char::from).collect()
}

struct RemovedAtEnd(Option<PathBuf>);

impl RemovedAtEnd {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "could not remove an upload that did not come to its end");
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

fn at<'p>(act: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |source| Error::Disk { act, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, SystemTime},
    };

    use super::{Folder, Removal};

    /// What nobody needs goes; what is needed, or was written just now, stays.
    #[tokio::test]
    async fn contents_are_removed_with_care() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).await.unwrap();
        let mut file = folder.create().await.unwrap();
        file.write(b"content").await.unwrap();
        let sha256 = file.keep().await.unwrap();
        assert_eq!(folder.remove(&sha256, async { Ok(false) }).await.unwrap(), Removal::TooYoung);
        let old = SystemTime::now() - Duration::from_secs(2 * 60 * 60);
        fs::File::open(folder.place(&sha256)).unwrap().set_modified(old).unwrap();
        assert_eq!(folder.remove(&sha256, async { Ok(true) }).await.unwrap(), Removal::Needed);
        assert_eq!(fs::read(folder.place(&sha256)).unwrap(), b"content");
        assert_eq!(folder.remove(&sha256, async { Ok(false) }).await.unwrap(), Removal::Gone);
        assert!(!folder.place(&sha256).exists());
        assert_eq!(folder.remove(&sha256, async { Ok(false) }).await.unwrap(), Removal::Gone);
    }

    /// At start, uploads that were given up go, and those that may be under way stay.
    #[tokio::test]
    async fn given_up_uploads_go_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let unfinished = folder.path().join("unfinished");
        fs::create_dir(&unfinished).unwrap();
        fs::write(unfinished.join("young"), "x").unwrap();
        let old = fs::File::create(unfinished.join("old")).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60)).unwrap();
        Folder::open(folder.path()).await.unwrap();
        assert!(unfinished.join("young").exists());
        assert!(!unfinished.join("old").exists());
    }
}
