//! The duty of pushing, which one replica has at a time.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::FutureExt as _;
use myelin_store::{Batch, Candidate, Ephemeral, Lease, Observer, PUSHERS, Store};
use myelin_sync::Sync;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{Gateway, metrics, pushers::CHANGED, tail::Tail, term::Term};

/// How long the lease lasts after the replica that holds it has died.
const LEASE_TTL: Duration = Duration::from_secs(15);
/// Says that sessions have ended, with which devices may have gone.
const SESSIONS_ENDED: &str = "sessions_ended";

/// Tells gateways of what people's rules notify of: one for a process. It pushes while it holds the lease.
pub struct Duty {
    store: Arc<Store>,
    sync: Arc<Sync>,
    gateway: Arc<dyn Gateway>,
    holder: String,
    lease_ttl: Duration,
    /// What the present term hears.
    tail: RwLock<Option<Arc<Tail>>>,
    stop: watch::Sender<bool>,
    /// True while [`Duty::run`] runs.
    running: watch::Sender<bool>,
}

impl std::fmt::Debug for Duty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Duty").field("holder", &self.holder).finish_non_exhaustive()
    }
}

/// Follows the stream for a [`Duty`] as long as there is one.
struct Follows(Weak<Duty>);

impl Follows {
    fn tail(&self) -> Option<Arc<Tail>> {
        self.0.upgrade()?.tail.read().clone()
    }
}

impl Observer for Follows {
    fn committed(&self, batch: &Batch) {
        if let Some(tail) = self.tail() {
            tail.committed(batch);
        }
    }

    fn passed(&self, ephemeral: &Ephemeral) {
        if !matches!(ephemeral.kind.as_str(), CHANGED | SESSIONS_ENDED) {
            return;
        }
        let Some(tail) = self.tail() else { return };
        match (ephemeral.kind.as_str(), ephemeral.json.parse()) {
            (CHANGED, Ok(user_nid)) => tail.pushers_changed(user_nid),
            (CHANGED, Err(_)) => tail.missed(),
            _ => tail.sessions_ended(),
        }
    }

    fn missed(&self) {
        if let Some(tail) = self.tail() {
            tail.missed();
        }
    }
}

impl Duty {
    /// Follows the store. Nothing is pushed before [`Duty::run`]. The [`Sync`] is told of everything first, because it
    /// was made first.
    pub fn new(store: Arc<Store>, sync: Arc<Sync>, gateway: Arc<dyn Gateway>) -> Arc<Self> {
        metrics::show();
        let duty = Arc::new(Self {
            store: store.clone(),
            sync,
            gateway,
            holder: format!("{:016x}", rand::random::<u64>()),
            lease_ttl: LEASE_TTL,
            tail: RwLock::new(None),
            stop: watch::Sender::new(false),
            running: watch::Sender::new(false),
        });
        store.observe(Arc::new(Follows(Arc::downgrade(&duty))));
        duty
    }

    /// Pushes whenever this replica holds the lease, until it is told to stop; then writes down how far it came, and
    /// lets go of the lease. To be run once.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        self.running.send_replace(true);
        let candidate = Candidate { name: PUSHERS, holder: self.holder.clone(), ttl: self.lease_ttl };
        let leading = self.store.lead(&candidate, self.stop.subscribe(), |lease| {
            let duty = self.clone();
            async move { Box::pin(duty.serve(lease)).await }.boxed()
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

    /// Tells [`Duty::run`] to stop and waits until it has.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        // It cannot fail: the sender of the channel is here.
        let _ = self.running.subscribe().wait_for(|running| !*running).await;
    }

    /// Does the duty for one term.
    async fn serve(self: Arc<Self>, lease: Lease) {
        /// Nothing is told to a term that is over.
        struct Serves<'d>(&'d Duty);
        impl Drop for Serves<'_> {
            fn drop(&mut self) {
                *self.0.tail.write() = None;
            }
        }
        let tail = Arc::new(Tail::default());
        *self.tail.write() = Some(tail.clone());
        let _serves = Serves(&self);
        match Term::begin(self.store.clone(), self.sync.clone(), self.gateway.clone(), lease, tail).await {
            Ok(term) => term.run(self.stop.subscribe()).await,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "could not read how far pushers were told");
            }
        }
    }
}
