//! Which rooms are to be told.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Membership, Receipt};
use ruma::OwnedRoomId;

use super::{
    SlidingRequest,
    connection::{ALL_EVENTS, Connection, Point, Sent, Stand},
    facts::{Known, Labels},
    request::Filters,
    required::Required,
};
use crate::{
    Result, Sync,
    index::{Placed, Survey, may_see},
};

/// A request with all that it goes on from.
pub(super) struct Asked<'a> {
    pub(super) request: &'a SlidingRequest,
    pub(super) connection: &'a Connection,
    /// The wishes of the connection, those of the request among them.
    pub(super) required: &'a [Required],
    pub(super) since: Option<Point>,
    /// The rooms subscribed to that there are, by number.
    pub(super) subscriptions: &'a [(i64, OwnedRoomId)],
}

/// A room that matches a rule: "a list" or "a subscription", with all their configurations combined.
#[derive(Clone, Debug, Default)]
pub(super) struct Eligible {
    pub(super) mask: u64,
    pub(super) limit: u8,
    pub(super) lists: Vec<Box<str>>,
    pub(super) is_subscribed: bool,
}

/// What is to be told, and what is not although it is new.
pub(super) struct Plan {
    pub(super) survey: Survey,
    pub(super) labels: Arc<Labels>,
    pub(super) counts: BTreeMap<Box<str>, usize>,
    pub(super) eligible: HashMap<i64, Eligible>,
    pub(super) places: HashMap<i64, Placed>,
    /// The rooms to tell.
    pub(super) tell: Vec<i64>,
    /// Rooms that the client knows, with news that it is not told now.
    pub(super) missed: HashMap<i64, Sent>,
    /// Receipts in the user's rooms that are new, where the client goes on from somewhere.
    pub(super) receipts: Vec<Arc<Receipt>>,
}

pub(super) fn stand_of(membership: Membership) -> Stand {
    match membership {
        Membership::Join => Stand::Joined,
        Membership::Invite => Stand::Invited,
        Membership::Knock => Stand::Knocked,
        Membership::Leave | Membership::Ban => Stand::Out,
    }
}

impl Sync {
    /// Looks at all rooms of the user at once, in memory.
    pub(super) async fn plan(&self, asked: &Asked<'_>) -> Result<Plan> {
        let request = asked.request;
        let user_nid = request.caller.user_nid;
        let survey = loop {
            match self.index.survey(user_nid, asked.since.map(|since| since.pos)) {
                Some(survey) => break survey,
                None => self.load(user_nid).await?,
            }
        };
        let with_tags =
            request.lists.values().any(|list| list.filters.tags.is_some() || list.filters.not_tags.is_some());
        let labels = self.labels(user_nid, &survey, with_tags).await?;
        let rooms = Box::pin(self.server_list(asked, &survey)).await?;
        let (counts, mut eligible) = Box::pin(self.windows(asked, &survey, &labels, &rooms)).await?;
        let known: HashMap<i64, &(Placed, Known)> = rooms.iter().map(|room| (room.0.room_nid, room)).collect();
        let places: HashMap<i64, Placed> = rooms.iter().map(|(room, _)| (room.room_nid, *room)).collect();
        for (room_nid, room_id) in asked.subscriptions {
            // "Currently, the user must either be in the room, be invited/knocked to the room, or have historically
            // been in the room. Otherwise, the room will not be returned in the response."
            if let (true, Some(config)) = (known.contains_key(room_nid), request.subscriptions.get(room_id)) {
                let one = eligible.entry(*room_nid).or_default();
                one.is_subscribed = true;
                one.add(asked.required, &config.required, config.limit);
            }
        }

        let receipts = self.new_receipts(asked, &survey).await?;
        let read: HashSet<i64> =
            receipts.iter().filter(|receipt| receipt.user_nid == user_nid).map(|receipt| receipt.room_nid).collect();
        let received: HashSet<i64> = receipts.iter().map(|receipt| receipt.room_nid).collect();
        let direct = self.direct_rooms(&survey, asked, &labels).await?;
        let mut tell = Vec::new();
        let mut missed = HashMap::new();
        for (room, known) in &rooms {
            let nid = room.room_nid;
            let sent = asked.connection.rooms.get(&nid);
            let has_news = sent.is_some_and(|sent| has_news(asked, room, known, sent) || read.contains(&nid));
            let Some(one) = eligible.get(&nid) else {
                missed.extend(
                    sent.and_then(|sent| passed_over(asked, *sent, has_news, received.contains(&nid)))
                        .map(|sent| (nid, sent)),
                );
                continue;
            };
            let is_due = match sent {
                None => true,
                Some(sent) => {
                    let is_direct_now = direct.as_ref().map_or(sent.is_dm, |direct| direct.contains(&nid));
                    has_news || sent.behind.is_some() || expands(one, sent) || is_direct_now != sent.is_dm
                }
            };
            if is_due && room.place.pos <= survey.view.to {
                tell.push(nid);
            } else if is_due && let Some(sent) = sent {
                // Its next move is news already, and will be told with the rest.
                missed.extend(passed_over(asked, *sent, has_news, false).map(|sent| (nid, sent)));
            }
        }
        self.leave_out_forgotten(asked, &places, &mut tell).await?;
        Ok(Plan { survey, labels, counts, eligible, places, tell, missed, receipts })
    }

    /// "This server list is, for each user, the set of rooms that the user either joined, been invited, knocked on, left,
    /// or been kicked or banned from, sorted by recent activity".
    async fn server_list(&self, asked: &Asked<'_>, survey: &Survey) -> Result<Vec<(Placed, Known)>> {
        let caller = &asked.request.caller;
        let mut rooms: Vec<Placed> = Vec::with_capacity(survey.rooms.len());
        let mut over = Vec::new();
        let mut invites = Vec::new();
        for room in &survey.rooms {
            match room.place.membership {
                Membership::Join | Membership::Knock => rooms.push(*room),
                Membership::Invite => invites.push(*room),
                Membership::Leave | Membership::Ban => {
                    // "Rooms that the user has been in but left are only included if the room was previously sent to
                    // the client in that connection", to tell that they are left.
                    let sent = asked.connection.rooms.get(&room.room_nid);
                    let is_told = sent.is_none_or(|sent| sent.stand == Stand::Out && sent.behind.is_none());
                    let is_moved = asked.since.is_some_and(|since| room.place.pos > since.pos);
                    match sent {
                        Some(_) if !is_told || is_moved => rooms.push(*room),
                        _ => over.push(*room),
                    }
                }
            }
        }
        let thrown_out = self.thrown_out(&over).await?;
        over.retain(|room| thrown_out.contains(&room.place.event_nid));
        rooms.append(&mut over);
        let settings = self.settings(caller.user_nid, &caller.user_id).await?;
        if settings.blocks_invites {
            invites.clear();
        } else if !settings.ignored.is_empty() {
            let nids: Vec<i64> = invites.iter().map(|room| room.place.event_nid).collect();
            let ignored: HashSet<i64> = self
                .store
                .events(&nids)
                .await?
                .into_iter()
                .filter(|event| !settings.wants_invite_of(event.sender()))
                .map(|event| event.nid)
                .collect();
            invites.retain(|room| !ignored.contains(&room.place.event_nid));
        }
        rooms.append(&mut invites);

        let with_kinds = asked.request.lists.values().any(|list| list.filters.looks_at_kinds());
        let known = self.known(survey, &rooms, with_kinds).await?;
        let mut rooms: Vec<(Placed, Known)> = rooms.into_iter().zip(known).collect();
        rooms.sort_unstable_by_key(|(room, known)| (std::cmp::Reverse(known.last), room.room_nid));
        Ok(rooms)
    }

    /// Takes out rooms that the user was thrown out of, and has forgotten since. They are not looked at again.
    async fn leave_out_forgotten(
        &self,
        asked: &Asked<'_>,
        places: &HashMap<i64, Placed>,
        tell: &mut Vec<i64>,
    ) -> Result<()> {
        let is_over = |nid: &i64| {
            let is_out = places.get(nid).is_some_and(|room| stand_of(room.place.membership) == Stand::Out);
            is_out && !asked.connection.rooms.contains_key(nid)
        };
        if !tell.iter().any(is_over) {
            return Ok(());
        }
        let members = self.store.memberships(asked.request.caller.user_nid).await?;
        let forgotten: HashMap<i64, i64> =
            members.into_iter().filter(|one| one.forgotten).map(|one| (one.room_nid, one.event_nid)).collect();
        for nid in tell.iter().filter(|nid| is_over(nid)) {
            if let Some(event_nid) = forgotten.get(nid) {
                self.sliding.facts.note_forgotten(*event_nid);
            }
        }
        tell.retain(|nid| !is_over(nid) || !forgotten.contains_key(nid));
        Ok(())
    }

    /// How many rooms are in each list, and which rooms are in their windows.
    async fn windows(
        &self,
        asked: &Asked<'_>,
        survey: &Survey,
        labels: &Labels,
        rooms: &[(Placed, Known)],
    ) -> Result<(BTreeMap<Box<str>, usize>, HashMap<i64, Eligible>)> {
        let mut counts = BTreeMap::new();
        let mut eligible: HashMap<i64, Eligible> = HashMap::new();
        let lists = &asked.request.lists;
        let by_name = lists.values().any(|list| list.filters.is_dm.is_some() || list.filters.spaces.is_some());
        let names =
            if by_name { self.names_of(rooms.iter().map(|(room, _)| room.room_nid)).await? } else { HashMap::new() };
        for (name, list) in lists {
            let children = match &list.filters.spaces {
                None => None,
                Some(spaces) => Some(self.children_of(survey, spaces).await?),
            };
            let mut count = 0;
            for (room, known) in rooms {
                let room_id = names.get(&room.room_nid);
                let is_child =
                    || children.as_ref().is_none_or(|children| room_id.is_some_and(|id| children.contains(id)));
                let is_direct = || room_id.is_some_and(|id| labels.direct.contains(id));
                if !takes(&list.filters, room, known, labels, is_direct) || !is_child() {
                    continue;
                }
                let place = count as u64;
                count += 1;
                let is_inside = |(start, end): &(u64, u64)| (*start..=*end).contains(&place);
                if list.ranges.as_ref().is_none_or(|ranges| ranges.iter().any(is_inside)) {
                    let one = eligible.entry(room.room_nid).or_default();
                    one.lists.push(name.clone());
                    one.add(asked.required, &list.config.required, list.config.limit);
                }
            }
            counts.insert(name.clone(), count);
        }
        Ok((counts, eligible))
    }

    async fn names_of(&self, nids: impl Iterator<Item = i64>) -> Result<HashMap<i64, OwnedRoomId>> {
        let nids: Vec<i64> = nids.collect();
        let names = self.store.rooms(&nids).await?;
        Ok(names.into_iter().map(|name| (name.nid, name.room_id.clone())).collect())
    }

    /// "The server will inspect the m.space.child state events for the JOINED space room IDs given." "Unknown spaces or
    /// spaces the user is not joined to will be ignored."
    async fn children_of(&self, survey: &Survey, spaces: &[String]) -> Result<HashSet<OwnedRoomId>> {
        let joined = survey.rooms.iter().filter(|room| room.place.membership == Membership::Join);
        let names = self.names_of(joined.map(|room| room.room_nid)).await?;
        let wanted: HashSet<&str> = spaces.iter().map(String::as_str).collect();
        let nids: Vec<i64> =
            names.iter().filter(|(_, room_id)| wanted.contains(room_id.as_str())).map(|(nid, _)| *nid).collect();
        self.children(&nids).await
    }

    /// The direct rooms of the user, by number, where they may be others than the client was told.
    async fn direct_rooms(&self, survey: &Survey, asked: &Asked<'_>, labels: &Labels) -> Result<Option<HashSet<i64>>> {
        if asked.since.is_none() || !survey.view.account_data {
            return Ok(None);
        }
        let names = self.names_of(survey.rooms.iter().map(|room| room.room_nid)).await?;
        let direct = names.into_iter().filter(|(_, room_id)| labels.direct.contains(room_id));
        Ok(Some(direct.map(|(nid, _)| nid).collect()))
    }

    /// The receipts since the client's position, from memory where they are.
    async fn new_receipts(&self, asked: &Asked<'_>, survey: &Survey) -> Result<Vec<Arc<Receipt>>> {
        let Some(since) = asked.since else { return Ok(Vec::new()) };
        let user_nid = asked.request.caller.user_nid;
        let mut receipts = match &survey.view.receipts {
            Some(receipts) => receipts.clone(),
            None => {
                let joined = self.index.joined_rooms(user_nid);
                let found = self.store.receipts(&joined, since.pos, survey.view.to).await?;
                found.into_iter().map(Arc::new).collect()
            }
        };
        receipts.retain(|receipt| receipt.pos <= survey.view.to && may_see(receipt, user_nid));
        Ok(receipts)
    }
}

impl Eligible {
    fn add(&mut self, all: &[Required], required: &Required, limit: u8) {
        // "take the maximum timeline limit across all room configs", and "the union of the required state fields".
        self.limit = self.limit.max(limit);
        if let Some(place) = all.iter().position(|one| one == required) {
            self.mask |= 1 << place;
        }
    }
}

/// Whether something has happened in a room that the client knows, since it was last told.
fn has_news(asked: &Asked<'_>, room: &Placed, known: &Known, sent: &Sent) -> bool {
    let Some(since) = asked.since else { return true };
    let stand = stand_of(room.place.membership);
    sent.stand != stand || room.place.pos > since.pos || (stand == Stand::Joined && known.last > since.pos)
}

/// Whether the client asks for more of a room than it has.
fn expands(one: &Eligible, sent: &Sent) -> bool {
    if sent.stand != Stand::Joined {
        return false;
    }
    (one.mask & !sent.mask != 0) || (sent.limit != ALL_EVENTS && one.limit > sent.limit)
}

/// What is to be remembered of a room whose news the client is not told.
fn passed_over(asked: &Asked<'_>, sent: Sent, has_news: bool, has_receipts: bool) -> Option<Sent> {
    let since = asked.since?;
    let behind = sent.behind.or(has_news.then_some(since.pos));
    let receipts = sent.receipts && !has_receipts;
    (behind != sent.behind || receipts != sent.receipts).then_some(Sent { behind, receipts, ..sent })
}

/// Whether a room is in a list, but for what spaces say.
fn takes(filters: &Filters, room: &Placed, known: &Known, labels: &Labels, is_direct: impl Fn() -> bool) -> bool {
    let is_invited = room.place.membership == Membership::Invite;
    if filters.is_invited.is_some_and(|wanted| wanted != is_invited)
        || filters.is_encrypted.is_some_and(|wanted| wanted != known.is_encrypted())
        || filters.is_dm.is_some_and(|wanted| wanted != is_direct())
    {
        return false;
    }
    let room_type = known.room_type();
    let has_type = |types: &Vec<Option<Box<str>>>| types.iter().any(|one| one.as_deref() == room_type);
    if filters.not_room_types.as_ref().is_some_and(has_type) || !filters.room_types.as_ref().is_none_or(has_type) {
        return false;
    }
    let tags = labels.tags.as_ref().and_then(|tags| tags.get(&room.room_nid));
    let has_tag = |wanted: &Vec<String>| tags.into_iter().flatten().any(|tag| wanted.contains(tag));
    !filters.not_tags.as_ref().is_some_and(has_tag) && filters.tags.as_ref().is_none_or(has_tag)
}
