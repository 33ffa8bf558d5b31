//! What our own users say about themselves.

use crate::{
    Result, Store,
    sql::{Sql, execute, optional, rows},
};

const LOCK_USER: Sql = Sql {
    sqlite: "SELECT user_nid FROM users WHERE user_nid = $1",
    postgres: "SELECT user_nid FROM users WHERE user_nid = $1 FOR UPDATE",
};

impl Store {
    /// All fields of a profile with their values as JSON, in the order of their names.
    pub async fn profile(&self, user_nid: i64) -> Result<Vec<(String, String)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(reader, "SELECT field, value FROM profile_fields WHERE user_nid = $1 ORDER BY field", user_nid)?)
    }

    /// The value of one field of a profile, as JSON.
    pub async fn profile_field(&self, user_nid: i64, field: &str) -> Result<Option<String>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> =
            optional!(reader, "SELECT value FROM profile_fields WHERE user_nid = $1 AND field = $2", user_nid, field)?;
        Ok(found.map(|(value,)| value))
    }

    /// Sets a field, unless the profile as a JSON object would take more than `max_bytes`: then false.
    pub async fn set_profile_field(&self, user_nid: i64, field: &str, value: &str, max_bytes: usize) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        // Two fields set at once must not exceed the bound together.
        let _: Option<(i64,)> = optional!(transaction, LOCK_USER, user_nid)?;
        let others: Vec<(String, String)> = rows!(
            transaction,
            "SELECT field, value FROM profile_fields WHERE user_nid = $1 AND field <> $2",
            user_nid,
            field
        )?;
        // Quotes, colon and comma of a member; the braces.
        let size = |field: &str, value: &str| field.len() + value.len() + 4;
        let total = 2 + size(field, value) + others.iter().map(|(field, value)| size(field, value)).sum::<usize>();
        if total > max_bytes {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO profile_fields (user_nid, field, value) VALUES ($1, $2, $3)
             ON CONFLICT (user_nid, field) DO UPDATE SET value = excluded.value",
            user_nid,
            field,
            value
        )?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Removes a field. False if there was none.
    pub async fn delete_profile_field(&self, user_nid: i64, field: &str) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let deleted =
            execute!(transaction, "DELETE FROM profile_fields WHERE user_nid = $1 AND field = $2", user_nid, field)?;
        transaction.commit().await?;
        Ok(deleted == 1)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use crate::testing::{Fresh, on_both};

    /// Fields are set, replaced and removed one by one, and the bound holds for all of them together.
    #[tokio::test]
    async fn fields_are_bounded_together() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let nid = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
            assert!(store.set_profile_field(nid, "a", "\"1234\"", 24).await.unwrap());
            assert!(store.set_profile_field(nid, "b", "\"1234\"", 24).await.unwrap());
            assert!(!store.set_profile_field(nid, "b", "\"12345\"", 24).await.unwrap());
            assert!(!store.set_profile_field(nid, "c", "1", 24).await.unwrap());
            assert_eq!(store.profile_field(nid, "b").await.unwrap().as_deref(), Some("\"1234\""));
            assert!(store.delete_profile_field(nid, "a").await.unwrap());
            assert!(!store.delete_profile_field(nid, "a").await.unwrap());
            assert!(store.set_profile_field(nid, "b", "\"12345\"", 24).await.unwrap());
            assert_eq!(store.profile(nid).await.unwrap(), [("b".to_owned(), "\"12345\"".to_owned())]);
            store.close().await;
        })
        .await;
    }
}
