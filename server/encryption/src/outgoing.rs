//! What other servers have to be told of our users' devices, and messages to theirs: kept until they have it.

use myelin_store::EduSubject;
use ruma::{
    DeviceId, ServerName, UInt,
    api::federation::transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{Encryption, Error, Result, query::device_as_told};

#[derive(Serialize)]
struct Edu<C> {
    edu_type: &'static str,
    content: C,
}

impl Encryption {
    /// The oldest EDUs that a server has not taken yet, in their order: a number that grows, and the object with
    /// `edu_type` and `content`. What they say of devices is so now.
    pub async fn pending_edus(&self, server: &ServerName, limit: usize) -> Result<Vec<(i64, Box<RawValue>)>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut edus = Vec::new();
        for pending in self.store.pending_edus(server.as_str(), limit).await? {
            let edu = match pending.subject {
                EduSubject::ToDevice(content) => {
                    let content = RawValue::from_string(content).map_err(|_| Error::Corrupt("message to a device"))?;
                    written("m.direct_to_device", content)?
                }
                EduSubject::Device { user_nid, device_id, prev_pos } => written(
                    "m.device_list_update",
                    self.device_update(user_nid, &device_id, pending.pos, prev_pos).await?,
                )?,
                EduSubject::CrossSigning { user_nid } => {
                    written("m.signing_key_update", self.signing_keys_now(user_nid).await?)?
                }
            };
            edus.push((pending.pos, edu));
        }
        Ok(edus)
    }

    /// A server has taken all EDUs up to a number: they are not to be sent again.
    pub async fn edus_sent(&self, server: &ServerName, up_to: i64) -> Result<()> {
        Ok(self.store.edus_sent(server.as_str(), up_to).await?)
    }

    /// Servers for which something is pending.
    pub async fn edu_servers(&self) -> Result<Vec<ruma::OwnedServerName>> {
        let servers = self.store.edu_destinations().await?;
        Ok(servers.into_iter().filter_map(|server| ServerName::parse(server).ok()).collect())
    }

    async fn device_update(
        &self,
        user_nid: i64,
        device_id: &str,
        pos: i64,
        prev_pos: Option<i64>,
    ) -> Result<DeviceListUpdateContent> {
        let user_id = self.store.user_id(user_nid).await?;
        let device = self.store.device_to_tell(user_nid, device_id).await?;
        let device_id = <&DeviceId>::from(device_id).to_owned();
        let mut update = DeviceListUpdateContent::new(user_id.clone(), device_id.clone(), number(pos));
        update.prev_id = prev_pos.into_iter().map(number).collect();
        let Some((display_name, keys)) = device else {
            update.deleted = Some(true);
            return Ok(update);
        };
        if let Some(keys) = keys {
            let wanted = std::collections::BTreeMap::from([(user_id.clone(), vec![device_id.clone()])]);
            // With the signatures that others may see.
            let mut told = self.query_local_keys(wanted).await?.device_keys.remove(&user_id).unwrap_or_default();
            let keys = match told.remove(&device_id) {
                Some(keys) => keys,
                None => device_as_told(&keys, None, None)?,
            };
            update.keys = Some(keys);
        }
        update.device_display_name = display_name;
        Ok(update)
    }

    async fn signing_keys_now(&self, user_nid: i64) -> Result<SigningKeyUpdateContent> {
        let user_id = self.store.user_id(user_nid).await?;
        let mut update = SigningKeyUpdateContent::new(user_id.clone());
        let wanted = std::collections::BTreeMap::from([(user_id.clone(), Vec::new())]);
        let mut told = self.query_local_keys(wanted).await?;
        update.master_key = told.master_keys.remove(&user_id);
        update.self_signing_key = told.self_signing_keys.remove(&user_id);
        Ok(update)
    }
}

fn written(edu_type: &'static str, content: impl Serialize) -> Result<Box<RawValue>> {
    to_raw_value(&Edu { edu_type, content }).map_err(|_| Error::Corrupt("key"))
}

fn number(pos: i64) -> UInt {
    UInt::new_saturating(u64::try_from(pos).unwrap_or_default())
}
