//! Whose keys a client has to ask for again: those that have changed, and those of users who have come into, or gone out
//! of, the client's encrypted rooms.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#e2e-extensions-to-sync)

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use myelin_rooms::visibility::membership_in;
use myelin_store::{Membership, StateKey};
use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Result, Sync,
    index::{RoomView, View},
    response::DeviceLists,
    token::Token,
};

/// How long a room is believed not to be encrypted: the resolution of its state may bring back an event that came long ago.
const UNENCRYPTED_FOR: Duration = Duration::from_secs(60);

/// The answer of `/keys/changes`.
#[derive(Debug)]
pub struct KeyChanges {
    /// Whose keys have to be asked for again.
    pub changed: Vec<OwnedUserId>,
    /// Who is in no encrypted room with the client any more.
    pub left: Vec<OwnedUserId>,
}

/// What two users share. More than one room of a kind is no more than one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Shared {
    #[default]
    Nothing,
    Room,
    EncryptedRoom,
}

/// Something that was so before, and how it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn<T> {
    before: T,
    now: T,
}

impl<T: PartialEq> Turn<T> {
    fn is_change(&self) -> bool {
        self.before != self.now
    }
}

/// The rooms in which something may have changed that concerns who shares what.
#[derive(Debug, Default)]
struct MovedRooms {
    /// Whether the client's user is in them.
    own: HashMap<i64, Turn<bool>>,
    /// Those that have become encrypted.
    newly_encrypted: HashSet<i64>,
}

impl Sync {
    /// Whose keys have changed since a token, for `/keys/changes`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database does not answer.
    pub async fn key_changes(&self, user_nid: i64, user_id: &UserId, from: Token) -> Result<KeyChanges> {
        loop {
            self.load(user_nid).await?;
            let Some(view) = self.index.view(user_nid, Some(from.pos)) else { continue };
            let DeviceLists { changed, left } = self.device_lists(user_nid, user_id, from.pos, &view).await?;
            return Ok(KeyChanges { changed, left });
        }
    }

    /// What has changed since a position, in a view that begins there.
    pub(crate) async fn device_lists(
        &self,
        user_nid: i64,
        user_id: &UserId,
        since: i64,
        view: &View,
    ) -> Result<DeviceLists> {
        let mut changed: HashSet<i64> = match &view.device_lists {
            Some(changed) => changed.iter().copied().collect(),
            None => self.store.device_lists_changed(user_nid, since, view.to).await?.into_iter().collect(),
        };
        let mut left: HashSet<i64> = HashSet::new();
        for (other, shared) in self.shared_since(user_nid, user_id, since, view).await? {
            if shared.now > shared.before {
                changed.insert(other);
            } else if shared.now < shared.before {
                changed.remove(&other);
                left.insert(other);
            }
        }
        Ok(DeviceLists { changed: self.names(changed).await?, left: self.names(left).await? })
    }

    async fn names(&self, users: HashSet<i64>) -> Result<Vec<OwnedUserId>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let nids: Vec<i64> = users.into_iter().collect();
        let mut names = self.store.user_ids(&nids).await?;
        names.sort_unstable();
        Ok(names)
    }

    /// What the user shared before, and shares now, with those for whom that may have changed.
    async fn shared_since(
        &self,
        user_nid: i64,
        user_id: &UserId,
        since: i64,
        view: &View,
    ) -> Result<Vec<(i64, Turn<Shared>)>> {
        let rooms = self.moved_rooms(user_id, since, view).await?;
        if rooms.own.is_empty() {
            return Ok(Vec::new());
        }
        let moves = self.moves_in(&rooms, user_nid, since).await?;
        let others = self.concerned(&rooms, &moves, user_nid).await?;
        if others.is_empty() {
            return Ok(Vec::new());
        }

        // Where they are now, in all rooms that the user is or was in, and where they were.
        let own_now: HashSet<i64> = self.index.joined_rooms(user_nid).into_iter().collect();
        let mut all: Vec<i64> = own_now.iter().copied().collect();
        all.extend(rooms.own.keys().filter(|room| !own_now.contains(room)));
        let mut places: HashMap<(i64, i64), Turn<bool>> = HashMap::new();
        let there = match self.index.joined_among(&others, &all) {
            Some(there) => there,
            None => self.store.joined_among(&others, &all).await?,
        };
        for place in there {
            places.insert(place, Turn { before: true, now: true });
        }
        let concerned: HashSet<i64> = others.iter().copied().collect();
        for (place, turn) in moves.iter().filter(|(place, _)| concerned.contains(&place.1)) {
            let now = places.contains_key(place);
            places.insert(*place, Turn { before: turn.before, now });
        }

        let nids: HashSet<i64> = places.keys().map(|(room_nid, _)| *room_nid).collect();
        let encrypted = self.encrypted_among(&nids.into_iter().collect::<Vec<_>>()).await?;
        let mut shared: HashMap<i64, Turn<Shared>> = HashMap::new();
        for ((room_nid, other), theirs) in places {
            let is_own = own_now.contains(&room_nid);
            let own = rooms.own.get(&room_nid).copied().unwrap_or(Turn { before: is_own, now: is_own });
            let is_encrypted = encrypted.contains(&room_nid);
            let was_encrypted = is_encrypted && !rooms.newly_encrypted.contains(&room_nid);
            let turn = shared.entry(other).or_default();
            turn.before = turn.before.max(kind(own.before && theirs.before, was_encrypted));
            turn.now = turn.now.max(kind(own.now && theirs.now, is_encrypted));
        }
        Ok(shared.into_iter().collect())
    }

    /// The rooms where somebody may have come or gone, or that have become encrypted.
    async fn moved_rooms(&self, user_id: &UserId, since: i64, view: &View) -> Result<MovedRooms> {
        let is_joined = |room: &RoomView| room.place.membership == Membership::Join;
        let concerns = |room: &&RoomView| {
            room.place.pos <= view.to
                && (room.place.pos > since
                    || (is_joined(room) && (room.members_pos > since || room.encryption_pos > since)))
        };
        let views: Vec<&RoomView> = view.rooms.iter().filter(concerns).collect();
        let asked: Vec<(i64, i64)> =
            views.iter().filter(|room| room.place.pos > since).map(|room| (room.room_nid, since)).collect();
        let before = self.memberships_at(user_id, &asked).await?;
        let mut rooms = MovedRooms::default();
        for room in &views {
            let now = is_joined(room);
            let was_joined = match room.place.pos > since {
                true => before.get(&room.room_nid) == Some(&Membership::Join),
                false => now,
            };
            if now || was_joined {
                rooms.own.insert(room.room_nid, Turn { before: was_joined, now });
            }
        }
        let maybe: Vec<i64> =
            views.iter().filter(|room| room.encryption_pos > since).map(|room| room.room_nid).collect();
        rooms.newly_encrypted = self.newly_encrypted(&maybe, since).await?;
        Ok(rooms)
    }

    /// Those among some rooms that are encrypted now and were not at a position.
    async fn newly_encrypted(&self, room_nids: &[i64], since: i64) -> Result<HashSet<i64>> {
        let Some(key) = self.encryption_key().await?.filter(|_| !room_nids.is_empty()) else {
            return Ok(HashSet::new());
        };
        let touched = self.store.rooms_with_state_after(room_nids, key, since).await?;
        let mut newly = self.encrypted_among(&touched).await?;
        let asked: Vec<(i64, i64)> = newly.iter().map(|room_nid| (*room_nid, since)).collect();
        for room_nid in self.encrypted_at(&asked).await? {
            newly.remove(&room_nid);
        }
        Ok(newly)
    }

    /// The other users whose membership in some rooms was set since a position: by room and user, whether joined.
    async fn moves_in(&self, rooms: &MovedRooms, user_nid: i64, since: i64) -> Result<HashMap<(i64, i64), Turn<bool>>> {
        if let Some(moves) = self.index.moves_after(since, |room_nid| rooms.own.contains_key(&room_nid)) {
            let mut turns: HashMap<(i64, i64), Turn<bool>> = HashMap::new();
            for moved in moves.iter().filter(|moved| moved.user_nid != user_nid) {
                let first = Turn { before: !moved.has_come, now: moved.has_come };
                turns.entry((moved.room_nid, moved.user_nid)).or_insert(first).now = moved.has_come;
            }
            return Ok(turns);
        }
        let nids: Vec<i64> = rooms.own.keys().copied().collect();
        let mut moved = self.store.members_moved(&nids, since).await?;
        moved.retain(|(_, other, _)| *other != user_nid);
        if moved.is_empty() {
            return Ok(HashMap::new());
        }
        let mut others: Vec<i64> = moved.iter().map(|(_, other, _)| *other).collect();
        others.sort_unstable();
        others.dedup();
        let names = self.store.user_ids(&others).await?;
        let keys: Vec<StateKey> = names.iter().map(|name| StateKey::new("m.room.member", name.as_str())).collect();
        let key_nids = self.store.known_key_nids(&keys).await?;
        let keys: HashMap<i64, i64> =
            others.into_iter().zip(key_nids).filter_map(|(other, key)| Some((other, key?))).collect();

        let mut by_room: HashMap<i64, Vec<(i64, bool)>> = HashMap::new();
        for (room_nid, other, now) in moved {
            by_room.entry(room_nid).or_default().push((other, now));
        }
        let by_room: Vec<(i64, Vec<(i64, bool)>)> = by_room.into_iter().collect();
        let asked: Vec<(i64, i64)> = by_room.iter().map(|(room_nid, _)| (*room_nid, since)).collect();
        let roots = self.store.room_states_at(&asked).await?;
        let mut turns = HashMap::new();
        for ((room_nid, moved), root) in by_room.into_iter().zip(roots) {
            let key_nids: Vec<i64> = moved.iter().filter_map(|(other, _)| keys.get(other).copied()).collect();
            let events = self.store.state_events(root, &key_nids).await?;
            let joined: HashSet<i64> = key_nids
                .iter()
                .zip(&events)
                .filter(|(_, event)| event.as_ref().and_then(|event| membership_in(event)) == Some(Membership::Join))
                .map(|(key, _)| *key)
                .collect();
            for (other, now) in moved {
                let before = keys.get(&other).is_some_and(|key| joined.contains(key));
                turns.insert((room_nid, other), Turn { before, now });
            }
        }
        Ok(turns)
    }

    /// The users for whom it has to be seen what they share with the user.
    async fn concerned(
        &self,
        rooms: &MovedRooms,
        moves: &HashMap<(i64, i64), Turn<bool>>,
        user_nid: i64,
    ) -> Result<Vec<i64>> {
        let is_changed = |room_nid: &i64, own: &Turn<bool>| own.is_change() || rooms.newly_encrypted.contains(room_nid);
        let changed = rooms.own.iter().filter(|(room_nid, own)| is_changed(room_nid, own));
        let whole: Vec<i64> = changed.map(|(room_nid, _)| *room_nid).collect();
        let mut others: HashSet<i64> = HashSet::new();
        if !whole.is_empty() {
            others.extend(self.store.joined_to(&whole).await?.into_iter().map(|(_, other)| other));
        }
        let is_whole = |room_nid: &i64| whole.contains(room_nid);
        let moved =
            moves.iter().filter(|((room_nid, _), turn)| turn.is_change() || (turn.before && is_whole(room_nid)));
        others.extend(moved.map(|((_, other), _)| *other));
        others.remove(&user_nid);
        Ok(others.into_iter().collect())
    }

    /// Those among some rooms that are encrypted now.
    async fn encrypted_among(&self, room_nids: &[i64]) -> Result<HashSet<i64>> {
        let mut encrypted: HashSet<i64> =
            room_nids.iter().copied().filter(|room_nid| self.encrypted.get(room_nid).is_some()).collect();
        let seen_at: HashMap<i64, i64> = room_nids
            .iter()
            .filter(|room_nid| !encrypted.contains(room_nid))
            .map(|&room_nid| (room_nid, self.index.encryption_pos(room_nid)))
            .filter(|(room_nid, pos)| !self.is_surely_unencrypted(*room_nid, *pos))
            .collect();
        if seen_at.is_empty() {
            return Ok(encrypted);
        }
        let key = self.encryption_key().await?;
        let unsure: Vec<i64> = seen_at.keys().copied().collect();
        for (room_nid, head) in self.store.heads(&unsure).await? {
            let found = match key {
                Some(key) => self.store.state_event_nids(head.state_root, &[key]).await?.iter().any(Option::is_some),
                None => false,
            };
            if found {
                self.encrypted.insert(room_nid, ());
                encrypted.insert(room_nid);
            } else if let Some(pos) = seen_at.get(&room_nid) {
                self.unencrypted.insert(room_nid, (*pos, Instant::now()));
            }
        }
        Ok(encrypted)
    }

    /// Whether a room was seen not to be encrypted, and nothing has come since then that could have changed it.
    fn is_surely_unencrypted(&self, room_nid: i64, encryption_pos: i64) -> bool {
        let seen = self.unencrypted.get(&room_nid);
        seen.is_some_and(|(pos, seen_at)| pos >= encryption_pos && seen_at.elapsed() < UNENCRYPTED_FOR)
    }

    /// Those among some rooms that were encrypted at positions.
    async fn encrypted_at(&self, asked: &[(i64, i64)]) -> Result<HashSet<i64>> {
        let mut encrypted = HashSet::new();
        if asked.is_empty() {
            return Ok(encrypted);
        }
        let Some(key) = self.encryption_key().await? else { return Ok(encrypted) };
        let roots = self.store.room_states_at(asked).await?;
        for ((room_nid, _), root) in asked.iter().zip(roots) {
            if self.store.state_event_nids(root, &[key]).await?.iter().any(Option::is_some) {
                encrypted.insert(*room_nid);
            }
        }
        Ok(encrypted)
    }

    async fn encryption_key(&self) -> Result<Option<i64>> {
        let key = StateKey::new("m.room.encryption", "");
        Ok(self.store.known_key_nids(&[key]).await.map_err(Error::Store)?.pop().flatten())
    }
}

fn kind(is_shared: bool, is_encrypted: bool) -> Shared {
    match (is_shared, is_encrypted) {
        (false, _) => Shared::Nothing,
        (true, false) => Shared::Room,
        (true, true) => Shared::EncryptedRoom,
    }
}
