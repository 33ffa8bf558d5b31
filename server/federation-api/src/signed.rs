//! The extractor of every endpoint that another server signs its requests to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::extract::{FromRequest, RawPathParams, Request};
use bytes::Bytes;
use http::{Method, StatusCode, request::Parts};
use myelin_http::{ApiError, NamesEndpoint, RouteOptions, json_object, parse, take_path};
use myelin_rooms::remote::{VerifyKeys, WantedKeys};
use ruma::{
    OwnedServerName, ServerName, SigningKeyAlgorithm,
    api::{IncomingRequest, error::ErrorCode, federation::authentication::ServerSignatures},
    signatures::verify_canonical_json_bytes,
};
use tokio::task::spawn_blocking;

use crate::{
    Services,
    canonical::{Unreadable, canonical},
    inbound::{Admission, Held},
    metrics::REFUSED_AUTHENTICATIONS,
    x_matrix::{Claim, Malformed, Signature},
};

/// Bytes of a body at the most, where the route does not say: an event has at most 64 KiB, and invites bring a few.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Larger bodies are verified off the threads that wait for others.
const VERIFY_HERE_MAX: usize = 64 * 1024;

/// A request of ruma's type `R` that another server has signed.
///
/// In this order, so that nobody can make us work or fetch in another's name: the header is read, the destination has to
/// be us and the origin a server that we deal with, its keys are found, the body is read under the route's limit, the
/// signature is verified; only then the path and the body are looked at.
#[derive(Debug)]
pub(crate) struct Signed<R> {
    /// The request.
    pub(crate) body: R,
    /// The server that sent it.
    pub(crate) origin: OwnedServerName,
    /// Counts the request as one of the server's.
    pub(crate) admission: Admission,
    // Counts the body's bytes.
    _held: Option<Held>,
}

impl<R: IncomingRequest<Authentication = ServerSignatures>> NamesEndpoint for Signed<R> {
    type Request = R;
}

impl<R> FromRequest<Services> for Signed<R>
where
    R: IncomingRequest<Authentication = ServerSignatures> + Send,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, services: &Services) -> Result<Self, ApiError> {
        let has_body = R::METHOD != Method::GET;
        let Received { parts, path, origin, admission, held } = receive(request, services, has_body).await?;
        let body = parse(parts, &path, held.as_ref().map_or(&[][..], |held| &held.bytes))?;
        Ok(Self { body, origin, admission, _held: held })
    }
}

struct Received {
    parts: Parts,
    path: RawPathParams,
    origin: OwnedServerName,
    admission: Admission,
    held: Option<Held>,
}

/// Everything but the parsing, which alone differs from type to type.
async fn receive(request: Request, services: &Services, has_body: bool) -> Result<Received, ApiError> {
    let (mut parts, body) = request.into_parts();
    let claim = Claim::of(&parts.headers).map_err(|malformed| {
        refused(if malformed == Malformed::Missing { "missing" } else { "malformed" }, malformed.to_string())
    })?;
    check(services, &claim)?;
    let keys = find_keys(services, &claim).await?;

    let held = if has_body {
        let options = parts.extensions.get::<RouteOptions>().copied().unwrap_or_default();
        let bytes_max = options.body_limit().unwrap_or(BODY_BYTES_MAX);
        let mut held = services.inbound.read(&parts.headers, body, bytes_max).await?;
        // What an empty body is read as was not signed.
        let is_empty = held.bytes.is_empty();
        held.bytes = json_object(held.bytes.clone())?;
        let content = if is_empty { Bytes::new() } else { held.bytes.clone() };
        verify(services, &claim, keys, &parts, content).await?;
        Some(held)
    } else {
        verify(services, &claim, keys, &parts, Bytes::new()).await?;
        None
    };
    services.peers.heard_from(&claim.origin);

    // Not before: whoever could be counted as another server could shut it out.
    let admission = services.inbound.admit(&claim.origin)?;
    let path = take_path(&mut parts, has_body).await?;
    Ok(Received { parts, path, origin: claim.origin, admission, held })
}

/// Whether the claim is one that we would look into.
fn check(services: &Services, claim: &Claim) -> Result<(), ApiError> {
    let us = services.rooms.server_name();
    // "If this property is included, but the value does not match the receiving server's name, the receiving server must
    // deny the request with an HTTP status code 401 Unauthorized."
    if claim.destination.as_ref().is_some_and(|destination| destination != us) {
        return Err(refused("destination", "the request is signed for another server"));
    }
    if claim.origin == *us {
        return Err(refused("origin", "this server does not send requests to itself"));
    }
    if !services.peers.is_allowed(&claim.origin) {
        REFUSED_AUTHENTICATIONS.with_label_values(&["denied"]).inc();
        return Err(ApiError::forbidden("This server does not federate with yours"));
    }
    Ok(())
}

/// A signature, and the key that is said to have made it.
struct Made {
    signature: Vec<u8>,
    key: Vec<u8>,
}

/// The keys that may have signed: those that the origin uses now. Its old ones are "only valid for signing events".
async fn find_keys(services: &Services, claim: &Claim) -> Result<Vec<Made>, ApiError> {
    let now = now_ms();
    let key_ids: BTreeSet<String> = claim.signatures.iter().map(|signature| signature.key_id.clone()).collect();
    let wanted = BTreeMap::from([(claim.origin.clone(), WantedKeys { key_ids, valid_at_ts: now })]);
    let VerifyKeys(mut found) = services.peers.verify_keys(&wanted).await;
    let known = found.remove(&claim.origin).unwrap_or_default();
    let mut is_expired = false;
    let mut keys = Vec::new();
    for Signature { key_id, bytes } in &claim.signatures {
        match known.get(key_id) {
            Some(key) if key.valid_until_ts >= now => {
                keys.push(Made { signature: bytes.clone(), key: key.key.as_bytes().to_vec() });
            }
            Some(_) => is_expired = true,
            None => {}
        }
    }
    if keys.is_empty() && is_expired {
        return Err(refused("expired_key", "the key that signed is not in use any more"));
    }
    if keys.is_empty() {
        return Err(refused("unknown_key", "the key that signed could not be found"));
    }
    Ok(keys)
}

/// "The request method, target and body are signed by wrapping them in a JSON object".
async fn verify(
    services: &Services,
    claim: &Claim,
    keys: Vec<Made>,
    parts: &Parts,
    content: Bytes,
) -> Result<(), ApiError> {
    let rest = wrapping(parts, claim, services.rooms.server_name());
    let is_large = content.len() > VERIFY_HERE_MAX;
    let checking = move || {
        let json = signed_json(&content, &rest).map_err(|error| refused("malformed", error.to_string()))?;
        let is_good = keys.iter().any(|Made { signature, key }| {
            verify_canonical_json_bytes(&SigningKeyAlgorithm::Ed25519, key, signature, &json).is_ok()
        });
        if is_good { Ok(()) } else { Err(refused("signature", "the signature is not one of this request")) }
    };
    if is_large { spawn_blocking(checking).await.map_err(ApiError::unknown)? } else { checking() }
}

/// The fields of the signed object that come behind `content`, in the order that canonical JSON has them in.
fn wrapping(parts: &Parts, claim: &Claim, destination: &ServerName) -> String {
    let uri = parts.uri.path_and_query().map_or("/", |uri| uri.as_str());
    let fields = [
        ("destination", destination.as_str()),
        ("method", parts.method.as_str()),
        ("origin", claim.origin.as_str()),
        ("uri", uri),
    ];
    fields.map(|(name, value)| format!("\"{name}\":{}", serde_json::Value::from(value))).join(",")
}

fn signed_json(content: &[u8], rest: &str) -> Result<Vec<u8>, Unreadable> {
    let mut json = Vec::with_capacity(content.len() + rest.len() + 16);
    json.push(b'{');
    if !content.is_empty() {
        json.extend_from_slice(b"\"content\":");
        canonical(std::str::from_utf8(content).map_err(|_| Unreadable)?, &mut json)?;
        json.push(b',');
    }
    json.extend_from_slice(rest.as_bytes());
    json.push(b'}');
    Ok(json)
}

fn refused(reason: &str, message: impl Into<String>) -> ApiError {
    REFUSED_AUTHENTICATIONS.with_label_values(&[reason]).inc();
    ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message.into())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

#[cfg(test)]
mod tests;
