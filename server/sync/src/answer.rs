//! An answer of `/sync`, put together for all rooms at once: each kind of thing is read by one query, if at all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use myelin_rooms::{
    present::{Form, present_bundled, present_stripped},
    relations::Bundles,
    visibility::{Viewer, membership_in},
};
use myelin_store::{AccountData, Event, Member, Membership, Receipt, RoomName, StateKey, state_tree};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::value::RawValue;

use crate::{
    Error, Look, Request, Result, StateForm, Sync,
    account_data::default_push_rules,
    ephemeral::{event, presence_event, receipt_events, typing_event},
    index::{Place, RoomView, Settings, View, may_see},
    live::{LiveNews, ShownPresence},
    observe,
    response::{
        Answer, DeviceLists, Events, InvitedRoom, JoinedRoom, KnockedRoom, LeftRoom, RoomSections, RoomSummary, State,
        Timeline, UnreadNotifications,
    },
    state::{Extent, Recipient, Room, states},
    summary::{Asked, Summary},
    timeline::{self, Audience, Filled, Wanted, fill},
    to_device::MESSAGES_MAX,
    token::Token,
    unread::{MAIN, ReadRoom, Reader, ThreadCounts},
};

/// From so many rooms on, what they have in common is read ahead.
const MANY_ROOMS: usize = 4;

/// "Stripped state should contain some or all of the following state events".
const STRIPPED: [&str; 7] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// A room in the making.
struct Draft {
    wanted: Wanted,
    place: Place,
    members_pos: i64,
    is_joined: bool,
    /// Whether the client begins anew with the room.
    is_new: bool,
    extent: Extent,
    filled: Filled,
}

impl Draft {
    fn told(&self) -> timeline::Told<'_> {
        timeline::Told { wanted: &self.wanted, filled: &self.filled, is_joined: self.is_joined }
    }
}

/// All that goes into an answer besides timelines and state.
#[derive(Default)]
struct Sundries {
    receipts: HashMap<i64, Vec<Box<RawValue>>>,
    /// Rooms in which the user's own receipts have moved.
    read: HashSet<i64>,
    typing: HashMap<i64, Box<RawValue>>,
    room_data: HashMap<i64, Vec<Box<RawValue>>>,
    global_data: Vec<Box<RawValue>>,
}

/// What is to be told of each kind of room.
#[derive(Default)]
struct Sorted {
    drafts: Vec<Draft>,
    invited: Vec<(Arc<RoomName>, Place)>,
    knocked: Vec<(Arc<RoomName>, Place)>,
}

impl Sync {
    pub(crate) async fn put_together(
        self: &Arc<Self>,
        request: &Request,
        since: Option<Token>,
        look: Option<Look>,
    ) -> Result<Answer> {
        let started = Instant::now();
        let is_whole = since.is_none() || request.full_state;
        let (view, live) = match look {
            Some(Look { view, live }) => (view, live),
            None => (self.whole_view(request, since).await?, self.live_news(request, since.and_then(|s| s.serial))),
        };
        let to = view.to;
        let settings = self.settings(request.user_nid, &request.user_id).await?;

        let mut sorted = self.sort(request, since, &view, &settings).await?;
        let sundries = self.sundries(request, since, &view, &live, &sorted.drafts).await?;
        self.add_quiet_rooms(request, &view, &sundries, &mut sorted.drafts).await?;
        if sorted.drafts.len() >= MANY_ROOMS && is_whole {
            self.read_ahead(&sorted.drafts).await?;
        }
        let audience = Audience {
            user_id: &request.user_id,
            user_nid: request.user_nid,
            filter: &request.filter,
            ignored: &settings.ignored,
        };
        self.fill_timelines(&audience, &mut sorted.drafts).await?;
        let presence = self.presence_to_tell(request, since, live.presence, &sorted.drafts).await?;

        let rooms = RoomSections {
            invite: self.invited(request, &sorted.invited).await?,
            knock: self.knocked(request, &sorted.knocked).await?,
            ..RoomSections::default()
        };
        let Sundries { receipts, read, typing, room_data, global_data } = sundries;
        let told_before = since.map_or(0, |since| since.to_device_pos());
        let device = (request.user_nid, request.device_nid);
        let (messages, told_to) = self.messages(device, told_before, to, MESSAGES_MAX).await?;
        let device_lists = match since {
            Some(since) => self.device_lists(request.user_nid, &request.user_id, since.pos, &view).await?,
            None => DeviceLists::default(),
        };
        let next_batch = Token::sync(since.map_or(0, |since| since.pos).max(to), live.to).with_to_device(told_to);
        let mut answer = Answer {
            next_batch: next_batch.to_string(),
            to_device: Events { events: messages },
            device_lists,
            keys: self.keys_left(request.device_nid).await?,
            account_data: Events { events: global_data },
            presence: Events { events: presence },
            rooms,
        };
        let parts = RoomParts { receipts, read, typing, room_data };
        Box::pin(self.write_rooms(request, since, to, &settings, sorted.drafts, parts, &mut answer)).await?;
        observe(started, is_whole);
        Ok(answer)
    }

    /// All rooms, and what else is new since a token.
    async fn whole_view(&self, request: &Request, since: Option<Token>) -> Result<View> {
        loop {
            let whole = self.index.view(request.user_nid, None);
            let news = match since {
                Some(since) => self.index.view(request.user_nid, Some(since.pos)),
                None => Some(View {
                    to: 0,
                    rooms: Vec::new(),
                    receipts: None,
                    account_data: true,
                    device_lists: Some(Vec::new()),
                }),
            };
            if let (Some(whole), Some(news)) = (whole, news) {
                let View { receipts, account_data, device_lists, .. } = news;
                return Ok(View { receipts, account_data, device_lists, ..whole });
            }
            // Forgotten in between.
            self.load(request.user_nid).await?;
        }
    }

    /// Decides, for each room that may have news, in which part of the answer it goes and from where on.
    async fn sort(&self, request: &Request, since: Option<Token>, view: &View, settings: &Settings) -> Result<Sorted> {
        let nids: Vec<i64> = view.rooms.iter().map(|room| room.room_nid).collect();
        let names: HashMap<i64, Arc<RoomName>> = nids.iter().copied().zip(self.store.rooms(&nids).await?).collect();
        let mut rooms: Vec<(&RoomView, Arc<RoomName>)> = Vec::with_capacity(view.rooms.len());
        for room in &view.rooms {
            if let Some(name) = names.get(&room.room_nid)
                && request.filter.wants_room(&name.room_id)
                && room.place.pos <= view.to
            {
                rooms.push((room, name.clone()));
            }
        }
        let since_pos = since.map(|since| since.pos);
        let unsure: Vec<i64> =
            rooms.iter().filter(|(room, _)| room.events.is_none()).map(|(room, _)| room.room_nid).collect();
        let last: HashMap<i64, i64> = match unsure.is_empty() {
            true => HashMap::new(),
            false => self.store.heads(&unsure).await?.into_iter().map(|(nid, head)| (nid, head.last_pos)).collect(),
        };
        let moved: Vec<(i64, i64)> = rooms
            .iter()
            .filter(|(room, _)| since_pos.is_some_and(|since| room.place.pos > since))
            .map(|(room, _)| (room.room_nid, since_pos.unwrap_or_default()))
            .collect();
        let before = self.memberships_at(&request.user_id, &moved).await?;
        let forgotten = self.forgotten_rooms(request, &rooms).await?;
        self.read_ends(&rooms).await?;

        let mut sorted = Sorted::default();
        for (room, name) in rooms {
            let place = room.place;
            let is_moved = since_pos.is_some_and(|since| place.pos > since);
            let was_joined = match since_pos {
                None => false,
                Some(_) if is_moved => before.get(&room.room_nid) == Some(&Membership::Join),
                Some(_) => place.membership == Membership::Join,
            };
            let has_events = match (since_pos, room.events) {
                (Some(since), None) => last.get(&room.room_nid).is_some_and(|last| *last > since),
                (_, events) => events != Some(false),
            };
            match place.membership {
                Membership::Join => {
                    let is_new = !was_joined;
                    if !is_new && !has_events && !request.full_state {
                        continue;
                    }
                    let after = since_pos.filter(|_| was_joined).unwrap_or(0);
                    let all_the_time = was_joined && !is_moved;
                    let extent = if is_new || request.full_state { Extent::Whole } else { Extent::Since(after) };
                    sorted.drafts.push(Draft {
                        wanted: Wanted {
                            viewed_by: (!all_the_time).then(|| member(request, room)),
                            room: name,
                            after,
                            to: view.to,
                            end: None,
                        },
                        place,
                        members_pos: room.members_pos,
                        is_joined: true,
                        is_new,
                        extent,
                        filled: Filled::default(),
                    });
                }
                Membership::Leave | Membership::Ban => {
                    let is_wanted = is_moved || (since_pos.is_none() && request.filter.includes_left_rooms());
                    // The user's other devices have to be told that a room is gone, forgotten or not.
                    let had_place = matches!(
                        before.get(&room.room_nid),
                        Some(Membership::Join | Membership::Invite | Membership::Knock)
                    );
                    if !is_wanted || (forgotten.contains(&room.room_nid) && !had_place) {
                        continue;
                    }
                    let viewer = Viewer {
                        user_id: &request.user_id,
                        user_nid: request.user_nid,
                        member: Some(member(request, room)),
                    };
                    let left = self.rooms.last_joined(&name, &viewer).await?.and_then(|left| left.pos);
                    // What happened once the user was out is not the user's to know, but for what ends it: a ban that
                    // came later, or the end of an invitation.
                    let (after, to, extent) = match (left, since_pos) {
                        (Some(left), None) => (0, left, Extent::Whole),
                        (Some(left), Some(since)) if was_joined => (since, left, Extent::Since(since)),
                        (Some(left), Some(since)) if left > since => (0, left, Extent::Whole),
                        _ => (place.pos.saturating_sub(1), place.pos, Extent::Nothing),
                    };
                    let end = if to < place.pos { Some(self.store.event(place.event_nid).await?) } else { None };
                    sorted.drafts.push(Draft {
                        wanted: Wanted { viewed_by: viewer.member, room: name, after, to, end },
                        place,
                        members_pos: room.members_pos,
                        is_joined: false,
                        is_new: false,
                        extent,
                        filled: Filled::default(),
                    });
                }
                Membership::Invite if is_moved || is_whole(request, since_pos) => {
                    let invite = self.store.event(place.event_nid).await?;
                    if settings.wants_invite_of(invite.sender()) {
                        sorted.invited.push((name, place));
                    }
                }
                Membership::Knock if is_moved || is_whole(request, since_pos) => sorted.knocked.push((name, place)),
                Membership::Invite | Membership::Knock => {}
            }
        }
        Ok(sorted)
    }

    /// The user's memberships in some rooms at positions, from the rooms' state there.
    pub(crate) async fn memberships_at(
        &self,
        user_id: &UserId,
        asked: &[(i64, i64)],
    ) -> Result<HashMap<i64, Membership>> {
        let mut found = HashMap::new();
        if asked.is_empty() {
            return Ok(found);
        }
        let key = StateKey::new("m.room.member", user_id.as_str());
        let Some(key_nid) = self.store.known_key_nids(&[key]).await?.pop().flatten() else { return Ok(found) };
        let roots = self.store.room_states_at(asked).await?;
        let mut nids = Vec::new();
        for ((room_nid, _), root) in asked.iter().zip(roots) {
            if let Some(nid) = self.store.state_event_nids(root, &[key_nid]).await?.pop().flatten() {
                nids.push((*room_nid, nid));
            }
        }
        let events = self.store.events(&nids.iter().map(|(_, nid)| *nid).collect::<Vec<_>>()).await?;
        for ((room_nid, _), event) in nids.into_iter().zip(events) {
            found.extend(membership_in(&event).map(|membership| (room_nid, membership)));
        }
        Ok(found)
    }

    /// Reads by which events the user is out of rooms, and the ones before, if there are many.
    async fn read_ends(&self, rooms: &[(&RoomView, Arc<RoomName>)]) -> Result<()> {
        let out = rooms.iter().map(|(room, _)| room.place);
        let out = out.filter(|place| matches!(place.membership, Membership::Leave | Membership::Ban));
        let nids: Vec<i64> = out.map(|place| place.event_nid).collect();
        if nids.len() >= MANY_ROOMS {
            let ends = self.store.events(&nids).await?;
            self.store.events(&ends.iter().filter_map(|end| end.replaces).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// The rooms that the user has forgotten, if there are any to tell of that could be.
    async fn forgotten_rooms(&self, request: &Request, rooms: &[(&RoomView, Arc<RoomName>)]) -> Result<HashSet<i64>> {
        let is_out = |place: Place| matches!(place.membership, Membership::Leave | Membership::Ban);
        if !rooms.iter().any(|(room, _)| is_out(room.place)) {
            return Ok(HashSet::new());
        }
        let members = self.store.memberships(request.user_nid).await?;
        Ok(members.into_iter().filter(|member| member.forgotten).map(|member| member.room_nid).collect())
    }

    /// Receipts, typing and account data.
    async fn sundries(
        &self,
        request: &Request,
        since: Option<Token>,
        view: &View,
        live: &LiveNews,
        drafts: &[Draft],
    ) -> Result<Sundries> {
        let filter = &request.filter;
        let mut sundries = Sundries::default();
        let since_pos = since.map_or(0, |since| since.pos);
        let new_rooms: Vec<i64> =
            drafts.iter().filter(|draft| draft.is_joined && draft.is_new).map(|draft| draft.wanted.room.nid).collect();

        // Receipts: those of rooms that are new to the client from the beginning on.
        let mut receipts: Vec<Arc<Receipt>> = match &view.receipts {
            Some(receipts) => receipts.clone(),
            None if since.is_some() => {
                let joined = self.index.joined_rooms(request.user_nid);
                self.store.receipts(&joined, since_pos, view.to).await?.into_iter().map(Arc::new).collect()
            }
            None => Vec::new(),
        };
        if !new_rooms.is_empty() {
            receipts.retain(|receipt| !new_rooms.contains(&receipt.room_nid));
            receipts.extend(self.store.receipts(&new_rooms, 0, view.to).await?.into_iter().map(Arc::new));
        }
        receipts.retain(|receipt| may_see(receipt, request.user_nid) && receipt.pos <= view.to);
        let own = receipts.iter().filter(|receipt| receipt.user_nid == request.user_nid);
        sundries.read = own.map(|receipt| receipt.room_nid).collect();
        if filter.ephemeral().wants_type("m.receipt") && !receipts.is_empty() {
            sundries.receipts = receipt_events(&self.store, &receipts).await?;
        }

        if filter.ephemeral().wants_type("m.typing") {
            for (room_nid, users) in &live.typing {
                sundries.typing.insert(*room_nid, typing_event(&self.store, users).await?);
            }
        }

        let mut data: Vec<AccountData> = Vec::new();
        if view.account_data {
            data = self.store.account_data_since(request.user_nid, since_pos, view.to).await?;
        }
        if since.is_some() && !new_rooms.is_empty() {
            data.retain(|data| !new_rooms.contains(&data.room_nid));
            data.extend(self.store.account_data_in(request.user_nid, &new_rooms).await?);
        }
        let mut has_push_rules = false;
        for data in data {
            has_push_rules |= data.room_nid == 0 && &*data.data_type == "m.push_rules";
            let content = RawValue::from_string(data.content.into()).map_err(Error::Write)?;
            if data.room_nid == 0 {
                if filter.wants_account_data(&data.data_type) {
                    sundries.global_data.push(event(&data.data_type, &content)?);
                }
            } else if filter.room_account_data().wants_type(&data.data_type) {
                sundries.room_data.entry(data.room_nid).or_default().push(event(&data.data_type, &content)?);
            }
        }
        if since.is_none() && !has_push_rules && filter.wants_account_data("m.push_rules") {
            sundries.global_data.push(event("m.push_rules", &default_push_rules(&request.user_id)?)?);
        }
        Ok(sundries)
    }

    /// Adds the joined rooms that have something to tell but no events.
    async fn add_quiet_rooms(
        &self,
        request: &Request,
        view: &View,
        sundries: &Sundries,
        drafts: &mut Vec<Draft>,
    ) -> Result<()> {
        let mut quiet: BTreeSet<i64> = sundries.receipts.keys().chain(sundries.typing.keys()).copied().collect();
        quiet.extend(sundries.room_data.keys().chain(&sundries.read));
        for draft in drafts.iter() {
            quiet.remove(&draft.wanted.room.nid);
        }
        if quiet.is_empty() {
            return Ok(());
        }
        let nids: Vec<i64> = quiet.into_iter().collect();
        for name in self.store.rooms(&nids).await? {
            let Some((place, members_pos)) = self.index.place(request.user_nid, name.nid) else { continue };
            if place.membership != Membership::Join || place.pos > view.to || !request.filter.wants_room(&name.room_id)
            {
                continue;
            }
            drafts.push(Draft {
                wanted: Wanted { room: name, viewed_by: None, after: view.to, to: view.to, end: None },
                place,
                members_pos,
                is_joined: true,
                is_new: false,
                extent: Extent::Nothing,
                filled: Filled::default(),
            });
        }
        Ok(())
    }

    /// Reads what deciding about many rooms needs, with one query for each kind instead of one for each room.
    async fn read_ahead(&self, drafts: &[Draft]) -> Result<()> {
        let at: Vec<(i64, i64)> = drafts.iter().map(|draft| (draft.wanted.room.nid, draft.wanted.to)).collect();
        let roots = self.store.room_states_at(&at).await?;
        let entries = state_tree::entries(&*self.store, &roots).await?;
        let mut keys: Vec<i64> = entries.iter().flatten().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        let names = self.store.state_keys(&keys).await?;
        let others: HashSet<i64> = keys
            .iter()
            .zip(names)
            .filter(|(_, name)| &*name.event_type != "m.room.member")
            .map(|(key, _)| *key)
            .collect();
        let mut nids: Vec<i64> =
            entries.iter().flatten().filter(|(key, _)| others.contains(key)).map(|(_, event)| *event).collect();
        nids.extend(drafts.iter().map(|draft| draft.place.event_nid));
        self.store.events(&nids).await?;
        Ok(())
    }

    async fn fill_timelines(&self, audience: &Audience<'_>, drafts: &mut [Draft]) -> Result<()> {
        let wanted: Vec<Wanted> = drafts.iter().map(|draft| draft.wanted.clone()).collect();
        for (draft, filled) in drafts.iter_mut().zip(fill(&self.rooms, audience, &wanted).await?) {
            let is_empty = filled.events.is_empty() && !filled.limited && filled.hidden_state.is_empty();
            if is_empty && draft.extent != Extent::Whole {
                draft.extent = Extent::Nothing;
            }
            draft.filled = filled;
        }
        Ok(())
    }

    /// The presence that has changed, and that of those whom the user is new among.
    async fn presence_to_tell(
        &self,
        request: &Request,
        since: Option<Token>,
        mut changed: Vec<ShownPresence>,
        drafts: &[Draft],
    ) -> Result<Vec<Box<RawValue>>> {
        if !self.options.presence || request.filter.excludes_presence() {
            return Ok(Vec::new());
        }
        if since.is_some() {
            let new: Vec<i64> = drafts
                .iter()
                .filter(|draft| draft.is_joined && draft.is_new)
                .map(|draft| draft.wanted.room.nid)
                .collect();
            if !new.is_empty() {
                let known: HashSet<i64> = changed.iter().map(|shown| shown.user_nid).collect();
                let there = self.live.presence_in(&new);
                changed.extend(there.into_iter().filter(|shown| !known.contains(&shown.user_nid)));
            }
        }
        let nids: Vec<i64> = changed.iter().map(|shown| shown.user_nid).collect();
        let mut events = Vec::with_capacity(changed.len());
        for (shown, user_id) in changed.iter().zip(self.store.user_ids(&nids).await?) {
            if request.filter.wants_presence(&user_id) {
                events.push(presence_event(&user_id, shown)?);
            }
        }
        Ok(events)
    }

    async fn invited(
        &self,
        request: &Request,
        rooms: &[(Arc<RoomName>, Place)],
    ) -> Result<BTreeMap<OwnedRoomId, InvitedRoom>> {
        let mut invited = BTreeMap::new();
        for (room, place) in rooms {
            let invite_state = self.stripped_state(&request.user_id, room, *place).await?;
            invited.insert(room.room_id.clone(), InvitedRoom { invite_state });
        }
        Ok(invited)
    }

    async fn knocked(
        &self,
        request: &Request,
        rooms: &[(Arc<RoomName>, Place)],
    ) -> Result<BTreeMap<OwnedRoomId, KnockedRoom>> {
        let mut knocked = BTreeMap::new();
        for (room, place) in rooms {
            let knock_state = self.stripped_state(&request.user_id, room, *place).await?;
            knocked.insert(room.room_id.clone(), KnockedRoom { knock_state });
        }
        Ok(knocked)
    }

    /// What one who is not in a room may know of it: some state, who invited, and the invitation itself.
    pub(crate) async fn stripped_state(&self, user_id: &UserId, room: &RoomName, place: Place) -> Result<Events> {
        let own = self.store.event(place.event_nid).await?;
        if own.is_outlier() {
            // The room is not here: another server has told what there is to know.
            let told = self.store.stripped_state(&[own.nid]).await?.remove(&own.nid);
            let told: Option<Vec<Box<RawValue>>> = told.and_then(|json| serde_json::from_str(&json).ok());
            let mut events = told.unwrap_or_default();
            events.push(present_stripped(&own)?);
            return Ok(Events { events });
        }
        let mut keys: Vec<StateKey> = STRIPPED.iter().map(|event_type| StateKey::new(event_type, "")).collect();
        if own.sender() != user_id {
            keys.push(StateKey::new("m.room.member", own.sender().as_str()));
        }
        let key_nids: Vec<i64> = self.store.known_key_nids(&keys).await?.into_iter().flatten().collect();
        let root = self.store.room_states_at(&[(room.nid, place.pos)]).await?.pop().unwrap_or_default();
        let mut events = Vec::with_capacity(key_nids.len() + 1);
        for event in self.store.state_events(root, &key_nids).await?.into_iter().flatten() {
            events.push(present_stripped(&event)?);
        }
        events.push(present_stripped(&own)?);
        Ok(Events { events })
    }

    /// Writes the rooms with a timeline into the answer.
    #[expect(clippy::too_many_arguments, reason = "the parts of one answer, handed over once")]
    async fn write_rooms(
        &self,
        request: &Request,
        since: Option<Token>,
        to: i64,
        settings: &Settings,
        drafts: Vec<Draft>,
        mut parts: RoomParts,
        answer: &mut Answer,
    ) -> Result<()> {
        if drafts.is_empty() {
            return Ok(());
        }
        let summaries = self.summaries_of(&drafts, to).await?;
        let heroes = self.heroes(request, since, &drafts, &summaries).await?;
        let told = self.states_of(request, since, to, &drafts, &heroes).await?;

        // All events of all rooms are written at once.
        let mut all: Vec<Arc<Event>> = Vec::new();
        for (draft, state) in drafts.iter().zip(&told) {
            all.extend_from_slice(&draft.filled.events);
            all.extend_from_slice(state);
        }
        let bundles = self.bundles_of(request, settings, &drafts).await?;
        let mut written = self.present(request, &all, &bundles).await?.into_iter();
        let mut unread = self.unread_of(request, settings, &drafts, &summaries, to).await?;

        for ((draft, state), heroes) in drafts.into_iter().zip(told).zip(heroes) {
            let Draft { wanted, filled, is_joined, is_new, members_pos, .. } = draft;
            let room_nid = wanted.room.nid;
            let events: Vec<_> = written.by_ref().take(filled.events.len()).collect();
            let state: Vec<_> = written.by_ref().take(state.len()).collect();
            let state = match request.state_form {
                StateForm::Before => State::Before(Events { events: state }),
                StateForm::After => State::After(Events { events: state }),
                StateForm::AfterUnstable => State::AfterUnstable(Events { events: state }),
            };
            let prev_batch = Some(filled.prev_batch(&wanted).to_string());
            let timeline = Timeline { events, limited: filled.limited, prev_batch };
            let takes_data = request.filter.room_account_data().wants_room(&wanted.room.room_id);
            let account_data = parts.room_data.remove(&room_nid).filter(|_| takes_data).unwrap_or_default();
            let account_data = Events { events: account_data };
            let room_id = wanted.room.room_id.clone();
            if !is_joined {
                answer.rooms.leave.insert(room_id, LeftRoom { state, timeline, account_data });
                continue;
            }
            let mut ephemeral = Vec::new();
            if request.filter.ephemeral().wants_room(&room_id) {
                ephemeral.extend(parts.receipts.remove(&room_nid).unwrap_or_default());
                ephemeral.extend(parts.typing.remove(&room_nid));
            }
            let is_quiet = timeline.events.is_empty() && !timeline.limited && state.is_empty();
            if is_quiet
                && !is_new
                && !request.full_state
                && ephemeral.is_empty()
                && account_data.is_empty()
                && !parts.read.contains(&room_nid)
            {
                continue;
            }
            let summary = summaries
                .get(&room_nid)
                .filter(|_| is_new || request.full_state || since.is_none_or(|since| members_pos > since.pos));
            let counts = unread.remove(&room_nid).unwrap_or_default();
            let (unread_notifications, unread_thread_notifications) = unread_parts(request, &counts);
            let room = JoinedRoom {
                summary: RoomSummary {
                    heroes: heroes.filter(|_| summary.is_some()),
                    joined: summary.map(|summary| summary.joined),
                    invited: summary.map(|summary| summary.invited),
                },
                state,
                timeline,
                ephemeral: Events { events: ephemeral },
                account_data,
                unread_notifications,
                unread_thread_notifications,
            };
            answer.rooms.join.insert(room_id, room);
        }
        Ok(())
    }

    async fn summaries_of(&self, drafts: &[Draft], to: i64) -> Result<HashMap<i64, Arc<Summary>>> {
        let rooms: Vec<Asked> = drafts
            .iter()
            .filter(|draft| draft.is_joined)
            .map(|draft| Asked {
                room_nid: draft.wanted.room.nid,
                members_pos: draft.members_pos,
                // Between its last membership event and the end of the answer, nobody came or went.
                root: draft.filled.last.as_ref().filter(|_| draft.members_pos <= to).map(|last| last.room_state),
            })
            .collect();
        self.summaries.of(&self.store, &rooms).await
    }

    /// Who could give each room a name, where it has none and the client does not know it yet.
    async fn heroes(
        &self,
        request: &Request,
        since: Option<Token>,
        drafts: &[Draft],
        summaries: &HashMap<i64, Arc<Summary>>,
    ) -> Result<Vec<Option<Vec<OwnedUserId>>>> {
        let keys = [StateKey::new("m.room.name", ""), StateKey::new("m.room.canonical_alias", "")];
        let key_nids: Vec<i64> = self.store.known_key_nids(&keys).await?.into_iter().flatten().collect();
        let mut heroes = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let is_wanted = draft.is_joined
                && (draft.is_new || request.full_state || since.is_none_or(|since| draft.members_pos > since.pos));
            let Some(summary) = summaries.get(&draft.wanted.room.nid).filter(|_| is_wanted) else {
                heroes.push(None);
                continue;
            };
            // "Required if the room's m.room.name or m.room.canonical_alias state events are unset or empty."
            let root = match &draft.filled.last {
                Some(last) => last.room_state,
                None => {
                    self.store.room_states_at(&[(draft.wanted.room.nid, draft.wanted.to)]).await?.pop().unwrap_or(0)
                }
            };
            let named = self.store.state_events(root, &key_nids).await?;
            if named.iter().flatten().any(|event| gives_name(event)) {
                heroes.push(None);
            } else {
                heroes.push(Some(self.store.user_ids(&summary.heroes(request.user_nid)).await?));
            }
        }
        Ok(heroes)
    }

    async fn states_of(
        &self,
        request: &Request,
        since: Option<Token>,
        to: i64,
        drafts: &[Draft],
        heroes: &[Option<Vec<OwnedUserId>>],
    ) -> Result<Vec<Vec<Arc<Event>>>> {
        let recipient = Recipient {
            device_nid: request.device_nid,
            since: since.map(|since| since.pos),
            filter: &request.filter,
            form: request.state_form,
            sent: &self.sent,
            to,
        };
        let rooms: Vec<Room<'_>> = drafts
            .iter()
            .zip(heroes)
            .map(|(draft, heroes)| {
                let mut companions: Vec<String> = heroes.iter().flatten().map(ToString::to_string).collect();
                // "Servers MUST include the syncing user's own membership event when they join a room, or when the
                // full state of rooms is requested".
                if draft.extent == Extent::Whole {
                    companions.push(request.user_id.to_string());
                }
                Room { wanted: &draft.wanted, filled: &draft.filled, extent: draft.extent, companions }
            })
            .collect();
        states(&self.store, &recipient, &rooms).await
    }

    /// What relates to the events, "when the relevant section has a limited value of true": otherwise the client has
    /// all that there is, or is told of it with the next answers.
    async fn bundles_of(&self, request: &Request, settings: &Settings, drafts: &[Draft]) -> Result<Bundles> {
        let is_limited = |draft: &&Draft| draft.filled.limited && !request.filter.is_federation_format();
        let told: Vec<timeline::Told<'_>> = drafts.iter().filter(is_limited).map(Draft::told).collect();
        timeline::bundles(&self.rooms, &request.user_id, request.user_nid, &settings.ignored, &told).await
    }

    async fn present(&self, request: &Request, events: &[Arc<Event>], bundles: &Bundles) -> Result<Vec<Box<RawValue>>> {
        if request.filter.is_federation_format() {
            let raw = |event: &Arc<Event>| RawValue::from_string(event.json().to_owned()).map_err(Error::Write);
            return events.iter().map(raw).collect();
        }
        let form = Form { device_nid: request.device_nid, room_id: None };
        let written = present_bundled(&self.store, events, form, bundles).await?;
        written.into_iter().map(|event| request.filter.prune(event)).collect()
    }

    async fn unread_of(
        &self,
        request: &Request,
        settings: &Settings,
        drafts: &[Draft],
        summaries: &HashMap<i64, Arc<Summary>>,
        to: i64,
    ) -> Result<HashMap<i64, ThreadCounts>> {
        let rooms: Vec<ReadRoom> = drafts
            .iter()
            .filter(|draft| draft.is_joined)
            .map(|draft| ReadRoom {
                name: draft.wanted.room.clone(),
                member_nid: draft.place.event_nid,
                joined_count: summaries.get(&draft.wanted.room.nid).map_or(0, |summary| summary.joined),
            })
            .collect();
        let reader = Reader { user_nid: request.user_nid, user_id: &request.user_id, settings };
        self.unread.of(&self.store, &reader, &rooms, to).await
    }
}

/// What a joined room is told besides its timeline.
struct RoomParts {
    receipts: HashMap<i64, Vec<Box<RawValue>>>,
    read: HashSet<i64>,
    typing: HashMap<i64, Box<RawValue>>,
    room_data: HashMap<i64, Vec<Box<RawValue>>>,
}

fn is_whole(request: &Request, since: Option<i64>) -> bool {
    since.is_none() || request.full_state
}

fn member(request: &Request, room: &RoomView) -> Member {
    let Place { membership, event_nid, pos } = room.place;
    Member { room_nid: room.room_nid, user_nid: request.user_nid, membership, event_nid, pos, forgotten: false }
}

/// Whether a name or an alias is set and not empty.
fn gives_name(event: &Event) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        name: Option<String>,
        alias: Option<String>,
    }
    serde_json::from_str::<Content>(event.content())
        .is_ok_and(|content| content.name.or(content.alias).is_some_and(|name| !name.is_empty()))
}

/// The counts as the client wants them: "If unread_thread_notifications was specified as true on the RoomEventFilter,
/// these counts will only be for the main timeline rather than all events in the room."
fn unread_parts(
    request: &Request,
    counts: &ThreadCounts,
) -> (UnreadNotifications, BTreeMap<OwnedEventId, UnreadNotifications>) {
    let mut main = UnreadNotifications::default();
    let mut threads = BTreeMap::new();
    for (thread, counts) in counts {
        let unread =
            UnreadNotifications { highlight_count: counts.highlights, notification_count: counts.notifications };
        match OwnedEventId::try_from(&**thread) {
            Ok(root) if **thread != *MAIN && request.filter.counts_threads() => {
                threads.insert(root, unread);
            }
            _ => {
                main.highlight_count += unread.highlight_count;
                main.notification_count += unread.notification_count;
            }
        }
    }
    (main, threads)
}
