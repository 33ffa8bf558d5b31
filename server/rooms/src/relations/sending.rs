//! What may not be sent because of what it relates to.

use std::hash::{BuildHasher as _, RandomState};

use myelin_store::{Relation, RoomName};
use ruma::{CanonicalJsonValue, EventId};
use tokio::sync::{Mutex, MutexGuard};

use crate::{Error, Result, Rooms, Template};

/// Annotations that are sent at a time, at the most.
const AT_A_TIME: usize = 64;

/// Sees that of two same annotations that are sent at the same time, the second one finds the first.
#[derive(Debug)]
pub(crate) struct Annotating {
    hasher: RandomState,
    places: Vec<Mutex<()>>,
}

impl Default for Annotating {
    fn default() -> Self {
        Self { hasher: RandomState::new(), places: (0..AT_A_TIME).map(|_| Mutex::default()).collect() }
    }
}

impl Annotating {
    async fn place(&self, sender_nid: i64, parent_id: &str) -> Option<MutexGuard<'_, ()>> {
        let hash = self.hasher.hash_one((sender_nid, parent_id));
        let place = usize::try_from(hash % AT_A_TIME as u64).ok().and_then(|place| self.places.get(place))?;
        Some(place.lock().await)
    }
}

impl Rooms {
    /// Checks what an event relates to. What is answered is to be held until the event is sent.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateAnnotation`] and [`Error::NoThreadThere`].
    pub(crate) async fn check_relation(
        &self,
        room: &RoomName,
        template: &Template,
    ) -> Result<Option<MutexGuard<'_, ()>>> {
        let Some(CanonicalJsonValue::Object(relates_to)) = template.content.get("m.relates_to") else {
            return Ok(None);
        };
        let text = |name: &str| relates_to.get(name).and_then(CanonicalJsonValue::as_str);
        let (Some(rel_type), Some(parent_id)) = (text("rel_type"), text("event_id")) else { return Ok(None) };
        match rel_type {
            "m.thread" => {
                self.check_thread(room, template, parent_id).await?;
                Ok(None)
            }
            "m.annotation" => {
                let Some(key) = text("key") else { return Ok(None) };
                let sender_nid = self.store.user_nid(&template.sender).await?;
                let place = self.annotating.place(sender_nid, parent_id).await;
                let same = self.store.relations_by(room.nid, parent_id, sender_nid, rel_type, &template.event_type);
                let events = self.store.events(&same.await?).await?;
                let says_so = |relation: Relation<'_>| relation.key.is_some_and(|other| other == key);
                // "Homeservers should prevent users from sending a second annotation for a given event with identical
                // event type and annotation key (unless the first event has been redacted)."
                if events.iter().filter_map(|event| Relation::of(event)).any(says_so) {
                    return Err(Error::DuplicateAnnotation);
                }
                Ok(place)
            }
            _ => Ok(None),
        }
    }

    /// "Servers SHOULD reject client requests which attempt to start a thread off an event with an m.relates_to
    /// property", that is, one with a `rel_type`.
    async fn check_thread(&self, room: &RoomName, template: &Template, root_id: &str) -> Result<()> {
        let Ok(root_id) = <&EventId>::try_from(root_id) else { return Ok(()) };
        let root = self.store.event_by_id(root_id).await?.filter(|root| root.room_nid == room.nid);
        if root.is_none_or(|root| Relation::of(&root).is_none()) {
            return Ok(());
        }
        // Who is not in the room is not told what is there, but refused for that.
        let sender_nid = self.store.user_nid(&template.sender).await?;
        if self.is_joined(room, sender_nid).await? { Err(Error::NoThreadThere) } else { Ok(()) }
    }
}
