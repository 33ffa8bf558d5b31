//! Signatures of keys that users upload.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload)

use std::collections::{BTreeMap, HashMap};

use myelin_store::KeySignature;
use ruma::{OwnedUserId, UserId};
use serde_json::value::RawValue;

use crate::{
    Encryption, Error, Owner, Result,
    key_object::{KeyObject, Signature, stored_public_key},
};

/// Signatures that were refused: by user and key, the errcode and a message.
pub type SignatureFailures = BTreeMap<OwnedUserId, BTreeMap<String, (&'static str, String)>>;

/// Objects that one request may sign.
const OBJECTS_MAX: usize = 1000;

/// The keys by which a user may sign.
struct SigningKeys {
    /// The user's devices by identifier, with their identity keys.
    devices: HashMap<String, KeyObject>,
    /// Cross-signing keys by usage: the public key, and the whole.
    cross: HashMap<String, (String, KeyObject)>,
}

impl Encryption {
    /// Keeps signatures; answers those that are refused.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] for too many, [`Error::Store`] when the database does not answer.
    pub async fn upload_signatures(
        &self,
        owner: &Owner,
        signed: &[(&UserId, &str, &RawValue)],
    ) -> Result<SignatureFailures> {
        if signed.len() > OBJECTS_MAX {
            return Err(Error::TooLarge("so many signatures cannot be taken at once"));
        }
        let own = self.signing_keys(owner.user_nid).await?;
        let mut failures = SignatureFailures::new();
        let mut good: Vec<KeySignature> = Vec::new();
        for &(user_id, key_id, json) in signed {
            let outcome = if user_id == owner.user_id {
                own_signatures(owner, &own, key_id, json)
            } else {
                self.signatures_of_other(owner, &own, user_id, key_id, json).await
            };
            match outcome {
                Ok(signatures) => good.extend(signatures),
                Err(error @ (Error::Store(_) | Error::Corrupt(_))) => return Err(error),
                Err(error) => {
                    let refused = failures.entry(user_id.to_owned()).or_default();
                    refused.insert(key_id.to_owned(), (errcode(&error), error.to_string()));
                }
            }
        }
        let known = self.store.key_signatures(&[owner.user_nid], Some(owner.user_nid)).await?;
        good.retain(|signature| !known.contains(signature));
        self.store.add_key_signatures(owner.user_nid, good).await?;
        Ok(failures)
    }

    async fn signing_keys(&self, user_nid: i64) -> Result<SigningKeys> {
        let mut keys = SigningKeys { devices: HashMap::new(), cross: HashMap::new() };
        for device in self.store.device_keys_of(&[user_nid]).await? {
            keys.devices.insert(device.device_id, KeyObject::stored(&device.json)?);
        }
        for key in self.store.cross_signing_keys(&[user_nid]).await? {
            keys.cross.insert(key.usage, (stored_public_key(&key.json)?, KeyObject::stored(&key.json)?));
        }
        Ok(keys)
    }

    /// A user-signing key signs the master keys of others.
    async fn signatures_of_other(
        &self,
        owner: &Owner,
        own: &SigningKeys,
        user_id: &UserId,
        target: &str,
        json: &RawValue,
    ) -> Result<Vec<KeySignature>> {
        let unknown = || Error::NotFound("there is no such key");
        let target_nid = self.store.known_user_nid(user_id).await?.ok_or_else(unknown)?;
        let mut masters = self.store.cross_signing_keys(&[target_nid]).await?;
        masters.retain(|key| key.usage == "master");
        let master = match masters.pop() {
            Some(key) => KeyObject::stored(&key.json)?,
            // Of another server's user, whose list is not kept here.
            None => {
                let wanted = BTreeMap::from([(user_id.to_owned(), Vec::new())]);
                let mut found = self.query_keys(owner.user_nid, wanted, None).await?;
                let key = found.master_keys.remove(user_id).ok_or_else(unknown)?;
                KeyObject::parse(key.json())?
            }
        };
        if master.key(&format!("ed25519:{target}")).is_none() {
            return Err(unknown());
        }
        let object = signed_object(&master, json)?;
        let (user_signing, _) = own.cross.get("user_signing").ok_or(Error::NotFound("you have no user-signing key"))?;
        let key_id = format!("ed25519:{user_signing}");
        if object.check(&owner.user_id, &key_id, user_signing)? != Signature::Valid {
            return Err(forged());
        }
        Ok(vec![signature(owner, target_nid, target, &object, &key_id)?])
    }
}

/// A self-signing key signs devices, and devices sign the master key.
fn own_signatures(owner: &Owner, own: &SigningKeys, target: &str, json: &RawValue) -> Result<Vec<KeySignature>> {
    let mut signatures = Vec::new();
    if let Some(device) = own.devices.get(target) {
        let object = signed_object(device, json)?;
        let (self_signing, _) = own.cross.get("self_signing").ok_or(Error::NotFound("you have no self-signing key"))?;
        let key_id = format!("ed25519:{self_signing}");
        if object.check(&owner.user_id, &key_id, self_signing)? != Signature::Valid {
            return Err(forged());
        }
        signatures.push(signature(owner, owner.user_nid, target, &object, &key_id)?);
        return Ok(signatures);
    }
    let (_, master) = own
        .cross
        .get("master")
        .filter(|(public_key, _)| public_key == target)
        .ok_or(Error::NotFound("there is no such key"))?;
    let object = signed_object(master, json)?;
    for (key_id, _) in object.signatures_of(&owner.user_id) {
        let Some(device_id) = key_id.strip_prefix("ed25519:") else { continue };
        let Some(public_key) = own.devices.get(device_id).and_then(|device| device.key(key_id)) else { continue };
        if object.check(&owner.user_id, key_id, public_key)? != Signature::Valid {
            return Err(forged());
        }
        signatures.push(signature(owner, owner.user_nid, target, &object, key_id)?);
    }
    if signatures.is_empty() { Err(forged()) } else { Ok(signatures) }
}

/// "The signed JSON object must match the key previously uploaded or retrieved for the given key ID, with the exception
/// of the signatures property".
fn signed_object(known: &KeyObject, json: &RawValue) -> Result<KeyObject> {
    let object = KeyObject::parse(json)?;
    if object.signed_json()? != known.signed_json()? {
        return Err(Error::InvalidParam("this is not the key that was uploaded".to_owned()));
    }
    Ok(object)
}

fn signature(owner: &Owner, target_nid: i64, target: &str, object: &KeyObject, key_id: &str) -> Result<KeySignature> {
    let made = object.signatures_of(&owner.user_id).find(|(id, _)| *id == key_id);
    let (_, signature) = made.ok_or_else(forged)?;
    Ok(KeySignature {
        target_nid,
        target: target.to_owned(),
        signer_nid: owner.user_nid,
        key_id: key_id.to_owned(),
        signature: signature.to_owned(),
    })
}

fn forged() -> Error {
    Error::InvalidSignature("Invalid signature".to_owned())
}

fn errcode(error: &Error) -> &'static str {
    match error {
        Error::InvalidSignature(_) => "M_INVALID_SIGNATURE",
        Error::NotFound(_) => "M_NOT_FOUND",
        Error::BadJson(_) => "M_BAD_JSON",
        Error::TooLarge(_) => "M_TOO_LARGE",
        _ => "M_INVALID_PARAM",
    }
}
