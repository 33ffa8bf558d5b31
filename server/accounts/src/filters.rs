//! Filters that clients keep here.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use std::sync::Arc;

use quick_cache::Weighter;
use ruma::api::client::filter::FilterDefinition;

use crate::{Accounts, Error, Result};

/// The largest filter, in bytes.
pub const FILTER_BYTES_MAX: usize = 64 * 1024;

/// A filter in memory.
#[derive(Debug)]
pub(crate) struct Kept {
    filter: Arc<FilterDefinition>,
    bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct FilterCache;

impl Weighter<(i64, i64), Arc<Kept>> for FilterCache {
    fn weight(&self, _key: &(i64, i64), kept: &Arc<Kept>) -> u64 {
        // The definition has many empty fields; its lists weigh about what their text weighs.
        1024 + 2 * kept.bytes as u64
    }
}

impl Accounts {
    /// Keeps a filter; answers its identifier. The same filter gets the same one.
    ///
    /// # Errors
    ///
    /// [`Error::FilterTooLarge`].
    pub async fn create_filter(&self, user_nid: i64, filter: &FilterDefinition) -> Result<String> {
        let json = serde_json::to_string(filter).map_err(|_| Error::FilterTooLarge)?;
        if json.len() > FILTER_BYTES_MAX {
            return Err(Error::FilterTooLarge);
        }
        Ok(self.store.create_filter(user_nid, &json).await?.to_string())
    }

    /// A filter by its identifier.
    pub async fn filter(&self, user_nid: i64, filter_id: &str) -> Result<Option<Arc<FilterDefinition>>> {
        let Ok(number) = filter_id.parse::<i64>() else { return Ok(None) };
        if let Some(kept) = self.filters.get(&(user_nid, number)) {
            return Ok(Some(kept.filter.clone()));
        }
        let Some(json) = self.store.filter(user_nid, number).await? else { return Ok(None) };
        let filter =
            serde_json::from_str(&json).map_err(|_| Error::Store(myelin_store::Error::Corrupt { what: "filter" }))?;
        let filter = Arc::new(filter);
        self.filters.insert((user_nid, number), Arc::new(Kept { filter: Arc::clone(&filter), bytes: json.len() }));
        Ok(Some(filter))
    }
}

#[cfg(test)]
mod tests {
    use ruma::api::client::filter::FilterDefinition;
    use serde_json::json;

    use crate::{
        Error,
        testing::{Server, on_both},
    };

    /// A filter comes back as it was brought, to its user alone.
    #[tokio::test]
    async fn filters_come_back() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let nid = accounts.session(&alice.access_token, None).await.unwrap().user_nid;
            let json =
                json!({ "room": { "timeline": { "limit": 7, "not_types": ["a.*"] } }, "event_fields": ["type"] });
            let filter: FilterDefinition = serde_json::from_value(json.clone()).unwrap();
            let id = accounts.create_filter(nid, &filter).await.unwrap();
            assert_eq!(accounts.create_filter(nid, &filter).await.unwrap(), id);
            for _ in 0..2 {
                let kept = accounts.filter(nid, &id).await.unwrap().unwrap();
                assert_eq!(serde_json::to_value(&*kept).unwrap(), json);
            }
            assert!(accounts.filter(nid + 1, &id).await.unwrap().is_none());
            for unknown in ["99", "x", "", "99999999999999999999999"] {
                assert!(accounts.filter(nid, unknown).await.unwrap().is_none());
            }
            let large = json!({ "event_fields": ["x".repeat(super::FILTER_BYTES_MAX)] });
            let large: FilterDefinition = serde_json::from_value(large).unwrap();
            assert!(matches!(accounts.create_filter(nid, &large).await, Err(Error::FilterTooLarge)));
        })
        .await;
    }
}
