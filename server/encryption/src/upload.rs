//! Keys that devices upload.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#uploading-keys)

use std::collections::{BTreeMap, HashSet};

use myelin_store::{Identity, KeyUpload, NewKey, ONE_TIME_KEYS_MAX};
use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedOneTimeKeyId, UInt, UserId,
    encryption::{DeviceKeys, OneTimeKey},
    serde::Raw,
};
use serde_json::value::RawValue;

use crate::{
    Encryption, Error, Owner, Result,
    key_object::{KeyObject, Signature},
};

/// The longest one-time key, in bytes.
const ONE_TIME_KEY_BYTES_MAX: usize = 8 * 1024;
/// The longest name of a key, in bytes.
const KEY_ID_BYTES_MAX: usize = 255;

/// One-time or fallback keys, by identifier.
pub(crate) type Keys = BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>;

impl Encryption {
    /// Takes keys of a device; all of them, or none. Answers how many one-time keys it has left, by algorithm.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`], [`Error::InvalidParam`], [`Error::InvalidSignature`] and [`Error::TooLarge`] for keys that
    /// are not the device's, not keys, or too many.
    pub async fn upload_keys(
        &self,
        owner: &Owner,
        device_keys: Option<&Raw<DeviceKeys>>,
        one_time_keys: &Keys,
        fallback_keys: &Keys,
    ) -> Result<BTreeMap<OneTimeKeyAlgorithm, UInt>> {
        let device_keys =
            device_keys.map(|keys| check_device_keys(&owner.user_id, &owner.device_id, keys)).transpose()?;
        let known = self.store.device_keys(owner.device_nid).await?.map(|json| KeyObject::stored(&json)).transpose()?;
        let identity = device_keys.as_ref().or(known.as_ref());
        let signing_key = format!("ed25519:{}", owner.device_id);
        let is_other = match (&known, &device_keys) {
            (Some(known), Some(new)) => known.key(&signing_key) != new.key(&signing_key),
            _ => false,
        };
        let signer = Signer::of(&owner.user_id, &owner.device_id, identity);
        let one_time = check_keys(&signer, one_time_keys)?;
        let fallback = check_fallback_keys(&signer, fallback_keys)?;
        // Before the new one-time keys: the old ones go.
        if let Some(keys) = device_keys.as_ref().filter(|_| is_other) {
            self.set_identity(owner, keys, Identity::Other).await?;
        }
        let counts = if one_time.is_empty() && fallback.is_empty() {
            self.store.key_counts(owner.device_nid).await?
        } else {
            match self.store.add_keys(owner.device_nid, &one_time, &fallback).await? {
                KeyUpload::Stored(counts) => counts,
                KeyUpload::Exists(key_id) => {
                    return Err(Error::InvalidParam(format!("there is another one-time key {key_id}")));
                }
                KeyUpload::TooMany => return Err(too_many()),
            }
        };
        if let Some(keys) = device_keys.as_ref().filter(|_| !is_other) {
            self.set_identity(owner, keys, Identity::Same).await?;
        }
        let counts = counts.one_time.into_iter().map(|(algorithm, count)| {
            (OneTimeKeyAlgorithm::from(algorithm), UInt::new_saturating(u64::try_from(count).unwrap_or_default()))
        });
        Ok(counts.collect())
    }

    async fn set_identity(&self, owner: &Owner, keys: &KeyObject, identity: Identity) -> Result<()> {
        let (user_nid, device_id) = (owner.user_nid, owner.device_id.as_str());
        self.store.set_device_keys(user_nid, owner.device_nid, device_id, &keys.to_json(), identity).await?;
        Ok(())
    }
}

/// Whoever has to have signed a one-time key.
pub(crate) struct Signer<'a> {
    user_id: &'a UserId,
    key_id: String,
    public_key: Option<&'a str>,
}

impl<'a> Signer<'a> {
    pub(crate) fn of(user_id: &'a UserId, device_id: &DeviceId, identity: Option<&'a KeyObject>) -> Self {
        let key_id = format!("ed25519:{device_id}");
        let public_key = identity.and_then(|identity| identity.key(&key_id));
        Self { user_id, key_id, public_key }
    }

    fn check(&self, object: &KeyObject) -> Result<()> {
        let Some(public_key) = self.public_key else { return Ok(()) };
        match object.check(self.user_id, &self.key_id, public_key)? {
            Signature::Valid | Signature::Absent => Ok(()),
            Signature::Invalid => Err(Error::InvalidSignature("a key is not signed by its device".to_owned())),
        }
    }
}

/// "The JSON object must include the public part of the device's Ed25519 key, and must be signed by that key". Signatures
/// that cannot be any are left to the clients to judge, which trust no server with that; forged ones are refused.
pub(crate) fn check_device_keys(user_id: &UserId, device_id: &DeviceId, raw: &Raw<DeviceKeys>) -> Result<KeyObject> {
    let keys = raw.deserialize().map_err(|error| Error::BadJson(format!("device_keys: {error}")))?;
    if keys.user_id != user_id {
        return Err(Error::InvalidParam("device_keys are of another user".to_owned()));
    }
    if keys.device_id != device_id {
        return Err(Error::InvalidParam("device_keys are of another device".to_owned()));
    }
    if keys.keys.keys().any(|key_id| key_id.key_name() != device_id) {
        return Err(Error::InvalidParam("device_keys have a key that is named after another device".to_owned()));
    }
    let object = KeyObject::parse(raw.json())?;
    Signer::of(user_id, device_id, Some(&object)).check(&object)?;
    Ok(object)
}

fn check_keys(signer: &Signer<'_>, keys: &Keys) -> Result<Vec<NewKey>> {
    if keys.len() as i64 > ONE_TIME_KEYS_MAX {
        return Err(too_many());
    }
    keys.iter().map(|(key_id, key)| check_key(signer, key_id, key)).collect()
}

/// "There can only be at most one key per algorithm uploaded".
pub(crate) fn check_fallback_keys(signer: &Signer<'_>, keys: &Keys) -> Result<Vec<NewKey>> {
    let keys = check_keys(signer, keys)?;
    let algorithms: HashSet<&str> = keys.iter().map(|key| &*key.algorithm).collect();
    if algorithms.len() < keys.len() {
        return Err(Error::InvalidParam("there can be one fallback key of an algorithm".to_owned()));
    }
    Ok(keys)
}

pub(crate) fn check_one_time_keys(signer: &Signer<'_>, keys: &Keys) -> Result<Vec<NewKey>> {
    check_keys(signer, keys)
}

fn check_key(signer: &Signer<'_>, key_id: &OwnedOneTimeKeyId, raw: &Raw<OneTimeKey>) -> Result<NewKey> {
    let text = raw.json().get();
    if text.len() > ONE_TIME_KEY_BYTES_MAX || key_id.as_str().len() > KEY_ID_BYTES_MAX {
        return Err(Error::TooLarge("a one-time key is larger than any key can be"));
    }
    if key_id.as_str().contains('\0') {
        return Err(Error::InvalidParam("the name of a one-time key has a NUL character".to_owned()));
    }
    let json = match raw.deserialize().map_err(|error| Error::BadJson(format!("{key_id}: {error}")))? {
        OneTimeKey::Key(key) => serde_json::Value::from(key).to_string(),
        _ => {
            let object = KeyObject::parse(raw_value(raw))?;
            signer.check(&object)?;
            object.to_json()
        }
    };
    Ok(NewKey { algorithm: key_id.algorithm().to_string(), key_id: key_id.key_name().to_string(), json })
}

fn raw_value(raw: &Raw<OneTimeKey>) -> &RawValue {
    raw.json()
}

fn too_many() -> Error {
    Error::TooLarge("a device cannot have so many one-time keys")
}
