//! One term of the duty: everything in memory of the replica that sends, while it holds the lease.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use myelin_store::{Batch, Change, Ephemeral, Event, Lease, Store, flags};
use parking_lot::Mutex;
use rand::{Rng as _, rngs::StdRng};
use ruma::{OwnedServerName, OwnedTransactionId, ServerName};
use tokio::sync::Notify;

use super::{
    SenderOptions,
    clock::Clock,
    courier,
    destination::{Destination, Woken},
    edus::EphemeralEdu,
    metrics::{EDUS_DROPPED, KNOWN},
    slots::Slots,
    transport::Transport,
};

/// Changes of the stream that wait in memory to be distributed; beyond that they are read from the database.
const TAIL_MAX: usize = 2_000;
/// Typing and presence that wait to be distributed.
const INBOX_MAX: usize = 4_096;

/// One term of the duty.
pub(crate) struct Term {
    pub(crate) store: Arc<Store>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) options: Arc<SenderOptions>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) lease: Lease,
    pub(crate) slots: Slots,
    /// Told when the distributor has something to do.
    pub(crate) news: Notify,
    began_ms: u64,
    transactions: AtomicU64,
    rng: Mutex<StdRng>,
    destinations: Mutex<HashMap<OwnedServerName, Arc<Destination>>>,
    /// Destinations that a courier is to be sent to.
    ready: Mutex<Vec<Arc<Destination>>>,
    /// When destinations in trouble are tried again.
    timetable: Mutex<BTreeSet<(u64, OwnedServerName)>>,
    tail: Mutex<Tail>,
    inbox: Mutex<VecDeque<Ephemeral>>,
    /// The position up to which everything is in the queues.
    distributed: AtomicI64,
    /// Something may be different since the last checkpoint.
    is_changed: AtomicBool,
}

/// The newest changes of the stream: all that matter of the positions after `from`, up to `to`.
#[derive(Debug, Default)]
struct Tail {
    range: Option<(i64, i64)>,
    changes: VecDeque<Change>,
}

impl Term {
    pub(crate) fn new(
        store: Arc<Store>,
        transport: Arc<dyn Transport>,
        options: Arc<SenderOptions>,
        lease: Lease,
        rng: StdRng,
    ) -> Self {
        let clock = options.clock.clone();
        Self {
            store,
            transport,
            slots: Slots::new(options.transactions_max),
            news: Notify::new(),
            began_ms: clock.now_ms(),
            transactions: AtomicU64::new(0),
            rng: Mutex::new(rng),
            destinations: Mutex::default(),
            ready: Mutex::default(),
            timetable: Mutex::default(),
            tail: Mutex::default(),
            inbox: Mutex::default(),
            distributed: AtomicI64::new(0),
            is_changed: AtomicBool::new(false),
            options,
            clock,
            lease,
        }
    }

    pub(crate) fn transaction_id(&self) -> OwnedTransactionId {
        courier::transaction_id(self.began_ms, self.lease.fence, self.transactions.fetch_add(1, Ordering::Relaxed))
    }

    /// A number in 0..1.
    pub(crate) fn chance(&self) -> f64 {
        self.rng.lock().random()
    }

    /// Whether an event is ours to send.
    pub(crate) fn is_to_send(&self, event: &Event) -> bool {
        event.is_shown() && (self.is_ours(event.sender().server_name()) || event.flags & flags::TO_SEND != 0)
    }

    pub(crate) fn is_ours(&self, server: &ServerName) -> bool {
        *server == *self.options.server_name
    }

    /// The position up to which everything is in the queues.
    pub(crate) fn distributed(&self) -> i64 {
        self.distributed.load(Ordering::Acquire)
    }

    /// Everything up to a position is in the queues.
    pub(crate) fn set_distributed(&self, pos: i64) {
        self.distributed.store(pos, Ordering::Release);
        self.changed();
    }

    /// Notes that there may be something to write down.
    pub(crate) fn changed(&self) {
        self.is_changed.store(true, Ordering::Release);
    }

    pub(crate) fn take_changed(&self) -> bool {
        self.is_changed.swap(false, Ordering::AcqRel)
    }

    // The stream.

    /// Keeps what was committed, until it is distributed.
    pub(crate) fn committed(&self, batch: &Batch) {
        {
            let mut tail = self.tail.lock();
            match &mut tail.range {
                Some((_, to)) if *to == batch.from => *to = batch.to,
                range => {
                    *range = Some((batch.from, batch.to));
                    tail.changes.clear();
                }
            }
            tail.changes.extend(batch.changes.iter().filter(|change| self.matters(change)).cloned());
            if tail.changes.len() > TAIL_MAX {
                tail.changes = VecDeque::new();
                tail.range = Some((batch.to, batch.to));
            }
        }
        self.news.notify_one();
    }

    fn matters(&self, change: &Change) -> bool {
        match change {
            Change::Event(event) => event.key_nid.is_some() || self.is_to_send(event),
            Change::Receipt(receipt) => &*receipt.receipt_type == "m.read",
            _ => false,
        }
    }

    /// The changes after a position and the position of the last one, if they are in memory; else the position up to
    /// which they must be read from the database.
    pub(crate) fn changes_after(&self, pos: i64) -> Result<(VecDeque<Change>, i64), i64> {
        let mut tail = self.tail.lock();
        match tail.range {
            None => Err(self.store.position()),
            Some((from, _)) if from > pos => Err(from),
            Some((_, to)) => {
                let mut changes = std::mem::take(&mut tail.changes);
                changes.retain(|change| change.pos() > pos);
                tail.range = Some((to, to));
                Ok((changes, to.max(pos)))
            }
        }
    }

    /// Keeps what has passed by, until it is distributed.
    pub(crate) fn passed(&self, ephemeral: &Ephemeral) {
        {
            let mut inbox = self.inbox.lock();
            if inbox.len() == INBOX_MAX {
                inbox.pop_front();
                EDUS_DROPPED.with_label_values(&["inbox"]).inc();
            }
            inbox.push_back(ephemeral.clone());
        }
        self.news.notify_one();
    }

    pub(crate) fn take_passed(&self) -> VecDeque<Ephemeral> {
        std::mem::take(&mut *self.inbox.lock())
    }

    // The destinations.

    /// The destination of a server, made now if there is none.
    fn destination(&self, server: &ServerName) -> Arc<Destination> {
        let mut destinations = self.destinations.lock();
        if let Some(known) = destinations.get(server) {
            return known.clone();
        }
        let made = Arc::new(Destination::new(server.to_owned(), self.options.queue_max));
        destinations.insert(server.to_owned(), made.clone());
        KNOWN.set(destinations.len() as i64);
        made
    }

    /// Adds a destination that was written down.
    pub(crate) fn restore(&self, destination: Destination) {
        let destination = Arc::new(destination);
        let server = destination.server.clone();
        {
            let mut destinations = self.destinations.lock();
            destinations.insert(server.clone(), destination.clone());
            KNOWN.set(destinations.len() as i64);
        }
        if destination.retry(self.clock.now_ms()) {
            self.send_courier(destination);
        } else if let Some(at) = destination.retry_at() {
            self.schedule(at, &server);
        }
    }

    pub(crate) fn enqueue(&self, servers: &[OwnedServerName], event: &Arc<Event>) {
        let now = self.clock.now_ms();
        for server in servers {
            let destination = self.destination(server);
            if destination.enqueue(event, now) {
                self.send_courier(destination);
            }
        }
        self.changed();
    }

    pub(crate) fn enqueue_edu<'a>(&self, servers: impl IntoIterator<Item = &'a OwnedServerName>, edu: EphemeralEdu) {
        let now = self.clock.now_ms();
        let edu = Arc::new(edu);
        for server in servers {
            let destination = self.destination(server);
            if destination.enqueue_edu(&edu, now) {
                self.send_courier(destination);
            }
        }
    }

    /// A source of durable EDUs has some for a server.
    pub(crate) fn expect_durable(&self, server: &ServerName) {
        if self.is_ours(server) {
            return;
        }
        let destination = self.destination(server);
        if destination.expect_durable(self.clock.now_ms()) {
            self.send_courier(destination);
        }
    }

    /// We heard from a server.
    pub(crate) fn wake(&self, server: &ServerName) {
        let Some(destination) = self.destinations.lock().get(server).cloned() else { return };
        match destination.wake(self.clock.now_ms()) {
            Woken::Needless => {}
            Woken::Now => self.send_courier(destination),
            Woken::At(at) => {
                self.schedule(at, server);
                self.news.notify_one();
            }
        }
    }

    fn send_courier(&self, destination: Arc<Destination>) {
        self.ready.lock().push(destination);
        self.news.notify_one();
    }

    /// The destinations that a courier is to be sent to.
    pub(crate) fn take_ready(&self) -> Vec<Arc<Destination>> {
        std::mem::take(&mut *self.ready.lock())
    }

    /// Has a server tried again at a time.
    pub(crate) fn schedule(&self, at_ms: u64, server: &ServerName) {
        self.timetable.lock().insert((at_ms, server.to_owned()));
        self.news.notify_one();
    }

    /// Sends couriers to those whose time has come; answers when the next one's is.
    pub(crate) fn retry_due(&self) -> Option<u64> {
        let now = self.clock.now_ms();
        loop {
            let (at, server) = {
                let mut timetable = self.timetable.lock();
                match timetable.first() {
                    Some((at, _)) if *at > now => return Some(*at),
                    None => return None,
                    Some(_) => timetable.pop_first()?,
                }
            };
            debug_assert!(at <= now, "the first one is due");
            let Some(destination) = self.destinations.lock().get(&server).cloned() else { continue };
            if destination.retry(now) {
                self.send_courier(destination);
            }
        }
    }

    /// All destinations.
    pub(crate) fn all(&self) -> Vec<Arc<Destination>> {
        self.destinations.lock().values().cloned().collect()
    }

    /// Forgets those who have everything, if there are many.
    pub(crate) fn forget_idle(&self) {
        let mut destinations = self.destinations.lock();
        if destinations.len() <= self.options.destinations_max {
            return;
        }
        let now = self.clock.now_ms();
        // Nobody else has it, so nobody is about to give it something.
        destinations
            .retain(|_, destination| Arc::strong_count(destination) > 1 || !destination.checkpoint(now).is_idle);
        KNOWN.set(destinations.len() as i64);
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        KNOWN.set(0);
    }
}
