//! The servers whose users are in a room.

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Event, Membership, RoomName, StateKey, state_tree};
use ruma::{OwnedServerName, ServerName, UserId};

use super::{SERVER_LISTS, Weight};
use crate::{Result, Rooms, visibility::membership_in};

/// Changes up to which a list is brought up to date rather than made anew.
const CHANGES_MAX: usize = 1000;

/// How many users of each server are in a room, as of one of its snapshots.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoomServers {
    root: i64,
    counts: HashMap<OwnedServerName, Presence>,
}

/// Users of one server in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Presence {
    pub(super) joined: u32,
    pub(super) invited: u32,
}

impl Presence {
    pub(super) fn add(&mut self, membership: Option<Membership>) {
        match membership {
            Some(Membership::Join) => self.joined += 1,
            Some(Membership::Invite) => self.invited += 1,
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, membership: Option<Membership>) {
        match membership {
            Some(Membership::Join) => self.joined = self.joined.saturating_sub(1),
            Some(Membership::Invite) => self.invited = self.invited.saturating_sub(1),
            _ => {}
        }
    }
}

impl RoomServers {
    /// The users of a server.
    pub(super) fn of(&self, server: &ServerName) -> Presence {
        self.counts.get(server).copied().unwrap_or_default()
    }

    /// True if a user of the server has joined.
    pub(super) fn has(&self, server: &ServerName) -> bool {
        self.of(server).joined > 0
    }

    /// True if somebody has joined, of whatever server.
    pub(super) fn has_anyone(&self) -> bool {
        self.counts.values().any(|presence| presence.joined > 0)
    }

    fn joined(&self) -> Vec<OwnedServerName> {
        let mut joined: Vec<_> =
            self.counts.iter().filter(|(_, presence)| presence.joined > 0).map(|(server, _)| server.clone()).collect();
        joined.sort_unstable();
        joined
    }

    fn change(&mut self, server: &ServerName, old: Option<Membership>, new: Option<Membership>) {
        if old == new {
            return;
        }
        let presence = self.counts.entry(server.to_owned()).or_default();
        presence.remove(old);
        presence.add(new);
        if *presence == Presence::default() {
            self.counts.remove(server);
        }
    }
}

impl Weight for Arc<RoomServers> {
    fn weight(&self) -> u64 {
        128 + self.counts.keys().map(|server| server.as_str().len() as u64 + 48).sum::<u64>()
    }
}

/// The server of the user whose membership a state key stands for.
pub(super) fn server_of_member(key: &StateKey) -> Option<&ServerName> {
    if &*key.event_type != "m.room.member" {
        return None;
    }
    <&UserId>::try_from(&*key.state_key).ok().map(UserId::server_name)
}

impl Rooms {
    /// The servers that have a user in a room now, in alphabetical order.
    pub async fn servers_in(&self, room: &RoomName) -> Result<Vec<OwnedServerName>> {
        let root = self.state_root(room).await?;
        Ok(self.room_servers(room, root).await?.joined())
    }

    /// The servers that had a user in a room at a snapshot of its state, in alphabetical order.
    pub async fn servers_at(&self, room: &RoomName, root: i64) -> Result<Vec<OwnedServerName>> {
        Ok(self.room_servers(room, root).await?.joined())
    }

    /// True if a server has a user in a room now.
    pub async fn is_server_in(&self, room: &RoomName, server: &ServerName) -> Result<bool> {
        let root = self.state_root(room).await?;
        Ok(self.room_servers(room, root).await?.has(server))
    }

    /// The servers at a snapshot: those at another one, with what is different.
    pub(super) async fn room_servers(&self, room: &RoomName, root: i64) -> Result<Arc<RoomServers>> {
        let known = self.serving.servers.get(&room.nid);
        let made = match known {
            Some(known) if known.root == root => return Ok(known),
            Some(known) => match self.updated(&known, root).await? {
                Some(updated) => updated,
                None => self.counted(room, root).await?,
            },
            None => self.counted(room, root).await?,
        };
        let made = Arc::new(made);
        self.serving.servers.insert(room.nid, made.clone());
        self.serving.show_weight();
        Ok(made)
    }

    /// `None` when too much is different.
    async fn updated(&self, known: &RoomServers, root: i64) -> Result<Option<RoomServers>> {
        let changes = state_tree::diff(&*self.store, known.root, root).await.map_err(myelin_store::Error::from)?;
        if changes.len() > CHANGES_MAX {
            return Ok(None);
        }
        let mut updated = RoomServers { root, counts: known.counts.clone() };
        let keys = self.store.state_keys(&changes.iter().map(|change| change.key).collect::<Vec<_>>()).await?;
        let changes: Vec<_> =
            changes.iter().zip(&keys).filter_map(|(change, key)| Some((server_of_member(key)?, change))).collect();
        let nids = changes.iter().flat_map(|(_, change)| change.old.into_iter().chain(change.new));
        let memberships = self.memberships_in(nids.collect()).await?;
        let membership = |nid: Option<i64>| memberships.get(&nid?).copied().flatten();
        for (server, change) in changes {
            updated.change(server, membership(change.old), membership(change.new));
        }
        Ok(Some(updated))
    }

    async fn counted(&self, room: &RoomName, root: i64) -> Result<RoomServers> {
        SERVER_LISTS.inc();
        let members = self.member_events(root, |_| true).await?;
        // What events of the present say is in a table; only others are read.
        let table = self.store.members(room.nid).await?;
        let known: HashMap<i64, Membership> =
            table.into_iter().map(|member| (member.event_nid, member.membership)).collect();
        let unknown = members.iter().map(|(_, nid)| *nid).filter(|nid| !known.contains_key(nid));
        let read = self.memberships_in(unknown.collect()).await?;
        let mut made = RoomServers { root, ..RoomServers::default() };
        for (server, nid) in members {
            let membership = known.get(&nid).copied().or_else(|| read.get(&nid).copied().flatten());
            made.change(&server, None, membership);
        }
        Ok(made)
    }

    /// The membership events of a snapshot, by number, with the servers of the users; of some servers only.
    async fn member_events(
        &self,
        root: i64,
        is_wanted: impl Fn(&ServerName) -> bool,
    ) -> Result<Vec<(OwnedServerName, i64)>> {
        let entries = state_tree::entries(&*self.store, &[root]).await.map_err(myelin_store::Error::from)?;
        let entries = entries.into_iter().next().unwrap_or_default();
        let keys = self.store.state_keys(&entries.iter().map(|(key_nid, _)| *key_nid).collect::<Vec<_>>()).await?;
        let found = entries.iter().zip(&keys).filter_map(|((_, nid), key)| {
            let server = server_of_member(key).filter(|server| is_wanted(server))?;
            Some((server.to_owned(), *nid))
        });
        Ok(found.collect())
    }

    /// What some membership events say.
    async fn memberships_in(&self, mut nids: Vec<i64>) -> Result<HashMap<i64, Option<Membership>>> {
        nids.sort_unstable();
        nids.dedup();
        let events: Vec<Arc<Event>> = self.store.events(&nids).await?;
        Ok(events.iter().map(|event| (event.nid, membership_in(event))).collect())
    }

    /// The users that a server had in a room at each of some snapshots.
    ///
    /// The first snapshot is gone through; of the others only what is different from the one before.
    pub(super) async fn presence_at(&self, roots: &[i64], server: &ServerName) -> Result<HashMap<i64, Presence>> {
        let mut roots = roots.to_vec();
        roots.sort_unstable();
        roots.dedup();
        let Some(&first) = roots.first() else { return Ok(HashMap::new()) };
        let start = self.member_events(first, |other| other == server).await?;
        let pairs: Vec<(i64, i64)> = roots.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let steps = state_tree::diff_many(&*self.store, &pairs).await.map_err(myelin_store::Error::from)?;

        let changed: Vec<i64> = steps.iter().flatten().map(|change| change.key).collect();
        let keys = self.store.state_keys(&changed).await?;
        let own: HashMap<i64, ()> = changed
            .iter()
            .zip(&keys)
            .filter(|(_, key)| server_of_member(key) == Some(server))
            .map(|(key_nid, _)| (*key_nid, ()))
            .collect();
        let own_changes = || steps.iter().flatten().filter(|change| own.contains_key(&change.key));
        let nids = start.iter().map(|(_, nid)| *nid);
        let nids = nids.chain(own_changes().flat_map(|change| change.old.into_iter().chain(change.new)));
        let memberships = self.memberships_in(nids.collect()).await?;
        let membership = |nid: Option<i64>| memberships.get(&nid?).copied().flatten();

        let mut presence = Presence::default();
        start.iter().for_each(|(_, nid)| presence.add(membership(Some(*nid))));
        let mut found = HashMap::from([(first, presence)]);
        for (root, changes) in roots[1..].iter().zip(&steps) {
            for change in changes.iter().filter(|change| own.contains_key(&change.key)) {
                presence.remove(membership(change.old));
                presence.add(membership(change.new));
            }
            found.insert(*root, presence);
        }
        Ok(found)
    }
}
