//! Messages to devices.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging)

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Operation, ToDevice, ToDeviceMessage};
use ruma::{
    OwnedUserId, ServerName, UserId, events::AnyToDeviceEventContent, serde::Raw, to_device::DeviceIdOrAllDevices,
};
use serde::Serialize;

use crate::{Encryption, Error, Owner, Result, now_ms};

/// Messages by user and device.
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>>;

/// The longest type of a message, in bytes.
const TYPE_BYTES_MAX: usize = 255;

/// The content of `m.direct_to_device`.
#[derive(Serialize)]
struct DirectToDevice<'a> {
    sender: &'a UserId,
    #[serde(rename = "type")]
    event_type: &'a str,
    message_id: &'a str,
    messages: &'a Messages,
}

impl Encryption {
    /// Sends messages from a device to others, on whatever server. Sent again with the same transaction identifier,
    /// nothing happens.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`] when a message is no JSON object, [`Error::InvalidParam`] when the type is too long.
    pub async fn send_to_device(
        &self,
        owner: &Owner,
        event_type: &str,
        txn_id: &str,
        messages: Messages,
    ) -> Result<()> {
        check(event_type, &messages)?;
        let (ours, theirs): (Messages, Messages) = messages.into_iter().partition(|(user_id, _)| self.is_ours(user_id));
        // "Unique ID for the message, used for idempotence. Arbitrary utf8 string, of maximum length 32 codepoints."
        let message_id = format!("{:032x}", rand::random::<u128>());
        let mut by_server: BTreeMap<String, Messages> = BTreeMap::new();
        for (user_id, devices) in theirs {
            by_server.entry(user_id.server_name().to_string()).or_default().insert(user_id, devices);
        }
        let mut edus = Vec::new();
        for (server, messages) in by_server.iter().filter(|_| self.outbox.get().is_some()) {
            let sender = &*owner.user_id;
            let content = DirectToDevice { sender, event_type, message_id: &message_id, messages };
            let content = serde_json::to_string(&content).map_err(|error| Error::BadJson(error.to_string()))?;
            edus.push((server.clone(), content));
        }
        let sent = ToDevice {
            origin: owner.device_nid.to_string().into(),
            // "unique across requests with the same access token", for the same path.
            txn: format!("{event_type}/{txn_id}").into(),
            sender: owner.user_id.as_str().into(),
            event_type: event_type.into(),
            messages: self.messages_here(&ours).await?,
            edus,
            now_ms: now_ms(),
            pos: 0,
        };
        if sent.messages.is_empty() && sent.edus.is_empty() {
            return Ok(());
        }
        let servers: Vec<String> = sent.edus.iter().map(|(server, _)| server.clone()).collect();
        self.store.commit(Operation::ToDevice(Box::new(sent))).await?;
        servers.iter().for_each(|server| self.notify(server));
        Ok(())
    }

    /// Takes messages from another server's user. Sent again with the same identifier, nothing happens.
    pub(crate) async fn receive_to_device(
        &self,
        origin: &ServerName,
        sender: &UserId,
        event_type: &str,
        message_id: &str,
        messages: &Messages,
    ) -> Result<()> {
        check(event_type, messages)?;
        let messages: Messages =
            messages.iter().filter(|(user_id, _)| self.is_ours(user_id)).map(|(u, m)| (u.clone(), m.clone())).collect();
        let messages = self.messages_here(&messages).await?;
        if messages.is_empty() {
            return Ok(());
        }
        let sent = ToDevice {
            origin: origin.as_str().into(),
            txn: format!("{sender}/{message_id}").into(),
            sender: sender.as_str().into(),
            event_type: event_type.into(),
            messages,
            edus: Vec::new(),
            now_ms: now_ms(),
            pos: 0,
        };
        self.store.commit(Operation::ToDevice(Box::new(sent))).await?;
        Ok(())
    }

    /// The messages for devices that are there. One that is named gets what is sent to it by name, every other one what
    /// is sent to all.
    async fn messages_here(&self, messages: &Messages) -> Result<Vec<ToDeviceMessage>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&UserId> = messages.keys().map(|user_id| &**user_id).collect();
        let users: HashMap<i64, String> = self.store.known_user_nids(&ids).await?.into_iter().collect();
        let nids: Vec<i64> = users.keys().copied().collect();
        let mut found = Vec::new();
        let mut to_all: HashMap<i64, Arc<str>> = HashMap::new();
        let mut served = HashSet::new();
        for (user_nid, device_nid, device_id) in self.store.devices_of(&nids).await? {
            let user_id = users.get(&user_nid).and_then(|user_id| <&UserId>::try_from(&**user_id).ok());
            let Some(of_user) = user_id.and_then(|user_id| messages.get(user_id)) else { continue };
            let content = match of_user.get(&DeviceIdOrAllDevices::DeviceId(device_id.into())) {
                Some(content) => content.json().get().into(),
                None => match of_user.get(&DeviceIdOrAllDevices::AllDevices) {
                    Some(content) => to_all.entry(user_nid).or_insert_with(|| content.json().get().into()).clone(),
                    None => continue,
                },
            };
            if served.insert(device_nid) {
                found.push(ToDeviceMessage { user_nid, device_nid, content });
            }
        }
        Ok(found)
    }
}

fn check(event_type: &str, messages: &Messages) -> Result<()> {
    if event_type.len() > TYPE_BYTES_MAX || event_type.contains('\0') {
        return Err(Error::InvalidParam("this cannot be the type of a message".to_owned()));
    }
    if messages.values().flat_map(BTreeMap::values).any(|content| !content.json().get().starts_with('{')) {
        return Err(Error::BadJson("a message has to be a JSON object".to_owned()));
    }
    Ok(())
}
