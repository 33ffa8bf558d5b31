//! Which servers are in a room, in memory, kept current by what changes in the room's state.

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Membership, RoomServers, Store, state_tree};
use quick_cache::{Weighter, unsync::Cache};
use ruma::{OwnedServerName, ServerName, UserId};

use super::metrics::ROOM_LOADS;

/// Changes of state that are followed one by one; a room that has changed more is read anew.
const CHANGES_MAX: usize = 1000;

/// The servers of the rooms that something was sent to lately.
pub(crate) struct Rooms {
    store: Arc<Store>,
    ours: OwnedServerName,
    cache: Cache<i64, Room, ByServers>,
}

/// A room: how many users of each other server are in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room {
    /// The snapshot that the numbers follow from.
    root: i64,
    /// The newest snapshot that is known.
    newest_root: i64,
    joined: HashMap<OwnedServerName, u32>,
}

#[derive(Clone)]
struct ByServers;

impl Weighter<i64, Room> for ByServers {
    fn weight(&self, _room_nid: &i64, room: &Room) -> u64 {
        128 + 64 * room.joined.capacity() as u64
    }
}

/// The numbers contradict the changes.
#[derive(Debug)]
struct Inconsistent;

impl Room {
    fn new(loaded: RoomServers, ours: &ServerName) -> Self {
        let joined = loaded
            .joined
            .into_iter()
            .filter(|(server, _)| server != ours.as_str())
            // A name that is none cannot be sent to.
            .filter_map(|(server, users)| Some((ServerName::parse(server).ok()?, users)))
            .collect();
        Self { root: loaded.state_root, newest_root: loaded.state_root, joined }
    }

    /// The servers in the room, without ours.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &OwnedServerName> {
        self.joined.keys()
    }

    /// Notes that its state is another one now, which is looked at when the servers are asked for again.
    pub(crate) fn note(&mut self, root: i64) {
        if root != state_tree::EMPTY {
            self.newest_root = root;
        }
    }

    fn change(&mut self, server: &ServerName, was: bool, is: bool) -> Result<(), Inconsistent> {
        match (was, is) {
            (false, true) => *self.joined.entry(server.to_owned()).or_default() += 1,
            (true, false) => {
                let users = self.joined.get_mut(server).ok_or(Inconsistent)?;
                *users -= 1;
                if *users == 0 {
                    self.joined.remove(server);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Rooms {
    pub(crate) fn new(store: Arc<Store>, ours: OwnedServerName, bytes: u64) -> Self {
        let cache = Cache::with_weighter((bytes / 1024).max(16) as usize, bytes.max(65_536), ByServers);
        Self { store, ours, cache }
    }

    /// Hands out a room as it is at a snapshot of its state, or at the newest one that is known.
    ///
    /// The entry of the cache is taken out meanwhile, and put back by [`Rooms::keep`].
    pub(crate) async fn take(&mut self, room_nid: i64, root: Option<i64>) -> myelin_store::Result<Room> {
        let mut room = match self.cache.remove(&room_nid) {
            Some((_, room)) => room,
            None => self.load(&[room_nid]).await?.remove(&room_nid).unwrap_or_default(),
        };
        let root = root.unwrap_or(room.newest_root);
        if self.follow(&mut room, root).await?.is_err() {
            // What the cache had was wrong; the database knows.
            room = self.load(&[room_nid]).await?.remove(&room_nid).unwrap_or_default();
            if self.follow(&mut room, root).await?.is_err() {
                tracing::warn!(room.nid = room_nid, "the members of a room do not match its state");
            }
        }
        Ok(room)
    }

    /// Puts a room back.
    pub(crate) fn keep(&mut self, room_nid: i64, room: Room) {
        self.cache.insert(room_nid, room);
    }

    /// Notes that a room's state is another one now.
    pub(crate) fn note_state(&mut self, room_nid: i64, root: i64) {
        if let Some(mut room) = self.cache.get_mut(&room_nid) {
            room.note(root);
        }
    }

    /// Reads the rooms that are not in memory, at once.
    pub(crate) async fn preload(&mut self, room_nids: &[i64]) -> myelin_store::Result<()> {
        let missing: Vec<i64> = room_nids.iter().copied().filter(|nid| self.cache.peek(nid).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        for (room_nid, room) in self.load(&missing).await? {
            self.cache.insert(room_nid, room);
        }
        Ok(())
    }

    async fn load(&self, room_nids: &[i64]) -> myelin_store::Result<HashMap<i64, Room>> {
        ROOM_LOADS.inc();
        let loaded = self.store.room_servers(room_nids).await?;
        Ok(loaded.into_iter().map(|(room_nid, servers)| (room_nid, Room::new(servers, &self.ours))).collect())
    }

    /// Brings the numbers to a snapshot, by what differs from the one that they follow from. That may be an older one.
    async fn follow(&self, room: &mut Room, root: i64) -> myelin_store::Result<Result<(), Inconsistent>> {
        if room.root == root {
            return Ok(Ok(()));
        }
        let changes = state_tree::diff(&*self.store, room.root, root).await?;
        let key_nids: Vec<i64> = changes.iter().map(|change| change.key).collect();
        if changes.len() > CHANGES_MAX && room.root != state_tree::EMPTY {
            return Ok(Err(Inconsistent));
        }
        let keys = self.store.state_keys(&key_nids).await?;
        let changes: Vec<_> =
            changes.into_iter().zip(keys).filter(|(_, key)| &*key.event_type == "m.room.member").collect();
        let event_nids: Vec<i64> = changes.iter().flat_map(|(change, _)| [change.old, change.new]).flatten().collect();
        let events = self.store.events(&event_nids).await?;
        let joined: HashMap<i64, bool> =
            events.iter().map(|event| (event.nid, membership_of(event.content()) == Some(Membership::Join))).collect();
        for (change, key) in changes {
            let is_join = |nid: Option<i64>| nid.is_some_and(|nid| joined.get(&nid).copied().unwrap_or_default());
            let Some(server) = server_of(&key.state_key) else { continue };
            if *server != *self.ours && room.change(&server, is_join(change.old), is_join(change.new)).is_err() {
                return Ok(Err(Inconsistent));
            }
        }
        room.root = root;
        Ok(Ok(()))
    }
}

/// The membership that the content of a member event names.
pub(crate) fn membership_of(content: &str) -> Option<Membership> {
    #[derive(serde::Deserialize)]
    struct Content {
        membership: String,
    }
    let content: Content = serde_json::from_str(content).ok()?;
    Membership::from_word(&content.membership)
}

/// The server of a user, if there is one that can be sent to.
pub(crate) fn server_of(user_id: &str) -> Option<OwnedServerName> {
    <&UserId>::try_from(user_id).ok().map(|user_id| user_id.server_name().to_owned())
}
