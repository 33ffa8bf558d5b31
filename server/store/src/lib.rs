//! Everything that Myelin keeps: the only crate that knows SQL.
//!
//! - [`Database`]: SQLite or PostgreSQL behind one door.
//! - [`Store::commit`]: the group commit. What clients, servers and services have to be told of goes through it
//!   and gets a position in the one stream.
//! - [`Observer`]: whoever follows the stream.
//! - [`state_tree`]: room state as immutable snapshots that share structure.
//!
//! Reads go straight to the database, through caches of immutable things.

mod account_data;
mod accounts;
mod certificates;
mod committer;
mod database;
mod destinations;
mod devices;
mod encryption;
mod error;
mod event;
mod events;
mod filters;
mod graph;
mod leases;
mod media;
mod names;
mod openid_tokens;
mod peeking;
mod profiles;
mod pushers;
mod receipts;
mod relations;
mod rendezvous;
mod reports;
mod rooms;
mod search;
mod served;
mod server_keys;
mod signing_keys;
mod sliding;
mod sole;
mod sql;
pub mod state_tree;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tokens;
mod uia;
mod unread;
mod user_directory;

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use quick_cache::sync::Cache;
use tokio::sync::{Mutex, mpsc, watch};

pub use self::{
    account_data::AccountData,
    accounts::{Account, AccountCreation, KeepDevices, NewAccount},
    certificates::{CertificateRecord, IssuedCertificate},
    committer::{
        Append, Committed, Fate, Head, Membership, MembershipChange, NewRoom, Operation, Place, Redaction, Waiting,
    },
    database::{Database, DatabaseOptions},
    destinations::{FEDERATION_SENDER, Gap, RoomServers, StoredDestination},
    devices::{Device, Sighting},
    encryption::{
        backups::{Backup, BackupPart, BackupSession, BackupWrite},
        cross_signing::{CrossSigningKey, CrossSigningUpdate, KeySignature},
        device_keys::{DehydratedDevice, DeviceKeys, Identity, NewDehydratedDevice},
        device_lists::DeviceListChange,
        edus::{EduSubject, PendingEdu},
        one_time_keys::{ClaimedKey, KeyCounts, KeyUpload, NewKey, ONE_TIME_KEYS, ONE_TIME_KEYS_MAX},
        remote_devices::{FetchedDeviceList, RemoteDevice, RemoteDeviceList, RemoteDeviceUpdate, UpdateOutcome},
        to_device::{TO_DEVICE_MAX, ToDevice, ToDeviceArrival, ToDeviceMessage, WaitingMessage},
    },
    error::{Error, Result},
    event::{Event, EventParts, flags},
    events::{Direction, redacted_event_id},
    graph::InboundEvent,
    leases::{Candidate, Lease},
    media::{MediaFile, MediaReservation, MediaThumbnail, MediaTotal, RemoteMediaFile},
    names::{RoomName, StateKey},
    openid_tokens::OPENID_TOKENS_MAX,
    pushers::{NewPusher, PUSHERS, PUSHERS_MAX, PushMember, Pusher, PusherSet, PusherSettings, PusherStanding},
    receipts::Receipt,
    relations::{
        BundledChild, ListedThread, Parent, RELATION_DEPTH_MAX, RelatedQuery, Relation, ThreadQuery, ThreadView,
    },
    rendezvous::{RENDEZVOUS_MAX, Rendezvous, RendezvousWrite},
    reports::{REPORTS_MAX, Report, Reported},
    rooms::{Member, PublicRoom},
    search::{IndexStep, SEARCH_HISTORY, SEARCH_INDEX, SearchOrder, SearchText, TextField, TextMatch, TextSearch},
    server_keys::{KeyDocument, ServerKey},
    signing_keys::SigningKey,
    sliding::{NewSlidingConnection, SlidingConnection, SlidingPoint, SlidingRoom, SlidingStep},
    sole::SoleServer,
    state_tree::Change as StateChange,
    stream::{Batch, Change, Ephemeral, Observer},
    tokens::{LogIn, Refresh, RefreshOutcome, StoredSession},
    unread::UnreadCheckpoint,
    user_directory::{DirectoryPlace, DirectoryProfile, DirectorySearch, DirectoryUser},
};
use self::{
    committer::Queue,
    events::Pending,
    names::{ByWeight, Names, Numbers},
    relations::Childless,
    state_tree::Node,
    stream::{Recent, Tail},
};

/// How to open the store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The database.
    pub database: DatabaseOptions,
    /// The server name that the database belongs to.
    pub server_name: String,
    /// The bound of all caches together, in bytes.
    pub cache_bytes: u64,
}

/// The store: one for a process.
pub struct Store {
    database: Database,
    server_name: Box<str>,
    names: Names,
    nids: Numbers,
    event_nids: Numbers,
    node_nids: Numbers,
    events: Cache<i64, Arc<Event>, ByWeight>,
    nodes: Cache<i64, Arc<Node>, ByWeight>,
    auth_edges: Cache<i64, Arc<[i64]>, ByWeight>,
    pending: Pending,
    recent: Recent,
    childless: Childless,
    queue: Queue,
    tail: Mutex<Tail>,
    position: watch::Sender<i64>,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
    heralds: Option<mpsc::Sender<String>>,
    replica: u64,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Store {
    /// Connects, migrates, checks the server name, and starts to commit.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] when the database cannot be reached, [`Error::NewerDatabase`] when a newer release has
    /// used it, [`Error::ServerName`] when it belongs to another server.
    pub async fn open(options: &StoreOptions) -> Result<Arc<Self>> {
        let database = Database::connect(&options.database).await?;
        database.migrate().await?;
        let pinned = database.pin("server_name", &options.server_name).await?;
        if pinned != options.server_name {
            return Err(Error::ServerName { pinned, configured: options.server_name.clone() });
        }
        committer::show_metrics();
        let pos = Self::stored_position(&database).await?;
        let bytes = options.cache_bytes;
        let (queue, waiting) = committer::queue();
        let (stop, stopped) = watch::channel(false);
        let (heralds, heralded) = stream::heralds(&database);
        let events_share = bytes / 10 * 4;
        let nodes_share = bytes / 10 * 2;
        let edges_share = bytes / 20;
        let store = Arc::new(Self {
            database,
            server_name: options.server_name.as_str().into(),
            names: Names::new(bytes / 20 * 3),
            nids: Numbers::new("nids"),
            event_nids: Numbers::new("events"),
            node_nids: Numbers::new("state_nodes"),
            events: Cache::with_weighter((events_share / 1024) as usize, events_share, ByWeight),
            nodes: Cache::with_weighter((nodes_share / 512) as usize, nodes_share, ByWeight),
            auth_edges: Cache::with_weighter((edges_share / 128) as usize, edges_share, ByWeight),
            pending: Pending::default(),
            recent: Recent::new(pos, bytes / 10 * 2),
            childless: Childless::new(),
            queue,
            tail: Mutex::new(Tail { pos }),
            position: watch::channel(pos).0,
            observers: RwLock::new(Vec::new()),
            heralds,
            replica: rand::random(),
            stop,
            tasks: Mutex::new(Vec::new()),
        });
        let mut tasks = store.tasks.lock().await;
        tasks.push(tokio::spawn(committer::run(store.clone(), waiting, stopped.clone())));
        tasks.push(tokio::spawn(stream::herald(store.clone(), heralded, stopped.clone())));
        tasks.push(tokio::spawn(stream::follow(store.clone(), stopped)));
        drop(tasks);
        store.intern_common_keys().await?;
        Ok(store)
    }

    /// The database, for health checks and figures.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Bytes in the caches: events, state nodes, names, the newest events of rooms.
    pub fn cache_weights(&self) -> [(&'static str, u64); 5] {
        [
            ("events", self.events.weight()),
            ("state_nodes", self.nodes.weight()),
            ("auth_edges", self.auth_edges.weight()),
            ("names", self.names.weight()),
            ("recent_events", self.recent.weight()),
        ]
    }

    /// Hits and misses of the caches.
    pub fn cache_hits(&self) -> [(&'static str, u64, u64); 2] {
        [("events", self.events.hits(), self.events.misses()), ("state_nodes", self.nodes.hits(), self.nodes.misses())]
    }

    /// Commits what is queued, then closes the connections.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        for task in self.tasks.lock().await.drain(..) {
            if let Err(error) = task.await {
                tracing::error!(error = &error as &dyn std::error::Error, "a task of the store failed");
            }
        }
        // A reader may hold a connection while it waits for a client; do not wait for it for ever.
        if tokio::time::timeout(Duration::from_secs(5), self.database.close()).await.is_err() {
            tracing::warn!("some database connections were still in use at shutdown");
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("database", &self.database).field("position", &self.position()).finish()
    }
}
