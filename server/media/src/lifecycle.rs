//! How files end: copies that nobody asks for, what is removed, withheld or blocked, and what is left on the disk.

use std::{sync::LazyLock, time::Duration};

use myelin_process::metrics::{self, IntCounter, IntGaugeVec};
use ruma::ServerName;
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncReadExt as _, time};

use crate::{
    Media, Result,
    disk::{self, Removal, YOUNG},
    now_ms,
};

/// Between two looks for what is over.
const SWEEP: Duration = Duration::from_secs(10 * 60);
/// What is taken at once.
const BATCH: i64 = 500;
/// Batches of one sweep; what is left has to wait for the next.
const BATCHES_MAX: usize = 100;
/// Bytes that are read at once to verify a file.
const READ_BYTES: usize = 256 * 1024;

static FILES: LazyLock<IntGaugeVec> =
    metrics::gauge!("myelin_media_files", "Files that are kept, by kind: local, remote, thumbnails.", ["kind"]);
static BYTES: LazyLock<IntGaugeVec> = metrics::gauge!(
    "myelin_media_bytes",
    "Bytes of the files that are kept, by kind. A content that several files have is on the disk once and counted for each.",
    ["kind"]
);
static REMOVED: LazyLock<IntCounter> =
    metrics::counter!("myelin_media_contents_removed_total", "Contents that were removed from the disk.");
static FORGOTTEN: LazyLock<IntCounter> =
    metrics::counter!("myelin_media_copies_forgotten_total", "Copies of other servers' files that nobody asked for.");

/// Whose files are meant.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// One file.
    File(&'a ServerName, &'a str),
    /// All uploads of a user.
    User(i64),
}

/// What a look at all contents found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Contents that were looked at.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are not on the disk, by their hashes in hexadecimal digits.
    pub missing: Vec<String>,
    /// Those whose bytes are others than they should be.
    pub damaged: Vec<String>,
}

impl Media {
    /// Removes what is over, now and then, until it is dropped.
    pub async fn keep_swept(&self) {
        let mut interval = time::interval(SWEEP);
        interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = self.sweep().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "files that are over stay for now: {error}");
            }
        }
    }

    /// Removes what is over, and counts what is there.
    ///
    /// # Errors
    ///
    /// [`Error::Disk`](crate::Error::Disk), [`Error::Store`](crate::Error::Store). What was done until then is done.
    pub async fn sweep(&self) -> Result<()> {
        let now = now_ms();
        self.store.expire_media_reservations(now).await?;
        self.store.expire_url_previews(now).await?;
        if let Some(retention) = self.options.remote_retention {
            self.forget_unused(retention).await?;
        }
        self.remove_garbage(now - millis(YOUNG)).await?;
        for total in self.store.media_totals().await? {
            FILES.with_label_values(&[total.kind]).set(total.files);
            BYTES.with_label_values(&[total.kind]).set(total.bytes);
        }
        Ok(())
    }

    /// Forgets copies of other servers' files that nobody asked for in this time. Answers how many.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn forget_unused(&self, unused: Duration) -> Result<u64> {
        let now = now_ms();
        let mut forgotten = 0;
        for _ in 0..BATCHES_MAX {
            let count = self.store.forget_unused_remote_media(now.saturating_sub(millis(unused)), now, BATCH).await?;
            forgotten += count;
            if count < BATCH.unsigned_abs() {
                break;
            }
        }
        FORGOTTEN.inc_by(forgotten);
        Ok(forgotten)
    }

    /// Removes contents without a row that lost their last one before a time.
    pub(crate) async fn remove_garbage(&self, before_ts: i64) -> Result<()> {
        for _ in 0..BATCHES_MAX {
            let found = self.store.media_garbage(before_ts, BATCH).await?;
            for sha256 in &found {
                self.remove_content(sha256).await?;
            }
            if found.len() < BATCH.unsigned_abs() as usize {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn remove_content(&self, sha256: &[u8]) -> Result<()> {
        let removal = if self.store.media_references(sha256).await? > 0 {
            Removal::Needed
        } else {
            let is_needed = Box::pin(async { Ok(self.store.media_references(sha256).await? > 0) });
            Box::pin(self.folder.remove(sha256, is_needed)).await?
        };
        let is_gone = match removal {
            Removal::Gone => true,
            Removal::Needed => false,
            // It is garbage again when it is old enough, from now on.
            Removal::TooYoung => {
                self.store.settle_media_garbage(sha256, false, now_ms()).await?;
                return Ok(self.store.note_media_garbage(sha256, now_ms()).await?);
            }
        };
        self.store.settle_media_garbage(sha256, is_gone, now_ms()).await?;
        if is_gone {
            REMOVED.inc();
        }
        Ok(())
    }

    /// Removes files. Their contents go about an hour later, where no other file has them. Answers how many files.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn delete(&self, owner: Owner<'_>) -> Result<u64> {
        match owner {
            Owner::File(server_name, media_id) => {
                let now = now_ms();
                // Under our own name there are uploads and, as copies, pictures of web pages.
                let is_upload =
                    server_name == self.options.server_name && self.store.delete_media(None, media_id, now).await?;
                let is_gone = is_upload || self.store.delete_media(Some(server_name.as_str()), media_id, now).await?;
                Ok(u64::from(is_gone))
            }
            Owner::User(user_nid) => {
                let mut gone = 0;
                loop {
                    let count = self.store.delete_media_of(user_nid, now_ms(), BATCH).await?;
                    gone += count;
                    if count < BATCH.unsigned_abs() {
                        return Ok(gone);
                    }
                }
            }
        }
    }

    /// Withholds files from everybody. Answers how many.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn quarantine(&self, owner: Owner<'_>) -> Result<u64> {
        match owner {
            Owner::File(server_name, media_id) => {
                Ok(u64::from(self.set_quarantine(server_name, media_id, Some(now_ms())).await?))
            }
            Owner::User(user_nid) => Ok(self.store.quarantine_media_of(user_nid, now_ms()).await?),
        }
    }

    /// Gives a file back that was withheld. `false` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn release(&self, server_name: &ServerName, media_id: &str) -> Result<bool> {
        self.set_quarantine(server_name, media_id, None).await
    }

    /// Lets nobody upload or fetch a content any more, and withholds the files that have it.
    ///
    /// # Errors
    ///
    /// [`Error::Store`](crate::Error::Store).
    pub async fn block(&self, sha256: &[u8; 32]) -> Result<()> {
        Ok(self.store.block_media(sha256, now_ms()).await?)
    }

    /// Reads every content, and tells which are missing or damaged.
    ///
    /// # Errors
    ///
    /// [`Error::Disk`](crate::Error::Disk) if a file is there and cannot be opened,
    /// [`Error::Store`](crate::Error::Store).
    pub async fn verify(&self) -> Result<Verification> {
        let mut found = Verification::default();
        let mut after = Vec::new();
        loop {
            let contents = self.store.media_contents(&after, BATCH).await?;
            let Some((last, _)) = contents.last() else { return Ok(found) };
            after.clone_from(last);
            for (sha256, size) in contents {
                found.contents += 1;
                found.bytes += size.unsigned_abs();
                match self.is_whole(&sha256).await? {
                    None => found.missing.push(disk::hex(&sha256)),
                    Some(false) => found.damaged.push(disk::hex(&sha256)),
                    Some(true) => {}
                }
            }
        }
    }

    /// Whether a content is what its hash says; `None` if it is not there.
    async fn is_whole(&self, sha256: &[u8]) -> Result<Option<bool>> {
        let Some(mut file) = self.folder.read(sha256).await? else { return Ok(None) };
        let mut hash = Sha256::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer).await {
                Ok(0) => return Ok(Some(hash.finalize().as_slice() == sha256)),
                Ok(count) => hash.update(buffer.get(..count).unwrap_or_default()),
                // What the disk does not give is damaged.
                Err(_) => return Ok(Some(false)),
            }
        }
    }

    async fn set_quarantine(&self, server_name: &ServerName, media_id: &str, since_ts: Option<i64>) -> Result<bool> {
        let is_upload =
            server_name == self.options.server_name && self.store.quarantine_media(None, media_id, since_ts).await?;
        Ok(is_upload || self.store.quarantine_media(Some(server_name.as_str()), media_id, since_ts).await?)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
