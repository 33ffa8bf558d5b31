//! The list of a room's threads.

use std::sync::Arc;

use myelin_store::{Event, Relation};

use super::{Audience, Bundles, SCANNED, Sight, is_ignored};
use crate::{Result, Rooms, erased::redacted_copy, history::Reader};

/// Threads that are looked at together when only some of them are wanted.
const BATCH: usize = 200;

/// Which threads of a room are asked for.
#[derive(Clone, Copy, Debug)]
pub struct ThreadsRequest {
    /// Whether only those that the user has participated in.
    pub participated: bool,
    /// The place that the page starts at: threads whose newest event is at or before this position.
    pub from: Option<i64>,
    /// How many threads it has at the most.
    pub limit: usize,
}

/// Threads of a room.
#[derive(Clone, Debug, Default)]
pub struct ThreadsPage {
    /// The events that they start from, that with the newest event first.
    pub roots: Vec<Arc<Event>>,
    /// What is told together with them.
    pub bundles: Bundles,
    /// The place to go on from, if there may be more.
    pub next: Option<i64>,
}

impl Rooms {
    /// A page of the room's threads, as far as the reader may see what they start from and something in them.
    pub async fn read_threads(&self, reader: &Reader<'_>, request: &ThreadsRequest) -> Result<ThreadsPage> {
        let viewer = &reader.viewer;
        let ignored = self.ignored_by(viewer.user_id, viewer.user_nid).await?;
        let audience = Audience { user_id: viewer.user_id, user_nid: viewer.user_nid, ignored: Some(&ignored) };
        let sights = [Sight::from(reader)];
        let mut page = ThreadsPage::default();
        let mut up_to = request.from.unwrap_or(i64::MAX);
        let mut scanned = 0;
        loop {
            let wanted = request.limit - page.roots.len();
            let size = if request.participated { BATCH.max(wanted) } else { wanted };
            // One more, to know whether there is more.
            let mut listed = self.store.threads(reader.room.nid, viewer.user_nid, up_to, size + 1).await?;
            let mut has_more = listed.len() > size;
            listed.truncate(size);
            scanned += listed.len();
            let Some(mut last) = listed.last().map(|thread| thread.latest_pos) else {
                return Ok(ThreadsPage { next: None, ..page });
            };
            listed.retain(|thread| thread.participated || !request.participated);
            let nids: Vec<i64> = listed.iter().map(|thread| thread.root_nid).collect();
            let mut roots = self.visible(&reader.room, viewer, self.store.events(&nids).await?).await?;
            roots.retain(|root| Relation::of(root).is_none());
            let bundles = self.bundles(&audience, &sights, &roots).await?;
            roots.retain(|root| bundles.of(root).is_some_and(|bundle| bundle.thread.is_some()));
            if roots.len() > wanted {
                has_more = true;
                roots.truncate(wanted);
            }
            if roots.len() == wanted
                && let Some(root) = roots.last()
                && let Some(thread) = listed.iter().find(|thread| thread.root_nid == root.nid)
            {
                has_more |= thread.latest_pos > last;
                last = thread.latest_pos;
            }
            for root in &mut roots {
                // "If the thread root event was sent by an ignored user, the event is returned redacted to the caller."
                if is_ignored(root, &ignored) {
                    *root = redacted_copy(root, &reader.room)?;
                }
            }
            page.roots.append(&mut roots);
            page.bundles.extend(bundles);
            up_to = last.saturating_sub(1);
            page.next = has_more.then_some(up_to);
            if !has_more || page.roots.len() >= request.limit || scanned >= SCANNED {
                return Ok(page);
            }
        }
    }
}
