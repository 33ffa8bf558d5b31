//! Signatures and hashes, off the threads that serve requests.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName,
    canonical_json::redact_in_place,
    room_version_rules::RoomVersionRules,
    signatures::{Verified, verify_event},
};

use super::{Incoming, Received, Refusal};
use crate::{
    Pdu, Result, Rooms,
    remote::{VerifyKeys, WantedKeys},
};

/// Signatures that are checked where they come in; more leave the threads that serve all.
const AT_ONCE: usize = 4;
/// Keys of one server that are looked for, for one event.
const KEYS_MAX: usize = 16;

/// Checks the signatures and content hashes of some events; answers in their order.
///
/// "2. Passes signature checks, otherwise it is dropped. 3. Passes hash checks, otherwise it is redacted before being
/// processed further."
pub(crate) async fn verify(
    rooms: &Rooms,
    rules: &RoomVersionRules,
    received: Vec<Received>,
) -> Result<Vec<Result<Incoming, Refusal>>> {
    let keys = keys_for(rooms, rules, &received).await?;
    let is_short = received.len() <= AT_ONCE;
    let rules = rules.clone();
    let check = move || received.into_iter().map(|event| verify_one(event, &keys, &rules)).collect::<Vec<_>>();
    off_thread(is_short, check).await
}

/// Runs work where it stands if it is short, and elsewhere if not.
pub(super) async fn off_thread<T: Send + 'static>(
    is_short: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if is_short {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| crate::Error::Task(error.to_string()))
}

async fn keys_for(rooms: &Rooms, rules: &RoomVersionRules, received: &[Received]) -> Result<VerifyKeys> {
    let mut wanted: BTreeMap<OwnedServerName, WantedKeys> = BTreeMap::new();
    for event in received {
        let signed_at = signed_at(&event.object);
        for server in event.signers.iter().filter(|server| **server != rooms.server_name) {
            let wanted = wanted.entry(server.clone()).or_default();
            wanted.key_ids.extend(key_ids(&event.object, server).take(KEYS_MAX).map(str::to_owned));
            if rules.enforce_key_validity {
                wanted.valid_at_ts = wanted.valid_at_ts.max(signed_at);
            }
        }
    }
    let mut keys = match wanted.is_empty() {
        true => VerifyKeys::default(),
        false => rooms.remote()?.verify_keys(&wanted).await,
    };
    if received.iter().any(|event| event.signers.contains(&rooms.server_name)) {
        keys.0.insert(rooms.server_name.clone(), (*rooms.own_keys().await?).clone());
    }
    Ok(keys)
}

fn signed_at(object: &CanonicalJsonObject) -> u64 {
    match object.get("origin_server_ts") {
        Some(CanonicalJsonValue::Integer(ts)) => u64::try_from(i64::from(*ts)).unwrap_or(0),
        _ => 0,
    }
}

fn key_ids<'a>(object: &'a CanonicalJsonObject, server: &ruma::ServerName) -> impl Iterator<Item = &'a str> + use<'a> {
    let signatures = object.get("signatures").and_then(CanonicalJsonValue::as_object);
    let of_server = signatures.and_then(|all| all.get(server.as_str())).and_then(CanonicalJsonValue::as_object);
    of_server.into_iter().flat_map(|keys| keys.keys()).map(String::as_str).filter(|id| id.starts_with("ed25519:"))
}

fn verify_one(event: Received, keys: &VerifyKeys, rules: &RoomVersionRules) -> Result<Incoming, Refusal> {
    let Received { event_id, mut object, signers } = event;
    let signed_at = rules.enforce_key_validity.then(|| signed_at(&object));
    let verified = verify_event(&keys.usable(&signers, signed_at), &object, rules)
        .map_err(|error| Refusal::Signature(error.to_string()))?;
    if !matches!(verified, Verified::All) {
        redact_in_place(&mut object, &rules.redaction, None).map_err(|error| Refusal::Malformed(error.to_string()))?;
    }
    let json = serde_json::to_string(&object).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let depth = match object.get("depth") {
        Some(CanonicalJsonValue::Integer(depth)) => i64::from(*depth),
        _ => 0,
    };
    let pdu = Pdu::parse(0, depth, event_id.clone(), &json, false, rules)
        .map_err(|error| Refusal::Malformed(error.to_string()))?;
    Ok(Incoming { event_id, json: json.into(), pdu })
}
