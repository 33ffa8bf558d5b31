//! The member events that a device was sent already: "redundant membership events" need not be sent again.
//!
//! A record counts from the token of the answer that it was made for on: a client that asks again with an older token
//! did not get that answer, and the record is dropped.

use std::{collections::HashMap, sync::Arc};

use quick_cache::sync::Cache;

/// Members remembered, of all devices and rooms together.
const MEMBERS_MAX: u64 = 1_000_000;

/// What a device has of a room. Never changed in place: the cache has weighed it.
#[derive(Clone, Debug, Default)]
struct Members {
    /// By member's state key: the event sent, and the position of the answer that it was in.
    sent: HashMap<i64, (i64, i64)>,
    /// The greatest of these positions, or beyond it.
    last: i64,
}

type Sent = Arc<Members>;

#[derive(Clone, Debug)]
struct ByLength;

impl quick_cache::Weighter<(i64, i64), Sent> for ByLength {
    fn weight(&self, _: &(i64, i64), sent: &Sent) -> u64 {
        sent.sent.len() as u64 + 1
    }
}

#[derive(Debug)]
pub(crate) struct SentMembers(Cache<(i64, i64), Sent, ByLength>);

impl SentMembers {
    pub(crate) fn new() -> Self {
        Self(Cache::with_weighter(10_000, MEMBERS_MAX, ByLength))
    }

    /// Whether the client has a member's event, given the position of its token.
    pub(crate) fn knows(&self, device_nid: i64, room_nid: i64, key_nid: i64, event_nid: i64, since: i64) -> bool {
        let sent = self.0.get(&(device_nid, room_nid)).and_then(|sent| sent.sent.get(&key_nid).copied());
        sent.is_some_and(|(sent, at)| sent == event_nid && at <= since)
    }

    /// Drops what was sent in answers beyond a position: a client that asks from there on did not get them.
    pub(crate) fn rewind(&self, device_nid: i64, room_nid: i64, since: i64) {
        let key = (device_nid, room_nid);
        let Some(mut sent) = self.0.get(&key) else { return };
        if sent.last > since {
            let members = Arc::make_mut(&mut sent);
            members.sent.retain(|_, (_, at)| *at <= since);
            members.last = since;
            self.0.insert(key, sent);
        }
    }

    /// Remembers members `(key, event)` sent in an answer that ends at a position.
    pub(crate) fn remember(
        &self,
        device_nid: i64,
        room_nid: i64,
        members: impl IntoIterator<Item = (i64, i64)>,
        at: i64,
    ) {
        let key = (device_nid, room_nid);
        let mut sent = self.0.get(&key).unwrap_or_default();
        let is_new = |(key, event): &(i64, i64)| sent.sent.get(key).is_none_or(|(sent, _)| sent != event);
        let new: Vec<(i64, i64)> = members.into_iter().filter(is_new).collect();
        if new.is_empty() {
            return;
        }
        let members = Arc::make_mut(&mut sent);
        members.sent.extend(new.into_iter().map(|(key, event)| (key, (event, at))));
        members.last = members.last.max(at);
        self.0.insert(key, sent);
    }

    /// Forgets a room: the device begins anew.
    pub(crate) fn forget(&self, device_nid: i64, room_nid: i64) {
        self.0.remove(&(device_nid, room_nid));
    }
}

#[cfg(test)]
mod tests {
    use super::SentMembers;

    /// A member is known once it was sent, as long as neither the member nor the client went elsewhere.
    #[test]
    fn remembers() {
        let sent = SentMembers::new();
        sent.remember(1, 2, [(3, 4)], 10);
        assert!(sent.knows(1, 2, 3, 4, 10));
        assert!(!sent.knows(1, 2, 3, 4, 9), "the client repeats the request: the answer was lost");
        assert!(!sent.knows(1, 2, 3, 5, 10), "the member changed");
        assert!(!sent.knows(9, 2, 3, 4, 10), "another device");
        sent.remember(1, 2, [(5, 6)], 20);
        sent.rewind(1, 2, 15);
        assert!(sent.knows(1, 2, 3, 4, 30));
        assert!(!sent.knows(1, 2, 5, 6, 30), "it was in an answer that got lost");
        sent.forget(1, 2);
        assert!(!sent.knows(1, 2, 3, 4, 10));
    }
}
