//! What is written down: how far the stream was distributed, and the servers that have not everything up to there.
//!
//! The stored position waits a few seconds for servers that are well and have something under way, so that they need no
//! row. After a crash some events are sent again to servers that had taken them: they know them by their identifiers.

use myelin_store::{Result, StoredDestination};

use super::{
    metrics::{CHECKPOINT, CHECKPOINT_FAILURES, LAG, POSITION},
    term::Term,
};

/// What was written last.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    stored_pos: i64,
}

/// How a checkpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Everything that has to be is in the database, or was already.
    Done,
    /// The lease is another one's: nothing was written.
    LeaseLost,
}

impl Checkpoints {
    pub(crate) fn new(stored_pos: i64) -> Self {
        Self { stored_pos }
    }

    /// Writes what has changed.
    pub(crate) async fn write(&mut self, term: &Term) -> Result<Written> {
        let distributed = term.distributed();
        let now = term.clock.now_ms();
        // Before looking, so that what changes meanwhile is looked at next time.
        let has_changed = term.take_changed();
        if has_changed {
            let written = self.write_changed(term, distributed, now).await;
            if !matches!(written, Ok(Written::Done)) {
                term.changed();
                CHECKPOINT_FAILURES.inc();
                return written;
            }
        }
        POSITION.set(distributed);
        LAG.set(term.store.position() - self.stored_pos);
        CHECKPOINT.set(i64::try_from(now / 1000).unwrap_or(i64::MAX));
        Ok(Written::Done)
    }

    async fn write_changed(&mut self, term: &Term, distributed: i64, now: u64) -> Result<Written> {
        let mut pos = distributed;
        let mut changed = Vec::new();
        for destination in term.all() {
            let standpoint = destination.checkpoint(now);
            if let Some(waits_for) = standpoint.waits_for {
                pos = pos.min(waits_for - 1);
            }
            changed.extend(standpoint.row.map(|row| (destination, row)));
        }
        if pos < distributed {
            // Somebody is waited for: look again.
            term.changed();
        }
        if pos == self.stored_pos && changed.is_empty() {
            return Ok(Written::Done);
        }
        let rows: Vec<StoredDestination> = changed.iter().map(|(_, row)| row.clone()).collect();
        if !term.store.save_sending(&term.lease, pos, &rows).await? {
            return Ok(Written::LeaseLost);
        }
        self.stored_pos = pos;
        for (destination, row) in changed {
            destination.written(row);
        }
        Ok(Written::Done)
    }
}
