//! User-interactive authentication under way.

use crate::{
    Result, Store,
    sql::{execute, optional},
};

impl Store {
    /// Remembers where an authentication stands, anew or in place of what was known of it.
    pub async fn put_uia_session(&self, session_id: &str, operation: &str, state: &str, expires_ts: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO uia_sessions (session_id, operation, state, expires_ts) VALUES ($1, $2, $3, $4)
             ON CONFLICT (session_id) DO UPDATE SET state = excluded.state, expires_ts = excluded.expires_ts",
            session_id,
            operation,
            state,
            expires_ts
        )?;
        transaction.commit().await
    }

    /// What an authentication is for, and where it stands.
    pub async fn uia_session(&self, session_id: &str, now_ms: i64) -> Result<Option<(String, String)>> {
        let mut reader = self.database.reader().await?;
        Ok(optional!(
            reader,
            "SELECT operation, state FROM uia_sessions WHERE session_id = $1 AND expires_ts > $2",
            session_id,
            now_ms
        )?)
    }

    /// Ends an authentication. False if it had ended before: whoever ends it may go on.
    pub async fn end_uia_session(&self, session_id: &str) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let ended = execute!(transaction, "DELETE FROM uia_sessions WHERE session_id = $1", session_id)?;
        transaction.commit().await?;
        Ok(ended == 1)
    }

    /// Forgets what has expired, and the oldest of what exceeds a bound.
    pub async fn prune_uia_sessions(&self, now_ms: i64, count_max: i64) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let expired = execute!(transaction, "DELETE FROM uia_sessions WHERE expires_ts <= $1", now_ms)?;
        let excess = execute!(
            transaction,
            "DELETE FROM uia_sessions WHERE session_id IN
             (SELECT session_id FROM uia_sessions ORDER BY expires_ts DESC, session_id LIMIT 1000000000 OFFSET $1)",
            count_max
        )?;
        transaction.commit().await?;
        Ok(expired + excess)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Fresh, on_both};

    /// Sessions end with their time, when they are used, and, the oldest first, when there are too many.
    #[tokio::test]
    async fn sessions_are_bounded() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            for (id, expires) in [("a", 10), ("b", 20), ("c", 30), ("d", 40)] {
                store.put_uia_session(id, "op", "{}", expires).await.unwrap();
            }
            store.put_uia_session("d", "other", "{\"completed\":[]}", 40).await.unwrap();
            let kept = ("op".to_owned(), "{\"completed\":[]}".to_owned());
            assert_eq!(store.uia_session("d", 39).await.unwrap(), Some(kept));
            assert!(store.uia_session("a", 10).await.unwrap().is_none());
            assert_eq!(store.prune_uia_sessions(10, 2).await.unwrap(), 2);
            assert!(store.uia_session("b", 0).await.unwrap().is_none());
            assert!(store.end_uia_session("c").await.unwrap());
            assert!(!store.end_uia_session("c").await.unwrap());
            store.close().await;
        })
        .await;
    }
}
