//! An embedded database is served by one process at a time.

use std::fs::{File, TryLockError};

use tracing::warn;

use crate::{
    Error, Result, Store,
    database::Database,
    sql::{execute, row},
};

/// As long as it lives, no other process on this machine serves the same embedded database.
#[derive(Debug)]
pub struct SoleServer(#[expect(dead_code, reason = "the lock ends with the file")] File);

impl Store {
    /// Makes this process the one that serves an embedded database. What an earlier one had taken upon itself when it
    /// was killed is free at once, and need not run out. `None` for PostgreSQL, which any number of replicas share, and
    /// where the file system knows no locks.
    ///
    /// # Errors
    ///
    /// [`Error::Served`] while another process does.
    pub async fn serve_alone(&self) -> Result<Option<SoleServer>> {
        if matches!(self.database, Database::Postgres { .. }) {
            return Ok(None);
        }
        let mut transaction = self.database.begin().await?;
        let (database,): (String,) = row!(transaction, "SELECT file FROM pragma_database_list WHERE name = 'main'")?;
        let path = format!("{database}.lock");
        let locked = File::create(&path).map_err(TryLockError::Error).and_then(|file| file.try_lock().map(|()| file));
        let file = match locked {
            Ok(file) => file,
            Err(TryLockError::WouldBlock) => return Err(Error::Served),
            Err(TryLockError::Error(error)) => {
                warn!(%error, "cannot lock {path}: see that no other process serves this database");
                return Ok(None);
            }
        };
        execute!(transaction, "UPDATE leases SET holder = '', expires_ts = 0")?;
        transaction.commit().await?;
        Ok(Some(SoleServer(file)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{
        Error,
        database::Database,
        leases::Candidate,
        testing::{Fresh, on_both},
    };

    /// A second server of an embedded database is refused; after the first, the next one has its duties at once.
    #[tokio::test]
    async fn one_at_a_time_serves_an_embedded_database() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let first = store.serve_alone().await.unwrap();
            if matches!(store.database, Database::Postgres { .. }) {
                assert!(first.is_none());
                store.close().await;
                return;
            }
            assert!(first.is_some());
            let ttl = Duration::from_secs(600);
            let candidate = |holder: &str| Candidate { name: "test", holder: holder.to_owned(), ttl };
            assert!(store.take_lease(&candidate("a")).await.unwrap().is_some());
            assert!(matches!(store.serve_alone().await, Err(Error::Served)));
            assert!(store.take_lease(&candidate("b")).await.unwrap().is_none());
            drop(first);
            assert!(store.serve_alone().await.unwrap().is_some());
            assert!(store.take_lease(&candidate("b")).await.unwrap().is_some());
            store.close().await;
        })
        .await;
    }
}
