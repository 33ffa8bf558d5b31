//! What is remembered of those who have pushers: in which rooms they are, which pushers, how much is unread.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use myelin_store::{Change, Member, Membership, PushMember, Store};
use myelin_sync::Sync;
use ruma::UserId;
use tokio::time::Instant;

use crate::payload::Definition;

/// Rooms of which those with pushers are remembered, and how many of these; with more, all are forgotten.
const ROOMS_MAX: usize = 10_000;
const MEMBERS_MAX: usize = 500_000;
/// Users whose pushers are remembered, and whose unread messages.
const USERS_MAX: usize = 50_000;
/// How long pushers are believed in that may have changed without our hearing of it.
const BELIEVED: Duration = Duration::from_secs(30);

/// The pushers of a user, and since when they are known.
type Known = (Instant, Arc<[Arc<Definition>]>);

/// What is remembered of those who have pushers, for one term of the duty.
pub(crate) struct People {
    store: Arc<Store>,
    sync: Arc<Sync>,
    rooms: HashMap<i64, Vec<PushMember>>,
    members: usize,
    pushers: HashMap<i64, Known>,
    /// By user and room, how many notifications are unread.
    unread: HashMap<i64, HashMap<i64, u64>>,
}

impl People {
    pub(crate) fn new(store: Arc<Store>, sync: Arc<Sync>) -> Self {
        let (rooms, pushers, unread) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { store, sync, rooms, members: 0, pushers, unread }
    }

    /// Those in a room who have pushers.
    pub(crate) async fn in_room(&mut self, room_nid: i64) -> myelin_store::Result<&[PushMember]> {
        if !self.rooms.contains_key(&room_nid) {
            if self.rooms.len() >= ROOMS_MAX || self.members >= MEMBERS_MAX {
                self.rooms.clear();
                self.members = 0;
            }
            let found = self.store.push_members(&[room_nid]).await?;
            self.members += found.len();
            self.rooms.insert(room_nid, found);
        }
        Ok(self.rooms.get(&room_nid).map_or(&[], Vec::as_slice))
    }

    /// Reads which of those who came to a room, or were invited, have pushers: one query for all.
    pub(crate) async fn newcomers(&self, changes: &[Change]) -> myelin_store::Result<HashSet<i64>> {
        let users: HashSet<i64> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Membership { member, .. } => Some(member.user_nid),
                _ => None,
            })
            .collect();
        if users.is_empty() {
            return Ok(HashSet::new());
        }
        let users: Vec<i64> = users.into_iter().collect();
        Ok(self.store.users_with_pushers(&users).await?.into_iter().collect())
    }

    /// Takes note of a user's new place in a room.
    pub(crate) fn moved(&mut self, member: &Member, has_pushers: bool) {
        if let Some(known) = self.rooms.get_mut(&member.room_nid) {
            let before = known.len();
            known.retain(|known| known.user_nid != member.user_nid);
            if has_pushers && member.membership == Membership::Join {
                known.push(push_member(member));
            }
            self.members = (self.members + known.len()).saturating_sub(before);
        }
        if member.membership != Membership::Join
            && let Some(rooms) = self.unread.get_mut(&member.user_nid)
        {
            rooms.remove(&member.room_nid);
        }
    }

    /// The pushers of a user have changed.
    pub(crate) async fn changed(&mut self, user_nid: i64) -> myelin_store::Result<()> {
        self.pushers.remove(&user_nid);
        for member in self.store.memberships(user_nid).await? {
            self.moved(&member, true);
        }
        Ok(())
    }

    /// Pushers may have gone with their devices.
    pub(crate) fn forget_pushers(&mut self) {
        self.pushers.clear();
    }

    /// The pushers of a user are to be read again.
    pub(crate) fn forget_pushers_of(&mut self, user_nid: i64) {
        self.pushers.remove(&user_nid);
    }

    /// Nothing of it may be believed.
    pub(crate) fn forget(&mut self) {
        self.rooms.clear();
        self.members = 0;
        self.pushers.clear();
        self.unread.clear();
    }

    /// The pushers of some users: those that are not known are read by one query.
    pub(crate) async fn pushers_of(
        &mut self,
        user_nids: &[i64],
    ) -> myelin_store::Result<HashMap<i64, Arc<[Arc<Definition>]>>> {
        let now = Instant::now();
        let mut found = HashMap::with_capacity(user_nids.len());
        let mut missing = Vec::new();
        for &user_nid in user_nids {
            match self.pushers.get(&user_nid).filter(|(since, _)| now - *since < BELIEVED) {
                Some((_, known)) => drop(found.insert(user_nid, known.clone())),
                None => missing.push(user_nid),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let mut read: HashMap<i64, Vec<Arc<Definition>>> = HashMap::new();
        for pusher in self.store.pushers_of(&missing).await? {
            let user_nid = pusher.user_nid;
            read.entry(user_nid).or_default().extend(Definition::read(pusher).map(Arc::new));
        }
        if self.pushers.len() + missing.len() > USERS_MAX {
            self.pushers.clear();
        }
        for user_nid in missing {
            let pushers: Arc<[Arc<Definition>]> = read.remove(&user_nid).unwrap_or_default().into();
            self.pushers.insert(user_nid, (now, pushers.clone()));
            found.insert(user_nid, pushers);
        }
        Ok(found)
    }

    /// Counts anew what a user has not read in a room, up to a position at least.
    pub(crate) async fn count(
        &mut self,
        user_nid: i64,
        user_id: &UserId,
        room_nid: i64,
        pos: i64,
    ) -> myelin_sync::Result<()> {
        let known = self.unread.contains_key(&user_nid);
        let counting = self.sync.unread_notifications(user_nid, user_id, known.then_some(room_nid), pos);
        let counted = Box::pin(counting).await?;
        if !known && self.unread.len() >= USERS_MAX {
            self.unread.clear();
        }
        let rooms = self.unread.entry(user_nid).or_default();
        if known {
            rooms.remove(&room_nid);
        }
        rooms.extend(counted.into_iter().filter(|(_, unread)| *unread > 0));
        Ok(())
    }

    /// How much a user has not read in all rooms, as it was counted last.
    pub(crate) fn unread(&self, user_nid: i64) -> Option<u64> {
        self.unread.get(&user_nid).map(|rooms| rooms.values().sum())
    }
}

fn push_member(member: &Member) -> PushMember {
    PushMember {
        room_nid: member.room_nid,
        user_nid: member.user_nid,
        member_nid: member.event_nid,
        member_pos: member.pos,
    }
}
