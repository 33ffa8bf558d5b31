//! The document in which we tell of our own keys.

use std::{collections::HashMap, time::Duration};

use myelin_rooms::remote::VerifyKey;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue,
    api::federation::discovery::ServerSigningKeys,
    serde::{Base64, Raw, base64::Standard},
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{json, value::to_raw_value};

use super::now_ms;
use crate::Client;

/// How long others may believe our document without asking again.
const VALID: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the document cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OwnKeyError {
    /// The keys cannot be read.
    #[error("read our keys")]
    Store(#[from] myelin_store::Error),
    /// It cannot be signed.
    #[error("sign the key document")]
    Sign(#[from] ruma::signatures::JsonError),
    /// It cannot be written as JSON.
    #[error("write the key document")]
    Json(#[from] serde_json::Error),
}

impl Client {
    /// What we answer to `GET /_matrix/key/v2/server`: our keys, signed.
    ///
    /// # Errors
    ///
    /// If the database cannot be read.
    pub async fn key_document(&self) -> Result<Raw<ServerSigningKeys>, OwnKeyError> {
        raw(&self.own_document().await?)
    }

    pub(super) async fn own_document(&self) -> Result<CanonicalJsonObject, OwnKeyError> {
        let now = now_ms();
        let valid_for = i64::try_from(VALID.as_millis()).unwrap_or(i64::MAX);
        let mut valid_until_ts = now.saturating_add(valid_for);
        let (mut current, mut old) = (serde_json::Map::new(), serde_json::Map::new());
        let keys = self.own_keys().await?;
        for OwnKey { pair, expired_ts } in &keys {
            let (key_id, key) = (key_id(pair), base64(pair.public_key()));
            match expired_ts {
                Some(expired_ts) if *expired_ts <= now => {
                    old.insert(key_id, json!({ "key": key, "expired_ts": expired_ts }));
                }
                // Replicas that were not restarted yet sign with it. Whoever has read this asks again when they stop.
                expired_ts => {
                    valid_until_ts = valid_until_ts.min(expired_ts.unwrap_or(i64::MAX));
                    current.insert(key_id, json!({ "key": key }));
                }
            }
        }
        let document = json!({
            "server_name": self.options.server_name,
            "verify_keys": current,
            "old_verify_keys": old,
            "valid_until_ts": valid_until_ts,
        });
        let mut document: CanonicalJsonObject = serde_json::from_value(document)?;
        for OwnKey { pair, expired_ts } in &keys {
            if expired_ts.is_none_or(|expired_ts| expired_ts > now) {
                sign_json(self.options.server_name.as_str(), pair, &mut document)?;
            }
        }
        Ok(document)
    }

    /// A document of another server with our signature as a notary beside its own.
    pub(super) fn countersigned(&self, json: &str) -> Result<Raw<ServerSigningKeys>, OwnKeyError> {
        let mut document: CanonicalJsonObject = serde_json::from_str(json)?;
        sign_json(self.options.server_name.as_str(), &self.key, &mut document)?;
        raw(&document)
    }

    /// Our keys, as rooms need those of every server.
    pub(super) async fn own_verify_keys(&self) -> HashMap<String, VerifyKey> {
        let keys = self.own_keys().await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "our own keys cannot be read");
            Vec::new()
        });
        let current = VerifyKey { key: Base64::new(self.key.public_key().to_vec()), valid_until_ts: u64::MAX };
        let own = [(key_id(&self.key), current)];
        let stored = keys.into_iter().map(|OwnKey { pair, expired_ts }| {
            let valid_until_ts = expired_ts.map_or(u64::MAX, super::ts);
            (key_id(&pair), VerifyKey { key: Base64::new(pair.public_key().to_vec()), valid_until_ts })
        });
        own.into_iter().chain(stored).collect()
    }

    /// Complains when this process signs with a key that is not in use any more: others refuse what it sends.
    pub(crate) async fn look_after_own_key(&self) {
        let Ok(keys) = self.own_keys().await else { return };
        let own = keys.iter().find(|key| key.pair.version() == self.key.version());
        if own.is_none_or(|own| own.expired_ts.is_some_and(|expired_ts| expired_ts <= now_ms())) {
            let key_id = key_id(&self.key);
            tracing::error!(key.id = %key_id, "this process signs with {key_id}, which has been replaced: restart it");
        }
    }

    /// The keys in the database, the one to sign with first.
    async fn own_keys(&self) -> Result<Vec<OwnKey>, OwnKeyError> {
        let mut keys = Vec::new();
        for stored in self.store.signing_keys().await? {
            match Ed25519KeyPair::from_der(&stored.document, stored.version.clone()) {
                Ok(pair) => keys.push(OwnKey { pair, expired_ts: stored.expired_ts }),
                Err(error) => tracing::error!(%error, "our key {} is damaged: {error}", stored.version),
            }
        }
        Ok(keys)
    }
}

/// A key of ours, and until when it is or was used, if it is not the one to sign with.
struct OwnKey {
    pair: Ed25519KeyPair,
    expired_ts: Option<i64>,
}

fn key_id(key: &Ed25519KeyPair) -> String {
    format!("ed25519:{}", key.version())
}

fn base64(key: [u8; 32]) -> CanonicalJsonValue {
    CanonicalJsonValue::String(Base64::<Standard, _>::new(key).encode())
}

fn raw(document: &CanonicalJsonObject) -> Result<Raw<ServerSigningKeys>, OwnKeyError> {
    Ok(Raw::from_json(to_raw_value(document)?))
}
