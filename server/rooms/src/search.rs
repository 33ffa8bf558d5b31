//! Finding what was said, and who is there.
//!
//! Texts are indexed by their words, a moment after they were written ([`index`]). What is found is shown only to those
//! who may read it where it stands.

mod index;
mod people;
mod words;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt,
    str::FromStr,
    sync::Arc,
};

use myelin_store::{Direction, Event, RoomName, SearchOrder, TextField, TextMatch, TextSearch};
use ruma::{UserId, api::client::filter::RoomEventFilter};

pub use self::index::{Indexer, IndexerOptions};
use crate::{Error, Result, Rooms, history::matches, visibility::Viewer};

/// Matches that are read at once.
const PAGE: usize = 50;
/// Matches that are looked at for one answer at the most, when many do not pass the filter or may not be seen.
const SCANNED: usize = 1_000;
/// How many matches are counted.
const COUNTED: i64 = 1_000;
/// Rooms or senders of a filter that count.
const FILTERED: usize = 1_000;

/// What a user searches for.
#[derive(Clone, Debug)]
pub struct SearchRequest<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The user's number.
    pub user_nid: i64,
    /// The words.
    pub term: &'a str,
    /// What of the events is searched.
    pub fields: &'a [TextField],
    /// Which events are wanted.
    pub filter: &'a RoomEventFilter,
    /// Whether the newest come first, and not the best.
    pub is_recent: bool,
    /// Where to go on.
    pub from: Option<SearchToken>,
    /// How many are wanted at the most.
    pub limit: usize,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct SearchResults {
    /// The events, in the order that was asked for.
    pub found: Vec<Found>,
    /// How many there are, more or less.
    pub count: i64,
    /// What to highlight.
    pub highlights: Vec<String>,
    /// Where to go on.
    pub next: Option<SearchToken>,
}

/// An event that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The event.
    pub event: Arc<Event>,
    /// Its room.
    pub room: Arc<RoomName>,
    /// How well it matches: more is better.
    pub rank: f64,
}

/// What was said around an event.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// What came before it, the newest first.
    pub before: Vec<Arc<Event>>,
    /// What came after it, the oldest first.
    pub after: Vec<Arc<Event>>,
    /// The place before all of them: after everything up to this position.
    pub start: i64,
    /// The place after all of them, likewise.
    pub end: i64,
    /// The memberships of those who spoke, as they were then.
    pub members: Vec<Arc<Event>>,
}

/// The part of the results that a token goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchGroup {
    /// All of them.
    All,
    /// Those of a room, by its number.
    Room(i64),
    /// Those of a sender, by number.
    Sender(i64),
}

/// A place in the results of a search: `n5` before position 5, `k3ff0000000000000.5` behind what matches so well at
/// position 5; with `.r7` or `.s7` behind it, in the results of a room or a sender alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchToken {
    order: SearchOrder,
    group: SearchGroup,
}

impl SearchToken {
    /// The same place in a part of the results.
    #[must_use]
    pub fn within(self, group: SearchGroup) -> Self {
        Self { group, ..self }
    }
}

impl fmt::Display for SearchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.order {
            SearchOrder::Recent { before } => write!(f, "n{before}")?,
            SearchOrder::Rank { rank, pos } => write!(f, "k{:016x}.{pos}", rank.to_bits())?,
        }
        match self.group {
            SearchGroup::All => Ok(()),
            SearchGroup::Room(nid) => write!(f, ".r{nid}"),
            SearchGroup::Sender(nid) => write!(f, ".s{nid}"),
        }
    }
}

impl FromStr for SearchToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidParam("next_batch is not a token of this server".to_owned());
        let parsed = || {
            let mut parts = text.split('.');
            let first = parts.next()?;
            let order = match first.strip_prefix('n') {
                Some(before) => SearchOrder::Recent { before: before.parse().ok()? },
                None => {
                    let rank = f64::from_bits(u64::from_str_radix(first.strip_prefix('k')?, 16).ok()?);
                    SearchOrder::Rank {
                        rank: Some(rank).filter(|rank| rank.is_finite())?,
                        pos: parts.next()?.parse().ok()?,
                    }
                }
            };
            let group = match parts.next() {
                None => SearchGroup::All,
                Some(group) => match group.strip_prefix('r') {
                    Some(nid) => SearchGroup::Room(nid.parse().ok()?),
                    None => SearchGroup::Sender(group.strip_prefix('s')?.parse().ok()?),
                },
            };
            parts.next().is_none().then_some(Self { order, group })
        };
        // What is read is what would be written.
        parsed().filter(|token| token.to_string() == text).ok_or_else(invalid)
    }
}

/// How the user stands to rooms, by number; `None` where they never were.
type Viewers<'r> = HashMap<i64, Option<(Arc<RoomName>, Viewer<'r>)>>;

impl Rooms {
    /// Searches what was said in the rooms that a user is or was in.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for a token of another search.
    pub async fn search(&self, request: &SearchRequest<'_>) -> Result<SearchResults> {
        let phrases = words::phrases(request.term);
        let (mut order, group) = match request.from {
            Some(SearchToken { order, group }) => (order, group),
            None if request.is_recent => (SearchOrder::Recent { before: i64::MAX }, SearchGroup::All),
            None => (SearchOrder::Rank { rank: f64::MAX, pos: i64::MAX }, SearchGroup::All),
        };
        if matches!(order, SearchOrder::Recent { .. }) != request.is_recent {
            return Err(Error::InvalidParam("next_batch is of a search with another order".to_owned()));
        }
        let rooms = self.searched_rooms(request, group).await?;
        let senders = match self.searched_senders(request.filter, group).await? {
            Some(senders) if senders.is_empty() => return Ok(SearchResults::nothing(&phrases)),
            senders => senders.unwrap_or_default(),
        };
        let mut search = TextSearch {
            phrases: &phrases,
            room_nids: &rooms,
            fields: request.fields,
            sender_nids: &senders,
            order,
            limit: PAGE,
        };
        let count = self.store.count_texts(&search, COUNTED).await?;
        let mut results = SearchResults { count, ..SearchResults::nothing(&phrases) };
        let mut viewers = Viewers::new();
        let mut scanned = 0;
        loop {
            search.order = order;
            let page = self.store.search_texts(&search).await?;
            let is_last = page.len() < PAGE;
            let visible = Box::pin(self.visible_matches(request, &page, &mut viewers)).await?;
            for (place, found) in page.iter().enumerate() {
                order = match order {
                    SearchOrder::Recent { .. } => SearchOrder::Recent { before: found.pos },
                    SearchOrder::Rank { .. } => SearchOrder::Rank { rank: found.rank, pos: found.pos },
                };
                let Some((event, room)) = visible.get(&found.event_nid) else { continue };
                results.found.push(Found { event: event.clone(), room: room.clone(), rank: found.rank });
                if results.found.len() >= request.limit {
                    let is_end = is_last && place + 1 == page.len();
                    results.next = (!is_end).then_some(SearchToken { order, group });
                    return Ok(results);
                }
            }
            scanned += page.len();
            if is_last || scanned >= SCANNED {
                results.next = (!is_last).then_some(SearchToken { order, group });
                return Ok(results);
            }
        }
    }

    /// The rooms that a user has a place in, as far as the filter names them.
    async fn searched_rooms(&self, request: &SearchRequest<'_>, group: SearchGroup) -> Result<Vec<i64>> {
        let filter = request.filter;
        let mut found: HashSet<i64> = self
            .store
            .memberships(request.user_nid)
            .await?
            .into_iter()
            .filter(|member| !member.forgotten)
            .map(|member| member.room_nid)
            .collect();
        if let Some(wanted) = &filter.rooms {
            let mut named = HashSet::new();
            for room_id in wanted.iter().take(FILTERED) {
                named.extend(self.store.room(room_id).await?.map(|room| room.nid));
            }
            found.retain(|room_nid| named.contains(room_nid));
        }
        for room_id in filter.not_rooms.iter().take(FILTERED) {
            if let Some(room) = self.store.room(room_id).await? {
                found.remove(&room.nid);
            }
        }
        if let SearchGroup::Room(room_nid) = group {
            found.retain(|found| *found == room_nid);
        }
        Ok(found.into_iter().collect())
    }

    /// The senders that are asked for; `None` for all.
    async fn searched_senders(&self, filter: &RoomEventFilter, group: SearchGroup) -> Result<Option<Vec<i64>>> {
        if let SearchGroup::Sender(nid) = group {
            return Ok(Some(vec![nid]));
        }
        let Some(senders) = &filter.senders else { return Ok(None) };
        let mut nids = Vec::new();
        for sender in senders.iter().take(FILTERED) {
            nids.extend(self.store.known_user_nid(sender).await?);
        }
        Ok(Some(nids))
    }

    /// Of a page of matches, the events that the user may read and wants, by number.
    async fn visible_matches<'r>(
        &self,
        request: &SearchRequest<'r>,
        page: &[TextMatch],
        viewers: &mut Viewers<'r>,
    ) -> Result<HashMap<i64, (Arc<Event>, Arc<RoomName>)>> {
        let nids: Vec<i64> = page.iter().map(|found| found.event_nid).collect();
        let mut by_room: HashMap<i64, Vec<Arc<Event>>> = HashMap::new();
        for event in self.store.events(&nids).await? {
            // What was redacted is in the index for a moment more.
            if event.redacted_by.is_none() && matches(request.filter, &event) {
                by_room.entry(event.room_nid).or_default().push(event);
            }
        }
        let mut found = HashMap::new();
        for (room_nid, events) in by_room {
            let viewer = match viewers.entry(room_nid) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.search_viewer(request, room_nid).await?),
            };
            let Some((room, viewer)) = viewer else { continue };
            let before: HashMap<i64, Arc<Event>> = events.iter().map(|event| (event.nid, event.clone())).collect();
            for event in self.visible(room, viewer, events).await? {
                // Of one who has asked to be erased, the user is shown no text, and must not learn of its words.
                if before.get(&event.nid).is_some_and(|before| Arc::ptr_eq(before, &event)) {
                    found.insert(event.nid, (event, room.clone()));
                }
            }
        }
        Ok(found)
    }

    /// How the user stands to a room, if they are or were in it.
    async fn search_viewer<'r>(
        &self,
        request: &SearchRequest<'r>,
        room_nid: i64,
    ) -> Result<Option<(Arc<RoomName>, Viewer<'r>)>> {
        let room = self.store.room_by_nid(room_nid).await?;
        let viewer = self.viewer(&room, request.user_id, request.user_nid).await?;
        let was_there = viewer.is_joined() || self.last_joined(&room, &viewer).await?.is_some();
        Ok(was_there.then_some((room, viewer)))
    }

    /// What was said around an event that was found, as far as the user may read it and it is here.
    pub async fn surroundings(
        &self,
        user: (&UserId, i64),
        found: &Found,
        before_limit: usize,
        after_limit: usize,
        with_members: bool,
    ) -> Result<Surroundings> {
        let Some(pos) = found.event.pos else { return Ok(Surroundings::default()) };
        let (user_id, user_nid) = user;
        let viewer = self.viewer(&found.room, user_id, user_nid).await?;
        let mut sides = Vec::with_capacity(2);
        for (direction, limit) in [(Direction::Backward, before_limit), (Direction::Forward, after_limit)] {
            let events = match limit {
                0 => Vec::new(),
                limit => self.store.page(found.room.nid, direction, pos, None, limit).await?,
            };
            let end = events.last().and_then(|event| event.pos).unwrap_or(pos);
            sides.push((self.visible(&found.room, &viewer, events).await?, end));
        }
        let ((after, end), (before, start)) = match (sides.pop(), sides.pop()) {
            (Some(after), Some(before)) => (after, before),
            _ => return Ok(Surroundings::default()),
        };
        let members = if with_members {
            let shown: Vec<_> = before.iter().chain([&found.event]).chain(&after).cloned().collect();
            self.members_of_senders(&shown).await?
        } else {
            Vec::new()
        };
        Ok(Surroundings { before, after, start: start.saturating_sub(1), end, members })
    }

    /// The present state of a room for one who searched in it; the state that they left it in for one who did.
    pub async fn state_for_search(&self, user_id: &UserId, user_nid: i64, room: &RoomName) -> Result<Vec<Arc<Event>>> {
        let reader = self.reader(&room.room_id, user_id, user_nid).await?;
        let root = self.readable_root(&reader).await?;
        let state = self.store.all_state_events(root).await?;
        self.without_erased(&reader.room, &reader.viewer, state).await
    }

    /// The rooms that a user shares with another one, from a place on; the place behind them, if there are more; and how
    /// many there are in all.
    pub async fn mutual_rooms(
        &self,
        user_nid: i64,
        other: &UserId,
        after: i64,
        limit: usize,
    ) -> Result<(Vec<Arc<RoomName>>, Option<i64>, usize)> {
        let Some(other_nid) = self.store.known_user_nid(other).await? else { return Ok((Vec::new(), None, 0)) };
        let mut nids = self.store.mutual_rooms(user_nid, other_nid).await?;
        let count = nids.len();
        nids.retain(|nid| *nid > after);
        let has_more = nids.len() > limit;
        nids.truncate(limit);
        let next = nids.last().copied().filter(|_| has_more);
        Ok((self.store.rooms(&nids).await?, next, count))
    }
}

impl SearchResults {
    fn nothing(phrases: &[Vec<String>]) -> Self {
        Self { found: Vec::new(), count: 0, highlights: words::highlights(phrases), next: None }
    }
}

#[cfg(test)]
mod tests {
    use myelin_store::SearchOrder;

    use super::{SearchGroup, SearchToken};

    /// Tokens are read as they were written, and nothing else is.
    #[test]
    fn tokens_are_ours() {
        let rank = SearchOrder::Rank { rank: 1.0, pos: -5 };
        for order in [SearchOrder::Recent { before: 7 }, rank] {
            for group in [SearchGroup::All, SearchGroup::Room(3), SearchGroup::Sender(4)] {
                let token = SearchToken { order, group };
                assert_eq!(token.to_string().parse::<SearchToken>().unwrap(), token);
            }
        }
        for text in
            ["", "n", "n1.", "n01", "k1.2", "k3ff0000000000000", "k7ff0000000000000.1", "n1.r1.r1", "t5", "n1.x1"]
        {
            assert!(text.parse::<SearchToken>().is_err(), "{text}");
        }
    }
}
