//! How many are in a room, and who could give it a name.

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Member, Membership, Store};
use quick_cache::sync::Cache;

use crate::Result;

/// Summaries in memory.
const SUMMARIES: usize = 10_000;
/// Rooms whose members are read at once.
const ROOMS_AT_ONCE: usize = 32;
/// "This should be the first 5 members of the room", and the client's own user does not count.
const CANDIDATES: usize = 6;

/// The members of a room, as they matter to its name.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) joined: u64,
    pub(crate) invited: u64,
    /// The first members who are joined or invited.
    active: Vec<i64>,
    /// The first ones who are not any more.
    former: Vec<i64>,
}

impl Summary {
    fn of(mut members: Vec<&Member>) -> Self {
        members.sort_unstable_by_key(|member| (member.pos, member.user_nid));
        let mut summary = Self::default();
        for member in members {
            let list = match member.membership {
                Membership::Join => {
                    summary.joined += 1;
                    &mut summary.active
                }
                Membership::Invite => {
                    summary.invited += 1;
                    &mut summary.active
                }
                Membership::Leave | Membership::Ban => &mut summary.former,
                Membership::Knock => continue,
            };
            if list.len() < CANDIDATES {
                list.push(member.user_nid);
            }
        }
        summary
    }

    /// "The first 5 members of the room, ordered by stream ordering, which are joined or invited. The list must never
    /// include the client's own user ID. When no joined or invited members are available, this should consist of the
    /// banned and left users."
    pub(crate) fn heroes(&self, own_nid: i64) -> Vec<i64> {
        let others = |list: &[i64]| -> Vec<i64> {
            list.iter().copied().filter(|user_nid| *user_nid != own_nid).take(CANDIDATES - 1).collect()
        };
        let active = others(&self.active);
        if active.is_empty() { others(&self.former) } else { active }
    }
}

/// Summaries by room and the position of its last membership event, which makes them immutable.
#[derive(Debug)]
pub(crate) struct Summaries(Cache<(i64, i64), Arc<Summary>>);

impl Summaries {
    pub(crate) fn new() -> Self {
        Self(Cache::new(SUMMARIES))
    }

    /// The summaries of some rooms, given with the positions of their last membership events.
    pub(crate) async fn of(&self, store: &Store, rooms: &[(i64, i64)]) -> Result<HashMap<i64, Arc<Summary>>> {
        let mut found = HashMap::with_capacity(rooms.len());
        let mut missing = Vec::new();
        for room in rooms {
            match self.0.get(room) {
                Some(summary) => drop(found.insert(room.0, summary)),
                None => missing.push(*room),
            }
        }
        // Many are woken by the same event; one of them reads.
        if let [only] = missing[..] {
            let read = async {
                let members = store.members(only.0).await?;
                Ok::<_, crate::Error>(Arc::new(Summary::of(members.iter().collect())))
            };
            let summary = Box::pin(self.0.get_or_insert_async(&only, read)).await?;
            found.insert(only.0, summary);
            return Ok(found);
        }
        for rooms in missing.chunks(ROOMS_AT_ONCE) {
            let nids: Vec<i64> = rooms.iter().map(|room| room.0).collect();
            let members = store.members_of(&nids).await?;
            let mut by_room: HashMap<i64, Vec<&Member>> = HashMap::new();
            for member in &members {
                by_room.entry(member.room_nid).or_default().push(member);
            }
            for room in rooms {
                let summary = Arc::new(Summary::of(by_room.remove(&room.0).unwrap_or_default()));
                self.0.insert(*room, summary.clone());
                found.insert(room.0, summary);
            }
        }
        Ok(found)
    }
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
