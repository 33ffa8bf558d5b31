//! Loose ends of a room, tied together.
//!
//! Every branch of the graph that no event follows is one of the room's forward extremities, and the room's state is
//! that of all of them together, resolved anew with each event. The next event of one of our users follows them all. But
//! where our users only read, they could stay for ever; so then an event is made that does nothing else.
//!
//! It is of the type that other homeservers use for this, and keep from their clients. Nor do ours see it: it is kept
//! like a soft-failed event, so that it has no place in the timeline, and goes only to servers that ask for what a later
//! event follows.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use myelin_store::{RoomName, flags};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, register_int_counter_vec};
use ruma::{
    CanonicalJsonObject, UserId,
    events::{TimelineEventType, room::power_levels::UserPowerLevel},
};
use ruma_state_res::events::{RoomPowerLevelsEvent, RoomPowerLevelsIntField};

use crate::{Error, Result, RoomWriter, Rooms, Template};

/// Forward extremities from which on they are tied together.
pub(super) const LOOSE_ENDS: usize = 10;
/// The event's type.
pub(crate) const TIE: &str = "org.matrix.dummy_event";
/// Nobody who makes loose ends on purpose makes us tie them more often than this in a room.
const PAUSE: Duration = Duration::from_secs(60);
/// Rooms whose pauses are remembered; with more, no further ones are tied for a while.
const PAUSES_MAX: usize = 10_000;

static TIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_rooms_ties_total",
        "Times that a room had many forward extremities, by what was done: tied together by an event, or left, since no \
         user of ours may send events there or a policy server would have to be asked.",
        &["outcome"]
    )
    .expect("metric names are unique")
});

/// Shows the metrics from the start on.
pub(super) fn show_metrics() {
    for outcome in ["tied", "left"] {
        TIES.with_label_values(&[outcome]);
    }
}

/// The rooms whose ends were looked after lately.
#[derive(Debug, Default)]
pub(crate) struct Ties(Mutex<HashMap<i64, Instant>>);

impl Ties {
    /// True once a while for each room.
    fn is_due(&self, room_nid: i64) -> bool {
        let mut rooms = self.0.lock();
        if rooms.len() >= PAUSES_MAX {
            rooms.retain(|_, since| since.elapsed() < PAUSE);
        }
        if rooms.len() >= PAUSES_MAX || rooms.get(&room_nid).is_some_and(|since| since.elapsed() < PAUSE) {
            return false;
        }
        rooms.insert(room_nid, Instant::now());
        true
    }
}

impl Rooms {
    /// Ties a room's loose ends together, if they are many and one of our users may.
    pub(super) async fn tie_loose_ends(self: &Arc<Self>, room: &Arc<RoomName>) -> Result<()> {
        if !self.ties.is_due(room.nid) {
            return Ok(());
        }
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open_settled().await?;
            let built = Box::pin(writer.tie()).await;
            if let Some(is_tied) = attempts.finish(writer, built).await? {
                TIES.with_label_values(&[if is_tied { "tied" } else { "left" }]).inc();
                return Ok(());
            }
        }
    }
}

impl RoomWriter {
    async fn tie(&mut self) -> Result<bool> {
        // What nobody sees is not worth asking a policy server for.
        if self.extremities.len() < LOOSE_ENDS || self.policy_at(self.head.state_root).await?.is_some() {
            return Ok(false);
        }
        let needed = match self.state_event("m.room.power_levels", "").await? {
            Some(power_levels) => RoomPowerLevelsEvent::new(power_levels)
                .event_power_level(&TimelineEventType::from(TIE), None, &self.rules.authorization)
                .map_err(Error::Forbidden)?,
            None => RoomPowerLevelsIntField::EventsDefault.default_value(),
        };
        let rooms = self.rooms.clone();
        let Some(sender) = rooms.member_of_level(self, UserPowerLevel::Int(needed)).await? else { return Ok(false) };
        let sender = UserId::parse(sender).map_err(|_| Error::BadJson("the member's id is invalid".into()))?;
        self.append(Template::message(&sender, TIE, CanonicalJsonObject::new())).await?;
        if let Some(event) = self.draft.events.last_mut() {
            event.flags |= flags::SOFT_FAILED;
        }
        Ok(true)
    }
}
