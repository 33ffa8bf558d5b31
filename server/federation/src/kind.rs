//! Kinds of requests: what each may cost.

use std::time::Duration;

use crate::{backoff::Patience, http::Limits};

const MIB: usize = 1024 * 1024;

/// What is known of a kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its name in metrics.
    pub(crate) name: &'static str,
    pub(crate) limits: Limits,
    pub(crate) patience: Patience,
}

const fn kind(name: &'static str, seconds: u64, bytes: usize, patience: Patience) -> Kind {
    let limits = Limits { deadline: Duration::from_secs(seconds), answer_bytes_max: bytes };
    Kind { name, limits, patience }
}

/// The beginning of the path, and the kind. The first that fits counts.
const KINDS: [(&str, Kind); 27] = [
    ("/_matrix/federation/v1/send/", kind("send", 60, 4 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/make_join/", kind("make_join", 40, MIB, Patience::User)),
    ("/_matrix/federation/v2/send_join/", kind("send_join", 300, 256 * MIB, Patience::User)),
    ("/_matrix/federation/v1/make_leave/", kind("make_leave", 30, MIB, Patience::User)),
    ("/_matrix/federation/v2/send_leave/", kind("send_leave", 30, MIB, Patience::User)),
    ("/_matrix/federation/v1/make_knock/", kind("make_knock", 30, MIB, Patience::User)),
    ("/_matrix/federation/v1/send_knock/", kind("send_knock", 30, 4 * MIB, Patience::User)),
    ("/_matrix/federation/v2/invite/", kind("invite", 30, MIB, Patience::User)),
    ("/_matrix/federation/v1/invite/", kind("invite", 30, MIB, Patience::User)),
    ("/_matrix/federation/v1/exchange_third_party_invite/", kind("exchange_invite", 30, MIB, Patience::User)),
    ("/_matrix/federation/v1/event/", kind("event", 20, MIB, Patience::Patient)),
    ("/_matrix/federation/v1/get_missing_events/", kind("missing_events", 30, 64 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/state_ids/", kind("state_ids", 60, 64 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/state/", kind("state", 300, 256 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/event_auth/", kind("event_auth", 60, 64 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/backfill/", kind("backfill", 60, 64 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/timestamp_to_event/", kind("timestamp_to_event", 20, MIB, Patience::User)),
    ("/_matrix/federation/v1/hierarchy/", kind("hierarchy", 30, 8 * MIB, Patience::User)),
    ("/_matrix/federation/v1/query/directory", kind("directory", 20, MIB, Patience::User)),
    ("/_matrix/federation/v1/query/", kind("query", 20, MIB, Patience::Patient)),
    ("/_matrix/federation/v1/publicRooms", kind("public_rooms", 40, 8 * MIB, Patience::User)),
    ("/_matrix/federation/v1/user/", kind("user", 30, 32 * MIB, Patience::Patient)),
    ("/_matrix/federation/v1/media/", kind("media", 120, 64 * MIB, Patience::User)),
    ("/_matrix/federation/v1/version", kind("version", 20, 64 * 1024, Patience::User)),
    ("/_matrix/federation/v1/openid/", kind("openid", 20, MIB, Patience::User)),
    ("/_matrix/policy/", kind("policy", 10, 64 * 1024, Patience::User)),
    ("/_matrix/key/", kind("keys", 20, 4 * MIB, Patience::Patient)),
];

/// Whatever else is asked.
const OTHER: Kind = kind("other", 30, MIB, Patience::Patient);

impl Kind {
    /// The kind of a request, by its path.
    pub(crate) fn of(path: &str) -> Self {
        KINDS.iter().find(|(start, _)| path.starts_with(start)).map_or(OTHER, |(_, kind)| *kind)
    }
}
