//! The published rooms of this server.

use std::sync::{Arc, Weak};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use myelin_store::{Batch, Change, Event, Observer, PublicRoom, StateKey, redacted_event_id};
use ruma::{OwnedEventId, OwnedMxcUri, OwnedRoomAliasId, OwnedRoomId};
use serde::de::DeserializeOwned;

use crate::{Result, Rooms};

/// Rooms whose state is read at the same time, when it is not in memory.
const READERS: usize = 4;

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
        let all = self.store.public_rooms().await?;
        let is_plain = search.term.is_none() && search.room_types.is_empty();
        if is_plain {
            let total = all.len();
            let page: Vec<PublicRoom> = all.into_iter().skip(search.skip).take(search.limit).collect();
            return Ok(DirectoryPage { rooms: self.listings(page).await?, total });
        }
        let term = search.term.as_deref().map(str::to_lowercase);
        let mut rooms = self.listings(all).await?;
        rooms.retain(|(_, _, listing)| listing.matches(term.as_deref(), &search.room_types));
        let total = rooms.len();
        let rooms = rooms.into_iter().skip(search.skip).take(search.limit).collect();
        Ok(DirectoryPage { rooms, total })
    }

    async fn listings(&self, rooms: Vec<PublicRoom>) -> Result<Vec<(OwnedRoomId, i64, Arc<Listing>)>> {
        let keys = Listing::keys();
        // Most are in memory: a listing belongs to a snapshot, which never changes but by redactions.
        stream::iter(rooms)
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

/// Forgets what redacted events have told of rooms.
pub(crate) struct Redactions(pub(crate) Weak<Rooms>);

impl Observer for Redactions {
    fn committed(&self, batch: &Batch) {
        for change in &batch.changes {
            if let Change::Event(event) = change
                && event.event_type() == "m.room.redaction"
                && let Some(target) = redacted_event_id(event)
                && let Some(rooms) = self.0.upgrade()
            {
                rooms.listings.retain(|_, listing| !listing.event_ids.iter().any(|id| *id == target));
            }
        }
    }
}

impl Listing {
    fn keys() -> [StateKey; 8] {
        [
            "m.room.create",
            "m.room.name",
            "m.room.topic",
            "m.room.canonical_alias",
            "m.room.avatar",
            "m.room.join_rules",
            "m.room.history_visibility",
            "m.room.guest_access",
        ]
        .map(|event_type| StateKey::new(event_type, ""))
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
