//! The keys by which this server signs.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::{Rng as _, distr::Alphanumeric};
use ruma::signatures::Ed25519KeyPair;

use crate::{
    Result, Store,
    database::Database,
    sql::{execute, optional, row, rows},
};

/// The fact about the installation that names the key in use.
const CURRENT: &str = "signing_key";
/// Random characters of a key's version.
const VERSION_LENGTH: usize = 6;

/// A key that this server no longer signs with, and others still need for old signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiredSigningKey {
    /// The part of the key's id behind `ed25519:`.
    pub version: String,
    /// The PKCS#8 document.
    pub document: Vec<u8>,
    /// When it was last used, in milliseconds since 1970.
    pub expired_ts: i64,
}

impl Store {
    /// The key to sign with: its version (the part of its id behind `ed25519:`) and its PKCS#8 document, as
    /// [`Ed25519KeyPair::from_der`] reads it. The first call makes it; all replicas get the same one.
    pub async fn signing_key(&self) -> Result<(String, Vec<u8>)> {
        current_or_new(&self.database).await
    }

    /// The keys that were in use before.
    pub async fn expired_signing_keys(&self) -> Result<Vec<ExpiredSigningKey>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, Vec<u8>, i64)> = rows!(
            reader,
            "SELECT key_id, secret, expired_ts FROM signing_keys WHERE expired_ts IS NOT NULL ORDER BY expired_ts"
        )?;
        Ok(found
            .into_iter()
            .map(|(key_id, document, expired_ts)| ExpiredSigningKey { version: version(&key_id), document, expired_ts })
            .collect())
    }
}

async fn current_or_new(database: &Database) -> Result<(String, Vec<u8>)> {
    let mut reader = database.reader().await?;
    let found: Option<(String, Vec<u8>)> = optional!(
        reader,
        "SELECT key_id, secret FROM signing_keys
         WHERE key_id = (SELECT value FROM instance WHERE key = $1)",
        CURRENT
    )?;
    drop(reader);
    if let Some((key_id, document)) = found {
        return Ok((version(&key_id), document));
    }
    let made = format!("ed25519:{}", random_version());
    let document = Ed25519KeyPair::generate();
    let mut transaction = database.begin().await?;
    // Of several replicas that start at once one inserts; the others wait here for its commit.
    let is_ours = execute!(
        transaction,
        "INSERT INTO instance (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
        CURRENT,
        made.as_str()
    )? == 1;
    if is_ours {
        execute!(
            transaction,
            "INSERT INTO signing_keys (key_id, secret, created_ts) VALUES ($1, $2, $3)",
            made.as_str(),
            document.as_slice(),
            now_ms()
        )?;
    }
    let (key_id, document): (String, Vec<u8>) = row!(
        transaction,
        "SELECT key_id, secret FROM signing_keys
         WHERE key_id = (SELECT value FROM instance WHERE key = $1)",
        CURRENT
    )?;
    transaction.commit().await?;
    if is_ours {
        tracing::info!(key.id = %key_id, "made the signing key {key_id}");
    }
    Ok((version(&key_id), document))
}

fn version(key_id: &str) -> String {
    key_id.strip_prefix("ed25519:").unwrap_or(key_id).to_owned()
}

fn random_version() -> String {
    rand::rng().sample_iter(Alphanumeric).take(VERSION_LENGTH).map(char::from).collect()
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use ruma::signatures::Ed25519KeyPair;

    use crate::testing::{Fresh, on_both};

    /// Every replica signs with the same key, however many start at once, and it outlives a restart.
    #[tokio::test]
    async fn one_key_for_all_replicas() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let keys = futures_util::future::join_all((0..8).map(|_| store.signing_key())).await;
            let first = keys[0].as_ref().unwrap().clone();
            for key in keys {
                assert_eq!(key.unwrap(), first);
            }
            assert_eq!(first.0.len(), super::VERSION_LENGTH);
            Ed25519KeyPair::from_der(&first.1, first.0.clone()).unwrap();
            store.close().await;
            let again = fresh.open().await;
            assert_eq!(again.signing_key().await.unwrap(), first);
            assert!(again.expired_signing_keys().await.unwrap().is_empty());
            again.close().await;
        })
        .await;
    }
}
