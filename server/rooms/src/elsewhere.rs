//! What other servers tell of their users and their rooms, kept in memory for a while.

mod directory;
mod kept;
mod profile;

use std::sync::{Arc, LazyLock};

use prometheus::{IntCounterVec, IntGauge, register_int_counter_vec, register_int_gauge};
use ruma::OwnedUserId;

pub(crate) use self::kept::{Kept, Weight};
use self::profile::KnownProfile;

/// Bytes of profiles in memory at the most.
const PROFILE_BYTES: u64 = 4 << 20;

static ANSWERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_rooms_elsewhere_answers_total",
        "What was wanted of other servers' users and rooms, by what, and whether it was in memory, was told, or was not to be had.",
        &["what", "source"]
    )
    .expect("metric names are unique")
});
static BYTES: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "myelin_rooms_elsewhere_cache_bytes",
        "What is kept in memory of other servers' users and rooms."
    )
    .expect("metric names are unique")
});

/// What is kept of other servers' users.
pub(crate) struct Elsewhere {
    profiles: Kept<OwnedUserId, Arc<KnownProfile>>,
}

impl Default for Elsewhere {
    fn default() -> Self {
        for what in ["profile", "public_rooms", "space", "event_by_timestamp"] {
            for source in ["memory", "server", "nowhere"] {
                ANSWERS.with_label_values(&[what, source]);
            }
        }
        Self { profiles: Kept::new("profile", 1024, PROFILE_BYTES) }
    }
}

/// Counts what came of asking another server.
pub(crate) fn asked<T, E>(what: &str, answer: Result<T, E>) -> Result<T, E> {
    let source = if answer.is_ok() { "server" } else { "nowhere" };
    ANSWERS.with_label_values(&[what, source]).inc();
    answer
}
