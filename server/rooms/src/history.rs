//! Reading a room's history, as far as a user may.

use std::sync::Arc;

use myelin_store::{Direction, Event, Membership, RoomName, StateKey};
use ruma::{
    OwnedEventId, RoomId, UserId,
    api::client::filter::{RoomEventFilter, UrlFilter},
};

use crate::{Error, Result, Rooms, visibility::Viewer};

/// Events that are read from the store at once.
const BATCH: usize = 100;
/// Events that are looked at for one page at the most, when many do not pass the filter or may not be seen.
const SCANNED: usize = 2000;

/// A user who may read a room, at least in part.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    /// The room.
    pub room: Arc<RoomName>,
    /// The user.
    pub viewer: Viewer<'a>,
    /// The event by which the user was in the room no longer, if that is so.
    left: Option<Arc<Event>>,
    /// Whether the room's present may be read by everyone.
    is_world_readable: bool,
}

impl Reader<'_> {
    /// The last position that can be of interest to the user.
    pub(crate) fn end(&self) -> i64 {
        match &self.left {
            Some(left) if !self.is_world_readable => left.pos.unwrap_or(i64::MAX),
            _ => i64::MAX,
        }
    }
}

/// A part of a room's timeline that is asked for.
#[derive(Clone, Debug)]
pub struct PageRequest<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// The place that it starts at: after everything up to this position. `None` for the end that it comes from.
    pub from: Option<i64>,
    /// The place that it does not go beyond, likewise.
    pub to: Option<i64>,
    /// How many events it has at the most.
    pub limit: usize,
    /// Which events are wanted.
    pub filter: &'a RoomEventFilter,
}

/// A part of a room's timeline.
#[derive(Clone, Debug)]
pub struct Page {
    /// The events, in the direction's order.
    pub events: Vec<Arc<Event>>,
    /// The place that it started at: after everything up to this position.
    pub start: i64,
    /// The place to go on from.
    pub end: i64,
    /// Whether there is nothing beyond [`end`](Self::end).
    pub is_last: bool,
}

/// How often other servers are asked for history, for one page.
const FETCHES: usize = 3;

impl Rooms {
    /// Lets a user read a room: a member, a former member, or anyone if everyone may read it.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] for anyone else, and likewise when there is no such room.
    pub async fn reader<'a>(&self, room_id: &RoomId, user_id: &'a UserId, user_nid: i64) -> Result<Reader<'a>> {
        let Some(room) = self.store.room(room_id).await? else { return Err(Error::outsider()) };
        let viewer = self.viewer(&room, user_id, user_nid).await?;
        if viewer.is_joined() {
            return Ok(Reader { room, viewer, left: None, is_world_readable: false });
        }
        // Whoever has forgotten a room reads it as if they had never been there.
        let viewer = Viewer { member: viewer.member.filter(|member| !member.forgotten), ..viewer };
        let left = self.last_joined(&room, &viewer).await?;
        let is_world_readable = self.is_world_readable(&room).await?;
        if left.is_none() && !is_world_readable {
            return Err(Error::outsider());
        }
        Ok(Reader { room, viewer, left, is_world_readable })
    }

    /// The newest snapshot of the room's state that a reader may see: that of the present, or, for someone who has
    /// left the room, that of their leaving.
    pub async fn readable_root(&self, reader: &Reader<'_>) -> Result<i64> {
        match &reader.left {
            Some(left) => Ok(left.room_state),
            None => self.state_root(&reader.room).await,
        }
    }

    /// The snapshot of the room's state at a place of the timeline, or the newest that the reader may see.
    pub async fn readable_root_at(&self, reader: &Reader<'_>, pos: i64) -> Result<i64> {
        if reader.left.as_ref().and_then(|left| left.pos).is_some_and(|end| end <= pos) {
            return self.readable_root(reader).await;
        }
        let Some(event) = self.store.last_event_at(reader.room.nid, pos).await? else { return Ok(0) };
        let root = event.room_state;
        if self.visible(&reader.room, &reader.viewer, vec![event]).await?.is_empty() {
            return Err(Error::forbidden("you may not see the room's state at that point"));
        }
        Ok(root)
    }

    /// An event of the room, if the reader may see it.
    pub async fn readable_event(&self, reader: &Reader<'_>, event_id: &OwnedEventId) -> Result<Arc<Event>> {
        let event = self.store.event_by_id(event_id).await?.filter(|event| event.room_nid == reader.room.nid);
        let visible = match event {
            Some(event) => self.visible(&reader.room, &reader.viewer, vec![event]).await?.pop(),
            None => None,
        };
        visible.ok_or(Error::NotFound("there is no such event, or you may not see it"))
    }

    /// A page of the room's timeline.
    ///
    /// It may be empty without being the last one: no more than some thousand events are looked at.
    pub async fn read_page(self: &Arc<Self>, reader: &Reader<'_>, request: &PageRequest<'_>) -> Result<Page> {
        let is_backward = request.direction == Direction::Backward;
        let mut page = self.empty_page(reader, request);
        if request.limit == 0 || excludes_room(request.filter, &reader.room.room_id) {
            page.is_last = true;
            return Ok(page);
        }
        let until = match request.direction {
            Direction::Backward => request.to,
            Direction::Forward => {
                let end = request.to.unwrap_or(i64::MAX).min(reader.end());
                Some(end.saturating_add(1))
            }
        };
        let mut scanned = 0;
        let mut fetches = 0;
        while scanned < SCANNED {
            let size = batch_size(request, page.events.len());
            // One more, to know whether there is more.
            let from = if is_backward { page.end.saturating_add(1) } else { page.end };
            let mut batch =
                self.store.page(reader.room.nid, request.direction, from, until, size.saturating_add(1)).await?;
            page.is_last = batch.len() <= size;
            batch.truncate(size);
            scanned += batch.len();
            let last = batch.last().and_then(|event| event.pos);
            batch.retain(|event| matches(request.filter, event));
            let visible = self.visible(&reader.room, &reader.viewer, batch).await?;
            let wanted = request.limit - page.events.len();
            let is_cut = visible.len() > wanted;
            page.events.extend(visible.into_iter().take(wanted));
            let stop = if is_cut { page.events.last().and_then(|event| event.pos) } else { last };
            if let Some(pos) = stop {
                page.end = if is_backward { pos.saturating_sub(1) } else { pos };
            }
            if is_cut {
                page.is_last = false;
            }
            if is_backward && page.is_last && page.events.len() < request.limit && fetches < FETCHES {
                // Other servers may know more of the room.
                fetches += 1;
                page.is_last = !Box::pin(self.backfill(&reader.room)).await?;
            }
            if page.is_last || page.events.len() >= request.limit {
                break;
            }
        }
        Ok(page)
    }

    fn empty_page(&self, reader: &Reader<'_>, request: &PageRequest<'_>) -> Page {
        let start = match (request.from, request.direction) {
            (Some(from), Direction::Backward) => from.min(reader.end()),
            (Some(from), Direction::Forward) => from,
            // Others may write while we read: the place is fixed.
            (None, Direction::Backward) => self.store.position().min(reader.end()),
            (None, Direction::Forward) => i64::MIN,
        };
        Page { events: Vec::new(), start, end: start, is_last: false }
    }

    /// The membership events of the senders of some events, as of the newest of these: what a client that loads
    /// members lazily needs to show them.
    pub async fn members_of_senders(&self, events: &[Arc<Event>]) -> Result<Vec<Arc<Event>>> {
        let Some(newest) = events.iter().max_by_key(|event| event.pos) else { return Ok(Vec::new()) };
        let mut senders: Vec<&Arc<Event>> = events.iter().collect();
        senders.sort_unstable_by_key(|event| event.sender_nid);
        senders.dedup_by_key(|event| event.sender_nid);
        let keys: Vec<StateKey> =
            senders.iter().map(|event| StateKey::new("m.room.member", event.sender().as_str())).collect();
        self.state_events_at(newest.room_state, &keys).await
    }

    /// The events of a snapshot under some keys, where there are any.
    pub(crate) async fn state_events_at(&self, root: i64, keys: &[StateKey]) -> Result<Vec<Arc<Event>>> {
        let nids: Vec<i64> = self.store.known_key_nids(keys).await?.into_iter().flatten().collect();
        Ok(self.store.state_events(root, &nids).await?.into_iter().flatten().collect())
    }

    /// True if the user is in the room now.
    pub async fn is_joined(&self, room: &RoomName, user_nid: i64) -> Result<bool> {
        let member = self.member(room, user_nid).await?;
        Ok(member.is_some_and(|member| member.membership == Membership::Join))
    }
}

/// As many as are lacking; more where a filter lets few through.
fn batch_size(request: &PageRequest<'_>, found: usize) -> usize {
    let lacking = request.limit - found;
    if request.filter.is_empty() { lacking } else { lacking.max(BATCH) }
}

fn excludes_room(filter: &RoomEventFilter, room_id: &RoomId) -> bool {
    filter.not_rooms.iter().any(|not| not == room_id)
        || filter.rooms.as_ref().is_some_and(|rooms| !rooms.iter().any(|room| room == room_id))
}

/// True if a filter lets an event through; its lists of rooms and its limit are not looked at.
pub fn matches(filter: &RoomEventFilter, event: &Event) -> bool {
    let is_type = |pattern: &String| matches_wildcard(pattern, event.event_type());
    if filter.not_types.iter().any(is_type) || filter.types.as_ref().is_some_and(|types| !types.iter().any(is_type)) {
        return false;
    }
    let is_sender = |sender: &ruma::OwnedUserId| sender == event.sender();
    if filter.not_senders.iter().any(is_sender)
        || filter.senders.as_ref().is_some_and(|senders| !senders.iter().any(is_sender))
    {
        return false;
    }
    match filter.url_filter {
        None => true,
        Some(UrlFilter::EventsWithUrl) => has_url(event),
        Some(UrlFilter::EventsWithoutUrl) => !has_url(event),
    }
}

fn has_url(event: &Event) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        url: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(event.content()).is_ok_and(|content| content.url.is_some())
}

/// "A '*' can be used as a wildcard to match any sequence of characters."
fn matches_wildcard(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(place) => rest = &rest[place + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches_wildcard;

    /// A star stands for any sequence of characters, also none; everything else for itself.
    #[test]
    fn wildcards() {
        for (pattern, text) in [("m.room.*", "m.room.name"), ("*", ""), ("a*c", "ac"), ("a*b*c", "axbxbc"), ("a", "a")]
        {
            assert!(matches_wildcard(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("m.room.*", "m.reaction"), ("a*ca", "aca "), ("a*a", "a"), ("", "a"), ("a", "ab")] {
            assert!(!matches_wildcard(pattern, text), "{pattern} {text}");
        }
    }
}
