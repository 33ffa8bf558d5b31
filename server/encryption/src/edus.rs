//! What other servers tell of their users' devices.
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#device-management)

use myelin_store::{RemoteDevice, RemoteDeviceUpdate, UpdateOutcome};
use ruma::{
    ServerName, UInt, UserId,
    api::federation::transactions::edu::{DeviceListUpdateContent, DirectDeviceContent, Edu, SigningKeyUpdateContent},
};

use crate::{
    Encryption, Error, Result,
    query::{is_cross_signing_key_of, is_device_of, storable},
};

/// The longest name of a message, in bytes; the specification has 32 code points.
const MESSAGE_ID_BYTES_MAX: usize = 255;
/// The longest name of a device, in bytes.
const DEVICE_ID_BYTES_MAX: usize = 255;

/// What became of an EDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EduOutcome {
    /// It was taken.
    Accepted,
    /// It is of nobody whom we know, or of another kind.
    Ignored,
    /// It speaks for a user of another server than its sender.
    Refused,
    /// What it says cannot be so.
    Malformed,
}

impl Encryption {
    /// Takes an EDU of another server: `m.device_list_update`, `m.signing_key_update`, `m.direct_to_device`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database does not answer: the EDU should come again.
    pub async fn receive_edu(&self, origin: &ServerName, edu: &Edu) -> Result<EduOutcome> {
        let outcome = match edu {
            Edu::DeviceListUpdate(update) => self.device_list_update(origin, update).await,
            Edu::SigningKeyUpdate(update) => self.signing_key_update(origin, update).await,
            Edu::DirectToDevice(sent) => self.direct_to_device(origin, sent).await,
            _ => Ok(EduOutcome::Ignored),
        };
        match outcome {
            Err(Error::BadJson(_) | Error::InvalidParam(_) | Error::TooLarge(_)) => Ok(EduOutcome::Malformed),
            outcome => outcome,
        }
    }

    async fn device_list_update(&self, origin: &ServerName, update: &DeviceListUpdateContent) -> Result<EduOutcome> {
        let user_nid = match self.known_sender(origin, &update.user_id).await? {
            Ok(user_nid) => user_nid,
            Err(outcome) => return Ok(outcome),
        };
        let device_id = update.device_id.as_str();
        let is_named = !device_id.is_empty() && device_id.len() <= DEVICE_ID_BYTES_MAX && !device_id.contains('\0');
        if !is_named || update.keys.as_ref().is_some_and(|keys| !is_device_of(&update.user_id, device_id, keys)) {
            return Ok(EduOutcome::Malformed);
        }
        let device = RemoteDevice {
            device_id: device_id.to_owned(),
            display_name: update.device_display_name.clone().map(storable),
            keys: update.keys.as_ref().map(|keys| storable(keys.json().get().to_owned())),
        };
        let change = RemoteDeviceUpdate {
            stream_id: number(update.stream_id),
            prev_ids: update.prev_id.iter().copied().map(number).collect(),
            device,
            deleted: update.deleted == Some(true),
        };
        if self.store.update_remote_device(user_nid, change).await? == UpdateOutcome::Missed {
            // "If a server receives an EDU which refers to a prev_id it does not recognise, it must resynchronise its list".
            self.stale.notify_one();
        }
        Ok(EduOutcome::Accepted)
    }

    async fn signing_key_update(&self, origin: &ServerName, update: &SigningKeyUpdateContent) -> Result<EduOutcome> {
        let user_nid = match self.known_sender(origin, &update.user_id).await? {
            Ok(user_nid) => user_nid,
            Err(outcome) => return Ok(outcome),
        };
        let keys = [("master", &update.master_key), ("self_signing", &update.self_signing_key)];
        let mut kept = Vec::new();
        for (usage, key) in keys {
            let Some(key) = key else { continue };
            if !is_cross_signing_key_of(&update.user_id, key) {
                return Ok(EduOutcome::Malformed);
            }
            kept.push((usage.to_owned(), key.json().get().to_owned()));
        }
        self.store.update_remote_cross_signing(user_nid, kept).await?;
        Ok(EduOutcome::Accepted)
    }

    async fn direct_to_device(&self, origin: &ServerName, sent: &DirectDeviceContent) -> Result<EduOutcome> {
        if sent.sender.server_name() != origin {
            return Ok(EduOutcome::Refused);
        }
        let message_id = sent.message_id.as_str();
        if message_id.len() > MESSAGE_ID_BYTES_MAX || message_id.contains('\0') {
            return Ok(EduOutcome::Malformed);
        }
        let event_type = sent.ev_type.to_string();
        self.receive_to_device(origin, &sent.sender, &event_type, message_id, &sent.messages).await?;
        Ok(EduOutcome::Accepted)
    }

    /// The user for whom a server speaks, if we have to do with them.
    async fn known_sender(&self, origin: &ServerName, user_id: &UserId) -> Result<Result<i64, EduOutcome>> {
        if user_id.server_name() != origin || self.is_ours(user_id) {
            return Ok(Err(EduOutcome::Refused));
        }
        Ok(self.store.known_user_nid(user_id).await?.ok_or(EduOutcome::Ignored))
    }
}

fn number(number: UInt) -> i64 {
    i64::try_from(u64::from(number)).unwrap_or(i64::MAX)
}
