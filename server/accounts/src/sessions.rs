//! Sessions: whom an access token stands for, with an answer from memory for most requests.
//!
//! # How long a replica believes what it knows
//!
//! What ends a token here (a logout, a removed device, a new password) takes it out of this process's memory at once, and
//! out of other replicas' by a notification. Whoever could not hear notifications for a while forgets all sessions; and as
//! a command of the operator beside a server with SQLite cannot send one, it leaves a mark in the database, which is
//! looked for every few seconds. Should all that fail, a session is believed for
//! [`AccountsOptions::session_freshness`](crate::AccountsOptions::session_freshness) only; for half as long again it is
//! still believed while the database is asked in the background; older than that, the request waits for the database.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use myelin_store::{Batch, Ephemeral, Observer, Sighting, Store, StoredSession};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Accounts, Clock, Error, Result,
    tokens::{Hash, hash},
};

/// How often it is written down that a device was seen.
const SIGHTING_PERIOD_MS: i64 = 180_000;
/// How often sightings are written, all in one transaction.
const WRITE_PERIOD: Duration = Duration::from_secs(10);
/// Sightings that wait to be written, at the most; those beyond are lost until the device is seen again.
const SIGHTINGS_MAX: usize = 10_000;
/// Longer than any token of ours. Nothing longer is hashed.
const TOKEN_BYTES_MAX: usize = 255;

/// Whom an access token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The user's number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device's number.
    pub device_nid: i64,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// When the access token ends, in milliseconds since 1970.
    pub expires_ts: Option<i64>,
    /// True for a guest.
    pub is_guest: bool,
    /// True for an operator.
    pub is_admin: bool,
    /// What the operators allow the account.
    pub standing: Standing,
}

/// What the operators allow an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    Good,
    /// To read, but not to act.
    Suspended,
    /// Nothing but to log out.
    Locked,
}

/// Why a token stands for nobody.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It was never valid, or its session has ended.
    #[error("unknown access token")]
    Unknown,
    /// Its time is over; the session can go on with a new one.
    #[error("expired access token")]
    Expired,
    /// It could not be found out.
    #[error("look up an access token")]
    Unavailable(#[source] Error),
}

impl From<StoredSession> for Session {
    fn from(stored: StoredSession) -> Self {
        let standing = match (stored.locked, stored.suspended) {
            (true, _) => Standing::Locked,
            (false, true) => Standing::Suspended,
            (false, false) => Standing::Good,
        };
        Self {
            user_nid: stored.user_nid,
            user_id: stored.user_id,
            device_nid: stored.device_nid,
            device_id: stored.device_id.into(),
            expires_ts: stored.expires_ts,
            is_guest: stored.is_guest,
            is_admin: stored.is_admin,
            standing,
        }
    }
}

impl Accounts {
    /// The session of an access token. Notes that its device was seen.
    pub async fn session(&self, token: &str, address: Option<IpAddr>) -> Result<Arc<Session>, SessionError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(SessionError::Unknown);
        }
        let known = self.sessions.find(hash(token)).await?;
        let now_ms = self.now_ms();
        if known.session.expires_ts.is_some_and(|expires_ts| expires_ts <= now_ms) {
            return Err(SessionError::Expired);
        }
        self.sessions.note_sighting(&known, now_ms, address);
        Ok(known.session.clone())
    }

    /// Forgets sessions in the memory of every replica: what they are may have changed.
    pub(crate) fn forget_sessions(&self, which: &Ended) {
        self.sessions.tell_ended(which);
    }
}

/// Sessions that have ended, or changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// Those of a device.
    Device(i64),
    /// Those of a user.
    User(i64),
    /// Those of a user but for one device.
    Others(i64, i64),
}

impl Ended {
    fn has(&self, session: &Session) -> bool {
        match *self {
            Self::Device(device_nid) => session.device_nid == device_nid,
            Self::User(user_nid) => session.user_nid == user_nid,
            Self::Others(user_nid, device_nid) => session.user_nid == user_nid && session.device_nid != device_nid,
        }
    }
}

/// What ended sessions are called among what replicas tell each other.
const ENDED: &str = "sessions_ended";

/// Hears of sessions that ended, here or on another replica.
pub(crate) struct Listener(pub(crate) Weak<Sessions>);

impl Observer for Listener {
    fn committed(&self, _: &Batch) {}

    fn passed(&self, ephemeral: &Ephemeral) {
        if ephemeral.kind == ENDED
            && let Some(sessions) = self.0.upgrade()
            && let Ok(ended) = serde_json::from_str::<Ended>(&ephemeral.json)
        {
            sessions.forget(&ended);
        }
    }

    fn missed(&self) {
        if let Some(sessions) = self.0.upgrade() {
            sessions.forget_all();
        }
    }
}

/// A session in memory.
#[derive(Debug)]
pub(crate) struct Known {
    session: Arc<Session>,
    read_at: Instant,
    being_read: AtomicBool,
    noted_ms: AtomicI64,
}

/// Sessions in memory, and the sightings that wait to be written.
#[derive(Debug)]
pub(crate) struct Sessions {
    store: Arc<Store>,
    clock: Clock,
    known: Cache<Hash, Arc<Known>, ByBytes>,
    /// Counts what was forgotten, so that what was read before that is not remembered after it.
    forgotten: AtomicU64,
    freshness: Duration,
    sightings: Mutex<HashMap<i64, Sighting>>,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Hash, Arc<Known>> for ByBytes {
    fn weight(&self, _hash: &Hash, known: &Arc<Known>) -> u64 {
        // The entry, the session, their allocations; the two identifiers.
        384 + (known.session.user_id.as_str().len() + known.session.device_id.as_str().len()) as u64
    }
}

impl Sessions {
    pub(crate) fn new(store: Arc<Store>, clock: Clock, freshness: Duration, bytes: u64) -> Self {
        Self {
            store,
            clock,
            known: Cache::with_weighter((bytes / 448).max(16) as usize, bytes, ByBytes),
            forgotten: AtomicU64::new(0),
            freshness,
            sightings: Mutex::default(),
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        self.known.weight()
    }

    pub(crate) fn hits(&self) -> (u64, u64) {
        (self.known.hits(), self.known.misses())
    }

    async fn find(self: &Arc<Self>, hash: Hash) -> Result<Arc<Known>, SessionError> {
        if let Some(known) = self.known.get(&hash) {
            let age = known.read_at.elapsed();
            if age < self.freshness {
                return Ok(known);
            }
            if age < self.freshness / 2 * 3 {
                if !known.being_read.swap(true, Ordering::Relaxed) {
                    let sessions = self.clone();
                    let old = known.clone();
                    tokio::spawn(async move { sessions.read_again(hash, &old).await });
                }
                return Ok(known);
            }
        }
        // In a box of its own, which requests with a known session do without.
        Box::pin(self.read(hash)).await
    }

    /// At most one at a time for a session that is in use.
    async fn read_again(&self, hash: Hash, old: &Known) {
        if let Err(SessionError::Unavailable(error)) = self.read(hash).await {
            // The session stays until it is stale, and then whoever asks hears of it.
            tracing::debug!(error = &error as &dyn std::error::Error, "could not read a session again");
            old.being_read.store(false, Ordering::Relaxed);
        }
    }

    async fn read(&self, hash: Hash) -> Result<Arc<Known>, SessionError> {
        let unavailable = |error| SessionError::Unavailable(Error::Store(error));
        let mut forgotten = self.forgotten.load(Ordering::Acquire);
        let Some(stored) = self.store.session(&hash).await.map_err(unavailable)? else {
            self.known.remove(&hash);
            return Err(SessionError::Unknown);
        };
        if stored.unconfirmed {
            self.store.confirm_refresh(&hash).await.map_err(unavailable)?;
            // The device's token before this one has just ended.
            self.tell_ended(&Ended::Device(stored.device_nid));
            forgotten = self.forgotten.load(Ordering::Acquire);
        }
        let noted_ms = self.known.get(&hash).map_or(0, |known| known.noted_ms.load(Ordering::Relaxed));
        let known = Arc::new(Known {
            session: Arc::new(stored.into()),
            read_at: Instant::now(),
            being_read: AtomicBool::new(false),
            noted_ms: AtomicI64::new(noted_ms),
        });
        self.known.insert(hash, known.clone());
        if self.forgotten.load(Ordering::Acquire) != forgotten {
            self.known.remove(&hash);
        }
        Ok(known)
    }

    /// Lets every replica forget sessions, this one before it returns.
    fn tell_ended(&self, ended: &Ended) {
        match serde_json::to_string(ended) {
            Ok(json) => self.store.pass(&Ephemeral { kind: ENDED.to_owned(), json }),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "could not write which sessions ended")
            }
        }
    }

    fn forget(&self, ended: &Ended) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.known.retain(|_, known| !ended.has(&known.session));
    }

    fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.known.clear();
    }

    /// Forgets all sessions if another process, such as the operator's command, said that they are to be doubted.
    async fn heed_doubts(&self, heeded: &mut Option<i64>) {
        match self.store.session_doubts().await {
            Ok(doubts) => {
                if heeded.replace(doubts).is_some_and(|heeded| heeded != doubts) {
                    self.forget_all();
                }
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not ask whether to doubt sessions");
            }
        }
    }

    fn note_sighting(&self, known: &Known, now_ms: i64, address: Option<IpAddr>) {
        let noted_ms = known.noted_ms.load(Ordering::Relaxed);
        if now_ms - noted_ms < SIGHTING_PERIOD_MS {
            return;
        }
        known.noted_ms.store(now_ms, Ordering::Relaxed);
        let device_nid = known.session.device_nid;
        let ip = address.map(|address| address.to_canonical().to_string());
        let mut sightings = self.sightings.lock();
        if sightings.len() < SIGHTINGS_MAX || sightings.contains_key(&device_nid) {
            sightings.insert(device_nid, Sighting { device_nid, ts: now_ms, ip });
        }
    }

    async fn write_sightings(&self) {
        let sightings: Vec<Sighting> = std::mem::take(&mut *self.sightings.lock()).into_values().collect();
        if let Err(error) = self.store.note_sightings(&sightings).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not write when devices were seen");
        }
    }

    async fn prune_uia_sessions(&self) {
        if let Err(error) = self.store.prune_uia_sessions(self.clock.now_ms(), crate::uia::SESSIONS_MAX).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not remove old authentications");
        }
    }
}

/// Writes sightings down and removes authentications that have expired, until the end.
pub(crate) async fn keep(sessions: Arc<Sessions>, mut stop: watch::Receiver<bool>) {
    let mut rounds: u32 = 0;
    let mut heeded = None;
    loop {
        sessions.heed_doubts(&mut heeded).await;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(WRITE_PERIOD) => {}
        }
        sessions.write_sightings().await;
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(6) {
            sessions.prune_uia_sessions().await;
        }
    }
    sessions.write_sightings().await;
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use myelin_store::{Database, testing::Fresh};

    use super::SessionError;
    use crate::{
        Accounts, AccountsOptions, NewDevice, NewUser, Standing,
        testing::{CHEAP, PASSWORD, Server, on_both},
    };

    /// A token works until it ends: here at once, on a replica that hears of it soon, and on one that does not when
    /// what it knows is no longer fresh.
    #[tokio::test]
    async fn ended_sessions_are_refused_on_every_replica() {
        for fresh in Fresh::each().await {
            for freshness in [Duration::from_secs(60), Duration::from_secs(1)] {
                let (here, there) = (fresh.open().await, fresh.open().await);
                if matches!(here.database(), Database::Sqlite { .. }) && freshness > Duration::from_secs(1) {
                    continue;
                }
                let options = AccountsOptions {
                    session_freshness: freshness,
                    password_cost: CHEAP,
                    ..AccountsOptions::new(ruma::owned_server_name!("example.org"))
                };
                let accounts = Accounts::open(here, options.clone()).await.unwrap();
                let replica = Accounts::open(there, options).await.unwrap();
                let alice = format!("alice{}", freshness.as_secs());
                let new = NewUser { username: &alice, password: PASSWORD, is_admin: false, display_name: None };
                accounts.create_user(new).await.unwrap();
                let token =
                    accounts.log_in_by_password(&alice, PASSWORD, NewDevice::default()).await.unwrap().access_token;
                let session = replica.session(&token, None).await.unwrap();
                assert_eq!((session.user_id.localpart(), session.standing), (&*alice, Standing::Good));
                accounts.session(&token, None).await.unwrap();
                accounts.log_out(&session).await.unwrap();
                assert!(matches!(accounts.session(&token, None).await, Err(SessionError::Unknown)));
                let end = tokio::time::Instant::now() + Duration::from_secs(20);
                while replica.session(&token, None).await.is_ok() {
                    assert!(tokio::time::Instant::now() < end, "still believed");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Nothing that is longer than a token is looked for.
    #[tokio::test]
    async fn long_tokens_are_unknown() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            assert!(matches!(accounts.session(&"x".repeat(10_000), None).await, Err(SessionError::Unknown)));
        })
        .await;
    }

    /// It is written down, once in three minutes at the most, when and where a device was seen.
    #[tokio::test]
    async fn sightings_are_written_together() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            server.set_time(1_000_000);
            let session = accounts.session(&alice.access_token, Some(Ipv4Addr::LOCALHOST.into())).await.unwrap();
            server.set_time(1_030_000);
            accounts.session(&alice.access_token, Some(Ipv4Addr::BROADCAST.into())).await.unwrap();
            accounts.close().await;
            let device = &accounts.devices(session.user_nid).await.unwrap()[0];
            assert_eq!((device.last_seen_ts, device.last_seen_ip.as_deref()), (1_000_000, Some("127.0.0.1")));
        })
        .await;
    }
}
