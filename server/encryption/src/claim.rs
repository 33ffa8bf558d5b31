//! One-time keys for those who want to begin to speak with a device.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysclaim)

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use myelin_rooms::remote::RemoteError;
use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedOneTimeKeyId, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::federation::keys::claim_keys, encryption::OneTimeKey, serde::Raw,
};
use serde_json::{Value, value::RawValue};

use crate::{Encryption, Error, Result, query::failure, remote::within, remote_time};

/// Which keys are wanted: by user and device, the algorithm.
pub(crate) type Claims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>;
/// Keys by user, device and identifier.
pub(crate) type Claimed = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>>>;

/// Keys that nobody else is given.
#[derive(Clone, Debug, Default)]
pub struct ClaimedKeys {
    /// The keys by user, device and identifier.
    pub one_time_keys: Claimed,
    /// Servers that did not answer, and why.
    pub failures: BTreeMap<String, Value>,
}

impl Encryption {
    /// Claims a key of each of some devices, of whatever server. Other servers have a bounded time.
    pub async fn claim_keys(&self, claims: Claims, timeout: Option<Duration>) -> Result<ClaimedKeys> {
        let (ours, theirs): (Claims, Claims) = claims.into_iter().partition(|(user_id, _)| self.is_ours(user_id));
        let mut found = ClaimedKeys { one_time_keys: self.claim_own(&ours).await?, ..ClaimedKeys::default() };
        let mut by_server: BTreeMap<OwnedServerName, Claims> = BTreeMap::new();
        for (user_id, devices) in theirs {
            by_server.entry(user_id.server_name().to_owned()).or_default().insert(user_id, devices);
        }
        let time = remote_time(timeout);
        let mut asked: Vec<BoxFuture<'_, _>> = Vec::new();
        for (server, claims) in by_server {
            asked.push(Box::pin(async move {
                let answer = self.claim_of(&server, claims, time).await;
                (server, answer)
            }));
        }
        let mut answers = stream::iter(asked).buffer_unordered(crate::SERVERS_AT_ONCE);
        while let Some((server, answer)) = answers.next().await {
            match answer {
                Ok(keys) => found.one_time_keys.extend(keys),
                Err(error) => drop(found.failures.insert(server.to_string(), failure(&error))),
            }
        }
        Ok(found)
    }

    /// Claims keys of our users for another server. Those of others are left out.
    pub async fn claim_local_keys(&self, claims: Claims) -> Result<claim_keys::v1::Response> {
        let ours: Claims = claims.into_iter().filter(|(user_id, _)| self.is_ours(user_id)).collect();
        Ok(claim_keys::v1::Response::new(self.claim_own(&ours).await?))
    }

    async fn claim_own(&self, claims: &Claims) -> Result<Claimed> {
        let mut claimed = Claimed::new();
        if claims.is_empty() {
            return Ok(claimed);
        }
        let ids: Vec<&UserId> = claims.keys().map(|user_id| &**user_id).collect();
        let users: HashMap<i64, String> = self.store.known_user_nids(&ids).await?.into_iter().collect();
        let nids: Vec<i64> = users.keys().copied().collect();
        let mut wanted: Vec<(i64, String)> = Vec::new();
        let mut devices: HashMap<i64, (OwnedUserId, OwnedDeviceId)> = HashMap::new();
        for (user_nid, device_nid, device_id) in self.store.devices_of(&nids).await? {
            let user_id = users.get(&user_nid).and_then(|user_id| <&UserId>::try_from(&**user_id).ok());
            let Some((user_id, of_user)) = user_id.and_then(|user_id| claims.get_key_value(user_id)) else { continue };
            let device_id = OwnedDeviceId::from(device_id);
            if let Some(algorithm) = of_user.get(&device_id) {
                wanted.push((device_nid, algorithm.to_string()));
                devices.insert(device_nid, (user_id.clone(), device_id));
            }
        }
        for key in self.store.claim_keys(&wanted).await? {
            let Some((user_id, device_id)) = devices.get(&key.device_nid) else { continue };
            let key_id = OwnedOneTimeKeyId::try_from(format!("{}:{}", key.algorithm, key.key_id))
                .map_err(|_| Error::Corrupt("one-time key"))?;
            let json = RawValue::from_string(key.json).map_err(|_| Error::Corrupt("one-time key"))?;
            let of_user = claimed.entry(user_id.clone()).or_default();
            of_user.entry(device_id.clone()).or_default().insert(key_id, Raw::from_json(json));
        }
        Ok(claimed)
    }

    async fn claim_of(&self, server: &ServerName, claims: Claims, time: Duration) -> Result<Claimed, RemoteError> {
        let remote = self.remote.get().ok_or_else(|| RemoteError::NotAllowed(server.to_owned()))?;
        let asked = claims.clone();
        let answer = remote.keys_claim(server, claim_keys::v1::Request::new(claims));
        let mut keys = within(time, "keys_claim", server, answer).await?.one_time_keys;
        // No more than was asked for.
        keys.retain(|user_id, devices| {
            let Some(asked) = asked.get(user_id) else { return false };
            devices.retain(|device_id, keys| {
                let Some(algorithm) = asked.get(device_id) else { return false };
                keys.retain(|key_id, _| key_id.algorithm() == *algorithm);
                keys.len() == 1
            });
            !devices.is_empty()
        });
        Ok(keys)
    }
}
