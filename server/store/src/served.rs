//! What is told of rooms without reading their events.

use std::collections::HashMap;

use ruma::{EventId, OwnedEventId};

use crate::{
    Error, Result, Store,
    sql::{Ids, listed, rows},
};

impl Store {
    /// The identifiers of some events, in the order asked. Events that are not in memory are not loaded.
    pub async fn event_ids(&self, nids: &[i64]) -> Result<Vec<OwnedEventId>> {
        let mut found: HashMap<i64, OwnedEventId> =
            nids.iter().filter_map(|nid| Some((*nid, self.events.peek(nid)?.event_id.clone()))).collect();
        let missing: Vec<i64> = nids.iter().copied().filter(|nid| !found.contains_key(nid)).collect();
        if !missing.is_empty() {
            let mut reader = self.database.reader().await?;
            let loaded: Vec<(i64, String)> = rows!(
                reader,
                listed!("SELECT event_nid, event_id FROM events WHERE event_nid ", "$1", ""),
                Ids(&missing)
            )?;
            for (nid, event_id) in loaded {
                found.insert(nid, EventId::parse(event_id).map_err(|_| Error::Corrupt { what: "event id" })?);
            }
        }
        nids.iter().map(|nid| found.get(nid).cloned().ok_or(Error::Missing { what: "event" })).collect()
    }

    /// How many users have joined each of some rooms. Rooms without any are missing from the answer.
    pub async fn joined_counts(&self, room_nids: &[i64]) -> Result<HashMap<i64, i64>> {
        if room_nids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64)> = rows!(
            reader,
            listed!(
                "SELECT room_nid, COUNT(*) FROM memberships WHERE membership = 1 AND room_nid ",
                "$1",
                " GROUP BY room_nid"
            ),
            Ids(room_nids)
        )?;
        Ok(found.into_iter().collect())
    }
}
