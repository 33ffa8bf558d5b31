//! What a user may read of a room's history.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility)

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Event, Member, Membership, RoomName, StateKey, state_tree};
use ruma::UserId;
use serde::Deserialize;

use crate::{Result, Rooms};

/// Membership events that are followed back to find out whether a user was ever in the room.
const STEPS_BACK: usize = 64;

/// Who may read an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryVisibility {
    /// Everyone.
    WorldReadable,
    /// Members, also those who came later.
    Shared,
    /// Members since they were invited.
    Invited,
    /// Members since they joined.
    Joined,
}

impl HistoryVisibility {
    fn of(event: Option<&Arc<Event>>) -> Self {
        #[derive(Deserialize)]
        struct Content<'a> {
            #[serde(borrow)]
            history_visibility: std::borrow::Cow<'a, str>,
        }
        let content = event.and_then(|event| serde_json::from_str::<Content<'_>>(event.content()).ok());
        match content.as_ref().map(|content| &*content.history_visibility) {
            Some("world_readable") => Self::WorldReadable,
            Some("invited") => Self::Invited,
            Some("joined") => Self::Joined,
            // Without the event, or with a value that we do not know, the default.
            _ => Self::Shared,
        }
    }
}

/// The membership that a member event gives.
pub fn membership_in(event: &Event) -> Option<Membership> {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        membership: std::borrow::Cow<'a, str>,
    }
    let content: Content<'_> = serde_json::from_str(event.content()).ok()?;
    Membership::from_word(&content.membership)
}

/// A user who reads a room.
#[derive(Clone, Debug)]
pub struct Viewer<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The user's number.
    pub user_nid: i64,
    /// The user's place in the room, if there is or was one.
    pub member: Option<Member>,
}

impl Viewer<'_> {
    /// True if the user is in the room now.
    pub fn is_joined(&self) -> bool {
        self.member.is_some_and(|member| member.membership == Membership::Join)
    }
}

impl Rooms {
    /// Of some events of one room, those that a user may read, in the same order.
    pub async fn visible(
        &self,
        room: &RoomName,
        viewer: &Viewer<'_>,
        mut events: Vec<Arc<Event>>,
    ) -> Result<Vec<Arc<Event>>> {
        events.retain(|event| event.is_shown());
        let mut states: HashMap<i64, (HistoryVisibility, Option<Membership>)> = HashMap::new();
        for event in &events {
            states.entry(event.state_before).or_insert((HistoryVisibility::Shared, None));
        }
        if states.is_empty() {
            return Ok(events);
        }
        let keys =
            [StateKey::new("m.room.history_visibility", ""), StateKey::new("m.room.member", viewer.user_id.as_str())];
        let key_nids = self.store.known_key_nids(&keys).await?;
        let mut last_joined = None;
        for (&root, state) in &mut states {
            *state = self.state_for(root, &key_nids).await?;
        }
        let mut visible = Vec::with_capacity(events.len());
        for event in events {
            let (visibility, membership) =
                states.get(&event.state_before).copied().unwrap_or((HistoryVisibility::Joined, None));
            // A change of the rule itself, or of one's own membership, is judged by the better of before and after.
            let (visibility, membership) = self.with_own_change(viewer, &event, visibility, membership);
            let allowed = match (visibility, membership) {
                (HistoryVisibility::WorldReadable, _) | (_, Some(Membership::Join)) => true,
                (HistoryVisibility::Invited, Some(Membership::Invite)) => true,
                (HistoryVisibility::Shared | HistoryVisibility::Invited, _) if viewer.is_joined() => {
                    visibility == HistoryVisibility::Shared
                }
                (HistoryVisibility::Shared, _) => {
                    let joined_until = match last_joined {
                        Some(pos) => pos,
                        None => {
                            let left = self.last_joined(room, viewer).await?;
                            *last_joined.insert(left.and_then(|left| left.pos))
                        }
                    };
                    joined_until.is_some_and(|until| event.pos.is_some_and(|pos| pos <= until))
                }
                _ => false,
            };
            if allowed {
                visible.push(event);
            }
        }
        Ok(visible)
    }

    async fn state_for(&self, root: i64, keys: &[Option<i64>]) -> Result<(HistoryVisibility, Option<Membership>)> {
        let present: Vec<i64> = keys.iter().flatten().copied().collect();
        let mut nids =
            state_tree::get_many(&*self.store, root, &present).await.map_err(myelin_store::Error::from)?.into_iter();
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(match key.and_then(|_| nids.next().flatten()) {
                Some(nid) => Some(self.store.event(nid).await?),
                None => None,
            });
        }
        let membership = found.get(1).and_then(Option::as_ref).and_then(|event| membership_in(event));
        Ok((HistoryVisibility::of(found.first().and_then(Option::as_ref)), membership))
    }

    fn with_own_change(
        &self,
        viewer: &Viewer<'_>,
        event: &Arc<Event>,
        visibility: HistoryVisibility,
        membership: Option<Membership>,
    ) -> (HistoryVisibility, Option<Membership>) {
        match event.state_key() {
            Some("") if event.event_type() == "m.room.history_visibility" => {
                let after = HistoryVisibility::of(Some(event));
                let openness = |visibility| match visibility {
                    HistoryVisibility::WorldReadable => 3,
                    HistoryVisibility::Shared => 2,
                    HistoryVisibility::Invited => 1,
                    HistoryVisibility::Joined => 0,
                };
                let better = if openness(after) > openness(visibility) { after } else { visibility };
                (better, membership)
            }
            Some(key) if event.event_type() == "m.room.member" && key == viewer.user_id.as_str() => {
                // One always sees what happens to oneself.
                (HistoryVisibility::WorldReadable, membership)
            }
            _ => (visibility, membership),
        }
    }

    /// The event by which a user who is not in the room now was in it no longer, if they ever were.
    pub(crate) async fn last_joined(&self, room: &RoomName, viewer: &Viewer<'_>) -> Result<Option<Arc<Event>>> {
        let Some(member) = viewer.member.filter(|member| member.room_nid == room.nid) else { return Ok(None) };
        let mut event = self.store.event(member.event_nid).await?;
        for _ in 0..STEPS_BACK {
            let Some(before) = event.replaces else { return Ok(None) };
            let end = event;
            event = self.store.event(before).await?;
            if membership_in(&event) == Some(Membership::Join) {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// How a user stands to a room's history: what [`Rooms::visible`] asks for.
    pub async fn viewer<'a>(&self, room: &RoomName, user_id: &'a UserId, user_nid: i64) -> Result<Viewer<'a>> {
        Ok(Viewer { user_id, user_nid, member: self.store.member(room.nid, user_nid).await? })
    }

    /// True if everyone may read the room's history, without being in it.
    pub async fn is_world_readable(&self, room: &RoomName) -> Result<bool> {
        let event = self.state_event(room, "m.room.history_visibility", "").await?;
        Ok(HistoryVisibility::of(event.as_ref()) == HistoryVisibility::WorldReadable)
    }
}
