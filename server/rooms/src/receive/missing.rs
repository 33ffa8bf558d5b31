//! What an event refers to and we do not have, asked of other servers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use myelin_store::{Direction, RoomName};
use ruma::{
    EventId, OwnedEventId, OwnedServerName, ServerName, UInt,
    api::federation::{
        authorization::get_event_authorization, event::get_event, event::get_missing_events, event::get_room_state,
        event::get_room_state_ids,
    },
    room_version_rules::RoomVersionRules,
};
use ruma_state_res::Event as _;
use serde_json::value::RawValue;

use super::{Incoming, parse, verify};
use crate::{Error, Result, Rooms, remote::RemoteError, writer::rules_of};

/// Rounds of asking for the events before.
const ROUNDS: usize = 10;
/// Events that one round asks for.
const ROUND_EVENTS: u32 = 100;
/// Events that are fetched for one transaction at the most.
const FETCHED_MAX: usize = 1_000;
/// Events of a state that are fetched one by one; of more, the whole state is asked for.
const ONE_BY_ONE: usize = 20;
/// Requests for single events at the same time.
const AT_ONCE: usize = 8;
/// Events of a state or an auth chain at the most.
const STATE_MAX: usize = 200_000;
/// Events that the state before is asked for; if more have gaps before them, they are dropped.
const STATES_MAX: usize = 8;
/// Servers that are asked, one after the other.
const SERVERS_MAX: usize = 4;

/// Events in an order in which they can be received, with all that they refer to.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) events: Vec<Incoming>,
    /// The state before those events whose predecessors are missing.
    pub(crate) states: HashMap<OwnedEventId, Vec<OwnedEventId>>,
    pub(crate) outliers: Vec<Incoming>,
}

/// One gathering.
struct Search<'a> {
    rooms: &'a Arc<Rooms>,
    room: &'a Arc<RoomName>,
    rules: RoomVersionRules,
    /// Whom to ask, the best first.
    servers: Vec<OwnedServerName>,
    /// What the store has, with whether it is an outlier.
    stored: HashMap<OwnedEventId, bool>,
    events: HashMap<OwnedEventId, Incoming>,
    outliers: HashMap<OwnedEventId, Incoming>,
}

/// Gets what some events of a room refer to. Those whose place cannot be found out are left out of the answer.
pub(crate) async fn gather(
    rooms: &Arc<Rooms>,
    room: &Arc<RoomName>,
    origin: &ServerName,
    events: Vec<Incoming>,
) -> Result<Gathered> {
    let mut search = Search::new(rooms, room, origin).await?;
    search.look_up(events.iter().flat_map(Incoming::references).collect()).await?;
    search.events = events.into_iter().map(|event| (event.event_id.clone(), event)).collect();
    search.fetch_predecessors().await?;
    search.finish().await
}

/// Like [`gather`], for events from before what we have, whose own predecessors are not asked for.
pub(crate) async fn gather_history(
    rooms: &Arc<Rooms>,
    room: &Arc<RoomName>,
    origin: &ServerName,
    events: Vec<Incoming>,
) -> Result<Gathered> {
    let mut search = Search::new(rooms, room, origin).await?;
    search.look_up(events.iter().flat_map(Incoming::references).collect()).await?;
    search.events = events.into_iter().map(|event| (event.event_id.clone(), event)).collect();
    search.finish().await
}

impl<'a> Search<'a> {
    async fn new(rooms: &'a Arc<Rooms>, room: &'a Arc<RoomName>, origin: &ServerName) -> Result<Self> {
        let mut servers = vec![origin.to_owned()];
        let others = rooms.servers_in(room).await?;
        let others = others.iter().filter(|server| **server != origin && **server != rooms.server_name);
        servers.extend(others.take(SERVERS_MAX - 1).cloned());
        Ok(Self {
            rooms,
            room,
            rules: rules_of(&room.version)?,
            servers,
            stored: HashMap::new(),
            events: HashMap::new(),
            outliers: HashMap::new(),
        })
    }

    async fn look_up(&mut self, event_ids: Vec<&OwnedEventId>) -> Result<()> {
        let unknown = event_ids.into_iter().filter(|event_id| !self.stored.contains_key(*event_id));
        let unknown: HashSet<&EventId> = unknown.map(|event_id| &**event_id).collect();
        let unknown: Vec<&EventId> = unknown.into_iter().collect();
        let found = self.rooms.store.event_nids(&unknown).await?;
        self.stored.extend(found.into_iter().map(|(event_id, (_, is_outlier))| (event_id, is_outlier)));
        Ok(())
    }

    fn has_place(&self, event_id: &EventId) -> bool {
        self.events.contains_key(event_id) || self.stored.get(event_id) == Some(&false)
    }

    fn has(&self, event_id: &EventId) -> bool {
        self.events.contains_key(event_id) || self.outliers.contains_key(event_id) || self.stored.contains_key(event_id)
    }

    /// The events whose predecessors are not all here.
    fn dangling(&self) -> Vec<OwnedEventId> {
        let is_dangling = |event: &&Incoming| event.pdu.prevs().iter().any(|prev| !self.has_place(prev));
        self.events.values().filter(is_dangling).map(|event| event.event_id.clone()).collect()
    }

    /// "[…] the receiving server […] can ask for the missing events by the get_missing_events API."
    async fn fetch_predecessors(&mut self) -> Result<()> {
        let head = self.rooms.store.head(self.room.nid).await?;
        let extremities = self.rooms.store.events(&head.extremities).await?;
        let earliest: Vec<OwnedEventId> = extremities.iter().map(|event| event.event_id.clone()).collect();
        let min_depth = self.least_depth().await?;
        let given = self.events.len();
        let mut spare = HashMap::new();
        for _ in 0..ROUNDS {
            let latest = self.dangling();
            if latest.is_empty() || self.events.len() >= given + FETCHED_MAX {
                return Ok(());
            }
            let mut request = get_missing_events::v1::Request::new(self.room.room_id.clone(), earliest.clone(), latest);
            request.limit = UInt::from(ROUND_EVENTS);
            request.min_depth = UInt::new_saturating(u64::try_from(min_depth).unwrap_or(0));
            let server = self.servers[0].clone();
            let found = match self.rooms.remote()?.missing_events(&server, request).await {
                Ok(found) => found.events,
                Err(error) => {
                    tracing::info!(
                        room.id = %self.room.room_id, %error,
                        "{server} does not give the events before those that it sent: {error}"
                    );
                    return Ok(());
                }
            };
            let before = self.events.len();
            let mut found = self.verified(&found, ROUND_EVENTS as usize).await?;
            // Not every server heeds what it was asked.
            found.retain(|event| event.pdu.depth >= min_depth);
            self.look_up(found.iter().flat_map(Incoming::references).collect()).await?;
            spare.extend(found.into_iter().map(|event| (event.event_id.clone(), event)));
            self.take_needed(&mut spare);
            if self.events.len() == before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The depth of the oldest event that we have of the room. What lies below it is history: a branch that leaves the
    /// room's graph there is not walked to its beginning, but comes with the state before its first event.
    async fn least_depth(&self) -> Result<i64> {
        let oldest = self.rooms.store.page(self.room.nid, Direction::Forward, i64::MIN, None, 1).await?;
        Ok(oldest.first().map_or(0, |event| event.depth))
    }

    /// Takes those events that fill the gap, and no others. The server that gave them does not know what we have: where
    /// its branch of the room leaves ours before our extremities, it goes on to events from long before them.
    fn take_needed(&mut self, spare: &mut HashMap<OwnedEventId, Incoming>) {
        let mut open: Vec<OwnedEventId> = self.dangling();
        while let Some(event_id) = open.pop() {
            let Some(event) = self.events.get(&event_id) else { continue };
            let missing: Vec<OwnedEventId> =
                event.pdu.prevs().iter().filter(|prev| !self.has_place(prev)).cloned().collect();
            for prev in missing {
                if let Some(event) = spare.remove(&prev) {
                    self.events.insert(prev.clone(), event);
                    open.push(prev);
                }
            }
        }
    }

    /// Reads and checks events that a server gave; what is not as it must be is left out.
    async fn verified(&self, events: &[Box<RawValue>], count_max: usize) -> Result<Vec<Incoming>> {
        let mut received = Vec::with_capacity(events.len().min(count_max));
        for raw in events.iter().take(count_max) {
            match parse(raw, &self.room.room_id, &self.rules) {
                Ok(event) => received.push(event),
                Err(refusal) => tracing::debug!(room.id = %self.room.room_id, "an event was dropped: {refusal}"),
            }
            tokio::task::consume_budget().await;
        }
        let mut events = Vec::with_capacity(received.len());
        for outcome in verify(self.rooms, &self.rules, received).await? {
            match outcome {
                Ok(event) => events.push(event),
                Err(refusal) => tracing::debug!(room.id = %self.room.room_id, "an event was dropped: {refusal}"),
            }
        }
        Ok(events)
    }

    /// Puts the events in order, and gets the state of those that still have a gap before them, and auth events.
    async fn finish(mut self) -> Result<Gathered> {
        let mut states = HashMap::new();
        let mut dangling = self.dangling();
        dangling.sort_by_key(|event_id| self.events.get(event_id).map(|event| event.pdu.depth));
        for (place, event_id) in dangling.into_iter().enumerate() {
            let state = match place < STATES_MAX {
                true => self.state_before(&event_id).await?,
                false => None,
            };
            match state {
                Some(state) => drop(states.insert(event_id, state)),
                None => {
                    tracing::info!(
                        room.id = %self.room.room_id, event.id = %event_id,
                        "the event {event_id} is dropped: no server tells the state of the room before it"
                    );
                    self.events.remove(&event_id);
                }
            }
        }
        self.drop_unplaced(&states);
        self.fetch_auth_events().await?;
        let outliers = self.outliers.into_values().collect();
        Ok(Gathered { events: by_prev_events(self.events), states, outliers })
    }

    /// Drops what follows an event that was dropped.
    fn drop_unplaced(&mut self, states: &HashMap<OwnedEventId, Vec<OwnedEventId>>) {
        loop {
            let unplaced: Vec<OwnedEventId> =
                self.dangling().into_iter().filter(|event_id| !states.contains_key(event_id)).collect();
            if unplaced.is_empty() {
                return;
            }
            for event_id in unplaced {
                self.events.remove(&event_id);
            }
        }
    }

    /// The state before an event, as another server sees it, with all its events fetched.
    async fn state_before(&mut self, event_id: &OwnedEventId) -> Result<Option<Vec<OwnedEventId>>> {
        for server in self.servers.clone() {
            let request = get_room_state_ids::v1::Request::new(event_id.clone(), self.room.room_id.clone());
            let ids = match self.rooms.remote()?.state_ids(&server, request).await {
                Ok(ids) if ids.pdu_ids.len() + ids.auth_chain_ids.len() <= STATE_MAX => ids,
                Ok(_) => continue,
                Err(error) => {
                    tracing::info!(room.id = %self.room.room_id, %error, "{server} does not tell the state: {error}");
                    continue;
                }
            };
            self.look_up(ids.pdu_ids.iter().chain(&ids.auth_chain_ids).collect()).await?;
            let missing: Vec<OwnedEventId> =
                ids.pdu_ids.iter().chain(&ids.auth_chain_ids).filter(|event_id| !self.has(event_id)).cloned().collect();
            if self.fetch_outliers(&server, event_id, missing).await? {
                return Ok(Some(ids.pdu_ids));
            }
        }
        Ok(None)
    }

    /// Fetches events of a state; false if the server does not give them.
    async fn fetch_outliers(
        &mut self,
        server: &ServerName,
        event_id: &OwnedEventId,
        missing: Vec<OwnedEventId>,
    ) -> Result<bool> {
        if missing.is_empty() {
            return Ok(true);
        }
        let found = if missing.len() <= ONE_BY_ONE {
            self.fetch_each(server, missing).await?
        } else {
            let request = get_room_state::v1::Request::new(event_id.clone(), self.room.room_id.clone());
            match self.rooms.remote()?.state(server, request).await {
                Ok(state) => state.pdus.into_iter().chain(state.auth_chain).collect(),
                Err(error) => {
                    tracing::info!(room.id = %self.room.room_id, %error, "{server} does not give the state: {error}");
                    return Ok(false);
                }
            }
        };
        let found = self.verified(&found, STATE_MAX).await?;
        self.add_outliers(found).await?;
        Ok(true)
    }

    async fn fetch_each(&self, server: &ServerName, event_ids: Vec<OwnedEventId>) -> Result<Vec<Box<RawValue>>> {
        let remote = self.rooms.remote()?;
        let answers: Vec<Result<get_event::v1::Response, RemoteError>> = stream::iter(event_ids)
            .map(|event_id| async move { remote.event(server, get_event::v1::Request::new(event_id)).await })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        Ok(answers.into_iter().filter_map(|answer| answer.ok().map(|answer| answer.pdu)).collect())
    }

    async fn add_outliers(&mut self, found: Vec<Incoming>) -> Result<()> {
        let referred = found.iter().flat_map(|event| event.pdu.auths().iter().chain([&event.event_id])).collect();
        self.look_up(referred).await?;
        for event in found {
            if !self.has(&event.event_id) {
                self.outliers.insert(event.event_id.clone(), event);
            }
        }
        Ok(())
    }

    /// Gets the auth events that are missing, and theirs: by the whole chain of an event, then one by one.
    async fn fetch_auth_events(&mut self) -> Result<()> {
        let lacking: Vec<OwnedEventId> = self
            .events
            .values()
            .filter(|event| event.pdu.auths().iter().any(|auth| !self.has(auth)))
            .map(|event| event.event_id.clone())
            .take(ONE_BY_ONE)
            .collect();
        for event_id in lacking {
            if self.events.get(&event_id).is_none_or(|event| event.pdu.auths().iter().all(|auth| self.has(auth))) {
                continue;
            }
            let server = self.servers[0].clone();
            let request = get_event_authorization::v1::Request::new(self.room.room_id.clone(), event_id);
            match self.rooms.remote()?.event_auth(&server, request).await {
                Ok(answer) => {
                    let found = self.verified(&answer.auth_chain, STATE_MAX).await?;
                    self.add_outliers(found).await?;
                }
                Err(error) => {
                    tracing::info!(room.id = %self.room.room_id, %error, "{server} gives no auth chain: {error}");
                }
            }
        }
        self.fetch_rest().await
    }

    async fn fetch_rest(&mut self) -> Result<()> {
        for _ in 0..ROUNDS {
            let mut missing: Vec<OwnedEventId> = self
                .events
                .values()
                .chain(self.outliers.values())
                .flat_map(|event| event.pdu.auths().iter())
                .filter(|auth| !self.has(auth))
                .cloned()
                .collect();
            missing.sort_unstable();
            missing.dedup();
            missing.truncate(FETCHED_MAX);
            if missing.is_empty() {
                return Ok(());
            }
            let server = self.servers[0].clone();
            let found = self.fetch_each(&server, missing).await?;
            let found = self.verified(&found, FETCHED_MAX).await?;
            if found.is_empty() {
                return Ok(());
            }
            self.add_outliers(found).await?;
        }
        Ok(())
    }
}

/// Events so that each comes after those that it follows; of several that could come next, the one of least depth.
fn by_prev_events(mut events: HashMap<OwnedEventId, Incoming>) -> Vec<Incoming> {
    let mut order: Vec<OwnedEventId> = events.keys().cloned().collect();
    order.sort_by(|a, b| {
        let key =
            |event_id: &OwnedEventId| events.get(event_id).map(|event| (event.pdu.depth, event.pdu.origin_server_ts()));
        key(a).cmp(&key(b)).then_with(|| a.cmp(b))
    });
    let mut sorted = Vec::with_capacity(events.len());
    let mut queue: VecDeque<OwnedEventId> = order.into();
    let mut passed = 0;
    while let Some(event_id) = queue.pop_front() {
        let waits = events
            .get(&event_id)
            .is_some_and(|event| event.pdu.prevs().iter().any(|prev| *prev != event_id && events.contains_key(prev)));
        // Depths are what senders say. If they lie in a cycle, any order is as good.
        if waits && passed < queue.len() {
            passed += 1;
            queue.push_back(event_id);
            continue;
        }
        passed = 0;
        sorted.extend(events.remove(&event_id));
    }
    sorted
}

impl From<RemoteError> for Error {
    fn from(error: RemoteError) -> Self {
        Self::Remote(Box::new(error))
    }
}
