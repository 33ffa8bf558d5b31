//! Other servers' files: fetched once however many ask, and kept for the next.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _, TryFutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
    stream::BoxStream,
};
use myelin_process::metrics::{self, HistogramVec, IntCounter, IntGauge};
use myelin_store::RemoteMediaFile;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::time;

use crate::{BoxError, Error, FetchError, Media, Result, names, now_ms, upload::Kept};

/// Files that are being fetched at once.
const FETCHES_MAX: usize = 64;
/// Files of one server that are being fetched at once: one that is slow must not take the place of all.
const FETCHES_PER_SERVER_MAX: usize = 16;
/// The time for a file, however large.
const FETCH_MAX: Duration = Duration::from_secs(10 * 60);

static FETCHED: LazyLock<IntCounter> =
    metrics::counter!("myelin_media_fetched_bytes_total", "Bytes of files that were fetched from other servers.");
static FETCHING: LazyLock<IntGauge> =
    metrics::gauge!("myelin_media_fetches", "Files of other servers that are being fetched.");
static SECONDS: LazyLock<HistogramVec> = metrics::seconds!(
    "myelin_media_fetch_seconds",
    "Time to fetch a file from another server, by outcome: ok, not_found, refused, too_large, unreachable, failed.",
    ["outcome"]
);

/// Where other servers' files are to be had.
pub trait RemoteFiles: Send + Sync {
    /// Asks a server for its file, within a time for the beginning of the answer and a bound on its size.
    fn fetch<'a>(
        &'a self,
        server_name: &'a ServerName,
        media_id: &'a str,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<RemoteFile, FetchError>>;
}

/// A file that comes from another server.
pub struct RemoteFile {
    /// What the server says it is.
    pub content_type: Option<String>,
    /// What the server calls it.
    pub file_name: Option<String>,
    /// The content.
    pub content: BoxStream<'static, Result<Bytes, BoxError>>,
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile").field("content_type", &self.content_type).finish_non_exhaustive()
    }
}

type Key = (OwnedServerName, String);
type Fetching = BoxFuture<'static, Result<(), Arc<Error>>>;

/// What is being fetched. Each goes on as long as somebody waits for it.
#[derive(Default)]
pub(crate) struct Fetches(pub(crate) Mutex<HashMap<Key, WeakShared<Fetching>>>);

impl Media {
    /// Fetches another server's file, or waits for who does already.
    pub(crate) async fn fetch(self: &Arc<Self>, server_name: &ServerName, media_id: &str) -> Result<()> {
        self.join_fetch(server_name, media_id)?.await.map_err(Error::Shared)
    }

    fn join_fetch(self: &Arc<Self>, server_name: &ServerName, media_id: &str) -> Result<Shared<Fetching>> {
        let key = (server_name.to_owned(), media_id.to_owned());
        let mut fetches = self.fetches.0.lock();
        if let Some(fetch) = fetches.get(&key).and_then(WeakShared::upgrade) {
            return Ok(fetch);
        }
        // Those that nobody waits for are over.
        fetches.retain(|_, fetch| fetch.upgrade().is_some());
        let of_server = fetches.keys().filter(|(server, _)| server == server_name).count();
        if fetches.len() >= FETCHES_MAX || of_server >= FETCHES_PER_SERVER_MAX {
            return Err(Error::Busy);
        }
        let Some(remote) = self.remote.get() else { return Err(FetchError::NotAllowed.into()) };
        let fetch =
            fetch_and_keep(Arc::clone(self), Arc::clone(remote), key.clone()).map_err(Arc::new).boxed().shared();
        if let Some(weak) = fetch.downgrade() {
            fetches.insert(key, weak);
        }
        Ok(fetch)
    }
}

async fn fetch_and_keep(media: Arc<Media>, remote: Arc<dyn RemoteFiles>, (server_name, media_id): Key) -> Result<()> {
    struct Count;
    impl Drop for Count {
        fn drop(&mut self) {
            FETCHING.dec();
        }
    }
    FETCHING.inc();
    let _count = Count;
    let began = std::time::Instant::now();
    let fetching = fetch_within(&media, &*remote, &server_name, &media_id);
    let fetched = time::timeout(FETCH_MAX, fetching).await.unwrap_or(Err(Error::Stalled));
    SECONDS.with_label_values(&[outcome(&fetched)]).observe(began.elapsed().as_secs_f64());
    fetched
}

async fn fetch_within(media: &Media, remote: &dyn RemoteFiles, server_name: &ServerName, media_id: &str) -> Result<()> {
    let bytes_max = media.options.remote_bytes_max;
    let RemoteFile { content_type, file_name, content } = remote.fetch(server_name, media_id, bytes_max).await?;
    let broken = |error: BoxError| Error::Fetch(FetchError::Unreachable(error.to_string()));
    let kept = media.keep(content.map(|piece| piece.map_err(broken)), bytes_max).await;
    let Kept { sha256, size } = kept.map_err(|error| match error {
        Error::TooLarge => Error::Fetch(FetchError::TooLarge),
        // To the asker it is as if there were none.
        Error::Blocked => Error::Fetch(FetchError::NotFound),
        error => error,
    })?;
    FETCHED.inc_by(size.unsigned_abs());
    let now = now_ms();
    let file = RemoteMediaFile {
        server_name: server_name.to_string(),
        media_id: media_id.to_owned(),
        content_type: content_type.as_deref().and_then(names::content_type),
        file_name: file_name.as_deref().and_then(names::file_name),
        size,
        sha256: sha256.to_vec(),
        fetched_ts: now,
        used_ts: now,
        quarantined_ts: None,
    };
    Ok(media.store.keep_remote_media(&file).await?)
}

fn outcome(fetched: &Result<()>) -> &'static str {
    match fetched {
        Ok(()) => "ok",
        Err(Error::Fetch(FetchError::NotFound | FetchError::NotYetUploaded)) => "not_found",
        Err(Error::Fetch(FetchError::TooLarge)) => "too_large",
        Err(Error::Fetch(FetchError::Refused { .. } | FetchError::NotAllowed)) => "refused",
        Err(Error::Fetch(FetchError::Unreachable(_) | FetchError::Nonsense(_)) | Error::Stalled) => "unreachable",
        Err(_) => "failed",
    }
}
