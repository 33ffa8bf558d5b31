//! Keys, device lists, messages to devices and key backups.

pub(crate) mod backups;
pub(crate) mod cross_signing;
pub(crate) mod device_keys;
pub(crate) mod device_lists;
pub(crate) mod edus;
pub(crate) mod one_time_keys;
pub(crate) mod remote_devices;
#[cfg(test)]
mod tests;
pub(crate) mod to_device;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::{Batch, Change, Error, Result, Store, committer::advance_stream, database::Transaction};

/// How long a change may hold up the stream: longer than any that is not stuck.
const CHANGE_TIME: Duration = Duration::from_secs(20);

/// A transaction that may take places in the stream, whose row it holds.
pub(crate) struct StreamWrite {
    pub(crate) transaction: Transaction,
    from: i64,
    to: i64,
    changes: Vec<Change>,
}

impl StreamWrite {
    /// The next place in the stream.
    pub(crate) async fn position(&mut self) -> Result<i64> {
        self.to = advance_stream(&mut self.transaction, 1).await? + 1;
        Ok(self.to)
    }

    /// What is told to those who follow the stream, once it is committed.
    pub(crate) fn tell(&mut self, change: Change) {
        self.changes.push(change);
    }
}

impl Store {
    /// Runs a transaction in the order of the stream, which stands still meanwhile; so it has to be short.
    pub(crate) async fn write_in_stream<T: Send + 'static>(
        self: &Arc<Self>,
        write: impl for<'w> FnOnce(&'w mut StreamWrite) -> BoxFuture<'w, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        // In a task: a caller that goes away between the commit and the news of it would leave readers waiting.
        let writing = tokio::spawn(async move { store.write_locked(write).await });
        writing.await.map_err(|_| Error::Closed)?
    }

    async fn write_locked<T>(
        &self,
        write: impl for<'w> FnOnce(&'w mut StreamWrite) -> BoxFuture<'w, Result<T>> + Send,
    ) -> Result<T> {
        // In the committer's order: the tail, then the stream's row, which stays locked until the commit.
        let mut tail = self.tail.lock().await;
        let Ok(written) = tokio::time::timeout(CHANGE_TIME, self.write_and_commit(write)).await else {
            self.database.distrust_connections();
            return Err(Error::Timeout);
        };
        let (answer, batch) = written?;
        if let Err(error) = self.advance(&mut tail, batch).await {
            // The write stands. Whoever reads the stream next closes the gap.
            tracing::warn!(error = &error as &dyn std::error::Error, "could not read what other replicas wrote");
        }
        Ok(answer)
    }

    async fn write_and_commit<T>(
        &self,
        write: impl for<'w> FnOnce(&'w mut StreamWrite) -> BoxFuture<'w, Result<T>> + Send,
    ) -> Result<(T, Batch)> {
        let mut transaction = self.database.begin().await?;
        let from = advance_stream(&mut transaction, 0).await?;
        let mut writing = StreamWrite { transaction, from, to: from, changes: Vec::new() };
        let answer = write(&mut writing).await?;
        let StreamWrite { transaction, from, to, changes } = writing;
        transaction.commit().await?;
        Ok((answer, Batch { from, to, changes }))
    }
}
