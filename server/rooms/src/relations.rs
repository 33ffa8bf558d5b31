//! Events that relate to others: edits, reactions, references, threads.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events)

mod bundles;
mod sending;
mod threads;

use std::{collections::HashSet, sync::Arc};

use myelin_store::{Direction, Event, RelatedQuery};
use ruma::{OwnedEventId, OwnedUserId, UserId, events::ignored_user_list::IgnoredUserListEventContent};

pub(crate) use self::sending::Annotating;
pub use self::{
    bundles::{Audience, Bundle, BundledThread, Bundles, Sight},
    threads::{ThreadsPage, ThreadsRequest},
};
use crate::{Result, Rooms, history::Reader};

/// Events that are looked at for one page at the most, when many may not be seen.
const SCANNED: usize = 2000;
/// The account data that is of no room.
const GLOBAL: i64 = 0;

/// Which events that relate to another one are asked for.
#[derive(Clone, Copy, Debug)]
pub struct RelationsRequest<'a> {
    /// The event that they relate to.
    pub parent_id: &'a OwnedEventId,
    /// How they relate to it, if that matters.
    pub rel_type: Option<&'a str>,
    /// Their type, if that matters.
    pub event_type: Option<&'a str>,
    /// Whether those that relate to one of them are wanted too, and so on, down to
    /// [`RELATION_DEPTH_MAX`](myelin_store::RELATION_DEPTH_MAX).
    pub recurse: bool,
    /// Which way the page goes.
    pub direction: Direction,
    /// The place that it starts at: after everything up to this position. `None` for the end that it comes from.
    pub from: Option<i64>,
    /// The place that it does not go beyond, likewise.
    pub to: Option<i64>,
    /// How many events it has at the most.
    pub limit: usize,
}

/// Events that relate to another one.
#[derive(Clone, Debug)]
pub struct RelationsPage {
    /// The events, in the direction's order.
    pub events: Vec<Arc<Event>>,
    /// The place to go on from, if there may be more.
    pub next: Option<i64>,
}

impl Rooms {
    /// A page of the events that relate to another one, as far as the reader may see them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) when there is no such event, or the reader may not see it.
    pub async fn read_relations(&self, reader: &Reader<'_>, request: &RelationsRequest<'_>) -> Result<RelationsPage> {
        self.readable_event(reader, request.parent_id).await?;
        let query = RelatedQuery {
            room_nid: reader.room.nid,
            parent_id: request.parent_id,
            rel_type: request.rel_type,
            event_type: request.event_type,
            recurse: request.recurse,
        };
        let ignored = self.ignored_by(reader.viewer.user_id, reader.viewer.user_nid).await?;
        let is_backward = request.direction == Direction::Backward;
        let (mut from, until) = bounds(request, reader.end());
        let mut page = RelationsPage { events: Vec::new(), next: None };
        let mut scanned = 0;
        loop {
            let wanted = request.limit - page.events.len();
            // One more, to know whether there is more.
            let mut found = self.store.related(&query, request.direction, (from, until), wanted + 1).await?;
            let has_more = found.len() > wanted;
            found.truncate(wanted);
            scanned += found.len();
            let Some(&(_, last)) = found.last() else { return Ok(RelationsPage { next: None, ..page }) };
            let nids: Vec<i64> = found.into_iter().map(|(nid, _)| nid).collect();
            let events = self.store.events(&nids).await?;
            let visible = self.visible(&reader.room, &reader.viewer, events).await?;
            page.events.extend(visible.into_iter().filter(|event| !is_ignored(event, &ignored)));
            page.next = has_more.then_some(if is_backward { last.saturating_sub(1) } else { last });
            if !has_more || page.events.len() >= request.limit || scanned >= SCANNED {
                return Ok(page);
            }
            from = last;
        }
    }

    /// The users whom a user ignores.
    pub async fn ignored_by(&self, user_id: &UserId, user_nid: i64) -> Result<HashSet<OwnedUserId>> {
        let list = self.store.account_data(user_nid, GLOBAL, "m.ignored_user_list").await?;
        let list = list.and_then(|data| serde_json::from_str::<IgnoredUserListEventContent>(&data.content).ok());
        let mut ignored: HashSet<_> = list.map_or_else(HashSet::new, |list| list.ignored_users.into_keys().collect());
        // "Servers MUST NOT allow users to ignore themselves": what they say is to be heard by their other devices.
        ignored.remove(user_id);
        Ok(ignored)
    }
}

/// The positions that a page lies between, in its direction's order, without the ends themselves.
fn bounds(request: &RelationsRequest<'_>, end: i64) -> (i64, i64) {
    match request.direction {
        Direction::Backward => {
            let from = request.from.unwrap_or(i64::MAX).min(end);
            (from.saturating_add(1), request.to.unwrap_or(i64::MIN))
        }
        Direction::Forward => {
            let to = request.to.unwrap_or(i64::MAX).min(end);
            (request.from.unwrap_or(i64::MIN), to.saturating_add(1))
        }
    }
}

/// Whether an event is of someone who is ignored. State is told of all the same.
fn is_ignored(event: &Event, ignored: &HashSet<OwnedUserId>) -> bool {
    !ignored.is_empty() && event.key_nid.is_none() && ignored.contains(event.sender())
}
