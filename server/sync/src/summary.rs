//! How many are in a room, and who could give it a name.
//!
//! A summary is made from all members of a room once; from then on it follows from what two snapshots of the room's
//! state differ in, which costs the members who came and went and not those who are there.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use myelin_rooms::visibility::membership_in;
use myelin_store::{Event, Member, Membership, Store, state_tree};
use quick_cache::sync::Cache;
use ruma::UserId;

use crate::{Result, metrics::SUMMARIES_MADE};

/// Summaries in memory.
const SUMMARIES: usize = 10_000;
/// Rooms whose members are read at once.
const ROOMS_AT_ONCE: usize = 32;
/// "This should be the first 5 members of the room", and the client's own user does not count.
const CANDIDATES: usize = 6;
/// Members kept of each kind, so that some may go before all have to be read again.
const KEPT: usize = 24;
/// Changes of the state that a summary follows; after more, all members are read.
const CHANGES_MAX: usize = 256;

/// Members of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Members {
    total: usize,
    /// The first of them.
    first: Vec<i64>,
}

impl Members {
    /// Adds one who came last.
    fn add(&mut self, user_nid: i64) {
        if self.first.len() == self.total && self.total < KEPT {
            self.first.push(user_nid);
        }
        self.total += 1;
    }

    /// Takes one out; false if others, whom we do not know, would now be among the first.
    fn remove(&mut self, user_nid: i64) -> bool {
        self.total = self.total.saturating_sub(1);
        self.first.retain(|first| *first != user_nid);
        self.first.len() >= self.total.min(CANDIDATES)
    }
}

/// The members of a room, as they matter to its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) joined: u64,
    pub(crate) invited: u64,
    /// Members who are joined or invited.
    active: Members,
    /// Those who are not any more.
    former: Members,
}

impl Summary {
    fn of(mut members: Vec<&Member>) -> Self {
        members.sort_unstable_by_key(|member| (member.pos, member.user_nid));
        let mut summary = Self::default();
        for member in members {
            summary.add(member.user_nid, member.membership);
        }
        summary
    }

    fn add(&mut self, user_nid: i64, membership: Membership) {
        match membership {
            Membership::Join => self.joined += 1,
            Membership::Invite => self.invited += 1,
            _ => {}
        }
        if let Some(members) = self.members(membership) {
            members.add(user_nid);
        }
    }

    fn remove(&mut self, user_nid: i64, membership: Membership) -> bool {
        match membership {
            Membership::Join => self.joined = self.joined.saturating_sub(1),
            Membership::Invite => self.invited = self.invited.saturating_sub(1),
            _ => {}
        }
        self.members(membership).is_none_or(|members| members.remove(user_nid))
    }

    fn members(&mut self, membership: Membership) -> Option<&mut Members> {
        match membership {
            Membership::Join | Membership::Invite => Some(&mut self.active),
            Membership::Leave | Membership::Ban => Some(&mut self.former),
            Membership::Knock => None,
        }
    }

    /// "The first 5 members of the room, ordered by stream ordering, which are joined or invited. The list must never
    /// include the client's own user ID. When no joined or invited members are available, this should consist of the
    /// banned and left users."
    pub(crate) fn heroes(&self, own_nid: i64) -> Vec<i64> {
        let others = |list: &[i64]| -> Vec<i64> {
            list.iter().copied().filter(|user_nid| *user_nid != own_nid).take(CANDIDATES - 1).collect()
        };
        let active = others(&self.active.first);
        if active.is_empty() { others(&self.former.first) } else { active }
    }
}

/// A room whose summary is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) room_nid: i64,
    /// The position of the room's last membership event, or one that none has come after.
    pub(crate) members_pos: i64,
    /// A snapshot of the room's state with the members of that position, if one is at hand.
    pub(crate) root: Option<i64>,
}

/// The newest summary of a room, and the state that it tells of.
#[derive(Debug)]
struct Newest {
    pos: i64,
    root: i64,
    summary: Arc<Summary>,
}

/// Summaries by room and the position of its last membership event, which makes them immutable.
#[derive(Debug)]
pub(crate) struct Summaries {
    summaries: Cache<(i64, i64), Arc<Summary>>,
    newest: Cache<i64, Arc<Newest>>,
    /// How many were made by reading all members.
    #[cfg(test)]
    read: std::sync::atomic::AtomicUsize,
}

impl Summaries {
    pub(crate) fn new() -> Self {
        Self {
            summaries: Cache::new(SUMMARIES),
            newest: Cache::new(SUMMARIES),
            #[cfg(test)]
            read: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    #[cfg(test)]
    pub(crate) fn read(&self) -> usize {
        self.read.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The summaries of some rooms.
    pub(crate) async fn of(&self, store: &Store, rooms: &[Asked]) -> Result<HashMap<i64, Arc<Summary>>> {
        let mut found = HashMap::with_capacity(rooms.len());
        let mut missing = BTreeMap::new();
        for room in rooms {
            let key = (room.room_nid, room.members_pos);
            match self.summaries.get(&key) {
                Some(summary) => drop(found.insert(room.room_nid, summary)),
                None => drop(missing.insert(key, *room)),
            }
        }
        if !missing.is_empty() {
            Box::pin(self.make(store, missing, &mut found)).await?;
        }
        Ok(found)
    }

    /// Makes what is missing. Many are woken by the same event; one of them works for all.
    async fn make(
        &self,
        store: &Store,
        missing: BTreeMap<(i64, i64), Asked>,
        found: &mut HashMap<i64, Arc<Summary>>,
    ) -> Result<()> {
        let mut ours = Vec::new();
        let mut guards = Vec::new();
        // In the order of the keys, which is everyone's: so no two wait for each other.
        for (key, room) in missing {
            match self.summaries.get_value_or_guard_async(&key).await {
                Ok(summary) => drop(found.insert(room.room_nid, summary)),
                Err(guard) => {
                    ours.push(room);
                    guards.push(guard);
                }
            }
        }
        let roots = roots_of(store, &ours).await?;
        let mut made = self.follow(store, &ours, &roots).await?;
        let left: Vec<usize> = (0..ours.len()).filter(|&place| made[place].is_none()).collect();
        for places in left.chunks(ROOMS_AT_ONCE) {
            let nids: Vec<i64> = places.iter().map(|&place| ours[place].room_nid).collect();
            let members = store.members_of(&nids).await?;
            let mut by_room: HashMap<i64, Vec<&Member>> = HashMap::new();
            for member in &members {
                by_room.entry(member.room_nid).or_default().push(member);
            }
            for &place in places {
                let room = ours[place];
                let members = by_room.remove(&room.room_nid).unwrap_or_default();
                // The table may be ahead of the position that was asked for, and then says nothing of the snapshot.
                let is_exact = members.iter().all(|member| member.pos <= room.members_pos);
                let summary = Arc::new(Summary::of(members));
                if is_exact {
                    self.keep(room, roots[place], &summary);
                }
                SUMMARIES_MADE.with_label_values(&["members"]).inc();
                #[cfg(test)]
                self.read.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                made[place] = Some(summary);
            }
        }
        for ((room, guard), summary) in ours.into_iter().zip(guards).zip(made) {
            let Some(summary) = summary else { continue };
            // Whoever was quicker has put in the same.
            drop(guard.insert(summary.clone()));
            found.insert(room.room_nid, summary);
        }
        Ok(())
    }

    fn keep(&self, room: Asked, root: i64, summary: &Arc<Summary>) {
        if root != state_tree::EMPTY {
            let newest = Newest { pos: room.members_pos, root, summary: summary.clone() };
            self.newest.insert(room.room_nid, Arc::new(newest));
        }
    }

    /// The summaries that follow from older ones.
    async fn follow(&self, store: &Store, rooms: &[Asked], roots: &[i64]) -> Result<Vec<Option<Arc<Summary>>>> {
        let mut made = vec![None; rooms.len()];
        let mut older = Vec::new();
        for (place, room) in rooms.iter().enumerate() {
            match self.newest.get(&room.room_nid) {
                Some(newest) if newest.pos >= room.members_pos => made[place] = Some(newest.summary.clone()),
                Some(newest) if roots[place] != state_tree::EMPTY => older.push((place, newest)),
                _ => {}
            }
        }
        let pairs: Vec<(i64, i64)> = older.iter().map(|(place, newest)| (newest.root, roots[*place])).collect();
        for ((place, newest), changes) in older.into_iter().zip(state_tree::diff_many(store, &pairs).await?) {
            if let Some(summary) = followed(store, &newest, &changes).await? {
                let summary = Arc::new(summary);
                self.keep(rooms[place], roots[place], &summary);
                SUMMARIES_MADE.with_label_values(&["changes"]).inc();
                made[place] = Some(summary);
            }
        }
        Ok(made)
    }
}

/// The snapshots with the members of each room.
async fn roots_of(store: &Store, rooms: &[Asked]) -> Result<Vec<i64>> {
    let unknown: Vec<(i64, i64)> =
        rooms.iter().filter(|room| room.root.is_none()).map(|room| (room.room_nid, room.members_pos)).collect();
    let mut read = if unknown.is_empty() { Vec::new() } else { store.room_states_at(&unknown).await? }.into_iter();
    Ok(rooms.iter().map(|room| room.root.or_else(|| read.next()).unwrap_or(state_tree::EMPTY)).collect())
}

/// A summary after some changes of the state; `None` if all members have to be read for it.
async fn followed(store: &Store, newest: &Newest, changes: &[state_tree::Change]) -> Result<Option<Summary>> {
    let mut summary = (*newest.summary).clone();
    if changes.len() > CHANGES_MAX {
        return Ok(None);
    }
    let keys: Vec<i64> = changes.iter().map(|change| change.key).collect();
    let names = store.state_keys(&keys).await?;
    let mut moved: Vec<(Arc<Event>, Option<Arc<Event>>)> = Vec::new();
    for (change, name) in changes.iter().zip(names) {
        if &*name.event_type != "m.room.member" {
            continue;
        }
        let Some(new) = change.new else { return Ok(None) };
        let old = match change.old {
            Some(old) => Some(store.event(old).await?),
            None => None,
        };
        moved.push((store.event(new).await?, old));
    }
    moved.sort_unstable_by_key(|(new, _)| new.pos);
    for (new, old) in moved {
        // Only one who came last has a place that we know.
        let is_last = new.pos.is_some_and(|pos| pos > newest.pos);
        let user_id = new.state_key().and_then(|user_id| <&UserId>::try_from(user_id).ok()).filter(|_| is_last);
        let (Some(user_id), Some(membership)) = (user_id, membership_in(&new)) else { return Ok(None) };
        let Some(user_nid) = store.known_user_nid(user_id).await? else { return Ok(None) };
        if let Some(old) = old {
            let Some(before) = membership_in(&old) else { return Ok(None) };
            if !summary.remove(user_nid, before) {
                return Ok(None);
            }
        }
        summary.add(user_nid, membership);
    }
    Ok(Some(summary))
}

#[cfg(test)]
mod tests {
    use myelin_store::{Member, Membership};

    use super::Summary;

    fn member(user_nid: i64, membership: Membership) -> Member {
        Member { room_nid: 1, user_nid, membership, event_nid: 0, pos: user_nid, forgotten: false }
    }

    /// Heroes are the first five others; those who left stand in only where nobody else is there.
    #[test]
    fn heroes() {
        let members: Vec<Member> = (1..=8).map(|user| member(user, Membership::Join)).collect();
        let summary = Summary::of(members.iter().rev().collect());
        assert_eq!(summary.joined, 8);
        assert_eq!(summary.heroes(2), [1, 3, 4, 5, 6]);
        assert_eq!(summary.heroes(8), [1, 2, 3, 4, 5]);
        let members = [member(1, Membership::Join), member(2, Membership::Leave), member(3, Membership::Ban)];
        assert_eq!(Summary::of(members.iter().collect()).heroes(1), [2, 3]);
        let members = [member(1, Membership::Join), member(2, Membership::Leave), member(3, Membership::Invite)];
        let summary = Summary::of(members.iter().collect());
        assert_eq!((summary.heroes(1), summary.joined, summary.invited), (vec![3], 1, 1));
    }
}
