//! Who is let in: so many connections in all, so many from one address, and so many that have not asked for anything.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use myelin_process::{
    config::Network,
    metrics::{self, IntCounterVec, IntGauge},
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

static OPEN: LazyLock<IntGauge> = metrics::gauge!("myelin_connections", "Connections that are open.");
static NEW: LazyLock<IntGauge> =
    metrics::gauge!("myelin_connections_new", "Connections that are open and have not asked for anything yet.");
pub(crate) static REFUSED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_connections_refused_total",
    "Connections that were sent away: all are in use (full); too many from one address (address); not from a trusted \
     proxy (untrusted); no file descriptor was left (files); too many newcomers (newcomer: the one that waited longest).",
    ["reason"]
);

/// Counts connections and newcomers.
#[derive(Debug)]
pub(crate) struct Admission {
    room: Arc<Semaphore>,
    newcomers_max: usize,
    newcomers: Mutex<Waiting>,
    per_address: usize,
    exempt: Vec<Network>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// Newcomers in the order of their coming.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Admission {
    /// `connections` in all, `per_address` of them from one address unless it is in `exempt`, and `newcomers` that
    /// have not asked for anything.
    pub(crate) fn new(connections: usize, newcomers: usize, per_address: usize, exempt: Vec<Network>) -> Arc<Self> {
        Arc::new(Self {
            room: Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS))),
            newcomers_max: newcomers.max(1),
            newcomers: Mutex::default(),
            per_address: per_address.max(1),
            exempt,
            addresses: Mutex::default(),
        })
    }

    /// A place for one more connection, if there is one.
    pub(crate) fn enter(&self) -> Option<Place> {
        Some(Place::new(Arc::clone(&self.room).try_acquire_owned().ok()?))
    }

    /// Whether `address` may have one more connection; it is counted until the answer is dropped.
    pub(crate) fn of_address(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let address = neighbourhood(address);
        if self.exempt.iter().any(|network| network.contains(address)) {
            return Some(Counted { admission: None, address });
        }
        let mut addresses = self.addresses.lock();
        let count = addresses.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Counted { admission: Some(Arc::clone(self)), address })
    }

    /// One more connection of which nothing is known. If there are too many, the one that has waited longest is told
    /// to go: those who mean well have said what they want long before.
    pub(crate) fn newcomer(self: &Arc<Self>) -> (Newcomer, oneshot::Receiver<()>) {
        let (go, told) = oneshot::channel();
        let mut newcomers = self.newcomers.lock();
        let number = newcomers.next;
        newcomers.next += 1;
        newcomers.waiting.insert(number, go);
        NEW.inc();
        if newcomers.waiting.len() > self.newcomers_max {
            newcomers.send_oldest_away();
        }
        (Newcomer { admission: Arc::clone(self), number, settled: AtomicBool::new(false) }, told)
    }

    /// Tells the newcomer that has waited longest to go, if there is one.
    pub(crate) fn send_oldest_away(&self) {
        self.newcomers.lock().send_oldest_away();
    }
}

impl Waiting {
    fn send_oldest_away(&mut self) {
        if let Some((_, oldest)) = self.waiting.pop_first() {
            NEW.dec();
            REFUSED.with_label_values(&["newcomer"]).inc();
            // It may have gone by itself.
            let _ = oldest.send(());
        }
    }
}

/// A connection's place. Counts it while it is open.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        OPEN.inc();
        Self { _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        OPEN.dec();
    }
}

/// A connection that is counted for its address.
#[derive(Debug)]
pub(crate) struct Counted {
    admission: Option<Arc<Admission>>,
    address: IpAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some(admission) = &self.admission else { return };
        let mut addresses = admission.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// A connection that has not asked for anything, until it is dropped or settles.
#[derive(Debug)]
pub(crate) struct Newcomer {
    admission: Arc<Admission>,
    number: u64,
    settled: AtomicBool,
}

impl Newcomer {
    /// It has asked for something.
    pub(crate) fn settle(&self) {
        if self.settled.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.admission.newcomers.lock().waiting.remove(&self.number).is_some() {
            NEW.dec();
        }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Of IPv6 the network of 64 bits, since whoever has one address has all of them.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::Admission;

    /// An address has its share, an IPv6 network counts as one, exempt ones have no bound, and places come back.
    #[test]
    fn addresses_are_bounded() {
        let admission = Admission::new(10, 10, 2, vec!["127.0.0.0/8".parse().unwrap()]);
        let ask = |address: &str| admission.of_address(address.parse().unwrap());
        let (first, second) = (ask("192.0.2.1").unwrap(), ask("::ffff:192.0.2.1").unwrap());
        assert!(ask("192.0.2.1").is_none());
        let _other = ask("192.0.2.2").unwrap();
        let _network = (ask("2001:db8::1").unwrap(), ask("2001:db8::2").unwrap());
        assert!(ask("2001:db8::3").is_none() && ask("2001:db8:0:1::3").is_some());
        let local: Vec<_> = (0..10).map(|_| ask("127.0.0.1")).collect();
        assert!(local.iter().all(Option::is_some));
        drop(first);
        let third = ask("192.0.2.1");
        assert!(third.is_some() && ask("192.0.2.1").is_none());
        drop((second, third, local));
        assert_eq!(admission.addresses.lock().len(), 2);
    }

    /// Places come to an end and come back.
    #[test]
    fn places_are_bounded() {
        let admission = Admission::new(2, 1, 1, Vec::new());
        let (first, _second) = (admission.enter().unwrap(), admission.enter().unwrap());
        assert!(admission.enter().is_none());
        drop(first);
        assert!(admission.enter().is_some());
    }

    /// The newcomer that has waited longest goes first, and never one that has settled.
    #[test]
    fn the_oldest_newcomer_goes() {
        let admission = Admission::new(10, 2, 10, Vec::new());
        let (settled, mut settled_told) = admission.newcomer();
        settled.settle();
        let (_first, mut first_told) = admission.newcomer();
        let (_second, mut second_told) = admission.newcomer();
        assert!(first_told.try_recv().is_err());
        let (_third, mut third_told) = admission.newcomer();
        assert!(first_told.try_recv().is_ok() && second_told.try_recv().is_err() && third_told.try_recv().is_err());
        assert!(settled_told.try_recv().is_err());
        assert_eq!(admission.newcomers.lock().waiting.len(), 2);
    }
}
