//! What the resolution reads of the event graph, by number: from the store, and from what is about to be stored.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Event, StateKey, Store};
use ruma::{EventId, OwnedEventId, events::StateEventType, room_version_rules::RoomVersionRules};
use ruma_state_res::Event as _;

use super::{Drafts, work};
use crate::{Pdu, Result, writer::rules_of};

/// The type and state key of a state event.
pub(super) type Key = (StateEventType, String);

/// The key of a state event.
pub(super) fn key_of(pdu: &Pdu) -> Option<Key> {
    Some((pdu.event_type().to_string().into(), pdu.state_key()?.to_owned()))
}

/// The event graph of a room.
#[derive(Clone, Copy)]
pub(super) struct Graph<'a> {
    pub(super) store: &'a Store,
    drafts: &'a Drafts,
}

impl<'a> Graph<'a> {
    pub(super) fn new(store: &'a Store, drafts: &'a Drafts) -> Self {
        Self { store, drafts }
    }

    /// The auth events of some events. Those that do not exist are left out.
    pub(super) async fn edges(&self, nids: &[i64]) -> Result<HashMap<i64, Arc<[i64]>>> {
        // All may be in memory: let others in now and then.
        tokio::task::consume_budget().await;
        let (drafted, stored): (Vec<i64>, Vec<i64>) = nids.iter().partition(|nid| self.drafts.contains_key(nid));
        let mut edges = self.store.auth_edges(&stored).await?;
        if edges.len() < stored.len() {
            let rest: Vec<i64> = stored.into_iter().filter(|nid| !edges.contains_key(nid)).collect();
            edges.extend(self.edges_in_json(&rest).await?);
        }
        edges.extend(drafted.into_iter().filter_map(|nid| Some((nid, self.drafts.get(&nid)?.auth.clone()))));
        Ok(edges)
    }

    /// The auth events of events that no edges are stored of: messages.
    async fn edges_in_json(&self, nids: &[i64]) -> Result<HashMap<i64, Arc<[i64]>>> {
        let mut auth: HashMap<i64, Vec<OwnedEventId>> = HashMap::new();
        for event in self.store.events(nids).await? {
            let room = self.store.room_by_nid(event.room_nid).await?;
            let pdu = Pdu::from_event(&event, &rules_of(&room.version)?)?;
            auth.insert(event.nid, pdu.auth_events().cloned().collect());
        }
        let mut event_ids: Vec<&EventId> = auth.values().flatten().map(|event_id| &**event_id).collect();
        event_ids.sort_unstable();
        event_ids.dedup();
        let known = self.store.event_nids(&event_ids).await?;
        let number = |event_id: &OwnedEventId| known.get(event_id).map(|(nid, _)| *nid);
        Ok(auth.into_iter().map(|(nid, auth)| (nid, auth.iter().filter_map(number).collect())).collect())
    }

    /// The numbers of the events of some keys in a snapshot. Keys that it lacks are left out.
    pub(super) async fn state(&self, root: i64, key_nids: &[i64]) -> Result<Vec<i64>> {
        Ok(self.store.state_event_nids(root, key_nids).await?.into_iter().flatten().collect())
    }

    /// The numbers of some keys. Keys that no room has are left out.
    pub(super) async fn key_nids(&self, keys: HashSet<Key>) -> Result<HashMap<Key, i64>> {
        let keys: Vec<Key> = keys.into_iter().collect();
        let names: Vec<StateKey> =
            keys.iter().map(|(event_type, key)| StateKey::new(&event_type.to_string(), key)).collect();
        let nids = self.store.known_key_nids(&names).await?;
        Ok(keys.into_iter().zip(nids).filter_map(|(key, nid)| Some((key, nid?))).collect())
    }
}

/// Events that were read, by number.
#[derive(Debug)]
pub(super) struct Pdus {
    rules: Arc<RoomVersionRules>,
    read: HashMap<i64, Arc<Pdu>>,
}

impl Pdus {
    pub(super) fn new(rules: Arc<RoomVersionRules>) -> Self {
        Self { rules, read: HashMap::new() }
    }

    /// Reads some events.
    pub(super) async fn load(&mut self, graph: &Graph<'_>, nids: impl IntoIterator<Item = i64>) -> Result<()> {
        let mut missing = Vec::new();
        for nid in nids {
            match graph.drafts.get(&nid) {
                Some(draft) => drop(self.read.insert(nid, draft.pdu.clone())),
                None if self.read.contains_key(&nid) => {}
                None => missing.push(nid),
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let events: Vec<Arc<Event>> = graph.store.events(&missing).await?;
        let rules = self.rules.clone();
        let read = work(events.len(), move || {
            events.iter().map(|event| Ok((event.nid, Arc::new(Pdu::from_event(event, &rules)?)))).collect::<Result<_>>()
        });
        let read: Vec<(i64, Arc<Pdu>)> = read.await?;
        self.read.extend(read);
        Ok(())
    }

    /// An event, if it was read.
    pub(super) fn get(&self, nid: i64) -> Option<&Arc<Pdu>> {
        self.read.get(&nid)
    }

    /// Those among some events that were read.
    pub(super) fn among<'a>(&'a self, nids: impl IntoIterator<Item = i64> + 'a) -> impl Iterator<Item = &'a Arc<Pdu>> {
        nids.into_iter().filter_map(|nid| self.read.get(&nid))
    }

    /// All events that were read.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Pdu>> {
        self.read.values()
    }
}
