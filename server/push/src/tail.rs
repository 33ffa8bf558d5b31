//! The newest changes of the stream, in memory until they are looked at.

use std::collections::{HashSet, VecDeque};

use myelin_store::{Batch, Change};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Changes that wait in memory; beyond that they are read from the database.
const CHANGES_MAX: usize = 4_096;
/// Users whose pushers have changed that are remembered one by one.
const USERS_MAX: usize = 1_024;

/// What one term of the duty hears.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    inner: Mutex<Inner>,
    /// Told when there is something.
    pub(crate) news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// All that matters of the positions after the first, up to the second, is in `changes`.
    range: Option<(i64, i64)>,
    changes: VecDeque<Change>,
    heard: Heard,
}

/// What was heard of pushers.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Users whose pushers have changed.
    pub(crate) users: HashSet<i64>,
    /// Pushers may have gone with their devices.
    pub(crate) are_gone: bool,
    /// Something was not heard.
    pub(crate) is_missed: bool,
}

impl Tail {
    /// Keeps what was committed.
    pub(crate) fn committed(&self, batch: &Batch) {
        {
            let mut guard = self.inner.lock();
            let inner = &mut *guard;
            match &mut inner.range {
                Some((_, to)) if *to == batch.from => *to = batch.to,
                range => {
                    *range = Some((batch.from, batch.to));
                    inner.changes.clear();
                }
            }
            inner.changes.extend(batch.changes.iter().filter(|change| matters(change)).cloned());
            if inner.changes.len() > CHANGES_MAX {
                inner.changes = VecDeque::new();
                inner.range = Some((batch.to, batch.to));
            }
        }
        self.news.notify_one();
    }

    /// The changes after a position and the position that they go up to, if they are in memory; else the position up to
    /// which they must be read.
    pub(crate) fn after(&self, pos: i64, newest: i64) -> Result<(Vec<Change>, i64), i64> {
        let mut inner = self.inner.lock();
        match inner.range {
            None => Err(newest),
            Some((from, _)) if from > pos => Err(from),
            Some((_, to)) => {
                let changes = std::mem::take(&mut inner.changes);
                inner.range = Some((to, to));
                Ok((changes.into_iter().filter(|change| change.pos() > pos).collect(), to.max(pos)))
            }
        }
    }

    pub(crate) fn pushers_changed(&self, user_nid: i64) {
        self.hear(|heard| {
            if heard.users.len() < USERS_MAX {
                heard.users.insert(user_nid);
            } else {
                heard.is_missed = true;
            }
        });
    }

    pub(crate) fn sessions_ended(&self) {
        self.hear(|heard| heard.are_gone = true);
    }

    pub(crate) fn missed(&self) {
        self.hear(|heard| heard.is_missed = true);
    }

    fn hear(&self, note: impl FnOnce(&mut Heard)) {
        note(&mut self.inner.lock().heard);
        self.news.notify_one();
    }

    pub(crate) fn take_heard(&self) -> Heard {
        std::mem::take(&mut self.inner.lock().heard)
    }
}

fn matters(change: &Change) -> bool {
    match change {
        Change::Event(event) => event.is_shown(),
        Change::Membership { .. } | Change::Receipt(_) => true,
        Change::AccountData(_) | Change::ToDevice(_) | Change::DeviceList(_) => false,
    }
}
