//! History from before what we have of a room.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use myelin_store::RoomName;
use parking_lot::Mutex;
use ruma::{OwnedEventId, ServerName, UInt, api::federation::backfill::get_backfill};

use super::{Place, missing::gather_history, parse, verify};
use crate::{Result, Rooms, writer::rules_of};

/// Events that are asked for at once.
const EVENTS: u32 = 100;
/// Events that are named as those to go back from.
const FROM: usize = 10;
/// Servers that are asked, one after the other.
const SERVERS: usize = 5;
/// How long a room is left alone when no server gave anything.
const PAUSE: Duration = Duration::from_secs(120);
/// Rooms whose pauses are remembered.
const PAUSES_MAX: usize = 10_000;

/// The rooms whose history no server gives at the moment.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Mutex<HashMap<i64, Instant>>);

impl Pauses {
    fn is_paused(&self, room_nid: i64) -> bool {
        self.0.lock().get(&room_nid).is_some_and(|since| since.elapsed() < PAUSE)
    }

    fn pause(&self, room_nid: i64) {
        let mut pauses = self.0.lock();
        if pauses.len() >= PAUSES_MAX {
            pauses.retain(|_, since| since.elapsed() < PAUSE);
        }
        if pauses.len() < PAUSES_MAX {
            pauses.insert(room_nid, Instant::now());
        }
    }
}

impl Rooms {
    /// Gets history of a room from the servers that are in it; true if there is more of it now.
    pub(crate) async fn backfill(self: &Arc<Self>, room: &Arc<RoomName>) -> Result<bool> {
        if self.remote().is_err() || self.backfill_pauses.is_paused(room.nid) {
            return Ok(false);
        }
        // One at a time: who has waited finds what the other one has fetched.
        let before = self.store.missing_events(room.nid, FROM).await?;
        if before.is_empty() {
            return Ok(false);
        }
        let receiver = self.receivers.of(room.nid);
        let _receiving = receiver.lock().await;
        let missing = self.store.missing_events(room.nid, FROM).await?;
        if missing != before {
            return Ok(true);
        }
        let from: Vec<OwnedEventId> = missing.into_iter().map(|(event_id, _)| event_id).collect();
        let servers = self.servers_in(room).await?;
        for server in servers.iter().filter(|server| **server != self.server_name).take(SERVERS) {
            match self.backfill_from(room, server, &from).await {
                Ok(0) => {}
                Ok(_) => return Ok(true),
                Err(error) => {
                    tracing::info!(room.id = %room.room_id, %error, "{server} gives no history: {error}");
                }
            }
        }
        self.backfill_pauses.pause(room.nid);
        Ok(false)
    }

    async fn backfill_from(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        server: &ServerName,
        from: &[OwnedEventId],
    ) -> Result<usize> {
        let rules = rules_of(&room.version)?;
        let request = get_backfill::v1::Request::new(room.room_id.clone(), from.to_vec(), UInt::from(EVENTS));
        let answer = self.remote()?.backfill(server, request).await?;
        let received = answer.pdus.iter().take(2 * EVENTS as usize);
        let received = received.filter_map(|event| parse(event, &room.room_id, &rules).ok()).collect();
        let verified = verify(self, &rules, received).await?;
        let gathered = gather_history(self, room, server, verified.into_iter().flatten().collect()).await?;
        if gathered.events.is_empty() {
            return Ok(0);
        }
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open_settled().await?;
            let built = async {
                writer.learn_create().await?;
                writer.add_outliers(&gathered.outliers).await?;
                writer.prepare(&gathered.events.iter().collect::<Vec<_>>()).await?;
                for event in &gathered.events {
                    let state = gathered.states.get(&event.event_id).map(Vec::as_slice);
                    writer.receive(event, state, Place::History).await?;
                }
                // The newest first: each has its place below the one before it.
                writer.draft.history.reverse();
                Ok(writer.draft.history.len())
            };
            let built = built.await;
            if let Some(count) = attempts.finish(writer, built).await? {
                return Ok(count);
            }
        }
    }
}
