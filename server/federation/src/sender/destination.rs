//! One server, and what it has not got yet.
//!
//! While all is well its events wait in a queue in memory. When the queue is full, or the server is away for longer, the
//! queue is given up and only a position is kept: the server is *behind*, and catches up from the database.

use std::{collections::VecDeque, sync::Arc};

use myelin_store::{Event, StoredDestination};
use parking_lot::Mutex;
use ruma::{OwnedServerName, OwnedTransactionId};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::{
    edus::{EduQueue, EphemeralEdu},
    metrics::{BEHIND, CATCH_UPS, QUEUED, TROUBLED},
    slots::Standing,
};

/// "Must not be more than 50 items."
pub(crate) const PDUS_MAX: usize = 50;
/// "Must not include more than 100 EDUs."
pub(crate) const EDUS_MAX: usize = 100;
/// Tries in a row after which the queue is given up: until then the same transaction is sent again.
const PATIENT_TRIES: u32 = 3;
/// Milliseconds after which a transaction that was not taken is written down, although the server is well.
const LATE_AFTER_MS: u64 = 5_000;
/// Tries in a row after which a server is only tried again when we hear from it: about 30 days.
const FAILURES_MAX: u32 = 48;
/// Milliseconds between tries: the first pause, and the longest.
const BACKOFF_MS: (u64, u64) = (1_000, 24 * 3_600_000);
/// Milliseconds between tries that are made because we hear from a server, however it answers: first and longest.
const WAKE_MS: (u64, u64) = (1_000, 600_000);
/// The time of a try that is not going to be made unless we hear from the server.
pub(crate) const NEVER: u64 = i64::MAX as u64;

/// What is sent at once: it stays the same until it is taken, or given up.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) id: OwnedTransactionId,
    pub(crate) made_ms: u64,
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) edus: Vec<Box<RawValue>>,
    /// For each source of durable EDUs, the last one in here.
    pub(crate) durable: Vec<Option<i64>>,
    /// Where the server lacks nothing before, once it has taken this.
    pub(crate) advance: Option<i64>,
}

/// Where a server stands.
#[derive(Debug)]
enum Mode {
    /// What it lacks is in memory.
    Live,
    /// It lacks events from a position on; `newest` is the last one that is known to be for it.
    Behind { from: i64, newest: i64 },
}

/// What is to be done next for a server.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this again.
    Again(Arc<Parcel>),
    /// Send what is in memory.
    Live,
    /// Send what is in the database between two positions.
    CatchUp { from: i64, newest: i64 },
    /// Nothing.
    Idle,
}

/// A server that we send to.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) server: OwnedServerName,
    /// Told when the standing changes while a courier waits.
    pub(crate) restanding: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    queue: VecDeque<Arc<Event>>,
    queue_max: usize,
    edus: EduQueue,
    under_way: Option<Arc<Parcel>>,
    /// A source of durable EDUs may have some.
    has_durable: bool,
    /// A courier is there, or asked for.
    is_busy: bool,
    standing: Standing,
    failures: u32,
    retry_at: u64,
    last_success_ms: Option<u64>,
    last_try_ms: u64,
    /// Tries made because we heard from it, since it last took something.
    wakes: u32,
    /// Since when it has not taken what is its turn.
    waiting_since: Option<u64>,
    /// It is written down, until it has everything.
    is_late: bool,
    stored: Option<StoredDestination>,
}

impl Destination {
    /// A server that nothing is known of.
    pub(crate) fn new(server: OwnedServerName, queue_max: usize) -> Self {
        let state = State {
            mode: Mode::Live,
            queue: VecDeque::new(),
            queue_max,
            edus: EduQueue::default(),
            under_way: None,
            // Something may have been kept for it while we were away.
            has_durable: true,
            is_busy: false,
            standing: Standing::Unknown,
            failures: 0,
            retry_at: 0,
            last_success_ms: None,
            last_try_ms: 0,
            wakes: 0,
            waiting_since: None,
            is_late: false,
            stored: None,
        };
        Self { server, restanding: Notify::new(), state: Mutex::new(state) }
    }

    /// A server that was written down. Events for it may be anywhere up to the sender's position.
    pub(crate) fn stored(
        server: OwnedServerName,
        queue_max: usize,
        stored: StoredDestination,
        pos: i64,
        now_ms: u64,
    ) -> Self {
        let destination = Self::new(server, queue_max);
        {
            let mut state = destination.state.lock();
            state.failures = u32::try_from(stored.failures).unwrap_or(u32::MAX);
            let retry_at = u64::try_from(stored.retry_at).unwrap_or(0);
            // A clock that was set back must not put the server off for longer than a pause may be.
            state.retry_at = if retry_at == NEVER { NEVER } else { retry_at.min(now_ms + BACKOFF_MS.1) };
            state.last_success_ms = stored.last_success_ts.and_then(|ts| u64::try_from(ts).ok());
            if state.failures > 0 {
                state.standing = Standing::Troubled;
                TROUBLED.inc();
            }
            if let Some(from) = stored.pending_from {
                state.is_late = true;
                state.mode = Mode::Behind { from, newest: pos.max(from) };
                BEHIND.inc();
            }
            state.stored = Some(stored);
        }
        destination
    }

    /// Gives it an event. True if a courier is to be sent.
    pub(crate) fn enqueue(&self, event: &Arc<Event>, now_ms: u64) -> bool {
        let Some(pos) = event.pos else { return false };
        let mut state = self.state.lock();
        state.waiting_since.get_or_insert(now_ms);
        let waiting = state.queue.len() + state.under_way.as_ref().map_or(0, |parcel| parcel.events.len());
        if let Mode::Behind { newest, .. } = &mut state.mode {
            *newest = pos.max(*newest);
        } else if waiting < state.queue_max && state.failures < PATIENT_TRIES {
            state.queue.push_back(event.clone());
            QUEUED.inc();
        } else {
            state.fall_behind(pos);
        }
        state.ask_for_courier(now_ms)
    }

    /// Gives it an ephemeral EDU. True if a courier is to be sent.
    pub(crate) fn enqueue_edu(&self, edu: &Arc<EphemeralEdu>, now_ms: u64) -> bool {
        let mut state = self.state.lock();
        if state.failures >= PATIENT_TRIES {
            super::metrics::EDUS_DROPPED.with_label_values(&["trouble"]).inc();
            return false;
        }
        state.edus.push(edu.clone());
        state.ask_for_courier(now_ms)
    }

    /// Says that a source of durable EDUs has some. True if a courier is to be sent.
    pub(crate) fn expect_durable(&self, now_ms: u64) -> bool {
        let mut state = self.state.lock();
        state.has_durable = true;
        state.ask_for_courier(now_ms)
    }

    /// We heard from it. True if a courier is to be sent, or when to try instead.
    pub(crate) fn wake(&self, now_ms: u64) -> Woken {
        let mut state = self.state.lock();
        if state.failures == 0 || state.standing != Standing::Troubled {
            return Woken::Needless;
        }
        let pause = WAKE_MS.0.saturating_mul(1 << state.wakes.min(20)).min(WAKE_MS.1);
        let at = state.last_try_ms.saturating_add(pause).max(now_ms);
        if state.is_busy {
            if at <= now_ms {
                // Its courier need not wait among those of the dead.
                state.wakes += 1;
                state.standing = Standing::Unknown;
                self.restanding.notify_one();
            }
            return Woken::Needless;
        }
        state.wakes += 1;
        state.standing = Standing::Unknown;
        if at >= state.retry_at {
            return Woken::Needless;
        }
        state.retry_at = at;
        if state.ask_for_courier(now_ms) { Woken::Now } else { Woken::At(at) }
    }

    /// Its time has come. True if a courier is to be sent.
    pub(crate) fn retry(&self, now_ms: u64) -> bool {
        self.state.lock().ask_for_courier(now_ms)
    }

    /// When it is tried again, if that is to be waited for.
    pub(crate) fn retry_at(&self) -> Option<u64> {
        let state = self.state.lock();
        (state.failures > 0 && !state.is_busy && state.retry_at != NEVER).then_some(state.retry_at)
    }

    /// What the courier does next; idle, the courier goes.
    pub(crate) fn next(&self) -> Next {
        let mut state = self.state.lock();
        if let Some(parcel) = &state.under_way {
            return Next::Again(parcel.clone());
        }
        match state.mode {
            Mode::Behind { from, newest } => Next::CatchUp { from, newest },
            Mode::Live if state.has_anything() => Next::Live,
            Mode::Live => {
                state.is_busy = false;
                Next::Idle
            }
        }
    }

    /// Whether sources of durable EDUs are to be asked. They are not asked again before they say so.
    pub(crate) fn take_durable(&self) -> bool {
        std::mem::take(&mut self.state.lock().has_durable)
    }

    pub(crate) fn standing(&self) -> Standing {
        self.state.lock().standing
    }

    /// Makes a parcel of what waits in memory, with some events from the database in the place of the queue's. `None`
    /// if it would be empty.
    pub(crate) fn pack(
        &self,
        id: OwnedTransactionId,
        caught_up: Option<(Vec<Arc<Event>>, Option<i64>)>,
        durable: Vec<(Vec<Box<RawValue>>, Option<i64>)>,
        now_ms: u64,
    ) -> Option<Arc<Parcel>> {
        let mut state = self.state.lock();
        let (events, advance) = match caught_up {
            Some(page) => page,
            None if matches!(state.mode, Mode::Live) => {
                let count = state.queue.len().min(PDUS_MAX);
                QUEUED.sub(count as i64);
                let events: Vec<_> = state.queue.drain(..count).collect();
                // Of use if the server falls behind meanwhile.
                let advance = events.last().and_then(|event| event.pos).map(|pos| pos + 1);
                (events, advance)
            }
            None => (Vec::new(), None),
        };
        let mut edus = Vec::new();
        let mut ids = Vec::with_capacity(durable.len());
        for (mut some, last) in durable {
            edus.append(&mut some);
            ids.push(last);
        }
        edus.extend(state.edus.take(EDUS_MAX.saturating_sub(edus.len()), now_ms));
        if events.is_empty() && edus.is_empty() {
            return None;
        }
        let parcel = Arc::new(Parcel { id, made_ms: now_ms, events, edus, durable: ids, advance });
        state.under_way = Some(parcel.clone());
        state.waiting_since.get_or_insert(now_ms);
        Some(parcel)
    }

    /// Part of the gap is done without anything to send.
    pub(crate) fn advance(&self, to: i64) {
        let mut state = self.state.lock();
        state.advance(to);
        state.settle(None);
    }

    /// It has taken what was under way.
    pub(crate) fn delivered(&self, now_ms: u64) {
        let mut state = self.state.lock();
        if state.failures > 0 {
            TROUBLED.dec();
        }
        state.failures = 0;
        state.wakes = 0;
        state.retry_at = 0;
        state.standing = Standing::Proven;
        state.last_success_ms = Some(now_ms);
        state.last_try_ms = now_ms;
        if let Some(advance) = state.under_way.take().and_then(|parcel| parcel.advance) {
            state.advance(advance);
        }
        state.settle(Some(now_ms));
    }

    /// We may not talk to it: nothing is kept for it.
    pub(crate) fn discard(&self, now_ms: u64) {
        {
            let mut state = self.state.lock();
            QUEUED.sub(state.queue.len() as i64);
            state.queue.clear();
            state.edus.clear();
            if matches!(state.mode, Mode::Behind { .. }) {
                state.mode = Mode::Live;
                BEHIND.dec();
            }
            state.has_durable = false;
            state.under_way = None;
        }
        self.delivered(now_ms);
    }

    /// It did not take what was under way. Answers when it is tried again; the courier goes.
    ///
    /// `chance` is in 0..1; `wait_ms` is what it asked for.
    pub(crate) fn failed(&self, chance: f64, wait_ms: u64, now_ms: u64) -> u64 {
        let mut state = self.state.lock();
        if state.failures == 0 {
            TROUBLED.inc();
        }
        state.failures = state.failures.saturating_add(1);
        state.standing = Standing::Troubled;
        state.last_try_ms = now_ms;
        state.retry_at = match state.failures {
            failures if failures > FAILURES_MAX => NEVER,
            failures => now_ms + backoff_ms(failures, chance).max(wait_ms.min(BACKOFF_MS.1)),
        };
        state.is_late |= state.unacknowledged().is_some();
        if state.failures >= PATIENT_TRIES {
            let newest = state.newest_in_memory();
            if let (Mode::Live, Some(newest)) = (&state.mode, newest) {
                state.fall_behind(newest);
            }
            state.edus.clear();
            state.under_way = None;
            // What was in the parcel is still with its source.
            state.has_durable = true;
        }
        state.is_busy = false;
        state.retry_at
    }

    /// The courier could not do its work, by no fault of the server. It goes.
    pub(crate) fn postponed(&self) {
        let mut state = self.state.lock();
        state.is_busy = false;
        state.has_durable = true;
    }

    /// Looks at what is to be written: the position before which everything was taken, if the server is well and has
    /// something under way; and the row, if that has changed.
    pub(crate) fn checkpoint(&self, now_ms: u64) -> Standpoint {
        let mut state = self.state.lock();
        let pending = state.unacknowledged();
        state.is_late |= pending.is_some() && state.waiting_since.is_some_and(|since| now_ms >= since + LATE_AFTER_MS);
        let row = StoredDestination {
            server: self.server.as_str().to_owned(),
            pending_from: pending.filter(|_| state.is_late),
            failures: i64::from(state.failures),
            retry_at: i64::try_from(state.retry_at).unwrap_or(i64::MAX),
            last_success_ts: state.last_success_ms.and_then(|ms| i64::try_from(ms).ok()),
        };
        let is_same = match &state.stored {
            Some(stored) => {
                (stored.pending_from, stored.failures, stored.retry_at)
                    == (row.pending_from, row.failures, row.retry_at)
            }
            None => row.pending_from.is_none() && row.failures == 0,
        };
        Standpoint {
            waits_for: pending.filter(|_| !state.is_late),
            row: (!is_same).then_some(row),
            is_idle: !state.is_busy && pending.is_none() && state.failures == 0 && state.edus.is_empty() && is_same,
        }
    }

    /// A row was written.
    pub(crate) fn written(&self, row: StoredDestination) {
        self.state.lock().stored = Some(row);
    }
}

/// What becomes of hearing from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// It is well, or tried soon enough.
    Needless,
    /// A courier is to be sent.
    Now,
    /// It is tried at that time.
    At(u64),
}

/// What a checkpoint has to know of a server.
#[derive(Debug)]
pub(crate) struct Standpoint {
    /// The sender's position must stay before this one.
    pub(crate) waits_for: Option<i64>,
    /// To be written.
    pub(crate) row: Option<StoredDestination>,
    /// It may be forgotten.
    pub(crate) is_idle: bool,
}

impl State {
    fn has_anything(&self) -> bool {
        !self.queue.is_empty() || !self.edus.is_empty() || self.has_durable
    }

    /// The position of the first event that the server has not taken.
    fn unacknowledged(&self) -> Option<i64> {
        match self.mode {
            Mode::Behind { from, .. } => Some(from),
            Mode::Live => {
                let under_way = self.under_way.as_ref().and_then(|parcel| parcel.events.first());
                under_way.or(self.queue.front()).and_then(|event| event.pos)
            }
        }
    }

    fn newest_in_memory(&self) -> Option<i64> {
        let under_way = self.under_way.as_ref().and_then(|parcel| parcel.events.last());
        self.queue.back().or(under_way).and_then(|event| event.pos)
    }

    /// Gives the queue up: what was in it, and the event at a position, is read from the database later.
    fn fall_behind(&mut self, newest: i64) {
        // What is under way stays so; when it is taken, the gap begins behind it.
        let from = self.unacknowledged().unwrap_or(newest);
        QUEUED.sub(self.queue.len() as i64);
        self.queue = VecDeque::new();
        self.mode = Mode::Behind { from, newest };
        self.is_late = true;
        BEHIND.inc();
        CATCH_UPS.with_label_values(&["begun"]).inc();
    }

    /// The server lacks nothing before a position.
    fn advance(&mut self, to: i64) {
        if let Mode::Behind { from, newest } = &mut self.mode {
            *from = to.max(*from);
            if *from > *newest {
                self.mode = Mode::Live;
                BEHIND.dec();
                CATCH_UPS.with_label_values(&["done"]).inc();
            }
        }
    }

    fn settle(&mut self, now_ms: Option<u64>) {
        if self.unacknowledged().is_none() {
            self.is_late = false;
            self.waiting_since = None;
        } else if now_ms.is_some() {
            self.waiting_since = now_ms;
        }
    }

    /// True if there is something to do now, and nobody who does it.
    fn ask_for_courier(&mut self, now_ms: u64) -> bool {
        let has_work = self.under_way.is_some() || matches!(self.mode, Mode::Behind { .. }) || self.has_anything();
        let is_wanted = !self.is_busy && has_work && (self.failures == 0 || self.retry_at <= now_ms);
        self.is_busy |= is_wanted;
        is_wanted
    }
}

impl Drop for State {
    fn drop(&mut self) {
        QUEUED.sub(self.queue.len() as i64);
        if matches!(self.mode, Mode::Behind { .. }) {
            BEHIND.dec();
        }
        if self.failures > 0 {
            TROUBLED.dec();
        }
    }
}

/// The pause after some tries: twice the last one, up to a day, a quarter more or less.
fn backoff_ms(failures: u32, chance: f64) -> u64 {
    let pause = BACKOFF_MS.0.saturating_mul(1 << failures.saturating_sub(1).min(30)).min(BACKOFF_MS.1);
    ((pause as f64 * (0.75 + 0.5 * chance)) as u64).min(BACKOFF_MS.1)
}

#[cfg(test)]
mod tests {
    use super::{BACKOFF_MS, backoff_ms};

    /// Pauses double, differ by chance, and end at a day.
    #[test]
    fn backs_off() {
        assert_eq!(backoff_ms(1, 0.5), 1_000);
        assert_eq!(backoff_ms(4, 0.5), 8_000);
        assert_eq!((backoff_ms(2, 0.0), backoff_ms(2, 1.0)), (1_500, 2_500));
        assert_eq!(backoff_ms(40, 1.0), BACKOFF_MS.1);
        assert_eq!(backoff_ms(u32::MAX, 0.0), BACKOFF_MS.1 / 4 * 3);
    }
}
