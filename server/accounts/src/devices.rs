//! The devices of a user.

use myelin_store::Device;
use ruma::{DeviceId, OwnedDeviceId, UserId};

use crate::{Accounts, Error, Result, sessions::Ended};

/// The longest name of a device, in bytes.
pub const DEVICE_NAME_BYTES_MAX: usize = 255;
/// The longest identifier of a device, in bytes.
const DEVICE_ID_BYTES_MAX: usize = 255;

impl Accounts {
    /// A user's devices, the oldest first.
    pub async fn devices(&self, user_nid: i64) -> Result<Vec<Device>> {
        Ok(self.store.devices(user_nid).await?)
    }

    /// One of a user's devices.
    pub async fn device(&self, user_nid: i64, device_id: &DeviceId) -> Result<Device> {
        self.store.device(user_nid, device_id.as_str()).await?.ok_or(Error::UnknownDevice)
    }

    /// Calls a device something else.
    pub async fn rename_device(&self, user_nid: i64, device_id: &DeviceId, display_name: &str) -> Result<()> {
        check_device_name(display_name)?;
        if self.store.rename_device(user_nid, device_id.as_str(), Some(display_name)).await? {
            Ok(())
        } else {
            Err(Error::UnknownDevice)
        }
    }

    /// Removes devices, with their sessions. Those that are not there are no error.
    pub async fn delete_devices(&self, user_nid: i64, user_id: &UserId, device_ids: &[OwnedDeviceId]) -> Result<()> {
        let names: Vec<&str> = device_ids.iter().map(|device_id| device_id.as_str()).collect();
        let gone = self.store.delete_devices(user_nid, &names).await?;
        self.forget_sessions(&Ended::User(user_nid));
        self.tell_devices_removed(user_id, gone.into_iter().map(OwnedDeviceId::from).collect()).await;
        Ok(())
    }
}

pub(crate) fn check_device_id(device_id: &DeviceId) -> Result<()> {
    let text = device_id.as_str();
    if text.is_empty() || text.len() > DEVICE_ID_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(Error::InvalidDeviceId);
    }
    Ok(())
}

pub(crate) fn check_device_name(name: &str) -> Result<()> {
    // PostgreSQL has no NUL in its texts.
    if name.len() > DEVICE_NAME_BYTES_MAX || name.contains('\0') {
        return Err(Error::DeviceNameTooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::{OwnedDeviceId, device_id};

    use crate::{
        Error, NewDevice, SessionError,
        testing::{PASSWORD, Server, on_both},
    };

    /// A user can see, rename and remove devices of their own, and nobody else's.
    #[tokio::test]
    async fn devices_belong_to_their_user() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let bob = server.user(&accounts, "bob").await;
            let device = NewDevice { initial_display_name: Some("Phone"), ..NewDevice::default() };
            let phone = accounts.log_in_by_password("alice", PASSWORD, device).await.unwrap();
            let session = accounts.session(&phone.access_token, None).await.unwrap();
            let (nid, id) = (session.user_nid, &session.user_id);
            assert_eq!(accounts.devices(nid).await.unwrap().len(), 2);
            assert_eq!(accounts.device(nid, &phone.device_id).await.unwrap().display_name.as_deref(), Some("Phone"));
            accounts.rename_device(nid, &phone.device_id, "Mine").await.unwrap();
            assert_eq!(accounts.device(nid, &phone.device_id).await.unwrap().display_name.as_deref(), Some("Mine"));
            let unknown = accounts.rename_device(nid, device_id!("NONE"), "x").await;
            assert!(matches!(unknown, Err(Error::UnknownDevice)));
            let long = accounts.rename_device(nid, &phone.device_id, &"x".repeat(256)).await;
            assert!(matches!(long, Err(Error::DeviceNameTooLong)));
            assert!(matches!(accounts.device(nid, &bob.device_id).await, Err(Error::UnknownDevice)));
            let gone: Vec<OwnedDeviceId> = vec![phone.device_id.clone(), bob.device_id.clone(), "NONE".into()];
            accounts.delete_devices(nid, id, &gone).await.unwrap();
            assert!(matches!(accounts.session(&phone.access_token, None).await, Err(SessionError::Unknown)));
            accounts.session(&alice.access_token, None).await.unwrap();
            accounts.session(&bob.access_token, None).await.unwrap();
        })
        .await;
    }
}
