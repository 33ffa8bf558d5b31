//! The state beside a timeline: all of it, or what has changed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Event, Membership, StateKey, Store, state_tree};

use crate::{
    Filter, Result, StateForm,
    filter::Members,
    lazy::SentMembers,
    timeline::{Filled, Wanted},
};

/// How much of a room's state a client is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// What has changed since a position.
    Since(i64),
    /// Nothing.
    Nothing,
}

/// A room whose state is wanted.
pub(crate) struct Room<'a> {
    pub(crate) wanted: &'a Wanted,
    pub(crate) filled: &'a Filled,
    pub(crate) extent: Extent,
    /// Users whose member events are needed besides those of the timeline's senders, if members come lazily.
    pub(crate) companions: Vec<String>,
}

/// For whom.
pub(crate) struct Recipient<'a> {
    pub(crate) device_nid: i64,
    pub(crate) since: Option<i64>,
    pub(crate) filter: &'a Filter,
    pub(crate) form: StateForm,
    pub(crate) sent: &'a SentMembers,
    /// The position of the answer.
    pub(crate) to: i64,
}

/// Which snapshots a room's state is made from.
#[derive(Clone, Copy, Debug, Default)]
struct Roots {
    /// What the client has; not used for the whole state.
    old: i64,
    /// What it is to have.
    new: i64,
    /// Whether the two have to be compared.
    differ: bool,
}

/// The state events to tell, for each room in the order given.
pub(crate) async fn states(
    store: &Store,
    recipient: &Recipient<'_>,
    rooms: &[Room<'_>],
) -> Result<Vec<Vec<Arc<Event>>>> {
    let roots = find_roots(store, recipient, rooms).await?;

    // What each room's state is, as pairs of key and event: everything, or the difference.
    let whole: Vec<usize> = (0..rooms.len()).filter(|&place| rooms[place].extent == Extent::Whole).collect();
    let whole_roots: Vec<i64> = whole.iter().map(|&place| roots[place].new).collect();
    let changed: Vec<usize> = (0..rooms.len()).filter(|&place| roots[place].differ).collect();
    let pairs: Vec<(i64, i64)> = changed.iter().map(|&place| (roots[place].old, roots[place].new)).collect();
    let mut entries: Vec<Vec<(i64, i64)>> = vec![Vec::new(); rooms.len()];
    for (place, found) in whole.iter().zip(state_tree::entries(store, &whole_roots).await?) {
        entries[*place] = found;
    }
    for (place, found) in changed.iter().zip(state_tree::diff_many(store, &pairs).await?) {
        entries[*place] = found.into_iter().filter_map(|change| Some((change.key, change.new?))).collect();
    }
    for (room, entries) in rooms.iter().zip(&mut entries) {
        match (recipient.form, room.extent) {
            (_, Extent::Nothing) => {}
            (StateForm::Before, _) => add(&room.filled.hidden_state, entries),
            (StateForm::After | StateForm::AfterUnstable, _) => add(room.wanted.end.as_slice(), entries),
        }
    }

    if recipient.filter.members() != Members::All {
        choose_members(store, recipient, rooms, &roots, &mut entries).await?;
    }

    // All events in one read.
    let mut nids: Vec<i64> = entries.iter().flatten().map(|(_, event)| *event).collect();
    nids.sort_unstable();
    nids.dedup();
    let events: HashMap<i64, Arc<Event>> =
        store.events(&nids).await?.into_iter().map(|event| (event.nid, event)).collect();
    let selection = recipient.filter.state();
    let mut states = Vec::with_capacity(rooms.len());
    for (room, entries) in rooms.iter().zip(entries) {
        let in_timeline: HashSet<i64> = match recipient.form {
            StateForm::Before => room.filled.events.iter().map(|event| event.nid).collect(),
            StateForm::After | StateForm::AfterUnstable => HashSet::new(),
        };
        let mut state: Vec<Arc<Event>> = entries.iter().filter_map(|(_, event)| events.get(event).cloned()).collect();
        state.retain(|event| !in_timeline.contains(&event.nid));
        if !selection.is_everything() {
            let takes_room = selection.wants_room(&room.wanted.room.room_id);
            state.retain(|event| takes_room && selection.wants(event));
        }
        state.sort_unstable_by_key(|event| (event.pos, event.nid));
        states.push(state);
    }
    Ok(states)
}

/// Adds state events that the snapshots lack: those that a filter has left out of the timeline are told as state, or the
/// client would miss them.
fn add(events: &[Arc<Event>], entries: &mut Vec<(i64, i64)>) {
    for event in events {
        if let Some(key_nid) = event.key_nid {
            entries.retain(|(key, _)| *key != key_nid);
            entries.push((key_nid, event.nid));
        }
    }
}

/// Finds the snapshots: from the events at hand where it can be, otherwise by one read for all rooms.
async fn find_roots(store: &Store, recipient: &Recipient<'_>, rooms: &[Room<'_>]) -> Result<Vec<Roots>> {
    let mut roots = vec![Roots::default(); rooms.len()];
    let mut asked: Vec<(i64, i64)> = Vec::new();
    let mut answers: Vec<(usize, bool)> = Vec::new();
    for (place, room) in rooms.iter().enumerate() {
        let filled = room.filled;
        let nid = room.wanted.room.nid;
        let at_end = recipient.form != StateForm::Before;
        if room.extent == Extent::Nothing || (at_end && !filled.limited && is_plain(filled)) {
            // Nothing has changed. Members of those who speak are found in the state of the moment.
            let shown = filled.last.as_ref().or(filled.first.as_ref());
            roots[place].new = shown.map_or(0, |event| event.room_state);
            if room.extent != Extent::Whole {
                continue;
            }
        }
        if let Extent::Since(since) = room.extent {
            roots[place].differ = at_end || filled.limited;
            if roots[place].differ {
                asked.push((nid, since));
                answers.push((place, true));
            }
        }
        let new = match (at_end, &filled.before, &filled.first, &filled.last) {
            (true, _, _, Some(last)) => Some(last.room_state),
            (false, Some(before), _, _) => Some(before.room_state),
            (false, None, Some(first), _) if !filled.limited && room.extent != Extent::Whole => {
                Some(first.state_before)
            }
            _ => None,
        };
        match new {
            Some(root) => roots[place].new = root,
            None => {
                let first = filled.first.as_ref().and_then(|event| event.pos).filter(|_| !at_end);
                asked.push((nid, first.map_or(room.wanted.to, |pos| pos.saturating_sub(1))));
                answers.push((place, false));
            }
        }
    }
    for ((place, is_old), root) in answers.into_iter().zip(room_states(store, &asked).await?) {
        if is_old {
            roots[place].old = root;
        } else {
            // The first event that we have of a room knows the state before it.
            let first = rooms[place].filled.first.as_ref();
            roots[place].new = if root == 0 { first.map_or(0, |event| event.state_before) } else { root };
        }
    }
    Ok(roots)
}

/// Snapshots at positions. One read takes a room once, so rooms asked twice take two.
async fn room_states(store: &Store, asked: &[(i64, i64)]) -> Result<Vec<i64>> {
    let mut roots = vec![0; asked.len()];
    let mut left: Vec<usize> = (0..asked.len()).collect();
    while !left.is_empty() {
        let mut seen = HashSet::new();
        let (now, later): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|&place| seen.insert(asked[place].0));
        let wanted: Vec<(i64, i64)> = now.iter().map(|&place| asked[place]).collect();
        for (place, root) in now.into_iter().zip(store.room_states_at(&wanted).await?) {
            roots[place] = root;
        }
        left = later;
    }
    Ok(roots)
}

/// True if no event of a whole timeline has changed the state.
pub(crate) fn is_plain(filled: &Filled) -> bool {
    let root = filled.last.as_ref().map(|event| event.room_state);
    filled.hidden_state.is_empty()
        && filled.events.iter().all(|event| {
            event.key_nid.is_none() && Some(event.room_state) == root && event.state_before == event.room_state
        })
}

/// "Lazy-loading aware endpoints will only include membership events for the sender of events being included in the
/// response", and for those whom the summary names.
async fn choose_members(
    store: &Store,
    recipient: &Recipient<'_>,
    rooms: &[Room<'_>],
    roots: &[Roots],
    entries: &mut [Vec<(i64, i64)>],
) -> Result<()> {
    let mut keys: Vec<i64> = Vec::new();
    for (room, entries) in rooms.iter().zip(entries.iter()) {
        if room.extent == Extent::Whole {
            keys.extend(entries.iter().map(|(key, _)| *key));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    let names = store.state_keys(&keys).await?;
    let member_keys: HashSet<i64> =
        keys.iter().zip(&names).filter(|(_, name)| &*name.event_type == "m.room.member").map(|(key, _)| *key).collect();

    for ((room, roots), entries) in rooms.iter().zip(roots).zip(entries) {
        let room_nid = room.wanted.room.nid;
        if let Some(since) = recipient.since {
            recipient.sent.rewind(recipient.device_nid, room_nid, since);
        }
        if room.extent == Extent::Nothing && room.wanted.viewed_by.is_some_and(|own| own.membership != Membership::Join)
        {
            // Who is out of the room is not told who put them there but by the event itself.
            continue;
        }
        let senders = room.filled.events.iter().map(|event| event.sender().as_str());
        let users: BTreeSet<&str> = senders.chain(room.companions.iter().map(String::as_str)).collect();
        let needed: Vec<StateKey> = users.into_iter().map(|user| StateKey::new("m.room.member", user)).collect();
        let needed: Vec<i64> = store.known_key_nids(&needed).await?.into_iter().flatten().collect();
        let since = recipient.since.filter(|_| room.extent != Extent::Whole);
        if room.extent == Extent::Whole {
            // The client begins anew with this room.
            recipient.sent.forget(recipient.device_nid, room_nid);
            entries.retain(|(key, _)| !member_keys.contains(key) || needed.contains(key));
        } else {
            // "When a sync is limited, the server MUST return membership events for events in the gap, regardless as
            // to whether or not they are redundant."
            let present: HashSet<i64> = entries.iter().map(|(key, _)| *key).collect();
            let found = store.state_event_nids(roots.new, &needed).await?;
            for (key, event) in needed.iter().zip(found) {
                let Some(event) = event.filter(|_| !present.contains(key)) else { continue };
                let is_known = recipient.filter.members() == Members::Needed
                    && since
                        .is_some_and(|since| recipient.sent.knows(recipient.device_nid, room_nid, *key, event, since));
                if !is_known {
                    entries.push((*key, event));
                }
            }
        }
        let in_timeline = room.filled.events.iter().filter(|event| event.event_type() == "m.room.member");
        let in_timeline = in_timeline.filter_map(|event| Some((event.key_nid?, event.nid)));
        let told = entries.iter().copied().filter(|(key, _)| needed.contains(key));
        recipient.sent.remember(recipient.device_nid, room_nid, told.chain(in_timeline), recipient.to);
    }
    Ok(())
}
