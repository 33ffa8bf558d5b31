//! From the stream to the queues: who is to get what.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use myelin_store::{Change, Event, Membership, Receipt, Result, Store};
use ruma::{OwnedServerName, UserId, presence::PresenceState};
use serde::Deserialize;

use super::{
    edus::{EduKey, EduValue, EphemeralEdu},
    rooms::{Rooms, membership_of, server_of},
    term::Term,
};

/// Positions that are read from the database at once.
const PAGE: i64 = 500;
/// People who type that are remembered, to say when they stop.
const TYPING_MAX: usize = 10_000;
/// The longest that somebody types without saying so again, in milliseconds.
const TYPING_MS_MAX: u64 = 120_000;

/// Gives what happens to the queues of those whom it concerns.
pub(crate) struct Distributor {
    term: Arc<Term>,
    rooms: Rooms,
    /// The position up to which everything is in the queues.
    pos: i64,
    /// When those who type stop to, unless they say so again: by room and user.
    typing: BTreeMap<(i64, i64), u64>,
}

/// Someone types, as the synchronisation tells it.
#[derive(Deserialize)]
struct TypingNotice {
    room: i64,
    user: i64,
    timeout_ms: u64,
}

/// A user's presence, as the synchronisation tells it.
#[derive(Deserialize)]
struct PresenceNotice {
    cause: Box<str>,
    user: i64,
    user_id: Box<str>,
    presence: PresenceState,
    #[serde(default)]
    status_msg: Option<String>,
    active_ms: u64,
    rooms: Vec<i64>,
}

impl Distributor {
    pub(crate) fn new(term: Arc<Term>, pos: i64) -> Self {
        let rooms = Rooms::new(term.store.clone(), term.options.server_name.clone(), term.options.cache_bytes);
        term.set_distributed(pos);
        Self { term, rooms, pos, typing: BTreeMap::new() }
    }

    fn store(&self) -> Arc<Store> {
        self.term.store.clone()
    }

    /// Distributes the next part of the stream; false when there is no more.
    pub(crate) async fn advance(&mut self) -> Result<bool> {
        match self.term.changes_after(self.pos) {
            Ok((changes, to)) => {
                let has_more = to > self.pos;
                for change in changes {
                    let pos = change.pos();
                    self.distribute(change).await?;
                    self.move_to(pos);
                }
                self.move_to(to);
                Ok(has_more)
            }
            Err(to) if to > self.pos => {
                self.read_page(to.min(self.pos + PAGE)).await?;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    fn move_to(&mut self, pos: i64) {
        if pos > self.pos {
            self.pos = pos;
            self.term.set_distributed(pos);
        }
    }

    async fn read_page(&mut self, to: i64) -> Result<()> {
        let store = self.store();
        let ours = self.term.options.server_name.clone();
        let events = store.events_to_distribute(ours.as_str(), self.pos, to).await?;
        let receipts = store.receipts_to_distribute(ours.as_str(), self.pos, to).await?;
        let mut changes: Vec<Change> = events.into_iter().map(Change::Event).collect();
        changes.extend(receipts.into_iter().map(|receipt| Change::Receipt(Arc::new(receipt))));
        changes.sort_by_key(Change::pos);
        for change in changes {
            let pos = change.pos();
            self.distribute(change).await?;
            // One by one: what fails further on must not send this again.
            self.move_to(pos);
        }
        self.move_to(to);
        Ok(())
    }

    /// Distributes a change. One that cannot be, because what it needs is missing or corrupt, must not stop all others.
    async fn distribute(&mut self, change: Change) -> Result<()> {
        let pos = change.pos();
        match self.distribute_sound(change).await {
            Err(error) if !error.is_unavailable() => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    pos,
                    "what is at position {pos} cannot be sent to other servers"
                );
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn distribute_sound(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Event(event) if self.term.is_to_send(&event) => self.event(&event).await,
            Change::Event(event) => {
                self.rooms.note_state(event.room_nid, event.room_state);
                Ok(())
            }
            Change::Receipt(receipt) => self.receipt(&receipt).await,
            _ => Ok(()),
        }
    }

    /// "Servers of members joined in the room at that event": in the state before it. A user who is put out, or whose
    /// invitation is taken back, is told by the event that does so.
    async fn event(&mut self, event: &Arc<Event>) -> Result<()> {
        let mut room = self.rooms.take(event.room_nid, Some(event.state_before)).await?;
        let from = event.sender().server_name();
        let mut servers: Vec<OwnedServerName> = room.servers().filter(|server| *server != from).cloned().collect();
        room.note(event.room_state);
        self.rooms.keep(event.room_nid, room);
        if let Some(server) = self.target(event).await?
            && server != from
            && !self.term.is_ours(&server)
            && !servers.contains(&server)
        {
            servers.push(server);
        }
        if !servers.is_empty() {
            self.term.enqueue(&servers, event);
        }
        Ok(())
    }

    /// The server of the user whom a membership event is about, if that user had a place in the room.
    async fn target(&self, event: &Event) -> Result<Option<OwnedServerName>> {
        let (Some(user_id), Some(key_nid), "m.room.member") = (event.state_key(), event.key_nid, event.event_type())
        else {
            return Ok(None);
        };
        let Some(server) = server_of(user_id).filter(|server| !self.term.is_ours(server)) else { return Ok(None) };
        let before = self.term.store.state_events(event.state_before, &[key_nid]).await?.pop().flatten();
        let membership = before.and_then(|before| membership_of(before.content()));
        let had_place = matches!(membership, Some(Membership::Join | Membership::Invite | Membership::Knock));
        Ok(had_place.then_some(server))
    }

    async fn receipt(&mut self, receipt: &Receipt) -> Result<()> {
        let store = self.store();
        let user_id = store.user_id(receipt.user_nid).await?;
        if !self.term.is_ours(user_id.server_name()) {
            return Ok(());
        }
        let event = store.event(receipt.event_nid).await?;
        // "Read receipts for events that a user sent do not need to be sent."
        if *event.sender() == user_id {
            return Ok(());
        }
        let room = self.rooms.take(receipt.room_nid, None).await?;
        if room.servers().next().is_some() {
            let room_id = store.room_by_nid(receipt.room_nid).await?.room_id.clone();
            let key = EduKey::Receipt {
                room_nid: receipt.room_nid,
                user_nid: receipt.user_nid,
                thread: receipt.thread.clone(),
            };
            let value = EduValue::Receipt { room_id, user_id, event_id: event.event_id.clone(), ts: receipt.ts };
            self.term.enqueue_edu(room.servers(), EphemeralEdu { key, value });
        }
        self.rooms.keep(receipt.room_nid, room);
        Ok(())
    }

    /// Distributes what passes by. What fails here is lost: it would be old when it could be tried again.
    pub(crate) async fn pass(&mut self) {
        for notice in self.term.take_passed() {
            let passed = match notice.kind.as_str() {
                "typing" => self.typing_notice(&notice.json).await,
                "presence" if self.term.options.presence => self.presence_notice(&notice.json).await,
                super::NOTIFY => {
                    self.for_server(&notice.json, Term::expect_durable);
                    Ok(())
                }
                super::HEARD => {
                    self.for_server(&notice.json, Term::wake);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = passed {
                let kind = &notice.kind;
                tracing::warn!(error = &error as &dyn std::error::Error, "could not pass on a user's {kind}");
            }
        }
    }

    fn for_server(&self, json: &str, act: fn(&Term, &ruma::ServerName)) {
        if let Ok(server) = serde_json::from_str::<OwnedServerName>(json) {
            act(&self.term, &server);
        }
    }

    async fn typing_notice(&mut self, json: &str) -> Result<()> {
        let Ok(notice) = serde_json::from_str::<TypingNotice>(json) else { return Ok(()) };
        let key = (notice.room, notice.user);
        if notice.timeout_ms == 0 {
            self.typing.remove(&key);
        } else if self.typing.len() < TYPING_MAX || self.typing.contains_key(&key) {
            self.typing.insert(key, self.term.clock.now_ms() + notice.timeout_ms.min(TYPING_MS_MAX));
        }
        self.typing(key, notice.timeout_ms > 0).await
    }

    async fn typing(&mut self, (room_nid, user_nid): (i64, i64), typing: bool) -> Result<()> {
        let store = self.store();
        let user_id = store.user_id(user_nid).await?;
        if !self.term.is_ours(user_id.server_name()) {
            self.typing.remove(&(room_nid, user_nid));
            return Ok(());
        }
        let room_id = store.room_by_nid(room_nid).await?.room_id.clone();
        let room = self.rooms.take(room_nid, None).await?;
        let key = EduKey::Typing { room_nid, user_nid };
        self.term
            .enqueue_edu(room.servers(), EphemeralEdu { key, value: EduValue::Typing { room_id, user_id, typing } });
        self.rooms.keep(room_nid, room);
        Ok(())
    }

    /// Says of those who have not typed on that they stopped; answers when the next one does.
    pub(crate) async fn end_typing(&mut self) -> Option<u64> {
        let now = self.term.clock.now_ms();
        let ended: Vec<(i64, i64)> =
            self.typing.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        for key in ended {
            self.typing.remove(&key);
            if let Err(error) = self.typing(key, false).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not say that a user stopped to type");
            }
        }
        self.typing.values().min().copied()
    }

    async fn presence_notice(&mut self, json: &str) -> Result<()> {
        let Ok(notice) = serde_json::from_str::<PresenceNotice>(json) else { return Ok(()) };
        // Told anew to replicas that did not hear it; servers did.
        if &*notice.cause == "anew" {
            return Ok(());
        }
        let Ok(user_id) = UserId::parse(&*notice.user_id) else { return Ok(()) };
        if !self.term.is_ours(user_id.server_name()) {
            return Ok(());
        }
        self.rooms.preload(&notice.rooms).await?;
        let mut servers: HashSet<OwnedServerName> = HashSet::new();
        for room_nid in notice.rooms {
            let room = self.rooms.take(room_nid, None).await?;
            servers.extend(room.servers().filter(|server| !servers.contains(*server)).cloned().collect::<Vec<_>>());
            self.rooms.keep(room_nid, room);
        }
        let value = EduValue::Presence {
            user_id,
            state: notice.presence,
            status_msg: notice.status_msg,
            active_ms: notice.active_ms,
        };
        self.term.enqueue_edu(&servers, EphemeralEdu { key: EduKey::Presence { user_nid: notice.user }, value });
        Ok(())
    }
}
