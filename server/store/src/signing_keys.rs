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

/// A key of this server, in use or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// The part of the key's id behind `ed25519:`.
    pub version: String,
    /// The PKCS#8 document.
    pub document: Vec<u8>,
    /// When it was made or taken over, in milliseconds since 1970.
    pub created_ts: i64,
    /// Until when it is or was used, in milliseconds since 1970; `None` for the key to sign with. It may lie ahead: the
    /// replicas that were not restarted yet sign with it until then.
    pub expired_ts: Option<i64>,
}

impl Store {
    /// The key to sign with: its version (the part of its id behind `ed25519:`) and its PKCS#8 document, as
    /// [`Ed25519KeyPair::from_der`] reads it. The first call makes it; all replicas get the same one.
    pub async fn signing_key(&self) -> Result<(String, Vec<u8>)> {
        current_or_new(&self.database).await
    }

    /// All keys of this server, the one to sign with first, then the others from the newest on. None before the first
    /// start.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKey>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, Vec<u8>, i64, Option<i64>)> = rows!(
            reader,
            "SELECT key_id, secret, created_ts, expired_ts FROM signing_keys
             ORDER BY CASE WHEN expired_ts IS NULL THEN 0 ELSE 1 END, expired_ts DESC, key_id"
        )?;
        let key = |(key_id, document, created_ts, expired_ts): (String, Vec<u8>, i64, Option<i64>)| SigningKey {
            version: version(&key_id),
            document,
            created_ts,
            expired_ts,
        };
        Ok(found.into_iter().map(key).collect())
    }

    /// Puts another key in the place of the one to sign with, which counts until `old_until_ts`. `false` when the key in
    /// use is not `instead_of`, which is `None` before the first start: nothing was changed then.
    ///
    /// # Errors
    ///
    /// Also when there is a key of this version already, whatever it is.
    pub async fn replace_signing_key(
        &self,
        instead_of: Option<&str>,
        new: &SigningKey,
        old_until_ts: i64,
    ) -> Result<bool> {
        let key_id = format!("ed25519:{}", new.version);
        let mut transaction = self.database.begin().await?;
        // First the row that says which key is in use: its lock keeps others out until the commit.
        let is_ours = match instead_of {
            Some(old) => {
                let old = format!("ed25519:{old}");
                let has_moved = execute!(
                    transaction,
                    "UPDATE instance SET value = $1 WHERE key = $2 AND value = $3",
                    key_id.as_str(),
                    CURRENT,
                    old.as_str()
                )? == 1;
                has_moved
                    && execute!(
                        transaction,
                        "UPDATE signing_keys SET expired_ts = $1 WHERE key_id = $2",
                        old_until_ts,
                        old.as_str()
                    )? == 1
            }
            None => {
                execute!(
                    transaction,
                    "INSERT INTO instance (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
                    CURRENT,
                    key_id.as_str()
                )? == 1
            }
        };
        if !is_ours {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO signing_keys (key_id, secret, created_ts) VALUES ($1, $2, $3)",
            key_id.as_str(),
            new.document.as_slice(),
            new.created_ts
        )?;
        transaction.commit().await?;
        Ok(true)
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

impl SigningKey {
    /// A new key, made now.
    #[must_use]
    pub fn generate(now_ms: i64) -> Self {
        let document = Ed25519KeyPair::generate().to_vec();
        Self { version: random_version(), document, created_ts: now_ms, expired_ts: None }
    }
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

    use super::SigningKey;
    use crate::testing::{Fresh, on_both};

    /// A key takes the place of the one that was expected, and of no other; none gets lost, and ids are not used twice.
    #[tokio::test]
    async fn keys_are_replaced() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            assert!(store.signing_keys().await.unwrap().is_empty());
            let first = SigningKey::generate(10);
            assert!(!store.replace_signing_key(Some("none"), &first, 20).await.unwrap());
            assert!(store.replace_signing_key(None, &first, 20).await.unwrap());
            assert_eq!(store.signing_key().await.unwrap(), (first.version.clone(), first.document.clone()));
            let second = SigningKey::generate(20);
            assert!(!store.replace_signing_key(None, &second, 30).await.unwrap());
            assert!(!store.replace_signing_key(Some("none"), &second, 30).await.unwrap());
            assert_eq!(store.signing_keys().await.unwrap(), std::slice::from_ref(&first));
            let now = Some(first.version.as_str());
            let both = futures_util::future::join_all(
                (0..2).map(|_| async { store.replace_signing_key(now, &SigningKey::generate(20), 30).await.unwrap() }),
            );
            assert_eq!(both.await.iter().filter(|has_won| **has_won).count(), 1, "one of two wins");
            let keys = store.signing_keys().await.unwrap();
            assert_eq!(keys[1], SigningKey { expired_ts: Some(30), ..first.clone() });
            assert_eq!(store.signing_key().await.unwrap().0, keys[0].version);
            assert!(store.replace_signing_key(Some(&keys[0].version), &first, 40).await.is_err(), "the id is taken");
            assert_eq!(store.signing_keys().await.unwrap(), keys);
            store.close().await;
        })
        .await;
    }

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
            assert_eq!(again.signing_keys().await.unwrap().len(), 1);
            again.close().await;
        })
        .await;
    }
}
