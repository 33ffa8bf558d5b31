//! What belongs to one request from its first byte to its answer.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Names a request in the answer's `x-request-id` header and in every line that is logged for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    process: u32,
    number: u64,
}

impl RequestId {
    /// An id that no other request of this process has, and most likely none of another replica.
    pub(crate) fn next() -> Self {
        static PROCESS: LazyLock<u32> =
            LazyLock::new(|| (RandomState::new().hash_one(std::process::id()) >> 32) as u32);
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Self { process: *PROCESS, number: NUMBER.fetch_add(1, Ordering::Relaxed) }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.process, self.number)
    }
}

/// Shared between [`layers`](crate::layers) and the route that a request reached, as an extension
/// (`Arc<RequestContext>`) of the request.
#[derive(Debug)]
pub struct RequestContext {
    id: RequestId,
    json_body_bytes_max: usize,
    deadline_ms: AtomicU64,
    is_long_poll: AtomicBool,
}

impl RequestContext {
    pub(crate) fn new(id: RequestId, deadline: Duration, json_body_bytes_max: usize) -> Self {
        Self {
            id,
            json_body_bytes_max,
            deadline_ms: AtomicU64::new(to_ms(deadline)),
            is_long_poll: AtomicBool::new(false),
        }
    }

    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// How many bytes of JSON a request may bring, unless its route says otherwise.
    pub(crate) fn json_body_bytes_max(&self) -> usize {
        self.json_body_bytes_max
    }

    /// Gives this request another deadline, counted from its start.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline_ms.store(to_ms(deadline), Ordering::Relaxed);
    }

    /// Marks this request as one that waits on purpose: it has no deadline and is never called slow.
    pub fn mark_long_poll(&self) {
        self.is_long_poll.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_long_poll(&self) -> bool {
        self.is_long_poll.load(Ordering::Relaxed)
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        (!self.is_long_poll()).then(|| Duration::from_millis(self.deadline_ms.load(Ordering::Relaxed)))
    }
}

fn to_ms(duration: Duration) -> u64 {
    // A year is as good as never, and still an instant that a timer can hold.
    const YEAR_MS: u128 = 365 * 24 * 3600 * 1000;
    u64::try_from(duration.as_millis().min(YEAR_MS)).unwrap_or(u64::MAX)
}
