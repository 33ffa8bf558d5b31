//! Filters that clients keep here.

use crate::{
    Error, Result, Store,
    sql::{execute, optional, row},
};

/// How often a number is tried that another replica may have given out meanwhile.
const TRIES: usize = 5;

impl Store {
    /// Keeps a filter; answers its number. The same text gets the same number.
    pub async fn create_filter(&self, user_nid: i64, json: &str) -> Result<i64> {
        let mut tries = 0;
        loop {
            match self.try_create_filter(user_nid, json).await {
                Err(error) if error.is_constraint() && tries < TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    async fn try_create_filter(&self, user_nid: i64, json: &str) -> Result<i64, Error> {
        let mut transaction = self.database.begin().await?;
        let same: Option<(i64,)> = optional!(
            transaction,
            "SELECT filter_id FROM filters WHERE user_nid = $1 AND json = $2 LIMIT 1",
            user_nid,
            json
        )?;
        if let Some((filter_id,)) = same {
            return Ok(filter_id);
        }
        let (filter_id,): (i64,) =
            row!(transaction, "SELECT COALESCE(MAX(filter_id) + 1, 0) FROM filters WHERE user_nid = $1", user_nid)?;
        execute!(
            transaction,
            "INSERT INTO filters (user_nid, filter_id, json) VALUES ($1, $2, $3)",
            user_nid,
            filter_id,
            json
        )?;
        transaction.commit().await?;
        Ok(filter_id)
    }

    /// A filter's text.
    pub async fn filter(&self, user_nid: i64, filter_id: i64) -> Result<Option<String>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> =
            optional!(reader, "SELECT json FROM filters WHERE user_nid = $1 AND filter_id = $2", user_nid, filter_id)?;
        Ok(found.map(|(json,)| json))
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use crate::testing::{Fresh, on_both};

    /// Each user has filters of their own; the same filter is kept once, also when two devices bring it at once.
    #[tokio::test]
    async fn filters_are_kept_once_a_user() {
        on_both(async |fresh: &Fresh| {
            let (store, other) = (fresh.open().await, fresh.open().await);
            let alice = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
            let bob = store.user_nid(user_id!("@bob:example.org")).await.unwrap();
            let first = store.create_filter(alice, "{}").await.unwrap();
            assert_eq!(store.create_filter(alice, "{}").await.unwrap(), first);
            let (one, two) =
                futures_util::join!(store.create_filter(alice, "{\"a\":1}"), other.create_filter(alice, "{\"b\":1}"));
            let (one, two) = (one.unwrap(), two.unwrap());
            assert_ne!(one, two);
            assert_eq!(store.filter(alice, one).await.unwrap().as_deref(), Some("{\"a\":1}"));
            assert_eq!(store.filter(alice, two).await.unwrap().as_deref(), Some("{\"b\":1}"));
            assert!(store.filter(bob, first).await.unwrap().is_none());
            store.close().await;
            other.close().await;
        })
        .await;
    }
}
