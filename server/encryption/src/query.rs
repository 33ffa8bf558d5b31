//! The keys of users: from the database, and from their servers.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery)

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use myelin_rooms::remote::RemoteError;
use myelin_store::{FetchedDeviceList, KeySignature, RemoteDevice};
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::federation::{device::get_devices, keys::get_keys},
    encryption::{CrossSigningKey, DeviceKeys},
    serde::Raw,
};
use serde_json::{Map, Value, json, value::to_raw_value};

use crate::{
    Encryption, Error, Result, key_object::stored_public_key, metrics::CACHED_LISTS, remote::within, remote_time,
};

/// Lists of one server that are followed from now on because of one request; more are asked for without that.
const FOLLOWED_AT_ONCE: usize = 10;
/// Devices of another server's user that are looked at.
const REMOTE_DEVICES_MAX: usize = 1000;

/// Whose keys are wanted: all devices, or some.
pub(crate) type Wanted = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// Keys of users.
#[derive(Clone, Debug, Default)]
pub struct QueriedKeys {
    /// Identity keys by user and device.
    pub device_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Raw<DeviceKeys>>>,
    /// Master keys by user.
    pub master_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// Self-signing keys by user.
    pub self_signing_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// The user-signing key of whoever asks.
    pub user_signing_keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// Servers that did not answer, and why.
    pub failures: BTreeMap<String, Value>,
}

/// A signature to be added to a key: by target.
type Signatures = HashMap<(i64, String), Vec<(OwnedUserId, KeySignature)>>;

impl Encryption {
    /// The keys of users, of whatever server, as one of our users may see them. Other servers have a bounded time.
    pub async fn query_keys(&self, viewer_nid: i64, wanted: Wanted, timeout: Option<Duration>) -> Result<QueriedKeys> {
        let (ours, theirs): (Wanted, Wanted) = wanted.into_iter().partition(|(user_id, _)| self.is_ours(user_id));
        let mut found = self.own_keys(&ours, Some(viewer_nid)).await?;
        if !theirs.is_empty() {
            self.add_remote_keys(theirs, viewer_nid, remote_time(timeout), &mut found).await?;
        }
        Ok(found)
    }

    /// The keys of our users as another server may see them. Those of others are left out.
    pub async fn query_local_keys(&self, wanted: Wanted) -> Result<get_keys::v1::Response> {
        let ours: Wanted = wanted.into_iter().filter(|(user_id, _)| self.is_ours(user_id)).collect();
        let found = self.own_keys(&ours, None).await?;
        let mut response = get_keys::v1::Response::new(found.device_keys);
        response.master_keys = found.master_keys;
        response.self_signing_keys = found.self_signing_keys;
        Ok(response)
    }

    /// The devices of one of our users as another server may see them. `None` if there is no such user.
    pub async fn local_devices(&self, user_id: &UserId) -> Result<Option<get_devices::v1::Response>> {
        if !self.is_ours(user_id) {
            return Ok(None);
        }
        let Some(account) = self.store.account(user_id).await? else { return Ok(None) };
        // The number first: what changes meanwhile is told again.
        let stream_id = self.store.device_stream_id(account.user_nid).await?;
        let wanted = Wanted::from([(user_id.to_owned(), Vec::new())]);
        let mut found = self.own_keys(&wanted, None).await?;
        let stream_id = ruma::UInt::new_saturating(u64::try_from(stream_id).unwrap_or_default());
        let mut response = get_devices::v1::Response::new(user_id.to_owned(), stream_id);
        let names: HashMap<String, Option<String>> = self
            .store
            .devices(account.user_nid)
            .await?
            .into_iter()
            .map(|device| (device.device_id, device.display_name))
            .collect();
        for (device_id, keys) in found.device_keys.remove(user_id).unwrap_or_default() {
            let display_name = names.get(device_id.as_str()).cloned().flatten();
            let mut device = get_devices::v1::UserDevice::new(device_id, keys);
            device.device_display_name = display_name;
            response.devices.push(device);
        }
        response.master_key = found.master_keys.remove(user_id);
        response.self_signing_key = found.self_signing_keys.remove(user_id);
        Ok(Some(response))
    }

    /// Keys of our users. Those who have none are in the answer too: a client that tracks them has to know.
    async fn own_keys(&self, wanted: &Wanted, viewer_nid: Option<i64>) -> Result<QueriedKeys> {
        let mut found = QueriedKeys::default();
        let users = self.numbers(wanted).await?;
        if users.is_empty() {
            return Ok(found);
        }
        let nids: Vec<i64> = users.keys().copied().collect();
        let signatures = self.signatures(&nids, viewer_nid, &users).await?;
        for user_id in users.values() {
            found.device_keys.insert(user_id.clone(), BTreeMap::new());
        }
        for device in self.store.device_keys_of(&nids).await? {
            let Some(user_id) = users.get(&device.user_nid) else { continue };
            if !is_wanted(wanted, user_id, &device.device_id) {
                continue;
            }
            let signed = signatures.get(&(device.user_nid, device.device_id.clone()));
            let keys = device_as_told(&device.json, device.display_name.as_deref(), signed)?;
            let devices = found.device_keys.entry(user_id.clone()).or_default();
            devices.insert(device.device_id.into(), keys);
        }
        self.add_cross_signing_keys(&users, &signatures, viewer_nid, &mut found).await?;
        Ok(found)
    }

    /// The users of a request that are known, by number.
    async fn numbers(&self, wanted: &Wanted) -> Result<HashMap<i64, OwnedUserId>> {
        let ids: Vec<&UserId> = wanted.keys().map(|user_id| &**user_id).collect();
        let known = self.store.known_user_nids(&ids).await?;
        let numbers = known.into_iter().filter_map(|(nid, user_id)| Some((nid, UserId::parse(user_id).ok()?)));
        Ok(numbers.collect())
    }

    async fn signatures(
        &self,
        nids: &[i64],
        viewer_nid: Option<i64>,
        users: &HashMap<i64, OwnedUserId>,
    ) -> Result<Signatures> {
        let viewer = match viewer_nid {
            Some(viewer_nid) if !users.contains_key(&viewer_nid) => Some(self.store.user_id(viewer_nid).await?),
            _ => None,
        };
        let mut signatures = Signatures::new();
        for signature in self.store.key_signatures(nids, viewer_nid).await? {
            let Some(signer) = users.get(&signature.signer_nid).cloned().or_else(|| viewer.clone()) else { continue };
            let target = (signature.target_nid, signature.target.clone());
            signatures.entry(target).or_default().push((signer, signature));
        }
        Ok(signatures)
    }

    async fn add_cross_signing_keys(
        &self,
        users: &HashMap<i64, OwnedUserId>,
        signatures: &Signatures,
        viewer_nid: Option<i64>,
        found: &mut QueriedKeys,
    ) -> Result<()> {
        let nids: Vec<i64> = users.keys().copied().collect();
        for key in self.store.cross_signing_keys(&nids).await? {
            let Some(user_id) = users.get(&key.user_nid) else { continue };
            let signed = signatures.get(&(key.user_nid, stored_public_key(&key.json)?));
            let told = Raw::from_json(as_told(&key.json, None, signed)?);
            match key.usage.as_str() {
                "master" => drop(found.master_keys.insert(user_id.clone(), told)),
                "self_signing" => drop(found.self_signing_keys.insert(user_id.clone(), told)),
                "user_signing" if viewer_nid == Some(key.user_nid) => {
                    found.user_signing_keys.insert(user_id.clone(), told);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the keys of other servers' users: those whose lists are kept here and up to date, and what the servers of
    /// the others answer.
    async fn add_remote_keys(
        &self,
        wanted: Wanted,
        viewer_nid: i64,
        time: Duration,
        found: &mut QueriedKeys,
    ) -> Result<()> {
        let users = self.numbers(&wanted).await?;
        let nids: Vec<i64> = users.keys().copied().collect();
        let sharing: HashSet<i64> = self.store.users_sharing_rooms(&nids).await?.into_iter().collect();
        let lists = self.store.remote_device_lists(&nids).await?;
        let kept: HashMap<i64, OwnedUserId> = lists
            .into_iter()
            .filter(|list| !list.stale && sharing.contains(&list.user_nid))
            .filter_map(|list| Some((list.user_nid, users.get(&list.user_nid)?.clone())))
            .collect();
        CACHED_LISTS.with_label_values(&["hit"]).inc_by(kept.len() as u64);
        CACHED_LISTS.with_label_values(&["miss"]).inc_by((wanted.len() - kept.len()) as u64);
        self.add_kept_keys(&kept, &wanted, viewer_nid, found).await?;

        let kept: HashSet<&OwnedUserId> = kept.values().collect();
        let follow: HashSet<&OwnedUserId> =
            users.iter().filter(|(nid, _)| sharing.contains(nid)).map(|(_, user_id)| user_id).collect();
        let mut by_server: BTreeMap<OwnedServerName, Wanted> = BTreeMap::new();
        for (user_id, devices) in wanted.iter().filter(|(user_id, _)| !kept.contains(user_id)) {
            let server = by_server.entry(user_id.server_name().to_owned()).or_default();
            server.insert(user_id.clone(), devices.clone());
        }
        let mut asked: Vec<BoxFuture<'_, _>> = Vec::new();
        for (server, wanted) in by_server {
            let follow: Vec<OwnedUserId> = wanted.keys().filter(|user| follow.contains(user)).cloned().collect();
            asked.push(Box::pin(async move {
                let answer = self.ask_server(&server, wanted, follow, time).await;
                (server, answer)
            }));
        }
        let mut answers = stream::iter(asked).buffer_unordered(crate::SERVERS_AT_ONCE);
        let mut asked_users: HashMap<i64, OwnedUserId> = HashMap::new();
        while let Some((server, answer)) = answers.next().await {
            match answer {
                Ok(keys) => {
                    asked_users.extend(users.iter().filter(|(_, user_id)| user_id.server_name() == server).map(owned));
                    found.device_keys.extend(keys.device_keys);
                    found.master_keys.extend(keys.master_keys);
                    found.self_signing_keys.extend(keys.self_signing_keys);
                }
                Err(error) => {
                    found.failures.insert(server.to_string(), failure(&error));
                }
            }
        }
        self.add_own_signatures(&asked_users, viewer_nid, found).await
    }

    /// Adds what is kept of lists that we follow.
    async fn add_kept_keys(
        &self,
        users: &HashMap<i64, OwnedUserId>,
        wanted: &Wanted,
        viewer_nid: i64,
        found: &mut QueriedKeys,
    ) -> Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        let nids: Vec<i64> = users.keys().copied().collect();
        let signatures = self.signatures(&nids, Some(viewer_nid), users).await?;
        for user_id in users.values() {
            found.device_keys.insert(user_id.clone(), BTreeMap::new());
        }
        for (user_nid, device) in self.store.remote_devices(&nids).await? {
            let (Some(user_id), Some(keys)) = (users.get(&user_nid), device.keys) else { continue };
            if is_wanted(wanted, user_id, &device.device_id) {
                let keys = device_as_told(&keys, device.display_name.as_deref(), None)?;
                let devices = found.device_keys.entry(user_id.clone()).or_default();
                devices.insert(device.device_id.into(), keys);
            }
        }
        self.add_cross_signing_keys(users, &signatures, Some(viewer_nid), found).await
    }

    /// Adds the signatures that the viewer has made to master keys that another server has just told.
    async fn add_own_signatures(
        &self,
        users: &HashMap<i64, OwnedUserId>,
        viewer_nid: i64,
        found: &mut QueriedKeys,
    ) -> Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        let nids: Vec<i64> = users.keys().copied().collect();
        let signatures = self.signatures(&nids, Some(viewer_nid), users).await?;
        for ((target_nid, target), signed) in &signatures {
            let Some(key) = users.get(target_nid).and_then(|user_id| found.master_keys.get_mut(user_id)) else {
                continue;
            };
            if stored_public_key(key.json().get()).is_ok_and(|public_key| public_key == *target) {
                *key = Raw::from_json(as_told(key.json().get(), None, Some(signed))?);
            }
        }
        Ok(())
    }

    /// Asks one server for the keys of its users. Lists that we have to follow are asked for one by one, since only so
    /// they come with the number of their last change.
    async fn ask_server(
        &self,
        server: &ServerName,
        mut wanted: Wanted,
        follow: Vec<OwnedUserId>,
        time: Duration,
    ) -> Result<get_keys::v1::Response, RemoteError> {
        let remote = self.remote.get().ok_or_else(|| RemoteError::NotAllowed(server.to_owned()))?;
        let deadline = tokio::time::Instant::now() + time;
        let mut found = get_keys::v1::Response::default();
        let mut lists: Vec<BoxFuture<'_, _>> = Vec::new();
        for user_id in follow.into_iter().take(FOLLOWED_AT_ONCE) {
            lists.push(Box::pin(async move {
                let list = self.follow_list(&user_id, time).await;
                (user_id, list)
            }));
        }
        let mut lists = stream::iter(lists).buffer_unordered(FOLLOWED_AT_ONCE);
        while let Some((user_id, list)) = lists.next().await {
            match list {
                Ok(list) => {
                    let devices = wanted.remove(&user_id).unwrap_or_default();
                    add_list(&user_id, &devices, list, &mut found);
                }
                // It answers, but does not know this request, or not the user: the other one may do.
                Err(RemoteError::Refused { .. } | RemoteError::Nonsense { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if !wanted.is_empty() {
            let asked = wanted.clone();
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let answer = remote.keys_query(server, get_keys::v1::Request::new(wanted));
            add_checked(&asked, within(left, "keys_query", server, answer).await?, &mut found);
        }
        Ok(found)
    }

    /// Asks for a user's device list and follows it from now on.
    pub(crate) async fn follow_list(
        &self,
        user_id: &UserId,
        time: Duration,
    ) -> Result<get_devices::v1::Response, RemoteError> {
        let server = user_id.server_name();
        let remote = self.remote.get().ok_or_else(|| RemoteError::NotAllowed(server.to_owned()))?;
        let answer = remote.user_devices(server, get_devices::v1::Request::new(user_id.to_owned()));
        let mut list = within(time, "user_devices", server, answer).await?;
        if list.user_id != user_id {
            let reason = "the devices of another user".to_owned();
            return Err(RemoteError::Nonsense { server: server.to_owned(), reason });
        }
        list.devices.truncate(REMOTE_DEVICES_MAX);
        list.devices.retain(|device| {
            device.device_id.as_str().len() <= 255 && is_device_of(user_id, device.device_id.as_str(), &device.keys)
        });
        list.master_key = list.master_key.filter(|key| is_cross_signing_key_of(user_id, key));
        list.self_signing_key = list.self_signing_key.filter(|key| is_cross_signing_key_of(user_id, key));
        let kept = self.keep_list(user_id, &list).await;
        if let Err(error) = kept {
            // The answer is good all the same.
            tracing::warn!(error = &error as &dyn std::error::Error, "could not keep a device list");
        }
        Ok(list)
    }

    async fn keep_list(&self, user_id: &UserId, list: &get_devices::v1::Response) -> Result<()> {
        let user_nid = self.store.user_nid(user_id).await?;
        let devices = list.devices.iter().map(|device| RemoteDevice {
            device_id: device.device_id.to_string(),
            display_name: device.device_display_name.clone().map(storable),
            keys: Some(storable(device.keys.json().get().to_owned())),
        });
        let keys = [("master", &list.master_key), ("self_signing", &list.self_signing_key)];
        let cross_signing =
            keys.into_iter().filter_map(|(usage, key)| Some((usage.to_owned(), key.as_ref()?.json().get().to_owned())));
        let list = FetchedDeviceList {
            stream_id: i64::try_from(u64::from(list.stream_id)).unwrap_or(i64::MAX),
            devices: devices.collect(),
            cross_signing: cross_signing.collect(),
        };
        self.store.set_remote_devices(user_nid, list, false).await?;
        Ok(())
    }
}

fn owned((nid, user_id): (&i64, &OwnedUserId)) -> (i64, OwnedUserId) {
    (*nid, user_id.clone())
}

/// PostgreSQL has no NUL in its texts.
pub(crate) fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "") } else { text }
}

fn is_wanted(wanted: &Wanted, user_id: &UserId, device_id: &str) -> bool {
    wanted
        .get(user_id)
        .is_some_and(|devices| devices.is_empty() || devices.iter().any(|device| device.as_str() == device_id))
}

/// Whether keys are of the user and device that they are told for.
pub(crate) fn is_device_of(user_id: &UserId, device_id: &str, keys: &Raw<DeviceKeys>) -> bool {
    keys.deserialize().is_ok_and(|keys| keys.user_id == user_id && keys.device_id.as_str() == device_id)
}

pub(crate) fn is_cross_signing_key_of(user_id: &UserId, key: &Raw<CrossSigningKey>) -> bool {
    key.deserialize().is_ok_and(|key| key.user_id == user_id && crate::key_object::public_key(&key).is_ok())
}

/// Adds a list that another server has told.
fn add_list(
    user_id: &UserId,
    devices: &[OwnedDeviceId],
    list: get_devices::v1::Response,
    found: &mut get_keys::v1::Response,
) {
    let wanted = |device: &get_devices::v1::UserDevice| devices.is_empty() || devices.contains(&device.device_id);
    let told = found.device_keys.entry(user_id.to_owned()).or_default();
    for device in list.devices.into_iter().filter(wanted) {
        let name = device.device_display_name.as_deref();
        if let Ok(keys) = device_as_told(device.keys.json().get(), name, None) {
            told.insert(device.device_id, keys);
        }
    }
    found.master_keys.extend(list.master_key.map(|key| (user_id.to_owned(), key)));
    found.self_signing_keys.extend(list.self_signing_key.map(|key| (user_id.to_owned(), key)));
}

/// Adds what another server has answered, as far as it was asked and says what it may say.
fn add_checked(wanted: &Wanted, answer: get_keys::v1::Response, found: &mut get_keys::v1::Response) {
    for user_id in wanted.keys() {
        found.device_keys.entry(user_id.clone()).or_default();
    }
    for (user_id, devices) in answer.device_keys {
        let Some(told) = found.device_keys.get_mut(&user_id).filter(|_| wanted.contains_key(&user_id)) else {
            continue;
        };
        told.extend(devices.into_iter().take(REMOTE_DEVICES_MAX).filter(|(device_id, keys)| {
            is_wanted(wanted, &user_id, device_id.as_str()) && is_device_of(&user_id, device_id.as_str(), keys)
        }));
    }
    let is_good = |user_id: &OwnedUserId, key: &Raw<CrossSigningKey>| {
        wanted.contains_key(user_id) && is_cross_signing_key_of(user_id, key)
    };
    found.master_keys.extend(answer.master_keys.into_iter().filter(|(user_id, key)| is_good(user_id, key)));
    found.self_signing_keys.extend(answer.self_signing_keys.into_iter().filter(|(user_id, key)| is_good(user_id, key)));
}

/// "For each device, the information returned will be the same as uploaded via /keys/upload, with the addition of an
/// unsigned property."
pub(crate) fn device_as_told(
    json: &str,
    display_name: Option<&str>,
    signed: Option<&Vec<(OwnedUserId, KeySignature)>>,
) -> Result<Raw<DeviceKeys>> {
    Ok(Raw::from_json(as_told(json, display_name, signed)?))
}

fn as_told(
    json: &str,
    display_name: Option<&str>,
    signed: Option<&Vec<(OwnedUserId, KeySignature)>>,
) -> Result<Box<serde_json::value::RawValue>> {
    let corrupt = |_| Error::Corrupt("key");
    let mut key: Map<String, Value> = serde_json::from_str(json).map_err(corrupt)?;
    if let Some(name) = display_name {
        key.insert("unsigned".to_owned(), json!({ "device_display_name": name }));
    }
    for (signer, signature) in signed.into_iter().flatten() {
        let signatures = key.entry("signatures").or_insert_with(|| json!({}));
        let Value::Object(signatures) = signatures else { return Err(Error::Corrupt("key")) };
        let Value::Object(of_signer) = signatures.entry(signer.as_str()).or_insert_with(|| json!({})) else {
            return Err(Error::Corrupt("key"));
        };
        of_signer.insert(signature.key_id.clone(), signature.signature.clone().into());
    }
    to_raw_value(&key).map_err(corrupt)
}

/// What a client is told of a server that did not answer.
pub(crate) fn failure(error: &RemoteError) -> Value {
    let status = match error {
        RemoteError::Refused { status, .. } => *status,
        RemoteError::NotAllowed(_) => 403,
        _ => 503,
    };
    json!({ "status": status, "errcode": "M_UNKNOWN", "message": error.to_string() })
}
