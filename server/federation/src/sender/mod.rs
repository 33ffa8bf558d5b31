//! The outgoing queues: every event and EDU of ours to every server that it concerns, at least once, in order.
//!
//! One replica sends, the one that holds the lease. It reads the stream from the stored position on and gives each of
//! our events to the queues of the servers in the room. A queue is in memory; a server that does not keep up is written
//! down with the position from which on it lacks events, and catches up from the database. The module
//! `destination` has the states of a server, `slots` how the dead do not delay the living, `checkpoint` what is written.
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#transactions)

mod catch_up;
mod checkpoint;
mod clock;
mod courier;
mod destination;
mod distribution;
mod edus;
mod metrics;
mod rooms;
mod slots;
mod term;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::FutureExt as _;
use myelin_store::{Batch, Candidate, Ephemeral, FEDERATION_SENDER, Lease, Observer, Store};
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use rand::{SeedableRng as _, rngs::StdRng};
use ruma::{OwnedServerName, ServerName};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::{
    checkpoint::{Checkpoints, Written},
    destination::Destination,
    distribution::Distributor,
    term::Term,
};
pub use self::{
    clock::{Clock, SystemClock},
    edus::{EduSource, QueuedEdu},
    transport::{Transaction, TransactionAnswer, Transport},
};

/// Says to the replica that sends that a source of durable EDUs has some.
const NOTIFY: &str = "federation_notify";
/// Says to the replica that sends that we heard from a server.
const HEARD: &str = "federation_heard";

/// Milliseconds between two checkpoints, while there is something to write.
const CHECKPOINT_MS: u64 = 1_000;
/// Milliseconds between two questions to the sources of durable EDUs for which servers they have some.
const SOURCES_MS: u64 = 300_000;
/// Milliseconds until the stream is read again after the database failed.
const RETRY_MS: u64 = 1_000;
/// Milliseconds that transactions under way have for their answers when the server stops.
const LAST_ANSWERS_MS: u64 = 2_000;
/// Milliseconds between two messages to the replica that sends that we heard from the same server.
const HEARD_AGAIN_MS: u64 = 30_000;
/// Servers of which is remembered when the replica that sends was last told so.
const HEARD_MAX: usize = 10_000;
/// Rows of destinations that are read at once.
const DESTINATIONS_PAGE: usize = 1_000;

/// How to send.
#[derive(Clone)]
pub struct SenderOptions {
    /// This server.
    pub server_name: OwnedServerName,
    /// Whether other servers are told of the presence of our users.
    pub presence: bool,
    /// Where durable EDUs come from.
    pub sources: Vec<Arc<dyn EduSource>>,
    /// Transactions under way at the most, over all servers.
    pub transactions_max: usize,
    /// How long the answer to a transaction may take.
    pub transaction_timeout: Duration,
    /// Events in memory for one server at the most; beyond that it catches up from the database.
    pub queue_max: usize,
    /// Servers that are remembered although they have everything.
    pub destinations_max: usize,
    /// Bytes of the memory of which servers are in which room.
    pub cache_bytes: u64,
    /// How long the lease lasts after the replica that holds it has died.
    pub lease_ttl: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where chance comes from; `None` for the machine's.
    pub seed: Option<u64>,
}

impl SenderOptions {
    /// Options with the default bounds.
    pub fn new(server_name: OwnedServerName) -> Self {
        Self {
            server_name,
            presence: true,
            sources: Vec::new(),
            transactions_max: 256,
            transaction_timeout: Duration::from_secs(60),
            queue_max: 100,
            destinations_max: 20_000,
            cache_bytes: 32 * 1024 * 1024,
            lease_ttl: Duration::from_secs(15),
            clock: Arc::new(SystemClock),
            seed: None,
        }
    }
}

impl std::fmt::Debug for SenderOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SenderOptions")
            .field("server_name", &self.server_name)
            .field("presence", &self.presence)
            .field("transactions_max", &self.transactions_max)
            .finish_non_exhaustive()
    }
}

/// The outgoing queues: one for a process. It sends while it holds the lease.
pub struct Sender {
    store: Arc<Store>,
    transport: Arc<dyn Transport>,
    options: Arc<SenderOptions>,
    holder: String,
    term: RwLock<Option<Arc<Term>>>,
    rng: Mutex<StdRng>,
    /// When the replica that sends was last told that we heard from a server.
    told: Cache<OwnedServerName, u64>,
    stop: watch::Sender<bool>,
    /// True while [`Sender::run`] runs.
    running: watch::Sender<bool>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("options", &self.options).finish_non_exhaustive()
    }
}

struct Follows(Weak<Sender>);

impl Follows {
    fn term(&self) -> Option<Arc<Term>> {
        self.0.upgrade()?.term.read().clone()
    }
}

impl Observer for Follows {
    fn committed(&self, batch: &Batch) {
        if let Some(term) = self.term() {
            term.committed(batch);
        }
    }

    fn passed(&self, ephemeral: &Ephemeral) {
        if matches!(ephemeral.kind.as_str(), "typing" | "presence" | NOTIFY | HEARD)
            && let Some(term) = self.term()
        {
            term.passed(ephemeral);
        }
    }
}

impl Sender {
    /// Makes the queues and follows the store. Nothing is sent before [`Sender::run`].
    pub fn new(store: Arc<Store>, transport: Arc<dyn Transport>, options: SenderOptions) -> Arc<Self> {
        metrics::show();
        let mut rng = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_rng(&mut rand::rng()),
        };
        let sender = Arc::new(Self {
            holder: format!("{:016x}", rand::Rng::random::<u64>(&mut rng)),
            store: store.clone(),
            transport,
            options: Arc::new(options),
            term: RwLock::new(None),
            rng: Mutex::new(rng),
            told: Cache::new(HEARD_MAX),
            stop: watch::Sender::new(false),
            running: watch::Sender::new(false),
        });
        store.observe(Arc::new(Follows(Arc::downgrade(&sender))));
        sender
    }

    /// Sends whenever this replica holds the lease, until it is told to stop; then writes the last checkpoint and lets
    /// go of the lease. To be run once.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        self.running.send_replace(true);
        let candidate = Candidate { name: FEDERATION_SENDER, holder: self.holder.clone(), ttl: self.options.lease_ttl };
        let leading = self.store.lead(&candidate, self.stop.subscribe(), |lease| {
            let sender = self.clone();
            async move { Box::pin(sender.serve(lease)).await }.boxed()
        });
        let mut leading = std::pin::pin!(leading);
        tokio::select! {
            () = &mut leading => {}
            () = stop.cancelled() => {
                self.stop.send_replace(true);
                leading.await;
            }
        }
        self.running.send_replace(false);
    }

    /// Tells [`Sender::run`] to stop and waits until it has.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        // It cannot fail: the sender of the channel is here.
        let _ = self.running.subscribe().wait_for(|running| !*running).await;
    }

    /// We heard from a server: if it did not answer lately, it is tried again now. Cheap, and meant to be called for each
    /// of its requests.
    pub fn wake(&self, server: &ServerName) {
        let term = self.term.read().clone();
        if let Some(term) = term {
            term.wake(server);
            return;
        }
        let now = self.options.clock.now_ms();
        if self.told.get(server).is_none_or(|told| now >= told + HEARD_AGAIN_MS) {
            self.told.insert(server.to_owned(), now);
            self.pass(HEARD, server);
        }
    }

    /// A source of durable EDUs has some for a server. On any replica.
    pub fn notify(&self, server: &ServerName) {
        // Nothing is passed with the lock held: who is told looks at the term too.
        let term = self.term.read().clone();
        match term {
            Some(term) => term.expect_durable(server),
            None => self.pass(NOTIFY, server),
        }
    }

    /// Whether this replica is the one that sends.
    pub fn is_leading(&self) -> bool {
        self.term.read().is_some()
    }

    fn pass(&self, kind: &str, server: &ServerName) {
        let json = serde_json::Value::from(server.as_str()).to_string();
        self.store.pass(&Ephemeral { kind: kind.to_owned(), json });
    }

    /// Does the duty for one term.
    async fn serve(self: Arc<Self>, lease: Lease) {
        /// Nothing is told to a term that is over.
        struct Serves<'s>(&'s Sender);
        impl Drop for Serves<'_> {
            fn drop(&mut self) {
                *self.0.term.write() = None;
            }
        }
        let rng = StdRng::from_rng(&mut *self.rng.lock());
        let term = Arc::new(Term::new(self.store.clone(), self.transport.clone(), self.options.clone(), lease, rng));
        *self.term.write() = Some(term.clone());
        let _serves = Serves(&self);
        let pos = match restore(&term).await {
            Ok(pos) => pos,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "could not read the state of the outgoing queues");
                return;
            }
        };
        Duty::new(term, pos).run(self.stop.subscribe()).await;
    }
}

/// Reads the position and the servers in trouble.
async fn restore(term: &Term) -> myelin_store::Result<i64> {
    let pos = term.store.duty_position(FEDERATION_SENDER).await?;
    let mut after = String::new();
    loop {
        let page = term.store.troubled_destinations(&after, DESTINATIONS_PAGE).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.server);
        for stored in page {
            // What is in the table was a server's name once.
            if let Ok(server) = ServerName::parse(stored.server.as_str()) {
                let now = term.clock.now_ms();
                term.restore(Destination::stored(server, term.options.queue_max, stored, pos, now));
            }
        }
    }
    Ok(pos)
}

/// The work of one term. Dropped, everything that it has begun ends.
struct Duty {
    term: Arc<Term>,
    distributor: Distributor,
    checkpoints: Checkpoints,
    couriers: JoinSet<()>,
    next_checkpoint: u64,
    next_sources: u64,
    /// The database failed: the stream is not read before.
    not_before: u64,
}

impl Duty {
    fn new(term: Arc<Term>, pos: i64) -> Self {
        Self {
            distributor: Distributor::new(term.clone(), pos),
            checkpoints: Checkpoints::new(pos),
            couriers: JoinSet::new(),
            next_checkpoint: 0,
            next_sources: 0,
            not_before: 0,
            term,
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let mut next = self.next_checkpoint;
            if self.term.clock.now_ms() >= self.next_checkpoint {
                if !self.write_checkpoint().await {
                    return;
                }
                self.ask_sources().await;
                next = self.next_checkpoint;
            }
            let has_more = self.distribute().await;
            self.distributor.pass().await;
            if let Some(at) = self.distributor.end_typing().await {
                next = next.min(at);
            }
            if let Some(at) = self.term.retry_due() {
                next = next.min(at);
            }
            self.send_couriers();
            if has_more && !*stop.borrow() {
                tokio::task::yield_now().await;
                continue;
            }
            let now = self.term.clock.now_ms();
            let stopped = async { stop.wait_for(|stop| *stop).await.is_ok() };
            let is_over = tokio::select! {
                () = self.term.news.notified() => false,
                () = self.term.clock.sleep(next.saturating_sub(now)) => false,
                Some(ended) = self.couriers.join_next() => {
                    note_end(ended);
                    false
                }
                _ = stopped => true,
            };
            if is_over {
                self.finish().await;
                return;
            }
        }
    }

    /// Distributes a part of the stream; true if there may be more.
    async fn distribute(&mut self) -> bool {
        let now = self.term.clock.now_ms();
        if now < self.not_before {
            return false;
        }
        match self.distributor.advance().await {
            Ok(has_more) => has_more,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "could not read what is to be sent; will try again");
                self.not_before = now + RETRY_MS;
                false
            }
        }
    }

    fn send_couriers(&mut self) {
        for destination in self.term.take_ready() {
            self.couriers.spawn(courier::run(self.term.clone(), destination));
        }
        while let Some(ended) = self.couriers.try_join_next() {
            note_end(ended);
        }
    }

    /// False when the lease is lost.
    async fn write_checkpoint(&mut self) -> bool {
        let written = self.checkpoints.write(&self.term).await;
        self.next_checkpoint = self.term.clock.now_ms() + CHECKPOINT_MS;
        match written {
            Ok(Written::Done) => self.term.forget_idle(),
            Ok(Written::LeaseLost) => return false,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "could not write how far we have sent; will try again");
            }
        }
        true
    }

    async fn ask_sources(&mut self) {
        let now = self.term.clock.now_ms();
        if now < self.next_sources {
            return;
        }
        self.next_sources = now + SOURCES_MS;
        for source in &self.term.options.sources {
            for server in source.servers().await {
                self.term.expect_durable(&server);
            }
        }
    }

    /// Waits a moment for answers, then writes what was not taken.
    async fn finish(mut self) {
        let enough = self.term.clock.sleep(LAST_ANSWERS_MS);
        let all = async { while self.couriers.join_next().await.is_some() {} };
        tokio::select! {
            () = enough => {}
            () = all => {}
        }
        self.couriers.shutdown().await;
        self.term.changed();
        self.write_checkpoint().await;
    }
}

fn note_end(ended: Result<(), JoinError>) {
    if let Err(failure) = ended
        && failure.is_panic()
    {
        error!(error = &failure as &dyn std::error::Error, "a task that sends to a server failed");
    }
}
