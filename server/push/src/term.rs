//! One term of the duty: everything in memory of the replica that pushes, while it holds the lease.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use myelin_store::{Change, Lease, PUSHERS, PusherStanding, Store};
use myelin_sync::Sync;
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::{self, Instant},
};
use tracing::{error, warn};

use crate::{
    Gateway,
    delivery::Delivery,
    metrics::{FAILING, PUSHERS as PUSHERS_GAUGE},
    payload::Definition,
    people::People,
    send::{Ended, Request},
    tail::Tail,
};

/// Between two checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// Between two counts of the pushers.
const COUNT: Duration = Duration::from_secs(60);
/// The time that requests under way have for their answers when the server stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Pushers that are read at once.
const PAGE: usize = 1_000;

/// One term of the duty. Dropped, everything that it has begun ends.
pub(crate) struct Term {
    pub(crate) store: Arc<Store>,
    pub(crate) sync: Arc<Sync>,
    pub(crate) gateway: Arc<dyn Gateway>,
    pub(crate) lease: Lease,
    pub(crate) tail: Arc<Tail>,
    pub(crate) people: People,
    /// Whether anyone has a pusher.
    pub(crate) has_pushers: bool,
    /// Everything up to this position was looked at.
    pub(crate) scanned: i64,
    /// What is to be looked at next, and up to where it goes.
    pub(crate) backlog: VecDeque<Change>,
    pub(crate) backlog_to: i64,
    /// The database failed: nothing is asked of it before.
    pub(crate) not_before: Option<Instant>,
    /// Rooms that someone has read, by user, and when that is told.
    pub(crate) read: HashMap<i64, HashSet<i64>>,
    pub(crate) read_due: Option<Instant>,
    /// The position before the first of these receipts.
    pub(crate) read_from: Option<i64>,
    /// By pusher, how much its gateway was last told to be unread.
    pub(crate) told: HashMap<i64, u64>,
    /// The pushers that have something to be told, or could not be.
    pub(crate) deliveries: HashMap<i64, Delivery>,
    /// Those of them that may be told now.
    pub(crate) ready: VecDeque<i64>,
    /// When those that could not be told are tried again, in milliseconds since 1970.
    pub(crate) timetable: BTreeSet<(i64, i64)>,
    pub(crate) requests: JoinSet<Ended>,
    pub(crate) under_way: HashMap<Id, Request>,
    next_checkpoint: Instant,
    next_count: Instant,
    checkpoint: i64,
}

impl Term {
    /// Reads how far pushers were told.
    pub(crate) async fn begin(
        store: Arc<Store>,
        sync: Arc<Sync>,
        gateway: Arc<dyn Gateway>,
        lease: Lease,
        tail: Arc<Tail>,
    ) -> myelin_store::Result<Self> {
        let scanned = store.duty_position(PUSHERS).await?;
        let now = Instant::now();
        let mut term = Self {
            people: People::new(store.clone(), sync.clone()),
            has_pushers: store.has_pushers().await?,
            store,
            sync,
            gateway,
            lease,
            tail,
            scanned,
            backlog: VecDeque::new(),
            backlog_to: scanned,
            not_before: None,
            read: HashMap::new(),
            read_due: None,
            read_from: None,
            told: HashMap::new(),
            deliveries: HashMap::new(),
            ready: VecDeque::new(),
            timetable: BTreeSet::new(),
            requests: JoinSet::new(),
            under_way: HashMap::new(),
            next_checkpoint: now,
            next_count: now,
            checkpoint: scanned,
        };
        let mut after = 0;
        loop {
            let page = term.store.troubled_pushers(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.pusher_nid;
            for definition in page.into_iter().filter_map(Definition::read) {
                let pusher_nid = definition.pusher.pusher_nid;
                term.deliveries.insert(pusher_nid, Delivery::stored(Arc::new(definition)));
                term.nudge(pusher_nid);
            }
        }
        Ok(term)
    }

    /// Does the duty until it is told to stop, or the lease is lost.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.hear().await;
            let has_more = self.scan().await;
            self.tell_read().await;
            self.send().await;
            let now = Instant::now();
            if now >= self.next_checkpoint && !self.save().await {
                return;
            }
            self.count(now).await;
            while let Some(ended) = self.requests.try_join_next_with_id() {
                self.ended(ended).await;
            }
            if *stop.borrow() {
                self.finish().await;
                return;
            }
            if has_more || !self.ready.is_empty() && self.has_room() {
                tokio::task::yield_now().await;
                continue;
            }
            let wake = self.wake_at();
            let tail = self.tail.clone();
            let ended = tokio::select! {
                () = tail.news.notified() => None,
                () = time::sleep_until(wake) => None,
                Some(ended) = self.requests.join_next_with_id() => Some(ended),
                _ = stop.wait_for(|stop| *stop) => None,
            };
            if let Some(ended) = ended {
                self.ended(ended).await;
            }
        }
    }

    /// When there is something to do, if nothing comes before.
    fn wake_at(&self) -> Instant {
        let mut wake = self.next_checkpoint;
        if let Some(due) = self.read_due {
            wake = wake.min(self.not_before.map_or(due, |not_before| due.max(not_before)));
        }
        if let Some((retry_at, _)) = self.timetable.first() {
            let wait = u64::try_from(retry_at.saturating_sub(now_ms())).unwrap_or(0);
            wake = wake.min(Instant::now() + Duration::from_millis(wait));
        }
        wake
    }

    /// Takes note of changes of pushers.
    async fn hear(&mut self) {
        let heard = self.tail.take_heard();
        if heard.is_missed {
            self.people.forget();
            match self.store.has_pushers().await {
                Ok(has_pushers) => self.has_pushers = has_pushers,
                Err(error) => self.database_failed(&error),
            }
        }
        if heard.are_gone {
            self.people.forget_pushers();
        }
        for user_nid in heard.users {
            self.has_pushers = true;
            if let Err(error) = self.people.changed(user_nid).await {
                self.database_failed(&error);
                self.tail.missed();
                return;
            }
            // Set anew, a pusher is tried at once.
            let theirs = self.deliveries.iter_mut();
            let theirs = theirs.filter(|(_, delivery)| delivery.definition.pusher.user_nid == user_nid);
            let mut retried = Vec::new();
            for (pusher_nid, delivery) in theirs {
                delivery.standing =
                    PusherStanding { pending_from: delivery.standing.pending_from, ..Default::default() };
                retried.push(*pusher_nid);
            }
            for pusher_nid in retried {
                self.nudge(pusher_nid);
            }
        }
    }

    /// Writes how far pushers were told. False when the lease is lost.
    async fn save(&mut self) -> bool {
        self.next_checkpoint = Instant::now() + CHECKPOINT;
        let waiting = self.deliveries.values().filter_map(Delivery::holds_back).min().map(|first| first - 1);
        let held_back = [waiting, self.read_from].into_iter().flatten().min();
        let pos = held_back.map_or(self.scanned, |pos| self.scanned.min(pos)).max(self.checkpoint);
        let changed: Vec<(i64, PusherStanding)> = self
            .deliveries
            .iter()
            .filter(|(_, delivery)| delivery.standing != delivery.saved)
            .map(|(pusher_nid, delivery)| (*pusher_nid, delivery.standing))
            .collect();
        FAILING.set(count(self.deliveries.values().filter(|delivery| delivery.standing.failures > 0).count()));
        if pos != self.checkpoint || !changed.is_empty() {
            match self.store.save_pushing(&self.lease, pos, &changed).await {
                Ok(true) => {
                    self.checkpoint = pos;
                    for (pusher_nid, standing) in changed {
                        if let Some(delivery) = self.deliveries.get_mut(&pusher_nid) {
                            delivery.saved = standing;
                        }
                    }
                }
                Ok(false) => return false,
                Err(error) => self.database_failed(&error),
            }
        }
        self.deliveries.retain(|_, delivery| !delivery.is_idle());
        true
    }

    async fn count(&mut self, now: Instant) {
        if now < self.next_count {
            return;
        }
        self.next_count = now + COUNT;
        match self.store.count_pushers().await {
            Ok(counts) => {
                PUSHERS_GAUGE.reset();
                for (kind, pushers) in counts {
                    PUSHERS_GAUGE.with_label_values(&[&kind]).set(pushers);
                }
            }
            Err(error) => self.database_failed(&error),
        }
    }

    /// Waits a moment for answers, then writes what was not taken.
    async fn finish(mut self) {
        let enough = Instant::now() + LAST_ANSWERS;
        while let Ok(Some(ended)) = time::timeout_at(enough, self.requests.join_next_with_id()).await {
            self.ended(ended).await;
        }
        if !self.save().await {
            warn!("another replica pushes already; some notifications are sent twice");
        }
    }

    /// Has a pusher told when it may be.
    pub(crate) fn nudge(&mut self, pusher_nid: i64) {
        let Some(delivery) = self.deliveries.get(&pusher_nid) else { return };
        let retry_at = delivery.standing.retry_at;
        if retry_at > now_ms() {
            self.timetable.insert((retry_at, pusher_nid));
        } else if delivery.is_due(now_ms()) {
            self.ready.push_back(pusher_nid);
        }
    }

    /// Lets a while pass before the database is asked again.
    pub(crate) fn database_failed(&mut self, error: &(dyn std::error::Error + 'static)) {
        warn!(error, "could not read or write what is to be pushed; will try again");
        self.not_before = Some(Instant::now() + Duration::from_secs(1));
    }

    /// A request has ended, however it did.
    async fn ended(&mut self, ended: Result<(Id, Ended), tokio::task::JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, Some(ended)),
            Err(failure) => {
                if failure.is_panic() {
                    error!(error = &failure as &dyn std::error::Error, "a push failed in an unforeseen way");
                }
                (failure.id(), None)
            }
        };
        if let Some(request) = self.under_way.remove(&id) {
            self.settle(request, ended).await;
        }
    }
}

/// The present, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
