//! Keys of others for those who ask us: <https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server>.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedServerName, ServerName,
    api::federation::discovery::{ServerSigningKeys, get_remote_server_keys_batch::v2::QueryCriteria},
    serde::Raw,
};
use tokio::time::{self, Instant};

use super::{BATCH_PARALLEL, is_supported, now_ms};
use crate::Client;

/// Servers in one question that are answered.
const SERVERS_MAX: usize = 256;
/// The time for one question. What is known by then is the answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Documents of one server in an answer.
const DOCUMENTS_MAX: usize = 8;

/// What is asked of a server's keys: criteria by the identifiers of keys; none for all keys.
pub type KeyQuery = BTreeMap<String, QueryCriteria>;

impl Client {
    /// What we answer to `POST /_matrix/key/v2/query` and `GET /_matrix/key/v2/query/{serverName}`: documents with
    /// their server's signature and ours. Servers of which nothing is known and that do not answer are left out.
    pub async fn notarised_keys(&self, queries: BTreeMap<OwnedServerName, KeyQuery>) -> Vec<Raw<ServerSigningKeys>> {
        let deadline = Instant::now() + DEADLINE;
        let answers = stream::iter(queries.into_iter().take(SERVERS_MAX))
            .map(async |(server, query)| self.notarised_keys_of(&server, &query, deadline).await)
            .buffered(BATCH_PARALLEL);
        Box::pin(answers.map(stream::iter).flatten().collect()).await
    }

    async fn notarised_keys_of(
        &self,
        server: &ServerName,
        query: &KeyQuery,
        deadline: Instant,
    ) -> Vec<Raw<ServerSigningKeys>> {
        if server == self.options.server_name {
            return match self.key_document().await {
                Ok(document) => vec![document],
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "our keys cannot be told");
                    Vec::new()
                }
            };
        }
        if !self.is_fresh(server, query).await {
            // Who does not answer in time is told of as it was known.
            let _ = time::timeout_at(deadline, Box::pin(self.fetch_from_server(server, None))).await;
        }
        let documents = self.store.server_key_documents(server.as_str()).await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the keys of {server} cannot be read");
            Vec::new()
        });
        let signed = documents.iter().take(DOCUMENTS_MAX).map(|document| self.countersigned(&document.json));
        signed.filter_map(|signed| signed.inspect_err(|error| tracing::error!(%error, "{error}")).ok()).collect()
    }

    /// Whether what is known of a server answers the question.
    async fn is_fresh(&self, server: &ServerName, query: &KeyQuery) -> bool {
        let Ok(documents) = self.store.server_key_documents(server.as_str()).await else { return true };
        let Some(newest) = documents.first() else { return false };
        let now = now_ms();
        let wanted = query.values().filter_map(|criteria| criteria.minimum_valid_until_ts);
        let minimum = wanted.map(|ts| i64::from(ts.0)).max().unwrap_or(now);
        // "Intermediate notary servers should cache a response for half of its lifetime."
        let half = newest.fetched_ts + newest.valid_until_ts.saturating_sub(newest.fetched_ts).max(0) / 2;
        let known = self.known(server).await;
        let has_all = query.keys().filter(|key_id| is_supported(key_id)).all(|key_id| known.contains_key(key_id));
        has_all && newest.valid_until_ts >= minimum && now < half
    }
}
