//! Rooms as they are told: each kind of thing is read for all of them at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use myelin_rooms::{
    present::{Form, present_bundled},
    visibility::Viewer,
};
use myelin_store::{Event, Member, Membership, RoomName, StateKey, state_tree};
use ruma::{OwnedRoomId, OwnedUserId, api::client::filter::FilterDefinition};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    SlidingForm,
    connection::{ALL_EVENTS, Sent, Stand},
    facts::Outline,
    plan::{Asked, Plan, stand_of},
    required::Wishes,
    response::{Hero, RoomAnswer, StateStub},
};
use crate::{
    Error, Filter, Result, Sync,
    index::{Placed, Settings},
    state::is_plain,
    summary::{Asked as AskedSummary, Summary},
    timeline::{self, Audience, Filled, Wanted, fill},
    unread::{ReadRoom, Reader, ThreadCounts},
};

const MEMBER: &str = "m.room.member";
const NAME: &str = "m.room.name";
const AVATAR: &str = "m.room.avatar";

/// What a room is told from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// From the beginning: the client knows nothing of it.
    Anew,
    /// From a position on; what the client has of the state before, it was told by these wishes.
    Since(i64, u64),
}

/// A room in the making.
struct Draft {
    name: Arc<RoomName>,
    placed: Placed,
    stand: Stand,
    start: Start,
    limit: u8,
    mask: u64,
    /// Whether older events come again, because the client wants more than it has.
    expanded: bool,
    wanted: Wanted,
    filled: Filled,
    /// The state to tell of; 0 for none.
    root: i64,
}

impl Draft {
    fn told(&self) -> timeline::Told<'_> {
        timeline::Told { wanted: &self.wanted, filled: &self.filled, is_joined: self.stand == Stand::Joined }
    }
}

/// The state of a room as it is told.
#[derive(Default)]
struct Told {
    /// By key, the event.
    state: BTreeMap<i64, i64>,
    removed: Vec<Arc<StateKey>>,
    /// The events that give name and avatar, where the client is to be told: `None` for none.
    name: Option<Option<i64>>,
    avatar: Option<Option<i64>>,
    /// With their member events.
    heroes: Option<Vec<(OwnedUserId, Option<i64>)>>,
    /// Members who came lazily, by key and event, for the client not to be told of them again.
    lazy: Vec<(i64, i64)>,
}

/// Members of a room who came lazily.
pub(super) struct LazyMembers {
    pub(super) room_nid: i64,
    /// Whether the client knows nothing of the room from before.
    pub(super) is_new: bool,
    /// By key, their events.
    pub(super) events: Vec<(i64, i64)>,
}

/// All that the rooms of an answer come to.
#[derive(Default)]
pub(super) struct Rooms {
    pub(super) answers: BTreeMap<OwnedRoomId, RoomAnswer>,
    pub(super) sent: HashMap<i64, Sent>,
    /// The members who came lazily.
    pub(super) lazy: Vec<LazyMembers>,
    /// By room, the position of the first event told.
    pub(super) first: HashMap<i64, i64>,
}

impl Sync {
    /// The rooms that the plan says are to be told.
    pub(super) async fn tell_rooms(&self, asked: &Asked<'_>, plan: &Plan) -> Result<Rooms> {
        let mut rooms = Rooms::default();
        if plan.tell.is_empty() {
            return Ok(rooms);
        }
        let caller = &asked.request.caller;
        let settings = self.settings(caller.user_nid, &caller.user_id).await?;
        let mut drafts = Box::pin(self.drafts(asked, plan)).await?;
        Box::pin(self.fill_drafts(asked, &settings, &mut drafts)).await?;
        Box::pin(self.find_roots(&mut drafts)).await?;
        let summaries = Box::pin(self.summaries_of_drafts(plan, &drafts)).await?;
        let told = Box::pin(self.state_of_drafts(asked, &drafts, &summaries)).await?;
        let unread = Box::pin(self.unread_of_drafts(asked, plan, &settings, &drafts, &summaries)).await?;
        let joined: Vec<Placed> =
            drafts.iter().filter(|draft| draft.stand == Stand::Joined).map(|draft| draft.placed).collect();
        let bumps = Box::pin(self.bumps(&plan.survey, &joined)).await?;
        let parts = Parts { summaries, told, unread, bumps };
        Box::pin(self.write_drafts(asked, plan, &settings, drafts, parts, &mut rooms)).await?;
        Ok(rooms)
    }

    /// Decides for each room from where on it is told.
    async fn drafts(&self, asked: &Asked<'_>, plan: &Plan) -> Result<Vec<Draft>> {
        let to = plan.survey.view.to;
        let names = self.store.rooms(&plan.tell).await?;
        let position = asked.since.map_or(0, |since| since.pos);
        // Of those who were in the room when it was last told, some may have left and come back.
        let mut unsure = Vec::new();
        for nid in &plan.tell {
            if let (Some(sent), Some(placed)) = (asked.connection.rooms.get(nid), plan.places.get(nid)) {
                let since = sent.behind.unwrap_or(position);
                if sent.stand == Stand::Joined && placed.place.pos > since {
                    unsure.push((*nid, since));
                }
            }
        }
        let before = self.memberships_at(&asked.request.caller.user_id, &unsure).await?;
        let mut drafts = Vec::with_capacity(names.len());
        for name in names {
            let (Some(placed), Some(one)) = (plan.places.get(&name.nid), plan.eligible.get(&name.nid)) else {
                continue;
            };
            let (stand, sent) = (stand_of(placed.place.membership), asked.connection.rooms.get(&name.nid));
            let since = sent.and_then(|sent| sent.behind).unwrap_or(position);
            let is_moved = placed.place.pos > since;
            let was_joined = sent.is_some_and(|sent| sent.stand == Stand::Joined)
                && (!is_moved || before.get(&name.nid) == Some(&Membership::Join));
            let start = match sent {
                Some(sent) if was_joined => Start::Since(since, sent.mask),
                _ => Start::Anew,
            };
            let knows = sent.map_or(0, |sent| sent.limit);
            let expanded = stand == Stand::Joined && start != Start::Anew && knows != ALL_EVENTS && one.limit > knows;
            // What came before the floor is only known to the store.
            let placed = Placed { member: placed.member.max(plan.survey.floor), ..*placed };
            let mut draft = Draft {
                placed,
                stand,
                start,
                limit: one.limit,
                mask: one.mask,
                expanded,
                wanted: Wanted { room: name.clone(), viewed_by: None, after: to, to, end: None },
                name,
                filled: Filled::default(),
                root: 0,
            };
            match stand {
                Stand::Joined => {
                    draft.wanted.after = if start == Start::Anew || expanded { 0 } else { since };
                    let is_all_seen = was_joined && !is_moved && !expanded;
                    draft.wanted.viewed_by = (!is_all_seen).then(|| member(asked, &placed));
                }
                Stand::Out => Box::pin(self.draft_end(asked, &mut draft, was_joined.then_some(since))).await?,
                Stand::Invited | Stand::Knocked => {}
            }
            drafts.push(draft);
        }
        Ok(drafts)
    }

    /// A room that the user is not in any more: "what happened once the user was out is not the user's to know, but for
    /// what ends it: a ban that came later, or the end of an invitation".
    async fn draft_end(&self, asked: &Asked<'_>, draft: &mut Draft, since: Option<i64>) -> Result<()> {
        let caller = &asked.request.caller;
        let own = member(asked, &draft.placed);
        let viewer = Viewer { user_id: &caller.user_id, user_nid: caller.user_nid, member: Some(own) };
        let left = self.rooms.last_joined(&draft.name, &viewer).await?.and_then(|left| left.pos);
        let place = draft.placed.place;
        let was_told_out = asked.connection.rooms.get(&draft.name.nid).is_some_and(|sent| sent.stand != Stand::Joined);
        let (after, to) = match (left, since) {
            (Some(left), Some(since)) => (since, left),
            (Some(left), None) if !was_told_out => (0, left),
            _ => (place.pos.saturating_sub(1), place.pos),
        };
        draft.wanted.end = if to < place.pos { Some(self.store.event(place.event_nid).await?) } else { None };
        draft.wanted.viewed_by = viewer.member;
        (draft.wanted.after, draft.wanted.to) = (after, to);
        Ok(())
    }

    /// Reads the timelines: a read for each limit that there is, of which there are few.
    async fn fill_drafts(&self, asked: &Asked<'_>, settings: &Settings, drafts: &mut [Draft]) -> Result<()> {
        let limits: BTreeSet<u8> = drafts.iter().map(|draft| draft.limit).collect();
        let caller = &asked.request.caller;
        for limit in limits {
            let has_timeline = |draft: &Draft| matches!(draft.stand, Stand::Joined | Stand::Out);
            let places: Vec<usize> = (0..drafts.len())
                .filter(|&place| drafts[place].limit == limit && has_timeline(&drafts[place]))
                .collect();
            let mut definition = FilterDefinition::default();
            definition.room.timeline.limit = Some(u32::from(limit).into());
            let filter = Filter::new(definition);
            let audience = Audience {
                user_id: &caller.user_id,
                user_nid: caller.user_nid,
                filter: &filter,
                ignored: &settings.ignored,
            };
            let wanted: Vec<Wanted> = places.iter().map(|&place| drafts[place].wanted.clone()).collect();
            let filled = fill(&self.rooms, &audience, &wanted).await?;
            for (place, filled) in places.into_iter().zip(filled) {
                drafts[place].filled = filled;
            }
        }
        Ok(())
    }

    /// Finds the snapshots to tell of: those after the last events, or by one read for all rooms.
    async fn find_roots(&self, drafts: &mut [Draft]) -> Result<()> {
        let mut open = Vec::new();
        for (place, draft) in drafts.iter_mut().enumerate() {
            match (draft.stand, &draft.filled.last) {
                (Stand::Joined | Stand::Out, Some(last)) => draft.root = last.room_state,
                (Stand::Joined, None) => open.push((place, (draft.name.nid, draft.wanted.to))),
                _ => {}
            }
        }
        let asked: Vec<(i64, i64)> = open.iter().map(|(_, asked)| *asked).collect();
        if !asked.is_empty() {
            for ((place, _), root) in open.into_iter().zip(self.store.room_states_at(&asked).await?) {
                drafts[place].root = root;
            }
        }
        Ok(())
    }

    async fn summaries_of_drafts(&self, plan: &Plan, drafts: &[Draft]) -> Result<HashMap<i64, Arc<Summary>>> {
        let joined = drafts.iter().filter(|draft| draft.stand == Stand::Joined);
        let asked: Vec<AskedSummary> = joined
            .map(|draft| {
                let members_pos = draft.placed.member;
                // Between its last membership event and the end of the answer, nobody came or went.
                let root = Some(draft.root).filter(|root| *root != 0 && members_pos <= plan.survey.view.to);
                AskedSummary { room_nid: draft.name.nid, members_pos, root }
            })
            .collect();
        self.summaries.of(&self.store, &asked).await
    }

    /// The state to tell: that which is wanted and new, or wanted only now.
    async fn state_of_drafts(
        &self,
        asked: &Asked<'_>,
        drafts: &[Draft],
        summaries: &HashMap<i64, Arc<Summary>>,
    ) -> Result<Vec<Told>> {
        let mut told: Vec<Told> = drafts.iter().map(|_| Told::default()).collect();
        let changes = self.changes_of(drafts).await?;
        let outlines = self.outlines_of(drafts).await?;
        let mut lookups: Vec<Lookup> = Vec::with_capacity(drafts.len());
        for (((draft, told), changes), outline) in drafts.iter().zip(&mut told).zip(changes).zip(&outlines) {
            if draft.root == 0 {
                lookups.push(Lookup::default());
                continue;
            }
            let wishes = Wishes { all: asked.required, mask: draft.mask };
            self.take_changes(draft, wishes, changes, told).await?;
            if let Some(outline) = outline {
                take_outline(draft, wishes, outline, told);
            }
            if wishes.all_members() && needs_whole(draft) {
                self.take_all_members(draft, told).await?;
            }
            let heroes = self.heroes_to_tell(asked, draft, summaries).await?;
            lookups.push(lookup(draft, wishes, told, heroes));
        }
        Box::pin(self.look_up(asked, drafts, lookups, &mut told)).await?;
        Ok(told)
    }

    /// What is different in the state from what the client was told, for each room.
    async fn changes_of(&self, drafts: &[Draft]) -> Result<Vec<Vec<state_tree::Change>>> {
        let mut changes = vec![Vec::new(); drafts.len()];
        let may_differ = |draft: &Draft| match draft.start {
            Start::Since(since, _) if draft.root != 0 => {
                let is_quiet = draft.filled.last.as_ref().is_none_or(|last| last.pos.is_some_and(|pos| pos <= since));
                let is_plain = !draft.expanded && !draft.filled.limited && is_plain(&draft.filled);
                (!is_quiet && !is_plain).then_some((draft.name.nid, since))
            }
            _ => None,
        };
        let places: Vec<usize> = (0..drafts.len()).filter(|&place| may_differ(&drafts[place]).is_some()).collect();
        let asked: Vec<(i64, i64)> = places.iter().filter_map(|&place| may_differ(&drafts[place])).collect();
        if asked.is_empty() {
            return Ok(changes);
        }
        let old = self.store.room_states_at(&asked).await?;
        let pairs: Vec<(i64, i64)> = places.iter().zip(old).map(|(&place, old)| (old, drafts[place].root)).collect();
        for (place, found) in places.into_iter().zip(state_tree::diff_many(&*self.store, &pairs).await?) {
            changes[place] = found;
        }
        Ok(changes)
    }

    /// The state but for members, of those rooms where more is told than what has changed.
    async fn outlines_of(&self, drafts: &[Draft]) -> Result<Vec<Option<Arc<Outline>>>> {
        let wanted = drafts.iter().filter(|draft| needs_whole(draft));
        let wanted: Vec<(i64, i64)> = wanted.map(|draft| (draft.name.nid, draft.root)).collect();
        let outlines = self.outlines(&wanted).await?;
        let of = |draft: &Draft| outlines.get(&draft.name.nid).filter(|_| needs_whole(draft)).cloned();
        Ok(drafts.iter().map(of).collect())
    }

    async fn take_changes(
        &self,
        draft: &Draft,
        wishes: Wishes<'_>,
        changes: Vec<state_tree::Change>,
        told: &mut Told,
    ) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let keys: Vec<i64> = changes.iter().map(|change| change.key).collect();
        // "All membership updates since the last sync when limited is false."
        let all_moves = wishes.lazy_members() && !draft.filled.limited;
        for (change, key) in changes.into_iter().zip(self.store.state_keys(&keys).await?) {
            match &*key.event_type {
                NAME if key.state_key.is_empty() => told.name = Some(change.new),
                AVATAR if key.state_key.is_empty() => told.avatar = Some(change.new),
                _ => {}
            }
            let is_move = all_moves && &*key.event_type == MEMBER;
            if !is_move && !wishes.include(&key.event_type, &key.state_key) {
                continue;
            }
            match change.new {
                Some(event) => drop(told.state.insert(change.key, event)),
                None => told.removed.push(key),
            }
        }
        Ok(())
    }

    async fn take_all_members(&self, draft: &Draft, told: &mut Told) -> Result<()> {
        let entries = state_tree::entries(&*self.store, &[draft.root]).await?.pop().unwrap_or_default();
        let keys: Vec<i64> = entries.iter().map(|(key, _)| *key).collect();
        let names = self.store.state_keys(&keys).await?;
        let members = entries.into_iter().zip(names).filter(|(_, key)| &*key.event_type == MEMBER);
        told.state.extend(members.map(|(entry, _)| entry));
        Ok(())
    }

    /// Who could give a room a name, if members have come or gone since the client was told.
    async fn heroes_to_tell(
        &self,
        asked: &Asked<'_>,
        draft: &Draft,
        summaries: &HashMap<i64, Arc<Summary>>,
    ) -> Result<Vec<OwnedUserId>> {
        let Some(summary) = summaries.get(&draft.name.nid).filter(|_| members_moved(draft)) else {
            return Ok(Vec::new());
        };
        Ok(self.store.user_ids(&summary.heroes(asked.request.caller.user_nid)).await?)
    }

    /// Looks single keys up in the state, of all rooms at once.
    async fn look_up(
        &self,
        asked: &Asked<'_>,
        drafts: &[Draft],
        lookups: Vec<Lookup>,
        told: &mut [Told],
    ) -> Result<()> {
        let mut keys: Vec<StateKey> = lookups.iter().flat_map(|lookup| lookup.keys()).collect();
        keys.sort_unstable_by(|one, other| {
            (&one.event_type, &one.state_key).cmp(&(&other.event_type, &other.state_key))
        });
        keys.dedup();
        let nids = self.store.known_key_nids(&keys).await?;
        let nids: HashMap<StateKey, i64> =
            keys.into_iter().zip(nids).filter_map(|(key, nid)| Some((key, nid?))).collect();
        let per_room: Vec<Vec<i64>> =
            lookups.iter().map(|lookup| lookup.keys().filter_map(|key| nids.get(&key).copied()).collect()).collect();
        let roots: Vec<(i64, &[i64])> =
            drafts.iter().zip(&per_room).map(|(draft, keys)| (draft.root, keys.as_slice())).collect();
        let found = state_tree::get_each(&*self.store, &roots).await?;
        let connection = asked.connection;
        for ((((draft, lookup), told), keys), events) in drafts.iter().zip(lookups).zip(told).zip(&per_room).zip(found)
        {
            let events: HashMap<i64, i64> =
                keys.iter().zip(events).filter_map(|(key, event)| Some((*key, event?))).collect();
            let event_of = |key: &StateKey| nids.get(key).and_then(|nid| Some((*nid, *events.get(nid)?)));
            told.state.extend(lookup.named.iter().filter_map(event_of));
            let lazy: Vec<(i64, i64)> = lookup.lazy.iter().filter_map(event_of).collect();
            for (key, event) in &lazy {
                let is_known = draft.start != Start::Anew
                    && asked.since.is_some_and(|since| {
                        self.sliding.members.knows(connection.nid, draft.name.nid, *key, *event, since.moment())
                    });
                if !is_known {
                    told.state.insert(*key, *event);
                }
            }
            told.lazy = lazy;
            if lookup.heroes.is_empty() {
                continue;
            }
            if lookup.asks_name {
                told.name = told.name.or_else(|| Some(event_of(&StateKey::new(NAME, "")).map(|(_, event)| event)));
            }
            let with_event = |hero: OwnedUserId| {
                let event = event_of(&StateKey::new(MEMBER, hero.as_str())).map(|(_, event)| event);
                (hero, event)
            };
            told.heroes = Some(lookup.heroes.into_iter().map(with_event).collect());
        }
        Ok(())
    }

    async fn unread_of_drafts(
        &self,
        asked: &Asked<'_>,
        plan: &Plan,
        settings: &Settings,
        drafts: &[Draft],
        summaries: &HashMap<i64, Arc<Summary>>,
    ) -> Result<HashMap<i64, ThreadCounts>> {
        let caller = &asked.request.caller;
        // The merged form has no counts: "Remove notification_count and highlight_count".
        let is_told = |draft: &&Draft| draft.stand == Stand::Joined && asked.request.form == SlidingForm::Unstable;
        let rooms: Vec<ReadRoom> = drafts
            .iter()
            .filter(is_told)
            .map(|draft| ReadRoom {
                name: draft.name.clone(),
                member_nid: draft.placed.place.event_nid,
                joined_count: summaries.get(&draft.name.nid).map_or(0, |summary| summary.joined),
            })
            .collect();
        let reader = Reader { user_nid: caller.user_nid, user_id: &caller.user_id, settings };
        self.unread.of(&self.store, &reader, &rooms, plan.survey.view.to).await
    }

    async fn write_drafts(
        &self,
        asked: &Asked<'_>,
        plan: &Plan,
        settings: &Settings,
        drafts: Vec<Draft>,
        parts: Parts,
        rooms: &mut Rooms,
    ) -> Result<()> {
        let Parts { summaries, mut told, mut unread, bumps } = parts;
        let (events, by_nid) = self.events_of(asked, settings, &drafts, &mut told).await?;
        let mut written = events.into_iter();
        for (draft, told) in drafts.into_iter().zip(told) {
            let timeline: Vec<_> = written.by_ref().take(draft.filled.events.len()).collect();
            let state: Vec<_> = written.by_ref().take(told.state.len()).collect();
            let mut answer = self.write_common(asked, plan, &draft, &bumps);
            answer.timeline = timeline;
            answer.required_state = state;
            match draft.stand {
                Stand::Joined | Stand::Out => {
                    write_state(asked, &draft, &told, &by_nid, &mut answer)?;
                    if let Some(summary) = summaries.get(&draft.name.nid).filter(|_| members_moved(&draft)) {
                        answer.joined_count = Some(summary.joined);
                        answer.invited_count = Some(summary.invited);
                    }
                    answer.heroes = match &told.heroes {
                        Some(heroes) if !has_name(&told, &by_nid) => Some(write_heroes(heroes, &by_nid)),
                        _ => None,
                    };
                    if asked.request.form == SlidingForm::Unstable && draft.stand == Stand::Joined {
                        let counts = unread.remove(&draft.name.nid).unwrap_or_default();
                        answer.notification_count = Some(counts.values().map(|count| count.notifications).sum());
                        answer.highlight_count = Some(counts.values().map(|count| count.highlights).sum());
                    }
                }
                Stand::Invited | Stand::Knocked => {
                    let user_id = &asked.request.caller.user_id;
                    let stripped = self.stripped_state(user_id, &draft.name, draft.placed.place).await?.events;
                    match asked.request.form {
                        SlidingForm::Unstable => answer.invite_state = Some(stripped),
                        SlidingForm::Stable => answer.stripped_state = Some(stripped),
                    }
                }
            }
            let sent = sent_by(asked, plan, &draft);
            let first = draft.filled.events.iter().find_map(|event| event.pos);
            rooms.first.insert(draft.name.nid, first.unwrap_or(plan.survey.view.to));
            rooms.sent.insert(draft.name.nid, sent);
            let is_new = draft.start == Start::Anew;
            rooms.lazy.push(LazyMembers { room_nid: draft.name.nid, is_new, events: told.lazy });
            rooms.answers.insert(draft.name.room_id.clone(), answer);
        }
        Ok(())
    }

    /// All events of all rooms, written at once: for each the timeline, then the state in its order. And the events of
    /// the state, by number.
    async fn events_of(
        &self,
        asked: &Asked<'_>,
        settings: &Settings,
        drafts: &[Draft],
        told: &mut [Told],
    ) -> Result<(Vec<Box<RawValue>>, HashMap<i64, Arc<Event>>)> {
        for (draft, told) in drafts.iter().zip(told.iter_mut()) {
            // Clients take a room for joined unless the state says otherwise.
            if draft.stand == Stand::Out {
                let own = self.store.event(draft.placed.place.event_nid).await?;
                told.state.insert(own.key_nid.unwrap_or_default(), own.nid);
            }
        }
        let heroes = |told: &Told| told.heroes.iter().flatten().filter_map(|(_, event)| *event).collect::<Vec<_>>();
        let shown = told.iter().flat_map(|told| told.name.into_iter().chain(told.avatar).flatten().chain(heroes(told)));
        let mut nids: Vec<i64> = told.iter().flat_map(|told| told.state.values().copied()).chain(shown).collect();
        nids.sort_unstable();
        nids.dedup();
        let by_nid: HashMap<i64, Arc<Event>> =
            self.store.events(&nids).await?.into_iter().map(|event| (event.nid, event)).collect();
        let mut all: Vec<Arc<Event>> = Vec::new();
        for (draft, told) in drafts.iter().zip(told.iter()) {
            all.extend_from_slice(&draft.filled.events);
            let mut state: Vec<Arc<Event>> =
                told.state.values().filter_map(|event| by_nid.get(event).cloned()).collect();
            state.sort_unstable_by_key(|event| (event.pos, event.nid));
            all.append(&mut state);
        }
        let form = Form { device_nid: asked.request.caller.device_nid, room_id: None };
        // Of what goes on where the client's timeline ends, it is told all that relates to it.
        let is_apart = |draft: &&Draft| draft.filled.limited || draft.expanded || draft.start == Start::Anew;
        let told: Vec<timeline::Told<'_>> = drafts.iter().filter(is_apart).map(Draft::told).collect();
        let caller = &asked.request.caller;
        let bundles =
            timeline::bundles(&self.rooms, &caller.user_id, caller.user_nid, &settings.ignored, &told).await?;
        Ok((present_bundled(&self.store, &all, form, &bundles).await?, by_nid))
    }

    fn write_common(&self, asked: &Asked<'_>, plan: &Plan, draft: &Draft, bumps: &HashMap<i64, i64>) -> RoomAnswer {
        let place = draft.placed.place;
        let is_stable = asked.request.form == SlidingForm::Stable;
        let has_timeline = matches!(draft.stand, Stand::Joined | Stand::Out);
        // "The last N events are 'live'": since the client's last request.
        let since = asked.since.map_or(i64::MAX, |since| since.pos);
        let live = draft.filled.events.iter().filter(|event| event.pos.is_some_and(|pos| pos > since)).count();
        let bump = bumps.get(&draft.name.nid).copied().filter(|_| draft.stand == Stand::Joined);
        let is_dm = plan.labels.direct.contains(&draft.name.room_id);
        let was_dm = asked.connection.rooms.get(&draft.name.nid).map(|sent| sent.is_dm);
        let is_new = draft.start == Start::Anew;
        RoomAnswer {
            // "For rooms that the user is not currently joined to, this instead represents when the relevant membership
            // happened".
            bump_stamp: Some(bump.unwrap_or(place.pos).max(0)),
            membership: is_stable.then(|| place.membership.word()),
            lists: match plan.eligible.get(&draft.name.nid) {
                Some(one) if is_stable => one.lists.clone(),
                _ => Vec::new(),
            },
            is_dm: if is_new || was_dm.is_none() {
                is_dm.then_some(true)
            } else {
                (was_dm != Some(is_dm)).then_some(is_dm)
            },
            initial: is_new,
            expanded_timeline: draft.expanded && is_stable,
            unstable_expanded_timeline: draft.expanded && !is_stable,
            limited: draft.filled.limited,
            prev_batch: has_timeline.then(|| draft.filled.prev_batch(&draft.wanted).to_string()),
            num_live: has_timeline.then_some(live),
            ..RoomAnswer::default()
        }
    }
}

fn write_heroes(heroes: &[(OwnedUserId, Option<i64>)], events: &HashMap<i64, Arc<Event>>) -> Vec<Hero> {
    #[derive(Default, Deserialize)]
    struct Content {
        displayname: Option<String>,
        avatar_url: Option<String>,
    }
    let write = |(hero, event): &(OwnedUserId, Option<i64>)| {
        let event = event.and_then(|nid| events.get(&nid));
        let content = event.and_then(|event| serde_json::from_str::<Content>(event.content()).ok());
        let Content { displayname, avatar_url } = content.unwrap_or_default();
        Hero { user_id: hero.clone(), displayname, avatar_url }
    };
    heroes.iter().map(write).collect()
}

/// What a room's answer is written from.
struct Parts {
    summaries: HashMap<i64, Arc<Summary>>,
    told: Vec<Told>,
    unread: HashMap<i64, ThreadCounts>,
    bumps: HashMap<i64, i64>,
}

/// Single keys that are wanted of a room's state.
#[derive(Default)]
struct Lookup {
    named: Vec<StateKey>,
    lazy: Vec<StateKey>,
    heroes: Vec<OwnedUserId>,
    /// Whether it has to be seen if the room has a name.
    asks_name: bool,
}

impl Lookup {
    fn keys(&self) -> impl Iterator<Item = StateKey> {
        let heroes = self.heroes.iter().map(|hero| StateKey::new(MEMBER, hero.as_str()));
        let name = self.asks_name.then(|| StateKey::new(NAME, ""));
        self.named.iter().cloned().chain(self.lazy.iter().cloned()).chain(heroes).chain(name)
    }
}

/// Whether more of a room's state is told than what has changed in it.
fn needs_whole(draft: &Draft) -> bool {
    draft.root != 0
        && match draft.start {
            Start::Anew => true,
            Start::Since(_, mask) => draft.mask & !mask != 0,
        }
}

/// Whether the client has to be told of the room's members as a whole.
fn members_moved(draft: &Draft) -> bool {
    match draft.start {
        Start::Anew => true,
        Start::Since(since, _) => draft.placed.member > since,
    }
}

/// Takes from the state what the client does not have by the wishes that it was told by before.
fn take_outline(draft: &Draft, wishes: Wishes<'_>, outline: &Outline, told: &mut Told) {
    let before = match draft.start {
        Start::Anew => {
            told.name = Some(outline.event(NAME));
            told.avatar = Some(outline.event(AVATAR));
            Wishes { mask: 0, ..wishes }
        }
        Start::Since(_, mask) => Wishes { mask, ..wishes },
    };
    for entry in &outline.entries {
        let (event_type, state_key) = (&entry.key.event_type, &entry.key.state_key);
        if wishes.include(event_type, state_key) && !before.include(event_type, state_key) {
            told.state.insert(entry.key_nid, entry.event_nid);
        }
    }
}

fn lookup(draft: &Draft, wishes: Wishes<'_>, told: &Told, heroes: Vec<OwnedUserId>) -> Lookup {
    let named = if needs_whole(draft) { wishes.named_members().collect() } else { Vec::new() };
    let mut lazy = BTreeSet::new();
    if wishes.lazy_members() {
        for event in &draft.filled.events {
            lazy.insert(event.sender().as_str());
            // "The target (i.e. state_key) of all membership events in timeline".
            if event.event_type() == MEMBER {
                lazy.extend(event.state_key());
            }
        }
    }
    Lookup {
        named,
        lazy: lazy.into_iter().map(|user_id| StateKey::new(MEMBER, user_id)).collect(),
        asks_name: !heroes.is_empty() && told.name.is_none(),
        heroes,
    }
}

fn has_name(told: &Told, events: &HashMap<i64, Arc<Event>>) -> bool {
    told.name.flatten().and_then(|nid| events.get(&nid)).and_then(|event| name_in(event)).is_some()
}

fn name_in(event: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        name: Option<String>,
    }
    serde_json::from_str::<Content>(event.content()).ok()?.name.filter(|name| !name.is_empty())
}

fn avatar_in(event: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        url: Option<String>,
    }
    serde_json::from_str::<Content>(event.content()).ok()?.url.filter(|url| !url.is_empty())
}

/// Name, avatar, and what of the state is no more.
fn write_state(
    asked: &Asked<'_>,
    draft: &Draft,
    told: &Told,
    events: &HashMap<i64, Arc<Event>>,
    answer: &mut RoomAnswer,
) -> Result<()> {
    let value = |nid: Option<Option<i64>>, read: fn(&Event) -> Option<String>| {
        nid.map(|nid| nid.and_then(|nid| events.get(&nid)).and_then(|event| read(event)))
    };
    let (name, avatar) = (value(told.name, name_in), value(told.avatar, avatar_in));
    // "When initial is set to true then an omitted field means that the field is not set."
    let is_new = draft.start == Start::Anew;
    let is_stable = asked.request.form == SlidingForm::Stable;
    answer.name = name.filter(|name| name.is_some() || (is_stable && !is_new));
    answer.avatar = avatar.filter(|avatar| avatar.is_some() || !is_new);
    if is_stable {
        for key in &told.removed {
            let stub = StateStub { event_type: &key.event_type, state_key: &key.state_key };
            answer.required_state.push(to_raw_value(&stub).map_err(Error::Write)?);
        }
    }
    Ok(())
}

/// What the client knows of a room after this answer.
fn sent_by(asked: &Asked<'_>, plan: &Plan, draft: &Draft) -> Sent {
    let before = asked.connection.rooms.get(&draft.name.nid);
    let is_new = draft.start == Start::Anew;
    let limit = match before {
        Some(before) if !is_new && !draft.expanded && !draft.filled.limited => before.limit,
        _ if draft.filled.limited => draft.limit,
        _ => ALL_EVENTS,
    };
    Sent {
        stand: draft.stand,
        mask: draft.mask,
        limit,
        // A room that is new to the client has all of that told anew.
        receipts: before.is_some_and(|before| before.receipts && !is_new && before.behind.is_none()),
        data: before.is_some_and(|before| before.data && !is_new),
        is_dm: plan.labels.direct.contains(&draft.name.room_id),
        behind: None,
    }
}

fn member(asked: &Asked<'_>, placed: &Placed) -> Member {
    let place = placed.place;
    Member {
        room_nid: placed.room_nid,
        user_nid: asked.request.caller.user_nid,
        membership: place.membership,
        event_nid: place.event_nid,
        pos: place.pos,
        forgotten: false,
    }
}
