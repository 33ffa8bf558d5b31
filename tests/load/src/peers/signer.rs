//! What makes a server's words its own: its key, and signatures on events, requests and the key itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use ruma::{
    CanonicalJsonObject,
    room_version_rules::RoomVersionRules,
    signatures::{Ed25519KeyPair, hash_and_sign_event, reference_hash, sign_json},
};
use serde_json::{Value, json, value::RawValue};

const KEY_ID: &str = "ed25519:load";

/// How long others may believe the key.
const VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// The key that all peers have: what a signature costs the measured server does not depend on whose it is.
#[derive(Debug)]
pub(super) struct Signer {
    key: Ed25519KeyPair,
    rules: RoomVersionRules,
}

impl Signer {
    /// With a new key, for events of a room version.
    pub(super) fn new(rules: RoomVersionRules) -> anyhow::Result<Self> {
        let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "load".to_owned()).context("make a key")?;
        Ok(Self { key, rules })
    }

    /// A server's answer to who asks for its keys.
    pub(super) fn key_document(&self, server: &str) -> anyhow::Result<Value> {
        let document = json!({
            "server_name": server,
            "verify_keys": { KEY_ID: { "key": BASE64_STANDARD_NO_PAD.encode(self.key.public_key()) } },
            "old_verify_keys": {},
            "valid_until_ts": now_ms() + VALID.as_millis() as u64,
        });
        let mut document: CanonicalJsonObject = serde_json::from_value(document)?;
        sign_json(server, &self.key, &mut document)?;
        Ok(serde_json::to_value(document)?)
    }

    /// Signs an event for the server that it is of: its id, and the whole of it.
    pub(super) fn event(&self, server: &str, event: Value) -> anyhow::Result<(String, Box<RawValue>)> {
        let mut event: CanonicalJsonObject = serde_json::from_value(event)?;
        hash_and_sign_event(server, &self.key, &mut event, &self.rules.redaction)?;
        Ok((self.event_id(&event)?, RawValue::from_string(serde_json::to_string(&event)?)?))
    }

    /// The id of an event.
    pub(super) fn event_id(&self, event: &CanonicalJsonObject) -> anyhow::Result<String> {
        Ok(format!("${}", reference_hash(event, &self.rules)?))
    }

    /// The `Authorization` of a request from one server to another.
    pub(super) fn authorization(
        &self,
        origin: &str,
        destination: &str,
        method: &str,
        path: &str,
        content: &RawValue,
    ) -> anyhow::Result<String> {
        let request = json!({
            "method": method, "uri": path, "origin": origin, "destination": destination, "content": content,
        });
        let mut request: CanonicalJsonObject = serde_json::from_value(request)?;
        sign_json(origin, &self.key, &mut request)?;
        let signed = serde_json::to_value(&request)?;
        let signature = signed["signatures"][origin][KEY_ID].as_str().context("a signed request has a signature")?;
        Ok(format!(r#"X-Matrix origin="{origin}",destination="{destination}",key="{KEY_ID}",sig="{signature}""#))
    }
}

/// The time as Matrix counts it.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
