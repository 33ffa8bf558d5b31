//! The event graph beside the events themselves: auth edges, gaps, and what waits to be received.

use std::{collections::HashMap, sync::Arc};

use ruma::{EventId, OwnedEventId};

use crate::{
    Error, Result, Store,
    names::Weight,
    sql::{Ids, Texts, execute, listed, rows},
    state_tree::{self, Change as StateChange},
};

/// An event that was acknowledged to its sender and waits for something that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundEvent {
    /// The room.
    pub room_id: String,
    /// The identifier.
    pub event_id: String,
    /// The server that sent it.
    pub origin: String,
    /// The event as received.
    pub json: Box<str>,
}

impl Weight for Arc<[i64]> {
    fn weight(&self) -> u64 {
        (64 + self.len() * 8) as u64
    }
}

impl Store {
    /// What differs between two snapshots.
    pub async fn state_diff(&self, old: i64, new: i64) -> Result<Vec<StateChange>> {
        Ok(state_tree::diff(self, old, new).await?)
    }

    /// The keys of a snapshot with their events' numbers.
    pub async fn state_entries(&self, root: i64) -> Result<Vec<(i64, i64)>> {
        Ok(state_tree::entries(self, &[root]).await?.pop().unwrap_or_default())
    }

    /// The redactions that wait for some events, as (event, redaction's number).
    pub async fn waiting_redactions(&self, event_ids: &[&EventId]) -> Result<Vec<(OwnedEventId, i64)>> {
        if event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let event_ids: Vec<&str> = event_ids.iter().map(|event_id| event_id.as_str()).collect();
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, i64)> = rows!(
            reader,
            listed!("SELECT target_id, event_nid FROM waiting_redactions WHERE target_id ", "$1", ""),
            Texts(&event_ids)
        )?;
        found
            .into_iter()
            .map(|(event_id, nid)| {
                Ok((EventId::parse(event_id).map_err(|_| Error::Corrupt { what: "event id" })?, nid))
            })
            .collect()
    }

    pub(crate) fn remember_auth_edges(&self, event_nid: i64, auth: Arc<[i64]>) {
        self.auth_edges.insert(event_nid, auth);
    }

    /// The numbers of the auth events of some state events. Events that are not stored are missing from the answer.
    pub async fn auth_edges(&self, nids: &[i64]) -> Result<HashMap<i64, Arc<[i64]>>> {
        let mut found: HashMap<i64, Arc<[i64]>> = HashMap::with_capacity(nids.len());
        let mut missing = Vec::new();
        for &nid in nids {
            match self.auth_edges.get(&nid) {
                Some(auth) => drop(found.insert(nid, auth)),
                None => missing.push(nid),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let mut reader = self.database.reader().await?;
        let loaded: Vec<(i64, String)> =
            rows!(reader, listed!("SELECT event_nid, auth FROM event_auth WHERE event_nid ", "$1", ""), Ids(&missing))?;
        drop(reader);
        for (nid, auth) in loaded {
            let auth: Vec<i64> =
                serde_json::from_str(&auth).map_err(|_| Error::Corrupt { what: "list of auth events" })?;
            let auth: Arc<[i64]> = auth.into();
            self.auth_edges.insert(nid, auth.clone());
            found.insert(nid, auth);
        }
        Ok(found)
    }

    /// The numbers of the events among some identifiers that are stored, with whether they are outliers.
    pub async fn event_nids(&self, event_ids: &[&EventId]) -> Result<HashMap<OwnedEventId, (i64, bool)>> {
        if event_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let event_ids: Vec<&str> = event_ids.iter().map(|event_id| event_id.as_str()).collect();
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, i64, i64)> = rows!(
            reader,
            listed!("SELECT event_id, event_nid, flags FROM events WHERE event_id ", "$1", ""),
            Texts(&event_ids)
        )?;
        found
            .into_iter()
            .map(|(event_id, nid, flags)| {
                let event_id = EventId::parse(event_id).map_err(|_| Error::Corrupt { what: "event id" })?;
                Ok((event_id, (nid, flags & crate::flags::OUTLIER != 0)))
            })
            .collect()
    }

    /// The events that others of a room follow and that are not here, with the number of one that follows them;
    /// at most `limit`, those first that the newest events follow.
    pub async fn missing_events(&self, room_nid: i64, limit: usize) -> Result<Vec<(OwnedEventId, i64)>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, i64)> = rows!(
            reader,
            "SELECT m.event_id, m.event_nid FROM missing_events AS m JOIN events AS e USING (event_nid)
             WHERE m.room_nid = $1 ORDER BY e.depth DESC LIMIT $2",
            room_nid,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        found
            .into_iter()
            .map(|(event_id, by)| Ok((EventId::parse(event_id).map_err(|_| Error::Corrupt { what: "event id" })?, by)))
            .collect()
    }

    /// Those among some events of a room that others follow and that are not here.
    pub async fn missing_among(&self, room_nid: i64, event_ids: &[&EventId]) -> Result<Vec<OwnedEventId>> {
        if event_ids.is_empty() {
            return Ok(Vec::new());
        }
        let event_ids: Vec<&str> = event_ids.iter().map(|event_id| event_id.as_str()).collect();
        let mut reader = self.database.reader().await?;
        let found: Vec<(String,)> = rows!(
            reader,
            listed!("SELECT event_id FROM missing_events WHERE room_nid = $1 AND event_id ", "$2", ""),
            room_nid,
            Texts(&event_ids)
        )?;
        found
            .into_iter()
            .map(|(event_id,)| EventId::parse(event_id).map_err(|_| Error::Corrupt { what: "event id" }))
            .collect()
    }

    /// The stripped state that came with an invite or a knock, as a JSON list.
    pub async fn stripped_state(&self, event_nids: &[i64]) -> Result<HashMap<i64, Box<str>>> {
        if event_nids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String)> = rows!(
            reader,
            listed!("SELECT event_nid, json FROM stripped_state WHERE event_nid ", "$1", ""),
            Ids(event_nids)
        )?;
        Ok(found.into_iter().map(|(nid, json)| (nid, json.into_boxed_str())).collect())
    }

    /// Writes down events that are acknowledged before they are received.
    pub async fn keep_inbound(&self, events: &[InboundEvent], now_ms: i64) -> Result<()> {
        let nids = self.take_nids(events.len() as i64).await?;
        let mut transaction = self.database.begin().await?;
        for (event, nid) in events.iter().zip(nids) {
            execute!(
                transaction,
                "INSERT INTO inbound_events (inbound_nid, room_id, event_id, origin, json, received_ts)
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (room_id, event_id) DO NOTHING",
                nid,
                &*event.room_id,
                &*event.event_id,
                &*event.origin,
                event.json.as_bytes(),
                now_ms
            )?;
        }
        transaction.commit().await
    }

    /// The events that were written down and not received yet, the oldest first.
    pub async fn inbound(&self, limit: usize) -> Result<Vec<InboundEvent>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, String, String, Vec<u8>)> = rows!(
            reader,
            "SELECT room_id, event_id, origin, json FROM inbound_events ORDER BY inbound_nid LIMIT $1",
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        found
            .into_iter()
            .map(|(room_id, event_id, origin, json)| {
                let json = String::from_utf8(json).map_err(|_| Error::Corrupt { what: "inbound event" })?;
                Ok(InboundEvent { room_id, event_id, origin, json: json.into_boxed_str() })
            })
            .collect()
    }

    /// Forgets what was written down, once it is received or refused.
    pub async fn forget_inbound(&self, room_id: &str, event_ids: &[&str]) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            listed!("DELETE FROM inbound_events WHERE room_id = $1 AND event_id ", "$2", ""),
            room_id,
            Texts(event_ids)
        )?;
        transaction.commit().await
    }
}
