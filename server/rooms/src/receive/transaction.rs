//! The events of a transaction: by room, each room for itself.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use myelin_store::{InboundEvent, RoomName};
use parking_lot::Mutex;
use prometheus::{IntGauge, register_int_gauge};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Incoming, Opinions, Place, RECEIVED, Refusal, Verdict, missing::gather, parse, ties::LOOSE_ENDS, verify};
use crate::{Error, Result, Rooms, now_ms, writer::rules_of};

/// How long a sender waits for what can only be received once something else was fetched.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rooms that are worked on without anyone waiting; with more, senders wait.
const UNATTENDED: usize = 256;

static WAITING: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "myelin_rooms_inbound_unattended",
        "Groups of events that were acknowledged, and wait for something to be fetched."
    )
    .expect("metric names are unique")
});

/// What became of an event, as it is told to its sender.
pub type Outcome = (OwnedEventId, Result<(), String>);

/// The receivers of rooms: one at a time each.
#[derive(Debug)]
pub(crate) struct Receivers {
    rooms: Mutex<HashMap<i64, Weak<tokio::sync::Mutex<()>>>>,
    unattended: Arc<Semaphore>,
}

impl Default for Receivers {
    fn default() -> Self {
        Self { rooms: Mutex::default(), unattended: Arc::new(Semaphore::new(UNATTENDED)) }
    }
}

impl Receivers {
    pub(crate) fn of(&self, room_nid: i64) -> Arc<tokio::sync::Mutex<()>> {
        let mut rooms = self.rooms.lock();
        if let Some(receiver) = rooms.get(&room_nid).and_then(Weak::upgrade) {
            return receiver;
        }
        rooms.retain(|_, receiver| receiver.strong_count() > 0);
        let receiver = Arc::new(tokio::sync::Mutex::new(()));
        rooms.insert(room_nid, Arc::downgrade(&receiver));
        receiver
    }
}

#[derive(serde::Deserialize)]
struct RoomOf {
    room_id: Option<OwnedRoomId>,
}

/// Whether the events of a group were written down while they were worked on.
#[derive(Debug, Default)]
struct Progress {
    is_done: bool,
    kept: Vec<String>,
}

impl Rooms {
    /// Receives the events of a transaction. Each stands for itself: one that fails does not fail the others.
    ///
    /// The answer has an entry for every event that an identifier could be made out of. What takes long is written
    /// down, and goes on when this has answered.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database did not take them, and the transaction must be sent again.
    pub async fn receive(self: &Arc<Self>, origin: &ServerName, pdus: Vec<Box<RawValue>>) -> Result<Vec<Outcome>> {
        let mut groups: Vec<(OwnedRoomId, Vec<Box<RawValue>>)> = Vec::new();
        for pdu in pdus {
            let room_id = serde_json::from_str::<RoomOf>(pdu.get()).ok().and_then(|of| of.room_id);
            let Some(room_id) = room_id else {
                RECEIVED.with_label_values(&["refused"]).inc();
                tracing::info!(origin = %origin, "an event from {origin} names no room and is dropped");
                continue;
            };
            match groups.iter_mut().find(|(known, _)| *known == room_id) {
                Some((_, group)) => group.push(pdu),
                None => groups.push((room_id, vec![pdu])),
            }
        }
        let groups = groups.into_iter().map(|(room_id, pdus)| self.receive_group(origin, room_id, pdus));
        let mut outcomes = Vec::new();
        for group in futures_util::future::join_all(groups).await {
            outcomes.extend(group?);
        }
        Ok(outcomes)
    }

    /// Goes on with what was acknowledged before this process started.
    pub async fn resume_inbound(self: &Arc<Self>) -> Result<()> {
        loop {
            let events = self.store.inbound(100).await?;
            let Some(first) = events.first() else { return Ok(()) };
            let (room_id, origin) = (first.room_id.clone(), first.origin.clone());
            let group = events.into_iter().filter(|event| event.room_id == room_id && event.origin == origin);
            let (ids, pdus): (Vec<String>, Vec<_>) =
                group.map(|event| (event.event_id, RawValue::from_string(event.json.into()))).unzip();
            let pdus: Vec<Box<RawValue>> = pdus.into_iter().flatten().collect();
            if let (Ok(room), Ok(origin)) = (RoomId::parse(&room_id), ServerName::parse(&origin)) {
                self.receive_in(&origin, &room, pdus).await?;
            }
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            self.store.forget_inbound(&room_id, &ids).await?;
        }
    }

    async fn receive_group(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: OwnedRoomId,
        pdus: Vec<Box<RawValue>>,
    ) -> Result<Vec<Outcome>> {
        let progress = Arc::new(tokio::sync::Mutex::new(Progress::default()));
        let copies: Vec<Box<RawValue>> = pdus.clone();
        let mut work = tokio::spawn(self.clone().work_off(origin.to_owned(), room_id.clone(), pdus, progress.clone()));
        if let Ok(outcome) = tokio::time::timeout(PATIENCE, &mut work).await {
            return ended(outcome);
        }
        let Ok(permit) = self.receivers.unattended.clone().try_acquire_owned() else {
            return ended(work.await);
        };
        match self.keep(origin, &room_id, &copies, &progress).await? {
            Some(outcomes) => {
                tokio::spawn(attend(work, permit));
                Ok(outcomes)
            }
            // It was done meanwhile.
            None => ended(work.await),
        }
    }

    /// Writes down what is being worked on, so that its sender may forget it. `None` if it is done already.
    async fn keep(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: &[Box<RawValue>],
        progress: &tokio::sync::Mutex<Progress>,
    ) -> Result<Option<Vec<Outcome>>> {
        let mut progress = progress.lock().await;
        if progress.is_done {
            return Ok(None);
        }
        let Some(room) = self.store.room(room_id).await? else { return Ok(None) };
        let rules = rules_of(&room.version)?;
        let received: Vec<(OwnedEventId, &RawValue)> =
            pdus.iter().filter_map(|pdu| Some((parse(pdu, room_id, &rules).ok()?.event_id, &**pdu))).collect();
        let events: Vec<InboundEvent> = received
            .iter()
            .map(|(event_id, pdu)| InboundEvent {
                room_id: room_id.to_string(),
                event_id: event_id.to_string(),
                origin: origin.to_string(),
                json: pdu.get().into(),
            })
            .collect();
        self.store.keep_inbound(&events, now_ms() as i64).await?;
        progress.kept = events.into_iter().map(|event| event.event_id).collect();
        Ok(Some(received.into_iter().map(|(event_id, _)| (event_id, Ok(()))).collect()))
    }

    async fn work_off(
        self: Arc<Self>,
        origin: OwnedServerName,
        room_id: OwnedRoomId,
        pdus: Vec<Box<RawValue>>,
        progress: Arc<tokio::sync::Mutex<Progress>>,
    ) -> Result<Vec<Outcome>> {
        let outcomes = self.receive_in(&origin, &room_id, pdus).await;
        let mut progress = progress.lock().await;
        progress.is_done = true;
        // What the database did not take stays written down until the next start.
        if !progress.kept.is_empty() && outcomes.is_ok() {
            let kept: Vec<&str> = progress.kept.iter().map(String::as_str).collect();
            if let Err(error) = self.store.forget_inbound(room_id.as_str(), &kept).await {
                tracing::warn!(%error, room.id = %room_id, "what was received is not forgotten yet: {error}");
            }
        }
        outcomes
    }

    /// Receives events of one room.
    async fn receive_in(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: Vec<Box<RawValue>>,
    ) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(pdus.len());
        if let Err(error) = self.try_receive_in(origin, room_id, &pdus, &mut outcomes).await {
            if matches!(error, Error::Store(_) | Error::Busy | Error::Task(_)) {
                // Not the events' fault: their sender keeps them.
                return Err(error);
            }
            tracing::info!(%error, room.id = %room_id, origin = %origin, "events from {origin} are refused: {error}");
            let done: Vec<OwnedEventId> = outcomes.iter().map(|(event_id, _)| event_id.clone()).collect();
            let rules = self.store.room(room_id).await.ok().flatten().and_then(|room| rules_of(&room.version).ok());
            for pdu in pdus {
                let Some(rules) = &rules else { continue };
                if let Ok(event) = parse(&pdu, room_id, rules)
                    && !done.contains(&event.event_id)
                {
                    RECEIVED.with_label_values(&["refused"]).inc();
                    outcomes.push((event.event_id, Err(error.to_string())));
                }
            }
        }
        Ok(outcomes)
    }

    async fn try_receive_in(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: &[Box<RawValue>],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let room = self.room(room_id).await?;
        self.check_acl_of(origin, &room).await?;
        if !self.servers_in(&room).await?.contains(&self.server_name) {
            return Err(Error::NotFound("this server is not in the room"));
        }
        let rules = rules_of(&room.version)?;
        let mut received = Vec::with_capacity(pdus.len());
        for pdu in pdus {
            match parse(pdu, room_id, &rules) {
                Ok(event) if received.iter().any(|known: &super::Received| known.event_id == event.event_id) => {}
                Ok(event) => received.push(event),
                Err(refusal) => refused(origin, room_id, &refusal),
            }
        }
        let receiver = self.receivers.of(room.nid);
        let _receiving = receiver.lock().await;
        let event_ids: Vec<&ruma::EventId> = received.iter().map(|event| &*event.event_id).collect();
        let known = self.store.event_nids(&event_ids).await?;
        received.retain(|event| {
            let is_known = known.get(&event.event_id).is_some_and(|(_, is_outlier)| !is_outlier);
            if is_known {
                RECEIVED.with_label_values(&["known"]).inc();
                outcomes.push((event.event_id.clone(), Ok(())));
            }
            !is_known
        });
        let event_ids: Vec<OwnedEventId> = received.iter().map(|event| event.event_id.clone()).collect();
        let mut events = Vec::with_capacity(received.len());
        for (outcome, event_id) in verify(self, &rules, received).await?.into_iter().zip(&event_ids) {
            match outcome {
                Ok(event) => events.push(event),
                Err(refusal) => {
                    refused(origin, room_id, &refusal);
                    outcomes.push((event_id.clone(), Err(refusal.to_string())));
                }
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        for (event_id, verdict) in Box::pin(self.put_in_judged(&room, origin, events, Place::Timeline)).await? {
            let (event_id, outcome) = told(&room, event_id, verdict);
            if event_ids.contains(&event_id) {
                outcomes.push((event_id, outcome));
            }
        }
        for event_id in event_ids {
            if !outcomes.iter().any(|(known, _)| *known == event_id) {
                outcomes.push((event_id, Err("what comes before the event could not be had".into())));
            }
        }
        Ok(())
    }

    /// Puts verified events into their room, with whatever they refer to. The caller is the room's receiver.
    pub(crate) async fn put_in_judged(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        origin: &ServerName,
        events: Vec<Incoming>,
        place: Place,
    ) -> Result<Vec<(OwnedEventId, Verdict)>> {
        let mut gathered = gather(self, room, origin, events).await?;
        let mut opinions = Opinions::default();
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open_settled().await?;
            writer.graph.opinions = std::mem::take(&mut opinions);
            let built = async {
                writer.learn_create().await?;
                writer.add_outliers(&gathered.outliers).await?;
                writer.prepare(&gathered.events.iter().collect::<Vec<_>>()).await?;
                let mut verdicts = Vec::with_capacity(gathered.events.len());
                for event in &gathered.events {
                    let state = gathered.states.get(&event.event_id).map(Vec::as_slice);
                    verdicts.push((event.event_id.clone(), writer.receive(event, state, place).await?));
                }
                Ok(verdicts)
            };
            let built = built.await;
            opinions = std::mem::take(&mut writer.graph.opinions);
            if built.is_ok() && !opinions.unasked.is_empty() {
                // The room's policy server is asked while nobody waits for the room.
                drop(writer);
                self.ask_about(room, &mut gathered.events, &mut opinions).await?;
                continue;
            }
            let ends = writer.extremities.len();
            if let Some(verdicts) = attempts.finish(writer, built).await? {
                if ends >= LOOSE_ENDS
                    && let Err(error) = Box::pin(self.tie_loose_ends(room)).await
                {
                    tracing::info!(room.id = %room.room_id, %error, "the room's loose ends stay: {error}");
                }
                return Ok(verdicts);
            }
        }
    }
}

fn refused(origin: &ServerName, room_id: &RoomId, refusal: &Refusal) {
    RECEIVED.with_label_values(&["refused"]).inc();
    tracing::info!(origin = %origin, room.id = %room_id, "an event from {origin} is dropped: {refusal}");
}

/// What the sender hears: a rejected event is an error, a soft-failed one is not its fault.
fn told(room: &RoomName, event_id: OwnedEventId, verdict: Verdict) -> Outcome {
    let (word, outcome) = match verdict {
        Verdict::Accepted => ("accepted", Ok(())),
        Verdict::Known => ("known", Ok(())),
        Verdict::Rejected(reason) => {
            tracing::info!(room.id = %room.room_id, event.id = %event_id, "the event {event_id} is rejected: {reason}");
            ("rejected", Err(reason))
        }
        Verdict::SoftFailed(reason) => {
            tracing::info!(room.id = %room.room_id, event.id = %event_id, "the event {event_id} is not shown: {reason}");
            ("soft_failed", Ok(()))
        }
    };
    RECEIVED.with_label_values(&[word]).inc();
    (event_id, outcome)
}

fn ended(outcome: Result<Result<Vec<Outcome>>, tokio::task::JoinError>) -> Result<Vec<Outcome>> {
    outcome.unwrap_or_else(|error| Err(Error::Task(error.to_string())))
}

/// Counts work that nobody waits for.
async fn attend(work: tokio::task::JoinHandle<Result<Vec<Outcome>>>, permit: OwnedSemaphorePermit) {
    WAITING.inc();
    if let Err(error) = ended(work.await) {
        tracing::error!(
            "receiving events that were acknowledged failed; they are tried again at the next start: {error}"
        );
    }
    WAITING.dec();
    drop(permit);
}
