//! Keys, device lists, messages to devices and key backups.
//!
//! [`Encryption`] is the one door. It knows no HTTP and no federation: other servers are asked by the trait
//! [`RemoteDevices`], and what they have to be told is kept until it is asked for by [`Encryption::pending_edus`].

mod backups;
mod claim;
mod cross_signing;
mod dehydrated;
mod edus;
mod error;
mod follow;
mod key_object;
mod metrics;
mod outgoing;
mod query;
pub mod remote;
mod signatures;
#[cfg(test)]
mod tests;
mod to_device;
mod upload;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use myelin_store::Store;
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId};
use tokio::sync::Notify;

use self::follow::Follower;
pub use self::{
    backups::{BackupState, RoomSessions},
    claim::ClaimedKeys,
    cross_signing::{CrossSigningKeys, PreparedCrossSigning},
    edus::EduOutcome,
    error::{Error, Result},
    query::QueriedKeys,
    remote::RemoteDevices,
    signatures::SignatureFailures,
    to_device::Messages,
};

/// How long other servers may take with keys, where a client does not say.
const REMOTE_TIME: Duration = Duration::from_secs(10);
/// The longest that a client may let them take.
const REMOTE_TIME_MAX: Duration = Duration::from_secs(20);
/// Servers that are asked at the same time for one request.
const SERVERS_AT_ONCE: usize = 16;

/// A device that acts, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device's number.
    pub device_nid: i64,
    /// The device.
    pub device_id: OwnedDeviceId,
}

/// Is told that another server has to be told something: see [`Encryption::pending_edus`].
pub trait Outbox: Send + Sync {
    /// There is something for a server.
    fn notify(&self, server: &ServerName);
}

/// Keys, device lists, messages to devices and key backups: one for a process.
pub struct Encryption {
    store: Arc<Store>,
    server_name: OwnedServerName,
    remote: OnceLock<Arc<dyn RemoteDevices>>,
    outbox: OnceLock<Arc<dyn Outbox>>,
    /// Wakes the keeper of device lists.
    stale: Notify,
    follower: Arc<Follower>,
}

impl Encryption {
    /// Follows the stream from now on.
    #[must_use]
    pub fn new(store: Arc<Store>, server_name: OwnedServerName) -> Arc<Self> {
        metrics::show();
        let follower = Arc::new(Follower::new(store.position()));
        store.observe(follower.clone());
        Arc::new(Self {
            store,
            server_name,
            remote: OnceLock::new(),
            outbox: OnceLock::new(),
            stale: Notify::new(),
            follower,
        })
    }

    /// Gives it the way to other servers, once. Without one, users of other servers have no keys.
    pub fn connect(&self, remote: Arc<dyn RemoteDevices>, outbox: Arc<dyn Outbox>) {
        if self.remote.set(remote).is_err() || self.outbox.set(outbox).is_err() {
            tracing::warn!("the way to other servers was given already");
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn is_ours(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.server_name
    }

    fn notify(&self, server: &str) {
        if let (Some(outbox), Ok(server)) = (self.outbox.get(), <&ServerName>::try_from(server)) {
            outbox.notify(server);
        }
    }
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryption").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The present, in milliseconds since 1970.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}

/// How long other servers may take.
fn remote_time(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(REMOTE_TIME).min(REMOTE_TIME_MAX)
}
