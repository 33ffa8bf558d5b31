//! The published rooms of this server.

use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use myelin_store::{Batch, Change, Event, Observer, PublicRoom, StateKey, Store, redacted_event_id};
use parking_lot::RwLock;
use ruma::{OwnedEventId, OwnedMxcUri, OwnedRoomAliasId, OwnedRoomId};
use serde::de::DeserializeOwned;

use crate::{Result, Rooms};

/// Rooms whose state is read at the same time, when it is not in memory.
const READERS: usize = 4;
/// How long a list of the rooms is good for: so late are the numbers of their members, and what other replicas list.
const LIST_AGE_MAX: Duration = Duration::from_secs(3);
/// The types of the state that rooms tell of themselves, with an empty state key.
const LISTING_TYPES: [&str; 8] = [
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
];

/// The listed rooms with the numbers of their members, which take the database some time to count.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    list: RwLock<Option<List>>,
    /// How often a list has become untrue.
    changes: AtomicU64,
    /// Held by the one who reads them.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct List {
    rooms: Arc<[PublicRoom]>,
    room_nids: HashSet<i64>,
    read_at: Instant,
    changes: u64,
}

impl Listed {
    /// Takes note that a room was put into the directory or taken out of it.
    pub(crate) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn note_state(&self, event: &Event) {
        if event.state_key() == Some("") && LISTING_TYPES.contains(&event.event_type()) {
            let list = self.list.read();
            if list.as_ref().is_none_or(|list| list.room_nids.contains(&event.room_nid)) {
                self.note_change();
            }
        }
    }

    fn fresh(&self) -> Option<Arc<[PublicRoom]>> {
        let list = self.list.read();
        let list = list.as_ref()?;
        let is_fresh = list.changes == self.changes.load(Ordering::Acquire) && list.read_at.elapsed() < LIST_AGE_MAX;
        is_fresh.then(|| list.rooms.clone())
    }

    /// All of them, the fullest first; read by one at a time.
    async fn rooms(&self, store: &Store) -> Result<Arc<[PublicRoom]>> {
        if let Some(rooms) = self.fresh() {
            return Ok(rooms);
        }
        let _alone = self.reading.lock().await;
        if let Some(rooms) = self.fresh() {
            return Ok(rooms);
        }
        let changes = self.changes.load(Ordering::Acquire);
        let read_at = Instant::now();
        let rooms: Arc<[PublicRoom]> = store.public_rooms().await?.into();
        let room_nids = rooms.iter().map(|room| room.room_nid).collect();
        *self.list.write() = Some(List { rooms: rooms.clone(), room_nids, read_at, changes });
        Ok(rooms)
    }
}

/// What a room tells of itself, from one snapshot of its state: it changes only when one of the events is redacted.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    event_ids: Vec<OwnedEventId>,
    /// The name.
    pub name: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// The main alias.
    pub canonical_alias: Option<OwnedRoomAliasId>,
    /// The avatar.
    pub avatar_url: Option<OwnedMxcUri>,
    /// The join rule, in the specification's word.
    pub join_rule: String,
    /// The type, from the create event.
    pub room_type: Option<String>,
    /// Whether everyone may read the room.
    pub is_world_readable: bool,
    /// Whether guests may join.
    pub guests_can_join: bool,
}

/// Which rooms of the directory are wanted.
#[derive(Clone, Debug, Default)]
pub struct DirectorySearch {
    /// A text that the name, the topic or the main alias has to contain, whatever the case.
    pub term: Option<String>,
    /// The types, `None` for rooms without one; empty for all.
    pub room_types: Vec<Option<String>>,
    /// How many rooms to leave out.
    pub skip: usize,
    /// How many rooms to list at the most.
    pub limit: usize,
}

/// A part of the directory, the fullest rooms first.
#[derive(Clone, Debug)]
pub struct DirectoryPage {
    /// Identifier, joined members, and what the room tells of itself.
    pub rooms: Vec<(OwnedRoomId, i64, Arc<Listing>)>,
    /// How many rooms there are in all.
    pub total: usize,
}

impl Rooms {
    /// Reads the directory.
    pub async fn directory(&self, search: &DirectorySearch) -> Result<DirectoryPage> {
        let all = self.listed.rooms(&self.store).await?;
        let is_plain = search.term.is_none() && search.room_types.is_empty();
        if is_plain {
            let total = all.len();
            let page = all.get(search.skip..).unwrap_or_default();
            let page = &page[..page.len().min(search.limit)];
            return Ok(DirectoryPage { rooms: self.listings(page).await?, total });
        }
        let term = search.term.as_deref().map(str::to_lowercase);
        let mut rooms = self.listings(&all).await?;
        rooms.retain(|(_, _, listing)| listing.matches(term.as_deref(), &search.room_types));
        let total = rooms.len();
        let rooms = rooms.into_iter().skip(search.skip).take(search.limit).collect();
        Ok(DirectoryPage { rooms, total })
    }

    async fn listings(&self, rooms: &[PublicRoom]) -> Result<Vec<(OwnedRoomId, i64, Arc<Listing>)>> {
        let keys = Listing::keys();
        // Most are in memory: a listing belongs to a snapshot, which never changes but by redactions.
        stream::iter(rooms.iter().cloned())
            .map(|room| {
                let keys = &keys;
                async move {
                    let listing = match self.listings.get(&room.state_root) {
                        Some(listing) => listing,
                        None => {
                            let events = self.state_events_at(room.state_root, keys).await?;
                            let listing = Arc::new(Listing::from_state(&events));
                            self.listings.insert(room.state_root, listing.clone());
                            listing
                        }
                    };
                    Ok((room.room_id, room.joined, listing))
                }
            })
            .buffered(READERS)
            .try_collect()
            .await
    }
}

/// Forgets what is no longer so: what redacted events have told of rooms, and lists of rooms that tell something else.
pub(crate) struct Changes(pub(crate) Weak<Rooms>);

impl Observer for Changes {
    fn committed(&self, batch: &Batch) {
        let Some(rooms) = self.0.upgrade() else { return };
        for change in &batch.changes {
            let Change::Event(event) = change else { continue };
            rooms.listed.note_state(event);
            if event.event_type() == "m.room.redaction"
                && let Some(target) = redacted_event_id(event)
            {
                rooms.listings.retain(|_, listing| !listing.event_ids.iter().any(|id| *id == target));
            }
        }
    }
}

impl Listing {
    fn keys() -> [StateKey; 8] {
        LISTING_TYPES.map(|event_type| StateKey::new(event_type, ""))
    }

    /// Reads the state events that say it; a field of the wrong shape counts as absent.
    fn from_state(events: &[Arc<Event>]) -> Self {
        let event_ids = events.iter().map(|event| event.event_id.clone()).collect();
        let mut listing = Self { event_ids, join_rule: "invite".to_owned(), ..Self::default() };
        for event in events {
            match event.event_type() {
                "m.room.create" => listing.room_type = field(event, "type"),
                "m.room.name" => listing.name = field(event, "name"),
                "m.room.topic" => listing.topic = field(event, "topic"),
                "m.room.canonical_alias" => listing.canonical_alias = field(event, "alias"),
                "m.room.avatar" => listing.avatar_url = field(event, "url"),
                "m.room.join_rules" => listing.join_rule = field(event, "join_rule").unwrap_or_default(),
                "m.room.history_visibility" => {
                    let visibility: Option<String> = field(event, "history_visibility");
                    listing.is_world_readable = visibility.as_deref() == Some("world_readable");
                }
                "m.room.guest_access" => {
                    let access: Option<String> = field(event, "guest_access");
                    listing.guests_can_join = access.as_deref() == Some("can_join");
                }
                _ => {}
            }
        }
        listing
    }

    fn matches(&self, term: Option<&str>, room_types: &[Option<String>]) -> bool {
        if !room_types.is_empty() && !room_types.contains(&self.room_type) {
            return false;
        }
        let Some(term) = term else { return true };
        let alias = self.canonical_alias.as_ref().map(|alias| alias.as_str());
        [self.name.as_deref(), self.topic.as_deref(), alias]
            .into_iter()
            .flatten()
            .any(|text| text.to_lowercase().contains(term))
    }
}

/// A field of an event's content.
fn field<T: DeserializeOwned>(event: &Event, name: &str) -> Option<T> {
    let content: serde_json::Map<String, serde_json::Value> = serde_json::from_str(event.content()).ok()?;
    T::deserialize(content.get(name)?).ok()
}
