//! What lists are ordered and filtered by, from memory: read for many rooms at once where it is not there yet.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_rooms::visibility::membership_in;
use myelin_store::{Event, Membership, StateKey, state_tree};
use quick_cache::{Weighter, sync::Cache};
use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    Result, Sync,
    index::{Placed, Survey, is_bumping},
};

/// Rooms of which it is known when something happened in them, and of which kind they are.
const ROOMS: usize = 200_000;
/// Users whose direct rooms and tags are known.
const USERS: usize = 20_000;
/// Memberships that ended, of which it is known how.
const ENDS: usize = 200_000;
/// State events of rooms, but for members, all together.
const OUTLINE_ENTRIES: u64 = 1_000_000;
const OUTLINES: usize = 50_000;
/// Events looked through at once for the last one that moves a room up.
const BUMP_EVENTS: usize = 20;
/// The same for rooms where those are not enough; a room where neither has one counts by the oldest of them.
const BUMP_EVENTS_MORE: usize = 200;

/// A room as it was at a position.
#[derive(Debug)]
pub(super) struct Facts {
    /// Everything up to this position was taken into account.
    at: i64,
    /// The position of the last event.
    last: i64,
    pub(super) kind: Kind,
}

/// What does not change about a room, or only once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) room_type: Option<Box<str>>,
    pub(super) is_encrypted: bool,
}

/// What a user's data says about rooms.
#[derive(Debug)]
pub(super) struct Labels {
    data_pos: i64,
    /// The rooms in `m.direct`.
    pub(super) direct: HashSet<OwnedRoomId>,
    /// By room; only where a list was filtered by them.
    pub(super) tags: Option<HashMap<i64, Vec<String>>>,
}

/// A state event, with its key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<StateKey>,
    pub(super) key_nid: i64,
    pub(super) event_nid: i64,
}

/// The state of a room but for its members: what clients ask for by wildcards.
#[derive(Debug)]
pub(super) struct Outline {
    root: i64,
    pub(super) entries: Vec<Entry>,
}

impl Outline {
    /// The event of a type with an empty state key.
    pub(super) fn event(&self, event_type: &str) -> Option<i64> {
        let is_wanted = |entry: &&Entry| &*entry.key.event_type == event_type && entry.key.state_key.is_empty();
        self.entries.iter().find(is_wanted).map(|entry| entry.event_nid)
    }
}

#[derive(Clone)]
struct ByEntries;

impl Weighter<i64, Arc<Outline>> for ByEntries {
    fn weight(&self, _: &i64, outline: &Arc<Outline>) -> u64 {
        outline.entries.len() as u64 + 4
    }
}

/// All of it.
pub(super) struct FactCaches {
    rooms: Cache<i64, Arc<Facts>>,
    /// By the event of an invitation or a knock: what another server tells of the room.
    foreign: Cache<i64, Arc<Kind>>,
    labels: Cache<i64, Arc<Labels>>,
    /// By the event that ended a membership: whether others ended it, of one who was in the room.
    ends: Cache<i64, bool>,
    /// By room: the position that it was looked for at, and the one found.
    bumps: Cache<i64, (i64, i64)>,
    outlines: Cache<i64, Arc<Outline>, ByEntries>,
}

impl FactCaches {
    pub(super) fn new() -> Self {
        Self {
            rooms: Cache::new(ROOMS),
            foreign: Cache::new(ROOMS),
            labels: Cache::new(USERS),
            ends: Cache::new(ENDS),
            bumps: Cache::new(ROOMS),
            outlines: Cache::with_weighter(OUTLINES, OUTLINE_ENTRIES, ByEntries),
        }
    }

    /// Takes note that a room was forgotten whose membership an event had ended: it is in no list any more.
    pub(super) fn note_forgotten(&self, event_nid: i64) {
        self.ends.insert(event_nid, false);
    }
}

/// The order of a room and what it is, together.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// "Rooms are ordered by last activity, based on when the last event in the room was received by the server."
    pub(super) last: i64,
    facts: Option<Arc<Facts>>,
    foreign: Option<Arc<Kind>>,
    is_newly_encrypted: bool,
}

impl Known {
    pub(super) fn is_encrypted(&self) -> bool {
        self.is_newly_encrypted || self.kind().is_some_and(|kind| kind.is_encrypted)
    }

    pub(super) fn room_type(&self) -> Option<&str> {
        self.kind().and_then(|kind| kind.room_type.as_deref())
    }

    fn kind(&self) -> Option<&Kind> {
        self.foreign.as_deref().or(self.facts.as_deref().map(|facts| &facts.kind))
    }
}

impl Sync {
    /// When something last happened in rooms, in the order given, and what they are.
    pub(super) async fn known(&self, survey: &Survey, rooms: &[Placed], with_kinds: bool) -> Result<Vec<Known>> {
        let caches = &self.sliding.facts;
        let is_fresh = |facts: &Arc<Facts>| facts.at >= survey.floor;
        let mut facts: Vec<Option<Arc<Facts>>> =
            rooms.iter().map(|room| caches.rooms.get(&room.room_nid).filter(is_fresh)).collect();
        let missing: Vec<i64> =
            rooms.iter().zip(&facts).filter(|(_, facts)| facts.is_none()).map(|(room, _)| room.room_nid).collect();
        if !missing.is_empty() {
            let read = Box::pin(self.read_facts(survey.view.to, &missing)).await?;
            for (room, facts) in rooms.iter().zip(&mut facts).filter(|(_, facts)| facts.is_none()) {
                *facts = read.get(&room.room_nid).cloned();
            }
        }
        let foreign = match with_kinds {
            true => self.foreign_kinds(rooms).await?,
            false => HashMap::new(),
        };
        let known = rooms.iter().zip(facts).map(|(room, facts)| {
            let last = match room.place.membership {
                Membership::Join => facts.as_ref().map_or(0, |facts| facts.last).max(room.event),
                _ => room.place.pos,
            };
            let foreign = foreign.get(&room.place.event_nid).cloned();
            Known { last, facts, foreign, is_newly_encrypted: room.encryption > 0 }
        });
        Ok(known.collect())
    }

    /// Reads the heads of rooms, and what they are: a query for each kind of thing, not for each room.
    async fn read_facts(&self, at: i64, room_nids: &[i64]) -> Result<HashMap<i64, Arc<Facts>>> {
        let keys = [StateKey::new("m.room.create", ""), StateKey::new("m.room.encryption", "")];
        let key_nids: Vec<i64> = self.store.key_nids(&keys).await?;
        let heads = self.store.heads(room_nids).await?;
        let asked: Vec<(i64, &[i64])> = heads.iter().map(|(_, head)| (head.state_root, &*key_nids)).collect();
        let found = state_tree::get_each(&*self.store, &asked).await?;
        let creates: Vec<i64> = found.iter().filter_map(|events| events.first().copied().flatten()).collect();
        let creates: HashMap<i64, Arc<Event>> =
            self.store.events(&creates).await?.into_iter().map(|event| (event.nid, event)).collect();
        let mut read = HashMap::with_capacity(heads.len());
        for ((room_nid, head), events) in heads.into_iter().zip(found) {
            let create = events.first().copied().flatten().and_then(|nid| creates.get(&nid));
            let kind = Kind {
                room_type: create.and_then(|create| room_type(create.content())),
                is_encrypted: events.get(1).copied().flatten().is_some(),
            };
            let facts = Arc::new(Facts { at, last: head.last_pos, kind });
            self.sliding.facts.rooms.insert(room_nid, facts.clone());
            read.insert(room_nid, facts);
        }
        Ok(read)
    }

    /// What other servers tell of rooms that are not here: by the event of the invitation or the knock.
    async fn foreign_kinds(&self, rooms: &[Placed]) -> Result<HashMap<i64, Arc<Kind>>> {
        let waits = |room: &&Placed| matches!(room.place.membership, Membership::Invite | Membership::Knock);
        let nids: Vec<i64> = rooms.iter().filter(waits).map(|room| room.place.event_nid).collect();
        let mut kinds: HashMap<i64, Arc<Kind>> = HashMap::new();
        let mut missing = Vec::new();
        for nid in nids {
            match self.sliding.facts.foreign.get(&nid) {
                Some(kind) => drop(kinds.insert(nid, kind)),
                None => missing.push(nid),
            }
        }
        if missing.is_empty() {
            return Ok(kinds);
        }
        for (nid, json) in self.store.stripped_state(&missing).await? {
            let kind = Arc::new(kind_of_stripped(&json));
            self.sliding.facts.foreign.insert(nid, kind.clone());
            kinds.insert(nid, kind);
        }
        Ok(kinds)
    }

    /// What a user's data says about rooms, up to the survey.
    pub(super) async fn labels(&self, user_nid: i64, survey: &Survey, with_tags: bool) -> Result<Arc<Labels>> {
        let data_pos = survey.data_pos;
        let is_fresh = |labels: &Arc<Labels>| labels.data_pos == data_pos && (labels.tags.is_some() || !with_tags);
        if let Some(labels) = self.sliding.facts.labels.get(&user_nid).filter(is_fresh) {
            return Ok(labels);
        }
        let direct = self.store.account_data(user_nid, 0, "m.direct").await?;
        let direct = direct.and_then(|data| serde_json::from_str::<HashMap<String, Value>>(&data.content).ok());
        let rooms = direct.iter().flat_map(HashMap::values).filter_map(Value::as_array).flatten();
        let direct = rooms.filter_map(|room_id| OwnedRoomId::try_from(room_id.as_str()?).ok()).collect();
        let tags = match with_tags {
            false => None,
            true => {
                let found = self.store.room_account_data_of_type(user_nid, "m.tag").await?;
                Some(found.into_iter().map(|(room_nid, content)| (room_nid, tag_names(&content))).collect())
            }
        };
        let labels = Arc::new(Labels { data_pos, direct, tags });
        self.sliding.facts.labels.insert(user_nid, labels.clone());
        Ok(labels)
    }

    /// Which of the memberships that are over were ended by others: "the user may not have seen that they've been
    /// kicked/banned from the room otherwise". Not those of users who were "banned from, but never joined".
    pub(super) async fn thrown_out(&self, rooms: &[Placed]) -> Result<HashSet<i64>> {
        let is_out = |room: &&Placed| matches!(room.place.membership, Membership::Leave | Membership::Ban);
        let ends: Vec<i64> = rooms.iter().filter(is_out).map(|room| room.place.event_nid).collect();
        let mut thrown_out = HashSet::new();
        let mut missing = Vec::new();
        for nid in ends {
            match self.sliding.facts.ends.get(&nid) {
                Some(true) => drop(thrown_out.insert(nid)),
                Some(false) => {}
                None => missing.push(nid),
            }
        }
        if missing.is_empty() {
            return Ok(thrown_out);
        }
        let ends = self.store.events(&missing).await?;
        let before: Vec<i64> = ends.iter().filter_map(|end| end.replaces).collect();
        let before: HashMap<i64, Arc<Event>> =
            self.store.events(&before).await?.into_iter().map(|event| (event.nid, event)).collect();
        for end in ends {
            let was = end.replaces.and_then(|nid| before.get(&nid)).and_then(|event| membership_in(event));
            let is_thrown_out = was == Some(Membership::Join) && end.state_key() != Some(end.sender().as_str());
            self.sliding.facts.ends.insert(end.nid, is_thrown_out);
            if is_thrown_out {
                thrown_out.insert(end.nid);
            }
        }
        Ok(thrown_out)
    }

    /// The positions of the last "proper" activity in rooms that the user is in.
    pub(super) async fn bumps(&self, survey: &Survey, rooms: &[Placed]) -> Result<HashMap<i64, i64>> {
        let mut found = HashMap::with_capacity(rooms.len());
        let mut open = Vec::new();
        for room in rooms {
            let known = self.sliding.facts.bumps.get(&room.room_nid).filter(|(at, _)| *at >= survey.floor);
            match (room.bump, known) {
                (0, None) => open.push(room.room_nid),
                (bump, known) => drop(found.insert(room.room_nid, bump.max(known.map_or(0, |(_, pos)| pos)))),
            }
        }
        for limit in [BUMP_EVENTS, BUMP_EVENTS_MORE] {
            if open.is_empty() {
                break;
            }
            let asked: Vec<(i64, i64, i64)> = open.iter().map(|nid| (*nid, i64::MIN, survey.view.to)).collect();
            let events = self.store.newest_events_of(&asked, limit).await?;
            let mut left = Vec::new();
            for (room_nid, events) in open.into_iter().zip(events) {
                let bump = events.iter().rfind(|event| is_bumping(event)).and_then(|event| event.pos);
                let is_all = events.len() < limit || limit == BUMP_EVENTS_MORE;
                let oldest = events.first().and_then(|event| event.pos).filter(|_| is_all);
                match bump.or(oldest) {
                    Some(pos) => {
                        self.sliding.facts.bumps.insert(room_nid, (survey.view.to, pos));
                        found.insert(room_nid, pos);
                    }
                    None => left.push(room_nid),
                }
            }
            open = left;
        }
        Ok(found)
    }

    /// The state of rooms but for their members, by snapshot. Follows from what was there before by what has changed.
    pub(super) async fn outlines(&self, rooms: &[(i64, i64)]) -> Result<HashMap<i64, Arc<Outline>>> {
        let cache = &self.sliding.facts.outlines;
        let mut found: HashMap<i64, Arc<Outline>> = HashMap::new();
        let (mut older, mut missing) = (Vec::new(), Vec::new());
        for &(room_nid, root) in rooms {
            match cache.get(&room_nid) {
                Some(outline) if outline.root == root => drop(found.insert(room_nid, outline)),
                Some(outline) => older.push((room_nid, root, outline)),
                None => missing.push((room_nid, root)),
            }
        }
        let pairs: Vec<(i64, i64)> = older.iter().map(|(_, root, outline)| (outline.root, *root)).collect();
        let changes = state_tree::diff_many(&*self.store, &pairs).await?;
        for ((room_nid, root, outline), changes) in older.into_iter().zip(changes) {
            let mut entries = outline.entries.clone();
            let new = changes.iter().filter_map(|change| Some((change.key, change.new?)));
            let new = self.without_members(&new.collect::<Vec<_>>()).await?;
            let changed: HashSet<i64> = changes.iter().map(|change| change.key).collect();
            entries.retain(|entry| !changed.contains(&entry.key_nid));
            entries.extend(new);
            let outline = Arc::new(Outline { root, entries });
            cache.insert(room_nid, outline.clone());
            found.insert(room_nid, outline);
        }
        let roots: Vec<i64> = missing.iter().map(|(_, root)| *root).collect();
        let read = state_tree::entries(&*self.store, &roots).await?;
        for ((room_nid, root), entries) in missing.into_iter().zip(read) {
            let outline = Arc::new(Outline { root, entries: self.without_members(&entries).await? });
            cache.insert(room_nid, outline.clone());
            found.insert(room_nid, outline);
        }
        Ok(found)
    }

    async fn without_members(&self, entries: &[(i64, i64)]) -> Result<Vec<Entry>> {
        let keys: Vec<i64> = entries.iter().map(|(key, _)| *key).collect();
        let names = self.store.state_keys(&keys).await?;
        let named = entries.iter().zip(names).filter(|(_, key)| &*key.event_type != "m.room.member");
        Ok(named.map(|(&(key_nid, event_nid), key)| Entry { key, key_nid, event_nid }).collect())
    }

    /// The rooms that some spaces name as their children.
    pub(super) async fn children(&self, spaces: &[i64]) -> Result<HashSet<OwnedRoomId>> {
        let heads = self.store.heads(spaces).await?;
        let roots: Vec<(i64, i64)> = heads.into_iter().map(|(nid, head)| (nid, head.state_root)).collect();
        let outlines = self.outlines(&roots).await?;
        let is_child = |entry: &&Entry| &*entry.key.event_type == "m.space.child";
        let entries: Vec<&Entry> = outlines.values().flat_map(|outline| &outline.entries).filter(is_child).collect();
        let nids: Vec<i64> = entries.iter().map(|entry| entry.event_nid).collect();
        let events = self.store.events(&nids).await?;
        let named = entries.iter().zip(events).filter(|(_, event)| names_child(event.content()));
        Ok(named.filter_map(|(entry, _)| OwnedRoomId::try_from(&*entry.key.state_key).ok()).collect())
    }
}

/// A room's type, from the content of its first event.
fn room_type(content: &str) -> Option<Box<str>> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "type")]
        room_type: Option<Box<str>>,
    }
    serde_json::from_str::<Content>(content).ok()?.room_type
}

/// "When a child relationship is removed, `via` is missing or invalid."
fn names_child(content: &str) -> bool {
    #[derive(Deserialize)]
    struct Content {
        via: Vec<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(content).is_ok_and(|content| !content.via.is_empty())
}

fn tag_names(content: &str) -> Vec<String> {
    let content: Value = serde_json::from_str(content).unwrap_or_default();
    content.get("tags").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

fn kind_of_stripped(json: &str) -> Kind {
    #[derive(Deserialize)]
    struct Stripped<'a> {
        #[serde(borrow, rename = "type")]
        event_type: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let mut kind = Kind::default();
    for event in serde_json::from_str::<Vec<Stripped<'_>>>(json).unwrap_or_default() {
        match &*event.event_type {
            "m.room.create" => kind.room_type = room_type(event.content.get()),
            "m.room.encryption" => kind.is_encrypted = true,
            _ => {}
        }
    }
    kind
}
