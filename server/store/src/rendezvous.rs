//! Places where two devices leave each other messages while one of them signs in: by the hashes of their names.

use crate::{
    Result, Store,
    sql::{execute, optional, row},
};

/// Places that there may be at a time, all of them together: anyone may ask for one.
pub const RENDEZVOUS_MAX: i64 = 10_000;

/// What lies in such a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// The last message.
    pub content: Vec<u8>,
    /// How many messages there were before.
    pub version: i64,
    /// When the last one was written, in milliseconds since the epoch.
    pub modified_ts: i64,
    /// When the place ends.
    pub expires_ts: i64,
}

/// What came of writing to such a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RendezvousWrite {
    /// It is written.
    Done {
        /// When the place ends.
        expires_ts: i64,
    },
    /// There is another message than the writer had seen.
    Changed {
        /// How many messages there were before that one.
        version: i64,
    },
    /// There is no such place, or it has ended.
    Unknown,
}

impl Store {
    /// Makes a place with a first message; those that have ended go. `false` if there are too many.
    pub async fn create_rendezvous(
        &self,
        id_hash: &[u8],
        content: &[u8],
        expires_ts: i64,
        now_ms: i64,
    ) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM rendezvous WHERE expires_ts <= $1", now_ms)?;
        let (count,): (i64,) = row!(transaction, "SELECT count(*) FROM rendezvous")?;
        if count >= RENDEZVOUS_MAX {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO rendezvous (id_hash, content, version, modified_ts, expires_ts) VALUES ($1, $2, 0, $3, $4)",
            id_hash,
            content,
            now_ms,
            expires_ts
        )?;
        transaction.commit().await?;
        Ok(true)
    }

    /// What lies in a place.
    pub async fn rendezvous(&self, id_hash: &[u8], now_ms: i64) -> Result<Option<Rendezvous>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(Vec<u8>, i64, i64, i64)> = optional!(
            reader,
            "SELECT content, version, modified_ts, expires_ts FROM rendezvous WHERE id_hash = $1 AND expires_ts > $2",
            id_hash,
            now_ms
        )?;
        Ok(found.map(|(content, version, modified_ts, expires_ts)| Rendezvous {
            content,
            version,
            modified_ts,
            expires_ts,
        }))
    }

    /// Puts a message in the place of the one whose `version` the writer has seen.
    pub async fn write_rendezvous(
        &self,
        id_hash: &[u8],
        version: i64,
        content: &[u8],
        now_ms: i64,
    ) -> Result<RendezvousWrite> {
        let mut transaction = self.database.begin().await?;
        let written: Option<(i64,)> = optional!(
            transaction,
            "UPDATE rendezvous SET content = $1, version = version + 1, modified_ts = $2
             WHERE id_hash = $3 AND version = $4 AND expires_ts > $2 RETURNING expires_ts",
            content,
            now_ms,
            id_hash,
            version
        )?;
        if let Some((expires_ts,)) = written {
            transaction.commit().await?;
            return Ok(RendezvousWrite::Done { expires_ts });
        }
        let there: Option<(i64,)> = optional!(
            transaction,
            "SELECT version FROM rendezvous WHERE id_hash = $1 AND expires_ts > $2",
            id_hash,
            now_ms
        )?;
        Ok(there.map_or(RendezvousWrite::Unknown, |(version,)| RendezvousWrite::Changed { version }))
    }

    /// Ends a place. `false` if there was none.
    pub async fn delete_rendezvous(&self, id_hash: &[u8], now_ms: i64) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let gone =
            execute!(transaction, "DELETE FROM rendezvous WHERE id_hash = $1 AND expires_ts > $2", id_hash, now_ms)?;
        transaction.commit().await?;
        Ok(gone > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{RENDEZVOUS_MAX, RendezvousWrite};
    use crate::testing::{Fresh, on_both};

    /// Of two who answer the same message one is told that the other was first; what has ended is not there.
    #[tokio::test]
    async fn who_writes_has_seen_the_last() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            assert!(store.create_rendezvous(b"a", b"hello", 100, 1).await.unwrap());
            let write = async |version, now| store.write_rendezvous(b"a", version, b"answer", now).await.unwrap();
            let (one, other) = tokio::join!(write(0, 2), write(0, 2));
            let (done, changed) = (RendezvousWrite::Done { expires_ts: 100 }, RendezvousWrite::Changed { version: 1 });
            assert!([(done, changed), (changed, done)].contains(&(one, other)), "{one:?} {other:?}");
            let found = store.rendezvous(b"a", 3).await.unwrap().unwrap();
            assert_eq!((found.content.as_slice(), found.version, found.modified_ts), (&b"answer"[..], 1, 2));
            assert_eq!(write(1, 100).await, RendezvousWrite::Unknown);
            assert_eq!(store.rendezvous(b"a", 100).await.unwrap(), None);
            assert_eq!(store.rendezvous(b"b", 3).await.unwrap(), None);
            assert!(store.delete_rendezvous(b"a", 3).await.unwrap());
            assert!(!store.delete_rendezvous(b"a", 3).await.unwrap());
            store.close().await;
        })
        .await;
    }

    /// There are only so many; those that have ended make room.
    #[tokio::test]
    async fn there_are_only_so_many() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let mut transaction = store.database.begin().await.unwrap();
            let fill = crate::sql::Sql {
                sqlite: "INSERT INTO rendezvous (id_hash, content, version, modified_ts, expires_ts)
                         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
                         SELECT CAST(i AS BLOB), x'', 0, 0, 100 FROM n",
                postgres: "INSERT INTO rendezvous (id_hash, content, version, modified_ts, expires_ts)
                           SELECT i::text::bytea, '', 0, 0, 100 FROM generate_series(1, $1::bigint) AS i",
            };
            crate::sql::execute!(transaction, fill, RENDEZVOUS_MAX).unwrap();
            transaction.commit().await.unwrap();
            assert!(!store.create_rendezvous(b"new", b"", 200, 99).await.unwrap());
            assert!(store.create_rendezvous(b"new", b"", 200, 100).await.unwrap());
            store.close().await;
        })
        .await;
    }
}
