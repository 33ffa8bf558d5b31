//! How many transactions may be under way at once, so that dead servers do not delay the living.
//!
//! Servers are told apart by what is known of them: those that answered last time, those never asked, those that
//! failed. Each kind has slots of its own. A server that answered and then dies would hold its slot until the time is
//! up; so who has no answer after a short while, while others wait, must move on to a slot for the slow, and if there
//! is none, give up and try again as one of those that failed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is known of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It took the last transaction.
    Proven,
    /// Nothing was sent to it yet, or it failed and was heard from since.
    Unknown,
    /// It failed.
    Troubled,
}

/// The slots of all destinations together.
#[derive(Debug)]
pub(crate) struct Slots {
    proven: Kind,
    unknown: Kind,
    troubled: Kind,
    slow: Arc<Semaphore>,
}

#[derive(Debug)]
struct Kind {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Kind {
    fn new(slots: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(slots.max(1))), waiting: AtomicUsize::new(0) }
    }
}

/// A place among the transactions under way.
pub(crate) struct Slot {
    standing: Standing,
    is_slow: bool,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// At most `max` transactions at once: three eighths for the proven, as many for the unknown, a sixteenth for those
    /// in trouble, the rest for the slow.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.max(16);
        let (healthy, troubled) = (max * 3 / 8, max / 16);
        Self {
            proven: Kind::new(healthy),
            unknown: Kind::new(healthy),
            troubled: Kind::new(troubled),
            slow: Arc::new(Semaphore::new(max - 2 * healthy - troubled)),
        }
    }

    fn kind(&self, standing: Standing) -> &Kind {
        match standing {
            Standing::Proven => &self.proven,
            Standing::Unknown => &self.unknown,
            Standing::Troubled => &self.troubled,
        }
    }

    /// Waits for a slot; first come, first served among those of the same standing.
    pub(crate) async fn enter(&self, standing: Standing) -> Slot {
        struct Waits<'k>(&'k AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let kind = self.kind(standing);
        kind.waiting.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(&kind.waiting);
        let permit = kind.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        Slot { standing, is_slow: false, _permit: permit }
    }

    /// What becomes of a transaction without an answer after a while: false when it must be given up for others.
    pub(crate) fn linger(&self, slot: &mut Slot) -> bool {
        if slot.is_slow || slot.standing == Standing::Troubled {
            return true;
        }
        if let Ok(permit) = self.slow.clone().try_acquire_owned() {
            *slot = Slot { standing: slot.standing, is_slow: true, _permit: permit };
            return true;
        }
        self.kind(slot.standing).waiting.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::{Slots, Standing};

    /// Those who failed take no slot from others; a slow one gives up its slot only for others who wait.
    #[test]
    fn kinds_do_not_wait_for_each_other() {
        let slots = Slots::new(16);
        let mut held: Vec<_> = (0..6).map(|_| slots.enter(Standing::Unknown).now_or_never().unwrap()).collect();
        let troubled = slots.enter(Standing::Troubled).now_or_never().unwrap();
        assert!(slots.enter(Standing::Troubled).now_or_never().is_none());
        assert!(slots.enter(Standing::Proven).now_or_never().is_some());
        drop(troubled);
        let mut waiting = Box::pin(slots.enter(Standing::Unknown));
        assert!((&mut waiting).now_or_never().is_none());
        // Three places for the slow; the fourth must go while somebody waits.
        for slot in &mut held[..3] {
            assert!(slots.linger(slot));
        }
        assert!(waiting.as_mut().now_or_never().is_some(), "a slow one has made room");
        drop(waiting);
        assert!(slots.linger(&mut held[3]), "nobody waits");
        let _fillers: Vec<_> = (0..3).map(|_| slots.enter(Standing::Unknown).now_or_never().unwrap()).collect();
        let mut waiting = Box::pin(slots.enter(Standing::Unknown));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(!slots.linger(&mut held[3]));
        assert!(slots.linger(&mut held[0]), "a slow one stays");
    }
}
