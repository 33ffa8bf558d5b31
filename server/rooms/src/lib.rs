//! The event graph: rooms are created, joined, written to and read.
//!
//! Every change of a room goes through its one [`RoomWriter`], which checks the authorisation rules of the room's
//! version. What may be read is decided by [`visibility`], and how it looks to a client by [`present`].

mod aliases;
mod context;
mod create;
mod directory;
mod elsewhere;
mod erased;
mod error;
mod federated;
pub mod history;
mod member_state;
mod membership;
mod pdu;
mod permission;
mod power;
pub mod present;
mod receive;
mod recommended;
mod redact;
pub mod relations;
pub mod remote;
mod resolve;
pub mod search;
mod see_through;
mod send;
pub mod serve;
mod unwanted;
mod upgrade;
pub mod visibility;
mod writer;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use myelin_store::{Committed, Event, Member, RoomName, StateKey, Store};
use quick_cache::{DefaultHashBuilder, Lifecycle, UnitWeighter, sync::Cache};
use ruma::{OwnedEventId, OwnedServerName, RoomId, serde::Base64, signatures::Ed25519KeyPair};

use self::remote::{RemoteServers, VerifyKey};
use self::writer::Slot;
pub use self::{
    context::Context,
    create::{CreateRoom, InitialState, Preset},
    directory::{DirectoryPage, DirectorySearch, Listing},
    error::{Error, Result},
    federated::{JoinedRoom, MembershipTemplate, room_versions},
    membership::MembershipAction,
    pdu::Pdu,
    receive::{Outcome, Refusal},
    send::{Transaction, content},
    unwanted::{INVITE_PERMISSION, blocks_invites},
    writer::{Appended, RoomWriter, Template},
};

/// Room heads in memory at the most.
const HEADS: usize = 2048;
/// Transactions that are recognised without asking the database.
const TRANSACTIONS: usize = 10_000;
/// Listings of the directory in memory at the most.
const LISTINGS: usize = 4096;
/// How long our own keys are believed to be those that they were: the operator may give us another one.
const OWN_KEYS: Duration = Duration::from_secs(60);
/// How often a write is built anew because another replica was faster.
const TRIES: usize = 8;

/// Our keys by their identifiers.
type OwnKeys = Arc<HashMap<String, VerifyKey>>;

/// All rooms.
pub struct Rooms {
    pub(crate) store: Arc<Store>,
    pub(crate) server_name: OwnedServerName,
    pub(crate) key: Ed25519KeyPair,
    slots: Slots,
    last_create_ts: AtomicU64,
    pub(crate) recent_transactions: Cache<Transaction, OwnedEventId>,
    /// What listed rooms tell of themselves, by snapshot.
    pub(crate) listings: Cache<i64, Arc<Listing>>,
    /// The rooms of the directory.
    pub(crate) listed: directory::Listed,
    pub(crate) erased: erased::Erased,
    pub(crate) annotating: relations::Annotating,
    pub(crate) serving: serve::Serving,
    pub(crate) elsewhere: elsewhere::Elsewhere,
    pub(crate) policies: receive::Policies,
    pub(crate) receivers: receive::Receivers,
    pub(crate) backfill_pauses: receive::Pauses,
    pub(crate) ties: receive::Ties,
    remote: OnceLock<Arc<dyn RemoteServers>>,
    own_keys: tokio::sync::Mutex<Option<(Instant, OwnKeys)>>,
}

impl std::fmt::Debug for Rooms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rooms").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Rooms {
    /// Opens the rooms of a server, which signs with this key.
    pub fn new(store: Arc<Store>, server_name: OwnedServerName, key: Ed25519KeyPair) -> Arc<Self> {
        receive::show_metrics();
        let rooms = Arc::new(Self {
            store: store.clone(),
            server_name,
            key,
            slots: slots(),
            last_create_ts: AtomicU64::new(0),
            recent_transactions: Cache::new(TRANSACTIONS),
            listings: Cache::new(LISTINGS),
            listed: directory::Listed::default(),
            erased: erased::Erased::default(),
            receivers: receive::Receivers::default(),
            backfill_pauses: receive::Pauses::default(),
            ties: receive::Ties::default(),
            remote: OnceLock::new(),
            own_keys: tokio::sync::Mutex::default(),
            annotating: relations::Annotating::default(),
            serving: serve::Serving::new(),
            elsewhere: elsewhere::Elsewhere::default(),
            policies: receive::Policies::default(),
        });
        store.observe(Arc::new(directory::Changes(Arc::downgrade(&rooms))));
        store.observe(Arc::new(erased::Erasures(Arc::downgrade(&rooms))));
        rooms
    }

    /// Lets rooms be shared with other servers, from now on.
    pub fn connect(&self, remote: Arc<dyn RemoteServers>) {
        // The first one stays: it is set once, when the server is put together.
        drop(self.remote.set(remote));
    }

    /// The way to other servers.
    ///
    /// # Errors
    ///
    /// [`Error::NotFederating`] when this server does not talk to others.
    pub fn remote(&self) -> Result<&Arc<dyn RemoteServers>> {
        self.remote.get().ok_or(Error::NotFederating)
    }

    /// The keys that this server signs and has signed with. Another replica may sign with a newer one already.
    pub(crate) async fn own_keys(&self) -> Result<OwnKeys> {
        let mut known = self.own_keys.lock().await;
        if let Some((since, keys)) = &*known
            && since.elapsed() < OWN_KEYS
        {
            return Ok(keys.clone());
        }
        let mut keys = HashMap::new();
        let public = |key: &Ed25519KeyPair| Base64::new(key.public_key().to_vec());
        for stored in self.store.signing_keys().await? {
            if let Ok(key) = Ed25519KeyPair::from_der(&stored.document, stored.version) {
                let valid_until_ts = stored.expired_ts.map_or(u64::MAX, |ts| u64::try_from(ts).unwrap_or(0));
                keys.insert(format!("ed25519:{}", key.version()), VerifyKey { key: public(&key), valid_until_ts });
            }
        }
        // As a rule it is among those; this process signs with it in any case.
        let own = || VerifyKey { key: public(&self.key), valid_until_ts: u64::MAX };
        keys.entry(format!("ed25519:{}", self.key.version())).or_insert_with(own);
        let keys = Arc::new(keys);
        *known = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The name of this server.
    pub fn server_name(&self) -> &OwnedServerName {
        &self.server_name
    }

    /// A room by its identifier.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when we do not know the room.
    pub async fn room(&self, room_id: &RoomId) -> Result<Arc<RoomName>> {
        self.store.room(room_id).await?.ok_or(Error::NotFound("there is no such room"))
    }

    pub(crate) fn slot(&self, room_nid: i64) -> Arc<Slot> {
        let made = self.slots.get_or_insert_with(&room_nid, || Ok::<_, std::convert::Infallible>(Arc::default()));
        made.unwrap_or_default()
    }

    /// The time for a create event: now, and later than all before it, since a create event's hash is the room's
    /// identifier, and two rooms of one user with the same settings would else be one.
    pub(crate) fn create_ts(&self) -> u64 {
        let now = now_ms();
        let last =
            self.last_create_ts.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(now.max(last + 1)));
        last.map_or(now, |last| now.max(last + 1))
    }

    /// Writes to a room, built anew while another replica is faster:
    ///
    /// ```text
    /// let mut attempts = rooms.attempts(room);
    /// loop {
    ///     let mut writer = attempts.open().await?;
    ///     let built = writer.append(template.clone()).await;
    ///     if let Some(appended) = attempts.finish(writer, built).await? {
    ///         return Ok(appended);
    ///     }
    /// }
    /// ```
    pub fn attempts<'a>(self: &'a Arc<Self>, room: &'a Arc<RoomName>) -> Attempts<'a> {
        Attempts { rooms: self, room, left: TRIES }
    }

    /// The event of a room's current state under a key.
    pub async fn state_event(&self, room: &RoomName, event_type: &str, state_key: &str) -> Result<Option<Arc<Event>>> {
        let root = self.state_root(room).await?;
        self.state_event_at(root, event_type, state_key).await
    }

    /// The event of a snapshot under a key.
    pub async fn state_event_at(&self, root: i64, event_type: &str, state_key: &str) -> Result<Option<Arc<Event>>> {
        let key = StateKey::new(event_type, state_key);
        let nids = self.store.known_key_nids(std::slice::from_ref(&key)).await?;
        let Some(key_nid) = nids[0] else { return Ok(None) };
        Ok(self.store.state_events(root, &[key_nid]).await?.pop().flatten())
    }

    /// The snapshot of a room's committed state.
    pub async fn state_root(&self, room: &RoomName) -> Result<i64> {
        Ok(self.store.head(room.nid).await?.state_root)
    }

    /// A user's place in a room, if there is or was one.
    pub async fn member(&self, room: &RoomName, user_nid: i64) -> Result<Option<Member>> {
        Ok(self.store.member(room.nid, user_nid).await?)
    }
}

/// The tries to write to a room. See [`Rooms::attempts`].
pub struct Attempts<'a> {
    rooms: &'a Arc<Rooms>,
    room: &'a Arc<RoomName>,
    left: usize,
}

impl Attempts<'_> {
    /// Opens the room for the next try.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] after too many tries.
    pub async fn open(&mut self) -> Result<RoomWriter> {
        self.left = self.left.checked_sub(1).ok_or(Error::Busy)?;
        Box::pin(RoomWriter::open(self.rooms, self.room)).await
    }

    /// [`Self::open`], once all that was written to the room before is committed: for those who read the graph.
    pub(crate) async fn open_settled(&mut self) -> Result<RoomWriter> {
        loop {
            let writer = self.open().await?;
            if let Some(writer) = Box::pin(writer.settle()).await? {
                return Ok(writer);
            }
        }
    }

    /// Commits a draft, if building it went well; `None` when it must be built anew: what it was built on had failed,
    /// or another replica was faster. What was refused on such ground was refused for no reason.
    ///
    /// In a room with a policy server, events of ours are shown to it before, and are not committed if it refuses them.
    pub async fn finish<T>(&mut self, mut writer: RoomWriter, built: Result<T>) -> Result<Option<T>> {
        match built {
            Ok(built) => match Box::pin(writer.unseen()).await? {
                None => Ok(Box::pin(self.submit(writer)).await?.map(|_| built)),
                Some(unseen) => {
                    drop(writer);
                    Ok(Box::pin(self.rooms.put_in_recommended(self.room, unseen)).await?.then_some(built))
                }
            },
            Err(_) if Box::pin(writer.give_up()).await? => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Commits a draft; `None` when another replica was faster, and it must be built anew.
    pub async fn submit(&mut self, writer: RoomWriter) -> Result<Option<Committed>> {
        match writer.submit().await {
            Ok(committed) => Ok(Some(committed)),
            Err(Error::Store(myelin_store::Error::Conflict)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Keeps the heads of rooms that are being written to.
#[derive(Clone, Debug, Default)]
struct InUse;

impl Lifecycle<i64, Arc<Slot>> for InUse {
    type RequestState = ();

    fn is_pinned(&self, _: &i64, slot: &Arc<Slot>) -> bool {
        Arc::strong_count(slot) > 1
    }
}

type Slots = Cache<i64, Arc<Slot>, UnitWeighter, DefaultHashBuilder, InUse>;

fn slots() -> Slots {
    Cache::with(HEADS, HEADS as u64, UnitWeighter, DefaultHashBuilder::default(), InUse)
}

/// The present, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
