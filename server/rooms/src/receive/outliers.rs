//! Events that are kept because others refer to them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Event, EventParts, StateKey, flags};
use ruma::{OwnedEventId, UserId};
use ruma_state_res::Event as _;

use super::{Incoming, Node};
use crate::{Error, Pdu, Result, RoomWriter};

impl RoomWriter {
    /// Adds events without a place to the draft: auth events, and state that an event is received with.
    ///
    /// Each is checked by its own auth events, which must be among them or known already; one that is not allowed is
    /// kept as rejected, so that what stands on it is rejected too.
    pub(crate) async fn add_outliers(&mut self, events: &[Incoming]) -> Result<()> {
        let referred: Vec<&OwnedEventId> =
            events.iter().flat_map(|event| event.pdu.auths().iter().chain([&event.event_id])).collect();
        self.learn(&referred).await?;
        let mut seen = HashSet::new();
        let new: Vec<&Incoming> = events
            .iter()
            .filter(|event| self.graph.get(&event.event_id).is_none() && seen.insert(&event.event_id))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let ordered = by_auth_events(&new);
        let senders: Vec<&UserId> = ordered.iter().map(|event| event.pdu.sender()).collect();
        let sender_nids = self.rooms.store.user_nids(&senders).await?;
        let key_nids = self.keys_of(&ordered).await?;
        let nids = self.rooms.store.take_event_nids(ordered.len() as i64).await?;
        for (place, ((incoming, nid), sender_nid)) in ordered.iter().zip(nids).zip(sender_nids).enumerate() {
            // All of it is in memory: let others in now and then.
            tokio::task::consume_budget().await;
            self.add_outlier(incoming, nid, sender_nid, key_nids[place])?;
            self.head.version = nid;
        }
        Ok(())
    }

    async fn keys_of(&self, events: &[&Incoming]) -> Result<Vec<Option<i64>>> {
        let keyed: Vec<(usize, StateKey)> = events
            .iter()
            .enumerate()
            .filter_map(|(place, event)| {
                Some((place, StateKey::new(&event.pdu.event_type().to_string(), event.pdu.state_key()?)))
            })
            .collect();
        let keys: Vec<StateKey> = keyed.iter().map(|(_, key)| key.clone()).collect();
        let mut found = vec![None; events.len()];
        for ((place, _), nid) in keyed.iter().zip(self.rooms.store.key_nids(&keys).await?) {
            found[*place] = Some(nid);
        }
        Ok(found)
    }

    fn add_outlier(&mut self, incoming: &Incoming, nid: i64, sender_nid: i64, key_nid: Option<i64>) -> Result<()> {
        let mut pdu = incoming.pdu.clone();
        pdu.nid = nid;
        let auth: Vec<Option<Arc<Pdu>>> =
            pdu.auths().iter().map(|event_id| self.graph.get(event_id).map(|node| node.pdu.clone())).collect();
        let is_complete = auth.iter().all(Option::is_some);
        let mut auth: Vec<Arc<Pdu>> = auth.into_iter().flatten().collect();
        let auth_nids = auth.iter().map(|pdu| pdu.nid).collect();
        if let Some(create) = self.create_in_graph()
            && crate::pdu::find(&auth, create.id()).is_none()
        {
            // From version 12 on it is not named; the room's identifier names it.
            auth.push(create);
        }
        let allowed = match is_complete {
            true => self.allowed_by_auth_events(&Arc::new(pdu.clone()), &auth),
            false => Err("an auth event is not known".to_owned()),
        };
        let mut event_flags = flags::OUTLIER;
        if let Err(reason) = allowed {
            tracing::info!(
                event.id = %incoming.event_id,
                room.id = %self.room.room_id,
                "the event {} is rejected: {reason}", incoming.event_id
            );
            event_flags |= flags::REJECTED;
            pdu.reject();
        }
        let parts = EventParts {
            nid,
            room_nid: self.room.nid,
            depth: pdu.depth,
            sender_nid,
            key_nid,
            flags: event_flags,
            ..EventParts::default()
        };
        let event = Event::new(parts, incoming.event_id.clone(), (*incoming.json).into())?;
        if key_nid.is_some() {
            self.draft.auth_edges.push((nid, auth_nids));
        }
        let pdu = Arc::new(pdu);
        self.draft.pdus.push(pdu.clone());
        self.draft.outliers.push(event);
        let node = Node { pdu, is_outlier: true, is_shown: false, state_after: 0 };
        self.graph.nodes.insert(incoming.event_id.clone(), node);
        Ok(())
    }

    fn create_in_graph(&self) -> Option<Arc<Pdu>> {
        if !self.rules.authorization.room_create_event_id_as_room_id {
            return None;
        }
        let event_id = self.room.room_id.as_str().replacen('!', "$", 1);
        let event_id = OwnedEventId::try_from(event_id).ok()?;
        self.graph.get(&event_id).map(|node| node.pdu.clone())
    }

    /// Learns the create event of a room whose identifier names it.
    pub(crate) async fn learn_create(&mut self) -> Result<()> {
        if !self.rules.authorization.room_create_event_id_as_room_id {
            return Ok(());
        }
        let event_id = self.room.room_id.as_str().replacen('!', "$", 1);
        let event_id =
            OwnedEventId::try_from(event_id).map_err(|_| Error::BadJson("the room's id is invalid".into()))?;
        self.learn(&[&event_id]).await
    }
}

/// Events so that each comes after its auth events. Those in a cycle, which honest hashes cannot make, come last.
fn by_auth_events<'a>(events: &[&'a Incoming]) -> Vec<&'a Incoming> {
    let places: HashMap<&OwnedEventId, usize> =
        events.iter().enumerate().map(|(place, event)| (&event.event_id, place)).collect();
    let mut waits: Vec<usize> = vec![0; events.len()];
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); events.len()];
    for (place, event) in events.iter().enumerate() {
        for before in event.pdu.auths().iter().filter_map(|event_id| places.get(event_id)) {
            waits[place] += 1;
            followers[*before].push(place);
        }
    }
    let mut ready: Vec<usize> = (0..events.len()).rev().filter(|place| waits[*place] == 0).collect();
    let mut ordered = Vec::with_capacity(events.len());
    let mut is_done = vec![false; events.len()];
    while let Some(place) = ready.pop() {
        ordered.push(events[place]);
        is_done[place] = true;
        for &follower in &followers[place] {
            waits[follower] -= 1;
            if waits[follower] == 0 {
                ready.push(follower);
            }
        }
    }
    ordered.extend((0..events.len()).filter(|place| !is_done[*place]).map(|place| events[place]));
    ordered
}
