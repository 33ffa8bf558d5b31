//! What a user may read of a room's history.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility)

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{
    Event, Member, Membership, RoomName, StateKey,
    state_tree::{self, Node, NodeSource},
};
use ruma::UserId;
use serde::Deserialize;

use crate::{
    Result, Rooms,
    erased::{is_erased, redacted_copy},
};

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
    pub(crate) fn of(event: Option<&Arc<Event>>) -> Self {
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

/// What decides about the events that came after a snapshot.
#[derive(Clone, Copy, Debug)]
struct Moment {
    visibility: HistoryVisibility,
    /// The reader's membership, where it is of any consequence.
    membership: Option<Membership>,
}

impl Rooms {
    /// Of some events of one room, those that a user may read, in the same order.
    ///
    /// What the user may read of someone whose account was erased is redacted, unless the user was there to hear it.
    pub async fn visible(
        &self,
        room: &RoomName,
        viewer: &Viewer<'_>,
        mut events: Vec<Arc<Event>>,
    ) -> Result<Vec<Arc<Event>>> {
        events.retain(|event| event.is_shown());
        if events.is_empty() {
            return Ok(events);
        }
        let erased = self.erased.users(&self.store).await?;
        let moments = self.moments(viewer, &events, &erased).await?;
        let mut last_joined = None;
        let mut visible = Vec::with_capacity(events.len());
        for event in events {
            let Some(&Moment { visibility, membership }) = moments.get(&event.state_before) else { continue };
            // A change of the rule itself, or of one's own membership, is judged by the better of before and after.
            let visibility = with_own_change(viewer, &event, visibility);
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
            if !allowed {
                continue;
            }
            let is_redacted = membership != Some(Membership::Join) && is_erased(&event, &erased);
            visible.push(if is_redacted { redacted_copy(&event, room)? } else { event });
        }
        Ok(visible)
    }

    /// Of some events that a user may read, such as state, copies that are redacted in the place of those that were sent
    /// by users who are erased, and that the user was not there to hear.
    ///
    /// [`visible`](Self::visible) does this itself.
    pub async fn without_erased(
        &self,
        room: &RoomName,
        viewer: &Viewer<'_>,
        mut events: Vec<Arc<Event>>,
    ) -> Result<Vec<Arc<Event>>> {
        let erased = self.erased.users(&self.store).await?;
        let mut roots: Vec<i64> =
            events.iter().filter(|event| is_erased(event, &erased)).map(|event| event.state_before).collect();
        roots.sort_unstable();
        roots.dedup();
        if roots.is_empty() {
            return Ok(events);
        }
        let memberships = self.state_in_each(&roots, "m.room.member", viewer.user_id.as_str()).await?;
        let was_there = |event: &Event| {
            memberships.get(&event.state_before).and_then(|event| membership_in(event)) == Some(Membership::Join)
        };
        for event in &mut events {
            if is_erased(event, &erased) && !was_there(event) {
                *event = redacted_copy(event, room)?;
            }
        }
        Ok(events)
    }

    /// What decides about some events, by the snapshot that they came after: a few queries, however many events.
    async fn moments(
        &self,
        viewer: &Viewer<'_>,
        events: &[Arc<Event>],
        erased: &HashSet<i64>,
    ) -> Result<HashMap<i64, Moment>> {
        let mut roots: Vec<i64> = events.iter().map(|event| event.state_before).collect();
        roots.sort_unstable();
        roots.dedup();
        let rules = self.state_in_each(&roots, "m.room.history_visibility", "").await?;
        let mut moments: HashMap<i64, Moment> = roots
            .iter()
            .map(|root| (*root, Moment { visibility: HistoryVisibility::of(rules.get(root)), membership: None }))
            .collect();

        // Where everyone or every member may read, nothing hangs on the membership of that time.
        let unheard: HashSet<i64> =
            events.iter().filter(|event| is_erased(event, erased)).map(|event| event.state_before).collect();
        roots.retain(|root| {
            let is_open = moments.get(root).is_some_and(|moment| match moment.visibility {
                HistoryVisibility::WorldReadable => true,
                HistoryVisibility::Shared => viewer.is_joined(),
                HistoryVisibility::Invited | HistoryVisibility::Joined => false,
            });
            !is_open || unheard.contains(root)
        });
        for (root, event) in self.state_in_each(&roots, "m.room.member", viewer.user_id.as_str()).await? {
            if let Some(moment) = moments.get_mut(&root) {
                moment.membership = membership_in(&event);
            }
        }
        Ok(moments)
    }

    /// The event of one key in each of some snapshots, where there is one.
    pub(crate) async fn state_in_each(
        &self,
        roots: &[i64],
        event_type: &str,
        state_key: &str,
    ) -> Result<HashMap<i64, Arc<Event>>> {
        if roots.is_empty() {
            return Ok(HashMap::new());
        }
        let key = StateKey::new(event_type, state_key);
        let key_nids = self.store.known_key_nids(std::slice::from_ref(&key)).await?;
        let Some(key_nid) = key_nids.first().copied().flatten() else { return Ok(HashMap::new()) };
        let nids = key_in_each(&*self.store, roots, key_nid).await.map_err(myelin_store::Error::from)?;
        let mut wanted: Vec<i64> = nids.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let events = self.store.events(&wanted).await?;
        let events: HashMap<i64, Arc<Event>> = events.into_iter().map(|event| (event.nid, event)).collect();
        let found = roots.iter().zip(nids);
        Ok(found.filter_map(|(root, nid)| Some((*root, events.get(&nid?)?.clone()))).collect())
    }

    /// The event by which a user who is not in the room now was in it no longer, if they ever were.
    pub async fn last_joined(&self, room: &RoomName, viewer: &Viewer<'_>) -> Result<Option<Arc<Event>>> {
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

/// The visibility that an event is judged by, given the one before it.
fn with_own_change(viewer: &Viewer<'_>, event: &Arc<Event>, before: HistoryVisibility) -> HistoryVisibility {
    match event.state_key() {
        Some("") if event.event_type() == "m.room.history_visibility" => {
            let after = HistoryVisibility::of(Some(event));
            let openness = |visibility| match visibility {
                HistoryVisibility::WorldReadable => 3,
                HistoryVisibility::Shared => 2,
                HistoryVisibility::Invited => 1,
                HistoryVisibility::Joined => 0,
            };
            if openness(after) > openness(before) { after } else { before }
        }
        // One always sees what happens to oneself.
        Some(key) if event.event_type() == "m.room.member" && key == viewer.user_id.as_str() => {
            HistoryVisibility::WorldReadable
        }
        _ => before,
    }
}

/// The nodes that are in memory. Its error is one that is not.
struct AtHand<'s, S> {
    source: &'s S,
    loaded: HashMap<i64, Arc<Node>>,
}

impl<S: NodeSource> NodeSource for AtHand<'_, S> {
    type Error = i64;

    async fn nodes(&self, ids: &[i64]) -> Result<Vec<Arc<Node>>, i64> {
        ids.first().map_or(Ok(Vec::new()), |id| Err(*id))
    }

    fn cached(&self, id: i64) -> Option<Arc<Node>> {
        self.loaded.get(&id).cloned().or_else(|| self.source.cached(id))
    }
}

/// The events of one key in each of some snapshots, in the order asked.
///
/// Goes down all of them at once: the source is asked once a level, however many snapshots there are.
async fn key_in_each<S: NodeSource>(
    source: &S,
    roots: &[i64],
    key: i64,
) -> Result<Vec<Option<i64>>, state_tree::Error<S::Error>> {
    let mut at_hand = AtHand { source, loaded: HashMap::new() };
    let mut found = vec![None; roots.len()];
    let mut open: Vec<usize> = (0..roots.len()).collect();
    loop {
        let mut waiting = Vec::new();
        let mut lacking = Vec::new();
        for place in open {
            match state_tree::get(&at_hand, roots[place], key).await {
                Ok(event) => found[place] = event,
                Err(state_tree::Error::Source(id)) => {
                    waiting.push(place);
                    lacking.push(id);
                }
                Err(state_tree::Error::Corrupt { id, cause }) => {
                    return Err(state_tree::Error::Corrupt { id, cause });
                }
                Err(state_tree::Error::Missing { id }) => return Err(state_tree::Error::Missing { id }),
            }
        }
        if lacking.is_empty() {
            return Ok(found);
        }
        lacking.sort_unstable();
        lacking.dedup();
        let nodes = source.nodes(&lacking).await.map_err(state_tree::Error::Source)?;
        if let Some(&id) = lacking.get(nodes.len()) {
            return Err(state_tree::Error::Missing { id });
        }
        at_hand.loaded.extend(lacking.into_iter().zip(nodes));
        open = waiting;
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use futures_util::FutureExt as _;

    use super::*;

    /// Nodes of which none is in memory, and what is asked of them.
    #[derive(Default)]
    struct Cold {
        nodes: HashMap<i64, Arc<Node>>,
        calls: Mutex<usize>,
    }

    impl NodeSource for Cold {
        type Error = Infallible;

        async fn nodes(&self, ids: &[i64]) -> Result<Vec<Arc<Node>>, Infallible> {
            *self.calls.lock().unwrap() += 1;
            Ok(ids.iter().map_while(|id| self.nodes.get(id).cloned()).collect())
        }

        fn cached(&self, _: i64) -> Option<Arc<Node>> {
            None
        }
    }

    impl Cold {
        fn update(&mut self, root: i64, changes: &[(i64, Option<i64>)]) -> i64 {
            let mut last = self.nodes.len() as i64;
            let mut alloc = || {
                last += 1;
                last
            };
            let made = state_tree::update(self, root, changes, &mut alloc).now_or_never().unwrap().unwrap();
            self.nodes.extend(made.new_nodes);
            made.root
        }
    }

    /// One key of a hundred snapshots costs as many queries as one of a single one, and what is found is the same.
    #[test]
    fn many_snapshots_are_read_at_once() {
        let mut source = Cold::default();
        let members: Vec<(i64, Option<i64>)> = (1..5000).map(|key| (key, Some(key * 10))).collect();
        let mut roots = vec![state_tree::EMPTY, source.update(state_tree::EMPTY, &members)];
        for number in 0..100 {
            // Joins, and a few changes of the key that is asked for.
            let change = if number % 30 == 7 { (77, Some(number)) } else { (10_000 + number, Some(number)) };
            roots.push(source.update(*roots.last().unwrap(), &[change]));
        }
        for key in [77, 10_050, 99_999] {
            let single: Vec<Option<i64>> = roots
                .iter()
                .map(|root| state_tree::get(&source, *root, key).now_or_never().unwrap().unwrap())
                .collect();
            *source.calls.lock().unwrap() = 0;
            let found = key_in_each(&source, &roots, key).now_or_never().unwrap().unwrap();
            assert_eq!(found, single);
            let calls = *source.calls.lock().unwrap();
            assert!(calls <= 6, "{calls} queries");
        }
        source.nodes.clear();
        let lost = key_in_each(&source, &roots, 77).now_or_never().unwrap();
        assert!(matches!(lost, Err(state_tree::Error::Missing { .. })));
    }
}
