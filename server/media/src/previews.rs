//! What web pages say of themselves, for clients that show it below a link.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediapreview_url>

mod page;

use std::{
    io::Cursor,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use image::ImageReader;
use myelin_process::metrics::{self, IntCounterVec};
use myelin_store::RemoteMediaFile;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time};
use url::Url;

use self::page::Described;
use crate::{Error, Media, Result, names, now_ms, upload::random_media_id};

/// Pages that are looked at at once.
const PAGES_MAX: usize = 16;
/// The time for a page, its picture and what else it names.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long it is believed, in milliseconds.
const KEPT: i64 = 24 * 60 * 60 * 1000;
/// Of a page only the beginning is read: what it says of itself is there.
const PAGE_BYTES_MAX: usize = 1024 * 1024;
const PICTURE_BYTES_MAX: usize = 10 * 1024 * 1024;
/// The longest address that is looked at, in bytes.
const URL_BYTES_MAX: usize = 4096;
/// Pictures that clients show.
const PICTURES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

static PREVIEWS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_media_previews_total",
    "Previews of web pages, by outcome: remembered, ok, refused, failed, busy.",
    ["outcome"]
);

/// Where web pages are to be had: at public addresses only.
pub trait Web: Send + Sync {
    /// Gets what is at an address, redirects followed as long as `may_ask` allows each, at most the first
    /// `bytes_max` bytes of it.
    fn get<'a>(
        &'a self,
        url: &'a Url,
        bytes_max: usize,
        may_ask: &'a (dyn Fn(&Url) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Result<Page, WebError>>;
}

/// Why a page cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WebError(pub String);

/// What is at an address.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where it was found in the end.
    pub url: Url,
    /// What its server says it is.
    pub content_type: Option<String>,
    /// The content, or its beginning.
    pub body: Bytes,
    /// Whether that is all of it.
    pub is_whole: bool,
}

/// Which pages are looked at.
pub(crate) struct Previews {
    web: Arc<dyn Web>,
    denied_hosts: Vec<String>,
    free: Semaphore,
}

impl Media {
    /// Lets web pages be looked at, but for hosts that match one of the patterns. Without, none is. The first call
    /// counts.
    pub fn connect_web(&self, web: Arc<dyn Web>, denied_hosts: Vec<String>) {
        let previews = Previews { web, denied_hosts, free: Semaphore::new(PAGES_MAX) };
        if self.previews.set(previews).is_err() {
            tracing::warn!("web pages are looked at already; the second way to them is not used");
        }
    }

    /// What a page says of itself, as a JSON object in the names of OpenGraph. `None` if no pages are looked at.
    ///
    /// # Errors
    ///
    /// [`Error::NoPreview`], [`Error::Busy`], [`Error::Store`].
    pub async fn preview(&self, url: &str) -> Result<Option<String>> {
        let Some(previews) = self.previews.get() else { return Ok(None) };
        let made = self.preview_within(previews, url).await;
        let outcome = match &made {
            Ok((_, true)) => "remembered",
            Ok((_, false)) => "ok",
            Err(Error::NoPreview { is_refused: true, .. }) => "refused",
            Err(Error::Busy) => "busy",
            Err(_) => "failed",
        };
        PREVIEWS.with_label_values(&[outcome]).inc();
        made.map(|(preview, _)| Some(preview))
    }

    async fn preview_within(&self, previews: &Previews, url: &str) -> Result<(String, bool)> {
        let refused = |reason: &str| Error::NoPreview { is_refused: true, reason: reason.to_owned() };
        if url.len() > URL_BYTES_MAX {
            return Err(refused("the address is too long"));
        }
        let mut url = Url::parse(url).map_err(|error| refused(&error.to_string()))?;
        url.set_fragment(None);
        if !previews.may_ask(&url) {
            return Err(refused("this server does not look at such addresses"));
        }
        let hash = Sha256::digest(url.as_str());
        if let Some(preview) = self.store.url_preview(&hash, now_ms()).await? {
            return Ok((preview, true));
        }
        let _free = previews.free.try_acquire().map_err(|_| Error::Busy)?;
        let looking = Box::pin(self.look(previews, &url));
        let late = |_| Error::NoPreview { is_refused: false, reason: format!("it takes more than {DEADLINE:?}") };
        let preview = Value::Object(time::timeout(DEADLINE, looking).await.map_err(late)??).to_string();
        self.store.keep_url_preview(&hash, &preview, now_ms() + KEPT).await?;
        Ok((preview, false))
    }

    async fn look(&self, previews: &Previews, url: &Url) -> Result<Map<String, Value>> {
        let failed = |error: WebError| Error::NoPreview { is_refused: false, reason: error.0 };
        let page = previews.get(url, PICTURE_BYTES_MAX).await.map_err(failed)?;
        let mut preview = Map::new();
        match page.essence().as_str() {
            essence if PICTURES.contains(&essence) => {
                self.add_picture(&mut preview, page).await?;
            }
            "text/html" | "application/xhtml+xml" => {
                let described = page::describe(&page, PAGE_BYTES_MAX);
                let described = previews.complete(described).await;
                let picture = described.picture.clone();
                described.add_to(&mut preview);
                // A page without its picture is one all the same.
                if let Some(picture) = picture
                    && let Ok(picture) = previews.get(&picture, PICTURE_BYTES_MAX).await
                {
                    self.add_picture(&mut preview, picture).await?;
                }
            }
            _ => {}
        }
        Ok(preview)
    }

    /// Keeps a picture like a copy of another server's, which goes when nobody asks for it any more.
    async fn add_picture(&self, preview: &mut Map<String, Value>, picture: Page) -> Result<()> {
        let Some(content_type) = PICTURES.into_iter().find(|known| *known == picture.essence()) else { return Ok(()) };
        if !picture.is_whole {
            return Ok(());
        }
        let reader = ImageReader::new(Cursor::new(picture.body.clone())).with_guessed_format();
        let Some((width, height)) = reader.ok().and_then(|reader| reader.into_dimensions().ok()) else {
            return Ok(());
        };
        let content = stream::iter([Ok(picture.body)]);
        let kept = match self.keep(content, PICTURE_BYTES_MAX as u64).await {
            Ok(kept) => kept,
            Err(Error::Blocked) => return Ok(()),
            Err(error) => return Err(error),
        };
        let (media_id, now) = (random_media_id(), now_ms());
        let name = picture.url.path_segments().and_then(Iterator::last).and_then(names::file_name);
        let file = RemoteMediaFile {
            server_name: self.options.server_name.to_string(),
            media_id: media_id.clone(),
            content_type: Some(content_type.to_owned()),
            file_name: name,
            size: kept.size,
            sha256: kept.sha256.to_vec(),
            fetched_ts: now,
            used_ts: now,
            quarantined_ts: None,
        };
        self.store.keep_remote_media(&file).await?;
        preview.insert("og:image".to_owned(), self.uri(&media_id).to_string().into());
        preview.insert("og:image:type".to_owned(), content_type.into());
        preview.insert("og:image:width".to_owned(), width.into());
        preview.insert("og:image:height".to_owned(), height.into());
        preview.insert("matrix:image:size".to_owned(), json!(kept.size));
        Ok(())
    }
}

impl Previews {
    /// Whether an address, also one of a redirect, may be asked.
    fn may_ask(&self, url: &Url) -> bool {
        let is_web = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        let Some(host) = url.host_str() else { return false };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        is_web && !self.denied_hosts.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), &host))
    }

    async fn get(&self, url: &Url, bytes_max: usize) -> Result<Page, WebError> {
        let may_ask = |url: &Url| self.may_ask(url);
        if !may_ask(url) {
            return Err(WebError(format!("{url} may not be asked")));
        }
        self.web.get(url, bytes_max, &may_ask).await
    }

    /// Adds what the page's oEmbed document says, if it names one and misses something.
    async fn complete(&self, mut described: Described) -> Described {
        let Some(oembed) = described.oembed.take().filter(|_| described.is_incomplete()) else { return described };
        if let Ok(document) = self.get(&oembed, PAGE_BYTES_MAX).await
            && document.is_whole
            && let Ok(Value::Object(document)) = serde_json::from_slice(&document.body)
        {
            described.add_oembed(&document, &oembed);
        }
        described
    }
}

impl Page {
    /// The type without its parameters.
    fn essence(&self) -> String {
        let content_type = self.content_type.as_deref().unwrap_or_default();
        content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }
}

/// `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            text.char_indices().map(|(place, _)| place).chain([text.len()]).any(|place| matches(rest, &text[place..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    /// Patterns stand for names and those below them.
    #[test]
    fn hosts_are_matched() {
        for (pattern, host) in
            [("a.example", "a.example"), ("*.example", "a.b.example"), ("*", ""), ("10.*", "10.0.0.1")]
        {
            assert!(matches(pattern, host), "{pattern} {host}");
        }
        for (pattern, host) in
            [("a.example", "b.a.example"), ("*.example", "example"), ("", "a"), ("10.*", "110.0.0.1")]
        {
            assert!(!matches(pattern, host), "{pattern} {host}");
        }
    }
}
