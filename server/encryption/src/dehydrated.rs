//! Devices that wait, with their secrets encrypted, to be taken over by a new login: MSC3814.

use myelin_store::{DehydratedDevice, KeyUpload, NewDehydratedDevice, ONE_TIME_KEYS_MAX, WaitingMessage};
use ruma::{DeviceId, encryption::DeviceKeys, serde::Raw};
use serde_json::value::RawValue;

use crate::{
    Encryption, Error, Owner, Result, now_ms,
    upload::{Keys, Signer, check_device_keys, check_fallback_keys, check_one_time_keys},
};

/// The longest secrets, in bytes.
const DATA_BYTES_MAX: usize = 128 * 1024;
/// The longest name of a device, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Messages in one answer.
const MESSAGES_MAX: i64 = 100;

impl Encryption {
    /// Lets a device of the user's wait, in the place of the one that did so before.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when another device has the identifier, and those of [`Encryption::upload_keys`].
    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    pub async fn put_dehydrated_device(
        &self,
        owner: &Owner,
        device_id: &DeviceId,
        display_name: Option<&str>,
        data: &RawValue,
        device_keys: &Raw<DeviceKeys>,
        one_time_keys: &Keys,
        fallback_keys: &Keys,
    ) -> Result<()> {
        let name = device_id.as_str();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(Error::InvalidParam("this cannot be a device".to_owned()));
        }
        if display_name.is_some_and(|name| name.len() > NAME_BYTES_MAX || name.contains('\0')) {
            return Err(Error::InvalidParam("this cannot be the name of a device".to_owned()));
        }
        if data.get().len() > DATA_BYTES_MAX {
            return Err(Error::TooLarge("device_data is too large"));
        }
        if !data.get().starts_with('{') {
            return Err(Error::BadJson("device_data has to be a JSON object".to_owned()));
        }
        let keys = check_device_keys(&owner.user_id, device_id, device_keys)?;
        let signer = Signer::of(&owner.user_id, device_id, Some(&keys));
        let one_time = check_one_time_keys(&signer, one_time_keys)?;
        let fallback = check_fallback_keys(&signer, fallback_keys)?;
        debug_assert!(one_time.len() as i64 <= ONE_TIME_KEYS_MAX);
        let new = NewDehydratedDevice {
            device_id: name.to_owned(),
            display_name: display_name.map(str::to_owned),
            data: data.get().to_owned(),
            keys: keys.to_json(),
            now_ms: now_ms(),
        };
        let device_nid = self
            .store
            .put_dehydrated_device(owner.user_nid, new)
            .await?
            .ok_or_else(|| Error::InvalidParam("another device has this identifier".to_owned()))?;
        match self.store.add_keys(device_nid, &one_time, &fallback).await? {
            KeyUpload::Stored(_) => Ok(()),
            KeyUpload::Exists(_) | KeyUpload::TooMany => Err(Error::TooLarge("these are too many one-time keys")),
        }
    }

    /// The device of a user's that waits.
    pub async fn dehydrated_device(&self, user_nid: i64) -> Result<DehydratedDevice> {
        self.store.dehydrated_device(user_nid).await?.ok_or(Error::NotFound("no device waits to be taken over"))
    }

    /// Removes it, if there is one; answers its identifier.
    pub async fn delete_dehydrated_device(&self, user_nid: i64) -> Result<String> {
        let device = self.dehydrated_device(user_nid).await?;
        self.store.delete_devices(user_nid, &[&device.device_id]).await?;
        Ok(device.device_id)
    }

    /// Messages to it, and where to go on from. They stay until the device is removed or replaced: whoever takes it
    /// over may fail on the way.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when another device is asked for, [`Error::InvalidParam`] when the place is none of ours.
    pub async fn dehydrated_messages(
        &self,
        user_nid: i64,
        device_id: &DeviceId,
        from: Option<&str>,
    ) -> Result<(Vec<WaitingMessage>, String)> {
        let device = self.dehydrated_device(user_nid).await?;
        if device.device_id != device_id.as_str() {
            return Err(Error::Forbidden("this is not the device that waits to be taken over"));
        }
        let unknown = || Error::InvalidParam("next_batch is none of ours".to_owned());
        let after: i64 = from.map_or(Ok(0), |from| from.parse().map_err(|_| unknown()))?;
        let messages = self.store.to_device_messages(device.device_nid, after, i64::MAX, MESSAGES_MAX).await?;
        let next = messages.last().map_or(after, |message| message.pos);
        Ok((messages, next.to_string()))
    }
}
