//! Which servers may read a room, and what of it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Event, RoomName};
use ruma::{RoomId, ServerName, UserId};

use super::servers::Presence;
use crate::{
    Error, Result, Rooms,
    erased::{is_erased, redacted_copy},
    visibility::{HistoryVisibility, Viewer},
};

/// Former members of a server who are looked at to find out until when it was in a room.
const FORMER_MAX: usize = 32;

/// A server that may read a room, at least in part.
#[derive(Clone, Debug)]
pub struct ServerReader<'a> {
    /// The room.
    pub room: Arc<RoomName>,
    /// The server.
    pub origin: &'a ServerName,
    /// The snapshot of the room's state at present.
    root: i64,
    /// Whether the server has a user in the room now.
    is_in: bool,
    /// The position up to which the server was in the room, if it is in it no longer.
    was_in_until: Option<i64>,
}

impl ServerReader<'_> {
    /// True if the server has a user in the room now.
    pub fn is_in(&self) -> bool {
        self.is_in
    }
}

/// How much of an event a server may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// All of it.
    Whole,
    /// What is left of it when the one who sent it is erased.
    Erased,
    /// Nothing but its place in the graph.
    Place,
}

impl Rooms {
    /// Lets a server read a room.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the room's access control list shuts it out, when it neither is nor was in the room and
    /// not everyone may read it, and likewise when there is no such room.
    pub async fn server_reader<'a>(&self, origin: &'a ServerName, room_id: &RoomId) -> Result<ServerReader<'a>> {
        let Some(room) = self.store.room(room_id).await? else { return Err(outsider()) };
        self.server_reader_of(origin, room).await
    }

    pub(super) async fn server_reader_of<'a>(
        &self,
        origin: &'a ServerName,
        room: Arc<RoomName>,
    ) -> Result<ServerReader<'a>> {
        let root = self.state_root(&room).await?;
        self.check_acl_at(origin, root).await?;
        let is_in = self.room_servers(&room, root).await?.has(origin);
        let was_in_until = if is_in { None } else { self.server_left_at(&room, origin).await? };
        if !is_in && was_in_until.is_none() && !self.is_world_readable(&room).await? {
            return Err(outsider());
        }
        Ok(ServerReader { room, origin, root, is_in, was_in_until })
    }

    /// The last position at which a server that is not in a room was in it, if it ever was.
    async fn server_left_at(&self, room: &RoomName, origin: &ServerName) -> Result<Option<i64>> {
        let mut members = self.store.members(room.nid).await?;
        let user_ids = self.store.user_ids(&members.iter().map(|member| member.user_nid).collect::<Vec<_>>()).await?;
        let names: HashMap<i64, _> =
            user_ids.into_iter().zip(&members).map(|(user_id, member)| (member.user_nid, user_id)).collect();
        members.retain(|member| names.get(&member.user_nid).is_some_and(|name| name.server_name() == origin));
        members.sort_unstable_by_key(|member| std::cmp::Reverse(member.pos));
        let mut until = None;
        for member in members.into_iter().take(FORMER_MAX) {
            // Nobody has left after the last thing that happened to them.
            if until.is_some_and(|until| until >= member.pos) {
                break;
            }
            let Some(user_id) = names.get(&member.user_nid) else { continue };
            let viewer = Viewer { user_id, user_nid: member.user_nid, member: Some(member) };
            let left = self.last_joined(room, &viewer).await?;
            until = until.max(left.and_then(|left| left.pos));
        }
        Ok(until)
    }

    /// Some events of a room as a server may see them, in the same order.
    ///
    /// Those that a server in the room may not see are redacted: it knows the graph then, and what the rules of the room
    /// ask for. Other servers do not get them.
    pub(super) async fn shown_to_server(
        &self,
        reader: &ServerReader<'_>,
        events: Vec<Arc<Event>>,
    ) -> Result<Vec<Arc<Event>>> {
        let sights = self.sights(reader, &events).await?;
        let mut shown = Vec::with_capacity(events.len());
        for (event, sight) in events.into_iter().zip(sights) {
            match sight {
                Sight::Whole => shown.push(event),
                Sight::Erased => shown.push(redacted_copy(&event, &reader.room)?),
                Sight::Place if reader.is_in => shown.push(redacted_copy(&event, &reader.room)?),
                Sight::Place => {}
            }
        }
        Ok(shown)
    }

    /// State of a room that a server may read as a whole: as it is, but for members who are erased and whom the server
    /// was not there to hear.
    pub(super) async fn state_for_server(
        &self,
        reader: &ServerReader<'_>,
        mut events: Vec<Arc<Event>>,
    ) -> Result<Vec<Arc<Event>>> {
        let erased = self.erased.users(&self.store).await?;
        if erased.is_empty() {
            return Ok(events);
        }
        let roots: Vec<i64> =
            events.iter().filter(|event| is_erased(event, &erased)).map(|event| event.state_before).collect();
        let presence = self.presence_at(&roots, reader.origin).await?;
        for event in &mut events {
            let was_there = presence.get(&event.state_before).is_some_and(|presence| presence.joined > 0);
            if is_erased(event, &erased) && !was_there {
                *event = redacted_copy(event, &reader.room)?;
            }
        }
        Ok(events)
    }

    /// How much a server may see of each of some events: as much as the one of its users who may see most.
    pub(super) async fn sights(&self, reader: &ServerReader<'_>, events: &[Arc<Event>]) -> Result<Vec<Sight>> {
        let erased = self.erased.users(&self.store).await?;
        let roots: Vec<i64> = events.iter().map(|event| root_at(reader, event)).collect();
        let rules = self.state_in_each(&roots, "m.room.history_visibility", "").await?;
        let rule = |event: &Arc<Event>, root: i64| with_own_change(event, HistoryVisibility::of(rules.get(&root)));
        // Where the present decides, nothing hangs on who was in the room at that time.
        let doubtful: HashSet<i64> = events
            .iter()
            .zip(&roots)
            .filter(|(event, root)| !is_open(reader, event, rule(event, **root)) || is_erased(event, &erased))
            .map(|(_, root)| *root)
            .collect();
        let presence = self.presence_at(&doubtful.into_iter().collect::<Vec<_>>(), reader.origin).await?;

        let sight = |event: &Arc<Event>, root: i64| {
            let presence = presence.get(&root).copied().unwrap_or_default();
            let visibility = rule(event, root);
            if !is_open(reader, event, visibility) && !was_open(visibility, presence) {
                Sight::Place
            } else if is_erased(event, &erased) && presence.joined == 0 {
                Sight::Erased
            } else {
                Sight::Whole
            }
        };
        Ok(events.iter().zip(roots).map(|(event, root)| sight(event, root)).collect())
    }
}

pub(super) fn outsider() -> Error {
    Error::forbidden("your server is not in this room")
}

/// The snapshot that decides about an event. Of outliers we do not know theirs: the present stands for it.
fn root_at(reader: &ServerReader<'_>, event: &Event) -> i64 {
    if event.is_outlier() { reader.root } else { event.state_before }
}

/// True if an event may be seen whoever was in the room when it was sent.
fn is_open(reader: &ServerReader<'_>, event: &Event, visibility: HistoryVisibility) -> bool {
    if concerns_member_of(reader.origin, event) {
        return true;
    }
    match visibility {
        HistoryVisibility::WorldReadable => true,
        // "If history_visibility was set to shared, and the user joined the room at any point after the event was sent."
        HistoryVisibility::Shared => {
            let until = reader.was_in_until;
            reader.is_in || until.is_some_and(|until| event.pos.is_some_and(|pos| pos <= until))
        }
        HistoryVisibility::Invited | HistoryVisibility::Joined => false,
    }
}

/// True if an event may be seen because of who was in the room when it was sent.
fn was_open(visibility: HistoryVisibility, presence: Presence) -> bool {
    presence.joined > 0 || visibility == HistoryVisibility::Invited && presence.invited > 0
}

/// One always sees what happens to oneself.
fn concerns_member_of(origin: &ServerName, event: &Event) -> bool {
    let user_id = event.state_key().filter(|_| event.event_type() == "m.room.member");
    user_id.and_then(|user_id| <&UserId>::try_from(user_id).ok()).is_some_and(|user_id| user_id.server_name() == origin)
}

/// A change of the rule itself is judged by the better of before and after.
fn with_own_change(event: &Arc<Event>, before: HistoryVisibility) -> HistoryVisibility {
    let openness = |visibility| match visibility {
        HistoryVisibility::WorldReadable => 3,
        HistoryVisibility::Shared => 2,
        HistoryVisibility::Invited => 1,
        HistoryVisibility::Joined => 0,
    };
    if event.event_type() != "m.room.history_visibility" || event.state_key() != Some("") {
        return before;
    }
    let after = HistoryVisibility::of(Some(event));
    if openness(after) > openness(before) { after } else { before }
}

/// True if a server may be given all the state before an event.
pub(super) fn may_read_state(reader: &ServerReader<'_>, sight: Sight) -> bool {
    reader.is_in || sight == Sight::Whole
}
