//! What a pusher is still to be told.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use myelin_store::{Event, PusherStanding};
use rand::Rng as _;
use ruma::push::Action;
use tokio::time::Instant;

use crate::{
    metrics::{DROPPED, QUEUED},
    payload::{Definition, Details},
};

/// Notifications in memory for one pusher; beyond that it is told later what is unread then.
const QUEUE_MAX: usize = 64;
/// The wait after the first failure; it doubles with each further one.
const FIRST_WAIT_MS: u64 = 1_000;
/// The longest wait.
const LONGEST_WAIT_MS: u64 = 60 * 60 * 1_000;
/// A pusher that fails for longer than this is told what is unread when it answers again, not all that it missed.
const PATIENCE_MS: i64 = 2 * 60 * 1_000;

/// A notification that is to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// The place of what it tells of in the stream.
    pub(crate) pos: i64,
    pub(crate) what: What,
    /// When it was found to be sent.
    pub(crate) found: Instant,
}

/// What a notification is of.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// An event.
    Event { event: Arc<Event>, details: Arc<Details>, actions: Arc<[Action]> },
    /// How much is unread.
    Badge,
}

/// How a pusher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By the notifications in its queue, which are all.
    Live,
    /// It lacks more than is in its queue: what is unread is to be looked for.
    Lagging,
    /// That is being looked for, up to a position; what comes after it is in the queue.
    Gathering,
}

/// What a pusher is still to be told, and how it stands.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) definition: Arc<Definition>,
    pub(crate) mode: Mode,
    pub(crate) standing: PusherStanding,
    /// What the database says.
    pub(crate) saved: PusherStanding,
    /// Whether a request is under way.
    pub(crate) is_busy: bool,
    queue: VecDeque<Job>,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Delivery {
    /// A pusher that has everything. Those that do not were read when the term began: what the database has said of it
    /// since may be older than what is known here.
    pub(crate) fn new(definition: Arc<Definition>) -> Self {
        let standing = PusherStanding::default();
        Self { definition, mode: Mode::Live, standing, saved: standing, is_busy: false, queue: VecDeque::new() }
    }

    /// A pusher, as the database knows it: one that lacks events lacks them here.
    pub(crate) fn stored(definition: Arc<Definition>) -> Self {
        let standing = definition.pusher.standing;
        let mode = if standing.pending_from.is_some() { Mode::Lagging } else { Mode::Live };
        let mut delivery = Self::new(definition);
        (delivery.mode, delivery.standing, delivery.saved) = (mode, standing, standing);
        delivery
    }

    fn clear(&mut self) {
        QUEUED.sub(i64::try_from(self.queue.len()).unwrap_or(0));
        self.queue.clear();
    }

    /// Adds a notification.
    pub(crate) fn push(&mut self, job: Job) {
        let is_badge = matches!(job.what, What::Badge);
        if self.mode == Mode::Lagging {
            // It will be found, and how much is unread is told with it.
            return;
        }
        if is_badge && self.queue.iter().skip(usize::from(self.is_busy)).any(|job| matches!(job.what, What::Badge)) {
            return;
        }
        if self.queue.len() >= QUEUE_MAX {
            if is_badge {
                return;
            }
            DROPPED.with_label_values(&["queue_full"]).inc_by(self.queue.len() as u64);
            self.lag();
            return;
        }
        QUEUED.inc();
        self.queue.push_back(job);
    }

    /// Gives up what is in memory; it is to be looked for.
    fn lag(&mut self) {
        let first = self.first_pos();
        self.standing.pending_from = [self.standing.pending_from, first].into_iter().flatten().min();
        self.mode = if self.standing.pending_from.is_some() { Mode::Lagging } else { Mode::Live };
        self.clear();
    }

    /// The next notification.
    pub(crate) fn next(&self) -> Option<&Job> {
        self.queue.front()
    }

    /// The position of the first notification that is waiting.
    pub(crate) fn first_pos(&self) -> Option<i64> {
        self.queue.iter().map(|job| job.pos).min()
    }

    /// The place up to which everything must be read again if this process ends now.
    pub(crate) fn holds_back(&self) -> Option<i64> {
        if self.standing.pending_from.is_some() { None } else { self.first_pos() }
    }

    /// What was looked for goes before what came meanwhile.
    pub(crate) fn gathered(&mut self, jobs: Vec<Job>) {
        QUEUED.add(i64::try_from(jobs.len()).unwrap_or(0));
        for job in jobs.into_iter().rev() {
            self.queue.push_front(job);
        }
        self.mode = Mode::Live;
        self.standing.pending_from = self.first_pos();
    }

    /// The gateway has taken the first notification.
    pub(crate) fn taken(&mut self) -> Option<Job> {
        let job = self.pop();
        let pending = if self.standing.pending_from.is_some() { self.first_pos() } else { None };
        // A queue that was given up meanwhile is to be looked for, still.
        let pending_from = if self.mode == Mode::Live { pending } else { self.standing.pending_from };
        self.standing = PusherStanding { pending_from, ..PusherStanding::default() };
        job
    }

    /// Takes out the first notification, which is not to be sent.
    pub(crate) fn pop(&mut self) -> Option<Job> {
        let job = self.queue.pop_front()?;
        QUEUED.dec();
        Some(job)
    }

    /// The gateway has not taken the first notification.
    pub(crate) fn failed(&mut self, now_ms: i64) {
        self.standing.failures += 1;
        let failing_since = *self.standing.failing_since.get_or_insert(now_ms);
        self.standing.pending_from = [self.standing.pending_from, self.first_pos()].into_iter().flatten().min();
        let wait = wait(self.standing.failures);
        self.standing.retry_at = now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        if now_ms - failing_since > PATIENCE_MS {
            self.lag();
        }
    }

    /// Whether nothing has to be known of it.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_busy && self.mode == Mode::Live && self.queue.is_empty() && self.standing == self.saved
    }

    /// Whether there is something to do now.
    pub(crate) fn is_due(&self, now_ms: i64) -> bool {
        let has_work = self.mode == Mode::Lagging || (self.mode == Mode::Live && !self.queue.is_empty());
        !self.is_busy && has_work && self.standing.retry_at <= now_ms
    }
}

/// How long to wait after some failures in a row, within a quarter of it, so that not all come back at once.
fn wait(failures: i64) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
    let wait = FIRST_WAIT_MS.saturating_mul(1 << doublings).min(LONGEST_WAIT_MS);
    Duration::from_millis(wait).mul_f64(rand::rng().random_range(0.75..=1.25))
}
