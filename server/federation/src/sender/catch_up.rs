//! What a server is sent that has fallen behind: a few events in order; else the newest of each room first, so that it
//! sees what is going on, then the gap in order.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use myelin_store::{Event, Gap, Membership, Result, StateKey, Store};
use ruma::ServerName;

use super::{destination::PDUS_MAX, rooms::membership_of};

/// Users of one server in one room who are looked at to see whether the server was there.
const USERS_MAX: usize = 200;

/// How far a catch-up has come.
#[derive(Debug)]
pub(crate) struct CatchUp {
    to: i64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing was looked at yet.
    Begin,
    /// The newest event of each room, after a room.
    Newest { after_room_nid: i64 },
    /// The gap in order.
    Gap,
}

/// What is sent next.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) events: Vec<Arc<Event>>,
    /// Where the server lacks nothing before, once it has these.
    pub(crate) advance: Option<i64>,
    /// Nothing follows: the catch-up is over.
    pub(crate) is_last: bool,
}

impl CatchUp {
    /// Up to an event that is known to be for the server; what comes later is for another catch-up.
    pub(crate) fn new(newest: i64) -> Self {
        Self { to: newest, phase: Phase::Begin }
    }

    /// Reads the next events. `from`: the first position that the server lacks.
    pub(crate) async fn next(
        &mut self,
        store: &Store,
        ours: &ServerName,
        server: &ServerName,
        from: i64,
    ) -> Result<Page> {
        let gap = Gap { server: server.as_str(), ours: ours.as_str(), from, to: self.to };
        if let Phase::Begin = self.phase {
            let events = store.gap_events(gap, PDUS_MAX + 1).await?;
            if events.len() <= PDUS_MAX {
                let events = present(store, server, from, events).await?;
                return Ok(Page { events, advance: Some(self.to + 1), is_last: true });
            }
            self.phase = Phase::Newest { after_room_nid: 0 };
        }
        if let Phase::Newest { after_room_nid } = self.phase {
            let (events, more) = store.gap_newest(gap, after_room_nid, PDUS_MAX).await?;
            self.phase = more.map_or(Phase::Gap, |after_room_nid| Phase::Newest { after_room_nid });
            let events = present(store, server, from, events).await?;
            return Ok(Page { events, advance: None, is_last: false });
        }
        let events = store.gap_events(gap, PDUS_MAX).await?;
        let is_last = events.len() < PDUS_MAX;
        let last = events.last().and_then(|event| event.pos);
        let advance = if is_last { self.to + 1 } else { last.map_or(self.to, |pos| pos) + 1 };
        let events = present(store, server, from, events).await?;
        Ok(Page { events, advance: Some(advance), is_last })
    }
}

/// Leaves out what happened in a room while the server was not in it.
///
/// Where one of its users has been in the room since before the gap, it was. Otherwise the state before each event says
/// it: who came during the gap is not to be told what was said before.
async fn present(store: &Store, server: &ServerName, from: i64, events: Vec<Arc<Event>>) -> Result<Vec<Arc<Event>>> {
    let mut room_nids: Vec<i64> = events.iter().map(|event| event.room_nid).collect();
    room_nids.sort_unstable();
    room_nids.dedup();
    let newcomers = store.newcomers(server.as_str(), &room_nids, from).await?;
    if newcomers.is_empty() {
        return Ok(events);
    }
    let mut keys: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (room_nid, users) in &newcomers {
        if users.len() > USERS_MAX {
            continue;
        }
        let names: Vec<StateKey> = users.iter().map(|user_id| StateKey::new("m.room.member", user_id)).collect();
        keys.insert(*room_nid, store.known_key_nids(&names).await?.into_iter().flatten().collect());
    }
    let mut known: HashMap<(i64, i64), bool> = HashMap::new();
    let mut kept = Vec::with_capacity(events.len());
    for event in events {
        let Some(key_nids) = keys.get(&event.room_nid) else {
            kept.push(event);
            continue;
        };
        // The state after a membership event of one of its users counts, and the one before: a ban is told to those
        // whom it concerns.
        let concerns = event.key_nid.is_some_and(|key_nid| key_nids.contains(&key_nid));
        let place = (event.room_nid, event.state_before);
        let was_there = match known.get(&place) {
            Some(was_there) => *was_there,
            None => {
                let members = store.state_events(event.state_before, key_nids).await?;
                let is_join = |member: &Arc<Event>| membership_of(member.content()) == Some(Membership::Join);
                let was_there = members.iter().flatten().any(is_join);
                known.insert(place, was_there);
                was_there
            }
        };
        if was_there || concerns {
            kept.push(event);
        }
    }
    Ok(kept)
}
