//! The newest events of many rooms at once.

use std::{collections::HashSet, sync::Arc};

use myelin_rooms::{
    Rooms,
    relations::{self, Bundles, Sight},
    visibility::Viewer,
};
use myelin_store::{Direction, Event, Member, RoomName};
use ruma::{OwnedUserId, UserId};

use crate::{Filter, Result, token::Token};

/// Events read at once when a filter leaves few of those before.
const PAGE: usize = 100;
/// Pages read at the most for one timeline; what is left then is the client's to fetch.
const PAGES: usize = 5;

/// A timeline to fill.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) room: Arc<RoomName>,
    /// The user's place, unless the user was in the room all the time and sees everything.
    pub(crate) viewed_by: Option<Member>,
    /// Events after this position,
    pub(crate) after: i64,
    /// and up to this one.
    pub(crate) to: i64,
    /// A later event that comes last all the same: what ended the user's place in the room for good. The state that
    /// it stands in is not for the user.
    pub(crate) end: Option<Arc<Event>>,
}

/// A timeline.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    /// What the client is told.
    pub(crate) events: Vec<Arc<Event>>,
    /// Whether there is more between the bounds.
    pub(crate) limited: bool,
    /// State events from the first event told on that the filter has left out.
    pub(crate) hidden_state: Vec<Arc<Event>>,
    /// The event right before the first one told, where it was read.
    pub(crate) before: Option<Arc<Event>>,
    /// The first event of those told or left out after that.
    pub(crate) first: Option<Arc<Event>>,
    /// The last event between the bounds, which [`Wanted::end`] is beyond.
    pub(crate) last: Option<Arc<Event>>,
}

impl Filled {
    /// The token at its start.
    pub(crate) fn prev_batch(&self, wanted: &Wanted) -> Token {
        match self.events.first().and_then(|event| event.pos) {
            Some(pos) => Token::before(pos),
            None if self.limited => Token::timeline(wanted.to),
            None => Token::timeline(wanted.after),
        }
    }
}

/// Whose timelines.
pub(crate) struct Audience<'a> {
    pub(crate) user_id: &'a UserId,
    pub(crate) user_nid: i64,
    pub(crate) filter: &'a Filter,
    pub(crate) ignored: &'a HashSet<OwnedUserId>,
}

impl Audience<'_> {
    fn wants(&self, event: &Event) -> bool {
        let ignored = !self.ignored.is_empty() && event.key_nid.is_none() && self.ignored.contains(event.sender());
        !ignored && self.filter.timeline().wants(event)
    }
}

/// A timeline that is told of together with what relates to its events.
pub(crate) struct Told<'a> {
    pub(crate) wanted: &'a Wanted,
    pub(crate) filled: &'a Filled,
    /// Whether the user is in the room, so that all that happens now is for them.
    pub(crate) is_joined: bool,
}

/// What is told together with the events of some timelines, of all at once.
pub(crate) async fn bundles(
    rooms: &Rooms,
    user_id: &UserId,
    user_nid: i64,
    ignored: &HashSet<OwnedUserId>,
    told: &[Told<'_>],
) -> Result<Bundles> {
    let events: Vec<Arc<Event>> = told.iter().flat_map(|told| &told.filled.events).cloned().collect();
    if events.is_empty() {
        return Ok(Bundles::default());
    }
    let sight = |Told { wanted, is_joined, .. }: &Told<'_>| Sight {
        room: wanted.room.clone(),
        viewer: wanted.viewed_by.map(|member| Viewer { user_id, user_nid, member: Some(member) }),
        end: if *is_joined { i64::MAX } else { wanted.to },
    };
    let sights: Vec<Sight<'_>> = told.iter().map(sight).collect();
    let audience = relations::Audience { user_id, user_nid, ignored: Some(ignored) };
    Ok(rooms.bundles(&audience, &sights, &events).await?)
}

/// Fills timelines, in the order given: one read for all, and more only for those that a filter has emptied.
pub(crate) async fn fill(rooms: &Rooms, audience: &Audience<'_>, wanted: &[Wanted]) -> Result<Vec<Filled>> {
    let limit = audience.filter.timeline_limit();
    let bounds: Vec<(i64, i64, i64)> = wanted.iter().map(|room| (room.room.nid, room.after, room.to)).collect();
    let found = rooms.store().newest_events_of(&bounds, limit + 1).await?;
    let mut filled = Vec::with_capacity(wanted.len());
    for (wanted, events) in wanted.iter().zip(found) {
        filled.push(fill_one(rooms, audience, wanted, events, limit).await?);
    }
    Ok(filled)
}

async fn fill_one(
    rooms: &Rooms,
    audience: &Audience<'_>,
    wanted: &Wanted,
    newest: Vec<Arc<Event>>,
    limit: usize,
) -> Result<Filled> {
    let last = newest.last().cloned();
    let mut is_exhausted = newest.len() <= limit;
    let mut raw = newest;
    raw.extend(wanted.end.clone());
    let mut kept = keep(rooms, audience, wanted, &raw).await?;
    let takes_room = audience.filter.timeline().wants_room(&wanted.room.room_id);
    for _ in 0..PAGES {
        if is_exhausted || kept.len() >= limit || !takes_room {
            break;
        }
        let Some(oldest) = raw.first().and_then(|event| event.pos) else { break };
        let mut page =
            rooms.store().page(wanted.room.nid, Direction::Backward, oldest, Some(wanted.after), PAGE).await?;
        is_exhausted = page.len() < PAGE;
        page.reverse();
        let mut more = keep(rooms, audience, wanted, &page).await?;
        more.append(&mut kept);
        kept = more;
        page.append(&mut raw);
        raw = page;
    }
    let surplus = kept.len().saturating_sub(limit);
    let limited = surplus > 0 || !is_exhausted;
    kept.drain(..surplus);

    // Where the client's timeline begins, among all that was read.
    let start = match kept.first() {
        _ if !limited => 0,
        Some(first) => raw.iter().position(|event| event.nid == first.nid).unwrap_or(raw.len()),
        None => raw.len(),
    };
    let told: HashSet<i64> = kept.iter().map(|event| event.nid).collect();
    let is_hidden = |event: &&Arc<Event>| event.key_nid.is_some() && event.is_shown() && !told.contains(&event.nid);
    let hidden = raw[start..].iter().filter(is_hidden);
    let is_between = |event: &&Arc<Event>| event.pos.is_some_and(|pos| pos <= wanted.to);
    Ok(Filled {
        limited,
        hidden_state: hidden.cloned().collect(),
        before: raw[..start].iter().rfind(is_between).cloned(),
        first: raw.get(start).filter(is_between).cloned(),
        last,
        events: kept,
    })
}

/// The events that a client may see and wants.
async fn keep(
    rooms: &Rooms,
    audience: &Audience<'_>,
    wanted: &Wanted,
    events: &[Arc<Event>],
) -> Result<Vec<Arc<Event>>> {
    if !audience.filter.timeline().wants_room(&wanted.room.room_id) {
        return Ok(Vec::new());
    }
    let mut kept = events.to_vec();
    if wanted.viewed_by.is_some() {
        let viewer = Viewer { user_id: audience.user_id, user_nid: audience.user_nid, member: wanted.viewed_by };
        kept = rooms.visible(&wanted.room, &viewer, kept).await?;
    }
    if !audience.filter.timeline().is_everything() || !audience.ignored.is_empty() {
        kept.retain(|event| audience.wants(event));
    }
    Ok(kept)
}
