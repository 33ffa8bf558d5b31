//! The keys by which other servers sign, and the documents that told of them.

use crate::{
    Result, Store,
    sql::{execute, rows},
};

/// Keys that are remembered of one server at the most; those that were not told of for longest go first.
const KEYS_PER_SERVER: i64 = 256;

/// A key by which another server signs, or signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKey {
    /// Its identifier, for example `ed25519:1`.
    pub key_id: String,
    /// The public key's bytes.
    pub public_key: Vec<u8>,
    /// Signatures up to this time are good, in milliseconds since 1970.
    pub valid_until_ts: i64,
    /// When the server stopped to use it, if it did.
    pub expired_ts: Option<i64>,
}

/// A document that tells of keys, as its server signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDocument {
    /// When we got it, in milliseconds since 1970.
    pub fetched_ts: i64,
    /// Until when it may be believed, as it says itself.
    pub valid_until_ts: i64,
    /// The JSON object.
    pub json: String,
}

impl Store {
    /// All keys that are known of a server.
    pub async fn server_keys(&self, server_name: &str) -> Result<Vec<ServerKey>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, Vec<u8>, i64, Option<i64>)> = rows!(
            reader,
            "SELECT key_id, public_key, valid_until_ts, expired_ts FROM server_keys
             WHERE server_name = $1 ORDER BY key_id",
            server_name
        )?;
        Ok(found
            .into_iter()
            .map(|(key_id, public_key, valid_until_ts, expired_ts)| ServerKey {
                key_id,
                public_key,
                valid_until_ts,
                expired_ts,
            })
            .collect())
    }

    /// The documents that tell of a server's keys, the newest first. Together they tell of each of
    /// [`server_keys`](Self::server_keys).
    pub async fn server_key_documents(&self, server_name: &str) -> Result<Vec<KeyDocument>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64, String)> = rows!(
            reader,
            "SELECT fetched_ts, valid_until_ts, json FROM server_key_documents
             WHERE server_name = $1 ORDER BY fetched_ts DESC",
            server_name
        )?;
        Ok(found
            .into_iter()
            .map(|(fetched_ts, valid_until_ts, json)| KeyDocument { fetched_ts, valid_until_ts, json })
            .collect())
    }

    /// Writes down a document and the keys that it tells of, which replace what was known of the same keys. The
    /// documents that tell of no key any more are forgotten.
    pub async fn store_server_keys(&self, server_name: &str, document: &KeyDocument, keys: &[ServerKey]) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO server_key_documents (server_name, fetched_ts, valid_until_ts, json) VALUES ($1, $2, $3, $4)
             ON CONFLICT (server_name, fetched_ts) DO UPDATE
             SET valid_until_ts = excluded.valid_until_ts, json = excluded.json",
            server_name,
            document.fetched_ts,
            document.valid_until_ts,
            document.json.as_str()
        )?;
        // In one order, so that two replicas do not wait for each other.
        let mut keys: Vec<&ServerKey> = keys.iter().collect();
        keys.sort_by(|a, b| a.key_id.cmp(&b.key_id));
        for key in keys {
            execute!(
                transaction,
                "INSERT INTO server_keys (server_name, key_id, public_key, valid_until_ts, expired_ts, fetched_ts)
                 VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (server_name, key_id) DO UPDATE
                 SET public_key = excluded.public_key, valid_until_ts = excluded.valid_until_ts,
                     expired_ts = excluded.expired_ts, fetched_ts = excluded.fetched_ts",
                server_name,
                key.key_id.as_str(),
                key.public_key.as_slice(),
                key.valid_until_ts,
                key.expired_ts,
                document.fetched_ts
            )?;
        }
        execute!(
            transaction,
            "DELETE FROM server_keys WHERE server_name = $1 AND key_id NOT IN (
                 SELECT key_id FROM server_keys WHERE server_name = $1 ORDER BY fetched_ts DESC, key_id LIMIT $2)",
            server_name,
            KEYS_PER_SERVER
        )?;
        execute!(
            transaction,
            "DELETE FROM server_key_documents WHERE server_name = $1 AND fetched_ts NOT IN (
                 SELECT fetched_ts FROM server_keys WHERE server_name = $1)",
            server_name
        )?;
        transaction.commit().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyDocument, ServerKey};
    use crate::testing::{Fresh, on_both};

    fn key(key_id: &str, byte: u8, expired_ts: Option<i64>) -> ServerKey {
        ServerKey { key_id: key_id.to_owned(), public_key: vec![byte; 32], valid_until_ts: 50, expired_ts }
    }

    fn document(fetched_ts: i64) -> KeyDocument {
        KeyDocument { fetched_ts, valid_until_ts: fetched_ts + 50, json: format!("{{\"n\":{fetched_ts}}}") }
    }

    /// A newer document replaces what it tells of; the older one stays as long as it alone tells of a key.
    #[tokio::test]
    async fn documents_live_as_long_as_their_keys() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            assert!(store.server_keys("a.example").await.unwrap().is_empty());
            let keys = [key("ed25519:2", 2, None), key("ed25519:1", 1, None)];
            store.store_server_keys("a.example", &document(10), &keys).await.unwrap();
            store.store_server_keys("b.example", &document(10), &keys[..1]).await.unwrap();
            let newer = [key("ed25519:2", 3, Some(15))];
            store.store_server_keys("a.example", &document(20), &newer).await.unwrap();
            assert_eq!(store.server_keys("a.example").await.unwrap(), [keys[1].clone(), newer[0].clone()]);
            assert_eq!(store.server_key_documents("a.example").await.unwrap(), [document(20), document(10)]);
            let all = [key("ed25519:1", 1, Some(9)), key("ed25519:2", 3, Some(15))];
            store.store_server_keys("a.example", &document(30), &all).await.unwrap();
            assert_eq!(store.server_keys("a.example").await.unwrap(), all);
            assert_eq!(store.server_key_documents("a.example").await.unwrap(), [document(30)]);
            assert_eq!(store.server_keys("b.example").await.unwrap(), keys[..1]);
            store.close().await;
        })
        .await;
    }

    /// A server that makes up keys for ever does not fill the database.
    #[tokio::test]
    async fn keys_of_a_server_are_bounded() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            for round in 0..3 {
                let keys: Vec<_> = (0..200).map(|n| key(&format!("ed25519:{round}x{n:03}"), 1, None)).collect();
                store.store_server_keys("a.example", &document(round), &keys).await.unwrap();
            }
            let kept = store.server_keys("a.example").await.unwrap();
            assert_eq!(kept.len(), 256);
            assert_eq!(kept.iter().filter(|key| key.key_id.starts_with("ed25519:2x")).count(), 200);
            assert_eq!(store.server_key_documents("a.example").await.unwrap().len(), 2);
            store.close().await;
        })
        .await;
    }
}
