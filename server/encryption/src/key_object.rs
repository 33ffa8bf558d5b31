//! Keys as JSON objects: read, compared, and their signatures checked.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, SigningKeyAlgorithm, UserId,
    encryption::CrossSigningKey,
    serde::Base64,
    signatures::{to_canonical_json_string_for_signing, verify_canonical_json_bytes},
};
use serde_json::value::RawValue;

use crate::{Error, Result};

/// The longest object, in bytes: more than any client makes.
const OBJECT_BYTES_MAX: usize = 64 * 1024;
const PUBLIC_KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// A signed JSON object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyObject(CanonicalJsonObject);

/// What a signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    /// It is by the key.
    Valid,
    /// It is not.
    Invalid,
    /// There is none, or no bytes that could be one.
    Absent,
}

impl KeyObject {
    /// Reads an object from outside. What is [`unsigned`](https://spec.matrix.org/v1.19/appendices/#signing-json) in it
    /// is left out.
    pub(crate) fn parse(json: &RawValue) -> Result<Self> {
        if json.get().len() > OBJECT_BYTES_MAX {
            return Err(Error::TooLarge("a key is larger than any key can be"));
        }
        let mut object: CanonicalJsonObject =
            serde_json::from_str(json.get()).map_err(|error| Error::BadJson(format!("not a key: {error}")))?;
        object.remove("unsigned");
        Ok(Self(object))
    }

    /// Reads an object that is kept.
    pub(crate) fn stored(json: &str) -> Result<Self> {
        serde_json::from_str(json).map(Self).map_err(|_| Error::Corrupt("key"))
    }

    /// In one form: the same for the same object.
    pub(crate) fn to_json(&self) -> String {
        CanonicalJsonValue::Object(self.0.clone()).to_string()
    }

    /// All but the signatures, in one form.
    pub(crate) fn signed_json(&self) -> Result<String> {
        to_canonical_json_string_for_signing(&self.0).map_err(|error| Error::BadJson(format!("not a key: {error}")))
    }

    /// The keys in it by which one of an algorithm is found: `keys`, by identifier.
    pub(crate) fn key(&self, key_id: &str) -> Option<&str> {
        self.0.get("keys")?.as_object()?.get(key_id)?.as_str()
    }

    /// A user's signatures of it: key identifier and signature.
    pub(crate) fn signatures_of(&self, user_id: &UserId) -> impl Iterator<Item = (&str, &str)> {
        let signatures = self.0.get("signatures").and_then(|signatures| signatures.as_object());
        let of_user = signatures.and_then(|signatures| signatures.get(user_id.as_str())?.as_object());
        of_user.into_iter().flatten().filter_map(|(key_id, signature)| Some((&**key_id, signature.as_str()?)))
    }

    /// Whether a user has signed it by a key, whose public part this is in base64.
    pub(crate) fn check(&self, user_id: &UserId, key_id: &str, public_key: &str) -> Result<Signature> {
        let Some((_, signature)) = self.signatures_of(user_id).find(|(id, _)| *id == key_id) else {
            return Ok(Signature::Absent);
        };
        let Some(signature) = bytes(signature, SIGNATURE_BYTES) else { return Ok(Signature::Absent) };
        let Some(public_key) = bytes(public_key, PUBLIC_KEY_BYTES) else { return Ok(Signature::Absent) };
        let signed = self.signed_json()?;
        let verified =
            verify_canonical_json_bytes(&SigningKeyAlgorithm::Ed25519, &public_key, &signature, signed.as_bytes());
        Ok(if verified.is_ok() { Signature::Valid } else { Signature::Invalid })
    }
}

/// What is in base64, if it is so many bytes.
fn bytes(base64: &str, count: usize) -> Option<Vec<u8>> {
    Base64::<ruma::serde::base64::Standard>::parse(base64)
        .ok()
        .map(Base64::into_inner)
        .filter(|bytes: &Vec<u8>| bytes.len() == count)
}

/// The public part of a cross-signing key: it has exactly one, "ed25519:" and itself being its name.
pub(crate) fn public_key(key: &CrossSigningKey) -> Result<&str> {
    let mut keys = key.keys.iter();
    let (Some((key_id, public_key)), None) = (keys.next(), keys.next()) else {
        return Err(Error::InvalidParam("a cross-signing key has exactly one public key".to_owned()));
    };
    if key_id.as_str().strip_prefix("ed25519:") != Some(public_key) {
        return Err(Error::InvalidParam("a cross-signing key is named after itself".to_owned()));
    }
    if bytes(public_key, PUBLIC_KEY_BYTES).is_none() {
        return Err(Error::InvalidParam("this is no ed25519 key".to_owned()));
    }
    Ok(public_key)
}

/// The public part of a cross-signing key that is kept.
pub(crate) fn stored_public_key(json: &str) -> Result<String> {
    let key: CrossSigningKey = serde_json::from_str(json).map_err(|_| Error::Corrupt("cross-signing key"))?;
    key.keys.into_values().next().ok_or(Error::Corrupt("cross-signing key"))
}
