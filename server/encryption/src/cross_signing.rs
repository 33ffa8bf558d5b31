//! Cross-signing keys that users upload.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload)

use std::collections::HashMap;

use myelin_store::CrossSigningUpdate;
use ruma::{
    UserId,
    encryption::{CrossSigningKey, KeyUsage},
    serde::Raw,
};

use crate::{
    Encryption, Error, Owner, Result,
    key_object::{KeyObject, Signature, public_key, stored_public_key},
};

/// Keys that a user uploads.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossSigningKeys<'a> {
    /// The master key.
    pub master: Option<&'a Raw<CrossSigningKey>>,
    /// The key that signs the user's devices.
    pub self_signing: Option<&'a Raw<CrossSigningKey>>,
    /// The key that signs other users.
    pub user_signing: Option<&'a Raw<CrossSigningKey>>,
}

/// Keys that were checked, and may be kept once the user is who they say.
#[derive(Clone, Debug)]
pub struct PreparedCrossSigning {
    /// Whether the user has to show the password first: "User-Interactive Authentication MUST be performed […] except
    /// […] there is no existing master signing key […], OR […] the request contains no new keys."
    pub needs_authentication: bool,
    /// `None` where nothing would change.
    update: Option<CrossSigningUpdate>,
    /// What tells this upload from others.
    pub subject: Vec<String>,
}

/// A key of an upload.
struct NewKey {
    usage: &'static str,
    public_key: String,
    object: KeyObject,
}

impl Encryption {
    /// Checks cross-signing keys.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSignature`], [`Error::MissingParam`] without any master key, [`Error::Forbidden`] when a key is
    /// named like a device, [`Error::BadJson`] and [`Error::InvalidParam`] for what is no such key of the user's.
    pub async fn prepare_cross_signing(
        &self,
        owner: &Owner,
        keys: CrossSigningKeys<'_>,
    ) -> Result<PreparedCrossSigning> {
        let given = [
            ("master", KeyUsage::Master, keys.master),
            ("self_signing", KeyUsage::SelfSigning, keys.self_signing),
            ("user_signing", KeyUsage::UserSigning, keys.user_signing),
        ];
        let mut new: Vec<NewKey> = Vec::new();
        for (name, usage, raw) in given {
            new.extend(raw.map(|raw| check(&owner.user_id, name, &usage, raw)).transpose()?);
        }
        self.refuse_device_names(owner, &new).await?;
        let stored: HashMap<String, String> = self
            .store
            .cross_signing_keys(&[owner.user_nid])
            .await?
            .into_iter()
            .map(|key| (key.usage, key.json))
            .collect();
        check_signatures(&owner.user_id, &new, stored.get("master").map(String::as_str))?;

        let mut known: HashMap<&str, String> = HashMap::new();
        for (usage, json) in &stored {
            known.insert(usage, stored_public_key(json)?);
        }
        let is_new = |key: &NewKey| known.get(key.usage) != Some(&key.public_key);
        let subject = new.iter().map(|key| format!("{}:{}", key.usage, key.public_key)).collect();
        if !new.iter().any(is_new) {
            return Ok(PreparedCrossSigning { needs_authentication: false, update: None, subject });
        }
        let is_other_master = new.iter().any(|key| key.usage == "master" && is_new(key));
        let is_given = |usage: &str| new.iter().any(|key| key.usage == usage);
        // Keys that the old master key has signed are worth nothing under a new one.
        let gone: Vec<String> = stored.keys().filter(|usage| is_other_master && !is_given(usage)).cloned().collect();
        let replaced = new.iter().filter(|key| is_new(key)).filter_map(|key| known.get(key.usage));
        let replaced: Vec<String> =
            replaced.chain(gone.iter().filter_map(|usage| known.get(&**usage))).cloned().collect();
        let keys = new.iter().filter(|key| is_new(key)).map(|key| (key.usage.to_owned(), key.object.to_json()));
        let update =
            CrossSigningUpdate { expected_master: stored.get("master").cloned(), keys: keys.collect(), gone, replaced };
        let needs_authentication = stored.contains_key("master");
        Ok(PreparedCrossSigning { needs_authentication, update: Some(update), subject })
    }

    /// Keeps keys that were checked.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the user has got other keys meanwhile.
    pub async fn set_cross_signing(&self, owner: &Owner, prepared: PreparedCrossSigning) -> Result<()> {
        let Some(update) = prepared.update else { return Ok(()) };
        if self.store.set_cross_signing_keys(owner.user_nid, update).await? {
            Ok(())
        } else {
            Err(Error::Forbidden("other cross-signing keys were uploaded meanwhile"))
        }
    }

    /// "The public key of one of the keys is the same as one of the user's device IDs".
    async fn refuse_device_names(&self, owner: &Owner, new: &[NewKey]) -> Result<()> {
        let devices = self.store.devices_of(&[owner.user_nid]).await?;
        if devices.iter().any(|(_, _, device_id)| new.iter().any(|key| key.public_key == *device_id)) {
            return Err(Error::Forbidden("a device has the name of this key"));
        }
        Ok(())
    }
}

fn check(user_id: &UserId, name: &'static str, usage: &KeyUsage, raw: &Raw<CrossSigningKey>) -> Result<NewKey> {
    let key = raw.deserialize().map_err(|error| Error::BadJson(format!("{name}_key: {error}")))?;
    if key.user_id != user_id {
        return Err(Error::InvalidParam(format!("{name}_key is of another user")));
    }
    if !key.usage.contains(usage) {
        return Err(Error::InvalidParam(format!("{name}_key is for another usage")));
    }
    let public_key = public_key(&key)?.to_owned();
    Ok(NewKey { usage: name, public_key, object: KeyObject::parse(raw.json())? })
}

/// "Must be signed by the accompanying master signing key, or by the user's most recently uploaded master signing key if
/// no master signing key is included in the request."
fn check_signatures(user_id: &UserId, new: &[NewKey], stored_master: Option<&str>) -> Result<()> {
    let given = new.iter().find(|key| key.usage == "master").map(|key| Ok(key.public_key.clone()));
    let master = given.or_else(|| stored_master.map(stored_public_key)).transpose()?;
    let master = master.ok_or(Error::MissingParam("there is no master key"))?;
    for key in new.iter().filter(|key| key.usage != "master") {
        if key.object.check(user_id, &format!("ed25519:{master}"), &master)? != Signature::Valid {
            return Err(Error::InvalidSignature(format!("{}_key is not signed by the master key", key.usage)));
        }
    }
    Ok(())
}
