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
    /// The keys that were used before cannot be read.
    #[error("read the keys that were used before")]
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
        let mut old = serde_json::Map::new();
        for (key_id, (public_key, expired_ts)) in self.old_keys().await? {
            old.insert(key_id, json!({ "key": base64(public_key), "expired_ts": expired_ts }));
        }
        let valid_for = i64::try_from(VALID.as_millis()).unwrap_or(i64::MAX);
        let document = json!({
            "server_name": self.options.server_name,
            "verify_keys": { self.own_key_id(): { "key": base64(self.key.public_key()) } },
            "old_verify_keys": old,
            "valid_until_ts": now_ms().saturating_add(valid_for),
        });
        let mut document: CanonicalJsonObject = serde_json::from_value(document)?;
        sign_json(self.options.server_name.as_str(), &self.key, &mut document)?;
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
        let old = self.old_keys().await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "our older keys cannot be read");
            Vec::new()
        });
        let current = VerifyKey { key: Base64::new(self.key.public_key().to_vec()), valid_until_ts: u64::MAX };
        let old = old.into_iter().map(|(key_id, (public_key, expired_ts))| {
            (key_id, VerifyKey { key: Base64::new(public_key.to_vec()), valid_until_ts: super::ts(expired_ts) })
        });
        old.chain([(self.own_key_id(), current)]).collect()
    }

    fn own_key_id(&self) -> String {
        format!("ed25519:{}", self.key.version())
    }

    async fn old_keys(&self) -> Result<Vec<(String, ([u8; 32], i64))>, OwnKeyError> {
        let mut keys = Vec::new();
        for old in self.store.expired_signing_keys().await? {
            match Ed25519KeyPair::from_der(&old.document, old.version.clone()) {
                Ok(pair) => keys.push((format!("ed25519:{}", old.version), (pair.public_key(), old.expired_ts))),
                Err(error) => tracing::error!(%error, "our older key {} is damaged: {error}", old.version),
            }
        }
        Ok(keys)
    }
}

fn base64(key: [u8; 32]) -> CanonicalJsonValue {
    CanonicalJsonValue::String(Base64::<Standard, _>::new(key).encode())
}

fn raw(document: &CanonicalJsonObject) -> Result<Raw<ServerSigningKeys>, OwnKeyError> {
    Ok(Raw::from_json(to_raw_value(document)?))
}
