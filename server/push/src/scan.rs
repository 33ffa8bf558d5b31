//! From what happens to what is to be sent.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use myelin_store::{Change, Event, Member, Membership, PushMember, Receipt};
use myelin_sync::{Listener, Notified};
use ruma::push::Action;
use tokio::time::Instant;

use crate::{
    delivery::{Delivery, Job, What},
    metrics::{BEHIND, EVALUATED},
    payload::{Definition, Details},
    term::Term,
};

/// Positions that are read from the database at once.
const GAP: i64 = 1_000;
/// Changes that are looked at before what came of them is sent.
const CHANGES_AT_ONCE: usize = 32;
/// How long after someone has read a room the gateways are told: people read many messages one after the other.
const READ_DELAY: Duration = Duration::from_millis(500);
/// Pushers of which is remembered what their gateways were told to be unread.
const TOLD_MAX: usize = 200_000;
/// Membership events that are followed back to find out since when someone is in a room.
const STEPS_BACK: usize = 16;

impl Term {
    /// Looks at some changes; true if there are more.
    pub(crate) async fn scan(&mut self) -> bool {
        if self.not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return false;
        }
        if let Err(error) = self.scan_some().await {
            // What was not looked at is read again.
            self.backlog.clear();
            self.backlog_to = self.scanned;
            self.database_failed(&error);
            return false;
        }
        BEHIND.set((self.store.position() - self.scanned).max(0));
        self.scanned < self.store.position()
    }

    async fn scan_some(&mut self) -> myelin_sync::Result<()> {
        if self.backlog.is_empty() && self.backlog_to <= self.scanned {
            self.refill().await?;
        }
        if !self.has_pushers {
            self.backlog.clear();
        }
        let mut changes: Vec<Change> = Vec::new();
        while changes.len() < CHANGES_AT_ONCE
            && let Some(change) = self.backlog.pop_front()
        {
            changes.push(change);
        }
        let newcomers = self.people.newcomers(&changes).await?;
        for change in changes {
            // What comes at the same position is looked at together with it.
            self.scanned = self.scanned.max(change.pos() - 1);
            match change {
                Change::Event(event) => Box::pin(self.on_event(event)).await?,
                Change::Membership { member, was } => {
                    let is_new = newcomers.contains(&member.user_nid);
                    self.people.moved(&member, is_new);
                    if is_new {
                        Box::pin(self.on_membership(&member, was)).await?;
                    }
                }
                Change::Receipt(receipt) => self.on_receipt(&receipt).await?,
                Change::AccountData(_) | Change::ToDevice(_) | Change::DeviceList(_) => {}
            }
        }
        self.scanned = match self.backlog.front() {
            Some(next) => self.scanned.max(next.pos() - 1),
            None => self.scanned.max(self.backlog_to),
        };
        Ok(())
    }

    /// Takes what is in memory of the stream, or reads a part of it.
    async fn refill(&mut self) -> myelin_sync::Result<()> {
        let newest = self.store.position();
        if !self.has_pushers && newest > self.scanned {
            // Someone's first one may be told of later than what came after it.
            self.has_pushers = self.store.has_pushers().await?;
        }
        match self.tail.after(self.scanned, newest) {
            Ok((changes, to)) => {
                self.backlog = changes.into();
                self.backlog_to = to;
            }
            Err(until) => {
                let to = until.min(newest).min(self.scanned.saturating_add(GAP));
                if to <= self.scanned {
                    return Ok(());
                }
                if self.has_pushers {
                    self.backlog = self.store.push_changes(self.scanned, to).await?.into();
                    self.people.forget();
                }
                self.backlog_to = to;
            }
        }
        Ok(())
    }

    async fn on_event(&mut self, event: Arc<Event>) -> myelin_sync::Result<()> {
        let Some(pos) = event.pos else { return Ok(()) };
        let members: Vec<PushMember> = self.people.in_room(event.room_nid).await?.to_vec();
        let mut listeners = Vec::with_capacity(members.len());
        for member in members {
            if member.user_nid == event.sender_nid {
                // "When the user updates their read receipt (either by using the API or by sending an event)".
                if event.key_nid.is_none() {
                    self.note_read(member.user_nid, event.room_nid);
                }
            } else if member.member_pos <= pos || self.was_there(&member, pos).await? {
                listeners.push(Listener { user_nid: member.user_nid, member_nid: member.member_nid });
            }
        }
        self.notify(&event, pos, &listeners).await
    }

    /// Whether someone whose place in a room has changed since was in it at a position.
    async fn was_there(&self, member: &PushMember, pos: i64) -> myelin_sync::Result<bool> {
        let mut event = self.store.event(member.member_nid).await?;
        for _ in 0..STEPS_BACK {
            let Some(before) = event.replaces else { return Ok(false) };
            event = self.store.event(before).await?;
            if membership_of(&event).as_deref() != Some("join") {
                return Ok(false);
            }
            if event.pos.is_some_and(|joined| joined <= pos) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn on_membership(&mut self, member: &Member, was: Option<Membership>) -> myelin_sync::Result<()> {
        if member.membership != Membership::Join {
            // What was unread in a room that one has left is no more.
            self.note_read(member.user_nid, member.room_nid);
        }
        if member.membership != Membership::Invite || was == Some(Membership::Invite) {
            return Ok(());
        }
        let event = self.store.event(member.event_nid).await?;
        let listener = Listener { user_nid: member.user_nid, member_nid: member.event_nid };
        self.notify(&event, member.pos, &[listener]).await
    }

    async fn on_receipt(&mut self, receipt: &Receipt) -> myelin_sync::Result<()> {
        if !matches!(&*receipt.receipt_type, "m.read" | "m.read.private") {
            return Ok(());
        }
        let members = self.people.in_room(receipt.room_nid).await?;
        if members.iter().any(|member| member.user_nid == receipt.user_nid) {
            self.note_read(receipt.user_nid, receipt.room_nid);
        }
        Ok(())
    }

    fn note_read(&mut self, user_nid: i64, room_nid: i64) {
        self.read.entry(user_nid).or_default().insert(room_nid);
        self.read_due.get_or_insert_with(|| Instant::now() + READ_DELAY);
        self.read_from.get_or_insert(self.scanned);
    }

    /// Has everyone told whom an event notifies.
    async fn notify(&mut self, event: &Arc<Event>, pos: i64, listeners: &[Listener]) -> myelin_sync::Result<()> {
        if listeners.is_empty() {
            return Ok(());
        }
        EVALUATED.inc_by(listeners.len() as u64);
        let notified = Box::pin(self.sync.notified(event, listeners)).await?;
        if notified.is_empty() {
            return Ok(());
        }
        let user_nids: Vec<i64> = notified.iter().map(|notified| notified.user_nid).collect();
        let pushers = self.people.pushers_of(&user_nids).await?;
        let details = Arc::new(Details::of(&self.store, event).await?);
        for Notified { user_nid, user_id, actions } in notified {
            let Some(theirs) = pushers.get(&user_nid).filter(|theirs| !theirs.is_empty()) else { continue };
            self.people.count(user_nid, &user_id, event.room_nid, pos).await?;
            let actions: Arc<[Action]> = actions.into();
            for definition in theirs.iter().filter(|definition| definition.pusher.since_pos < pos) {
                let (event, details, actions) = (event.clone(), details.clone(), actions.clone());
                let job = Job { pos, what: What::Event { event, details, actions }, found: Instant::now() };
                self.push(definition, job);
            }
        }
        Ok(())
    }

    fn push(&mut self, definition: &Arc<Definition>, job: Job) {
        let pusher_nid = definition.pusher.pusher_nid;
        let delivery = self.deliveries.entry(pusher_nid).or_insert_with(|| Delivery::new(definition.clone()));
        delivery.push(job);
        self.nudge(pusher_nid);
    }

    /// Tells the gateways of those who have read something how much is left.
    pub(crate) async fn tell_read(&mut self) {
        let now = Instant::now();
        if self.read_due.is_none_or(|due| now < due) || self.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        self.read_due = None;
        let read = std::mem::take(&mut self.read);
        let from = self.read_from.take().unwrap_or(self.scanned);
        if let Err(error) = self.tell_counts(&read, from.saturating_add(1)).await {
            // All of them again: who was told already is not told twice.
            for (user_nid, rooms) in read {
                self.read.entry(user_nid).or_default().extend(rooms);
            }
            self.read_due = Some(now + Duration::from_secs(1));
            self.read_from = Some(from);
            self.database_failed(&error);
        }
    }

    async fn tell_counts(&mut self, read: &HashMap<i64, HashSet<i64>>, pos: i64) -> myelin_sync::Result<()> {
        let user_nids: Vec<i64> = read.keys().copied().collect();
        let pushers = self.people.pushers_of(&user_nids).await?;
        if self.told.len() > TOLD_MAX {
            self.told.clear();
        }
        for (user_nid, rooms) in read {
            let Some(theirs) = pushers.get(user_nid).filter(|theirs| !theirs.is_empty()) else { continue };
            let user_id = theirs[0].pusher.user_id.clone();
            for room_nid in rooms {
                self.people.count(*user_nid, &user_id, *room_nid, self.scanned).await?;
            }
            let unread = self.people.unread(*user_nid).unwrap_or(0);
            for definition in theirs.iter() {
                if self.told.get(&definition.pusher.pusher_nid) != Some(&unread) {
                    let job = Job { pos, what: What::Badge, found: Instant::now() };
                    self.push(definition, job);
                }
            }
        }
        Ok(())
    }
}

fn membership_of(event: &Event) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: String,
    }
    serde_json::from_str::<Content>(event.content()).ok().map(|content| content.membership)
}
