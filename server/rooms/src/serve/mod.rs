//! What other servers read of our rooms.
//!
//! Each question begins with a [`ServerReader`]: the room's access control list lets the server take part, and the
//! server is or was in the room, or everyone may read it. What it gets of the history is decided event by event, as for
//! users: an event is given whole if one of the server's users may see it. Others are given redacted, where a server
//! that is in the room needs them to know the graph.

mod acl;
mod auth;
mod child;
mod elsewhere;
mod event;
mod hierarchy;
mod links;
mod order;
mod reader;
mod servers;
mod space;
mod state;
mod summary;
mod summary_of;
mod timestamp;
mod walk;

use std::sync::{Arc, LazyLock};

use prometheus::{IntCounter, IntGauge, register_int_counter, register_int_gauge};
use quick_cache::{Weighter, sync::Cache};
use tokio::sync::Semaphore;

use self::{acl::ServerAcl, servers::RoomServers};
pub use self::{
    hierarchy::{ServedHierarchy, SpaceRoom},
    reader::ServerReader,
    space::{HierarchyPage, HierarchyRequest},
    state::ServedStateIds,
    summary::RoomSummary,
    walk::{BACKFILL_MAX, MISSING_MAX, MissingEvents},
};

/// Bytes of access control lists in memory at the most.
const ACL_BYTES: u64 = 8 << 20;
/// Bytes of lists of the servers of rooms in memory at the most.
const SERVERS_BYTES: u64 = 16 << 20;
/// Bytes of lists of the children of spaces in memory at the most.
const CHILDREN_BYTES: u64 = 2 << 20;
/// Answers with the whole state of a room that are written at the same time.
const STATE_ANSWERS: usize = 4;

static ACL_LOADS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_rooms_acl_loads_total", "Times a room's access control list was read from its event.")
        .expect("metric names are unique")
});
static ACL_REFUSALS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_rooms_acl_refusals_total", "Requests that a room's access control list refused.")
        .expect("metric names are unique")
});
static SERVER_LISTS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_rooms_server_lists_made_total",
        "Times the servers of a room were counted from all of its members."
    )
    .expect("metric names are unique")
});
static CACHE_BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "myelin_rooms_served_cache_bytes",
        "Access control lists, servers of rooms and children of spaces in memory."
    )
    .expect("metric names are unique")
});
static STATE_WAITING: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("myelin_rooms_state_answers_waiting", "Servers that wait to be told the whole state of a room.")
        .expect("metric names are unique")
});

/// What is kept in memory to answer other servers.
pub(crate) struct Serving {
    /// By the event's number, and whether the event was redacted.
    acls: Cache<(i64, bool), Arc<ServerAcl>, ByWeight>,
    /// By room, as of one of its snapshots.
    servers: Cache<i64, Arc<RoomServers>, ByWeight>,
    /// The numbers of the `m.space.child` events of a snapshot.
    children: Cache<i64, Arc<[i64]>, ByWeight>,
    /// Rooms as other servers describe them.
    elsewhere: elsewhere::Described,
    states: Semaphore,
}

impl Serving {
    pub(crate) fn new() -> Self {
        LazyLock::force(&ACL_LOADS);
        LazyLock::force(&ACL_REFUSALS);
        LazyLock::force(&SERVER_LISTS);
        LazyLock::force(&CACHE_BYTES);
        LazyLock::force(&STATE_WAITING);
        Self {
            acls: Cache::with_weighter(256, ACL_BYTES, ByWeight),
            servers: Cache::with_weighter(1024, SERVERS_BYTES, ByWeight),
            children: Cache::with_weighter(256, CHILDREN_BYTES, ByWeight),
            elsewhere: elsewhere::described(),
            states: Semaphore::new(STATE_ANSWERS),
        }
    }

    fn show_weight(&self) {
        let weight = self.acls.weight() + self.servers.weight() + self.children.weight();
        CACHE_BYTES.set(i64::try_from(weight).unwrap_or(i64::MAX));
    }
}

/// A weigher for values that know their weight.
#[derive(Clone, Debug)]
struct ByWeight;

/// A value that takes some bytes of memory.
trait Weight {
    fn weight(&self) -> u64;
}

impl<K, V: Weight> Weighter<K, V> for ByWeight {
    fn weight(&self, _: &K, value: &V) -> u64 {
        value.weight()
    }
}

impl Weight for Arc<[i64]> {
    fn weight(&self) -> u64 {
        64 + self.len() as u64 * 8
    }
}
