//! Internal numbers in place of the protocol's long names.

use std::{collections::HashMap, hash::Hash, ops::Range, sync::Arc};

use quick_cache::{Weighter, sync::Cache};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use tokio::sync::Mutex;

use crate::{
    Error, Result, Store,
    database::{Database, Engine, Transaction},
    sql::{Ids, Texts, execute, json_rows, listed, optional, row, rows},
};

/// How many numbers a process takes from the database at once.
const BLOCK: i64 = 4096;

/// Hands out internal numbers: unique over all replicas, without a query for each.
#[derive(Debug)]
pub(crate) struct Numbers {
    name: &'static str,
    block: Mutex<Range<i64>>,
}

impl Numbers {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, block: Mutex::new(0..0) }
    }

    /// The next `count` numbers, one after the other.
    pub(crate) async fn take(&self, database: &Database, count: i64) -> Result<Range<i64>> {
        let mut block = self.block.lock().await;
        if block.end - block.start < count {
            let size = BLOCK.max(count);
            let mut transaction = database.begin().await?;
            let (end,): (i64,) = row!(
                transaction,
                "INSERT INTO sequences (name, next) VALUES ($1, $2 + 1)
                 ON CONFLICT (name) DO UPDATE SET next = sequences.next + $2 RETURNING next",
                self.name,
                size
            )?;
            transaction.commit().await?;
            *block = end - size..end;
        }
        let taken = block.start..block.start + count;
        block.start = taken.end;
        Ok(taken)
    }

    /// Takes back what was not used, if it still fits.
    pub(crate) async fn give_back(&self, unused: Range<i64>) {
        let mut block = self.block.lock().await;
        if unused.end == block.start {
            block.start = unused.start;
        }
    }
}

/// A weigher for values that know their weight.
#[derive(Clone, Debug)]
pub(crate) struct ByWeight;

/// A value in a cache that is bounded in bytes.
pub(crate) trait Weight {
    fn weight(&self) -> u64;
}

impl<K, V: Weight> Weighter<K, V> for ByWeight {
    fn weight(&self, _key: &K, value: &V) -> u64 {
        value.weight()
    }
}

impl Weight for i64 {
    fn weight(&self) -> u64 {
        160
    }
}

impl Weight for OwnedUserId {
    fn weight(&self) -> u64 {
        96 + self.as_str().len() as u64
    }
}

impl Weight for Arc<StateKey> {
    fn weight(&self) -> u64 {
        112 + (self.event_type.len() + self.state_key.len()) as u64
    }
}

impl Weight for Arc<RoomName> {
    fn weight(&self) -> u64 {
        128 + self.room_id.as_str().len() as u64
    }
}

/// The type and state key of a state event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateKey {
    /// For example `m.room.member`.
    pub event_type: Box<str>,
    /// For example `@alice:example.org`.
    pub state_key: Box<str>,
}

impl StateKey {
    /// A key from its two parts.
    pub fn new(event_type: &str, state_key: &str) -> Self {
        Self { event_type: event_type.into(), state_key: state_key.into() }
    }

    fn is_storable(&self) -> bool {
        is_storable(&self.event_type) && is_storable(&self.state_key)
    }
}

/// What never changes about a room.
#[derive(Clone, Debug)]
pub struct RoomName {
    /// The internal number.
    pub nid: i64,
    /// The room's identifier.
    pub room_id: OwnedRoomId,
    /// The version of its rules.
    pub version: RoomVersionId,
}

/// Names and numbers, both ways, in memory.
#[derive(Debug)]
pub(crate) struct Names {
    users: Cache<OwnedUserId, i64, ByWeight>,
    user_nids: Cache<i64, OwnedUserId, ByWeight>,
    keys: Cache<Arc<StateKey>, i64, ByWeight>,
    key_nids: Cache<i64, Arc<StateKey>, ByWeight>,
    rooms: Cache<OwnedRoomId, Arc<RoomName>, ByWeight>,
    room_nids: Cache<i64, Arc<RoomName>, ByWeight>,
}

fn cache<K: Eq + Hash, V: Clone + Weight>(bytes: u64) -> Cache<K, V, ByWeight> {
    Cache::with_weighter((bytes / 128).max(16) as usize, bytes.max(4096), ByWeight)
}

impl Names {
    pub(crate) fn new(bytes: u64) -> Self {
        let share = bytes / 6;
        Self {
            users: cache(share),
            user_nids: cache(share),
            keys: cache(share),
            key_nids: cache(share),
            rooms: cache(share),
            room_nids: cache(share),
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        self.users.weight()
            + self.user_nids.weight()
            + self.keys.weight()
            + self.key_nids.weight()
            + self.rooms.weight()
            + self.room_nids.weight()
    }
}

/// The longest name, in bytes: "MUST NOT exceed 255 bytes", of every identifier, event type and state key.
const NAME_BYTES_MAX: usize = 255;

/// Gives numbers to keys; answers those that they have, which may be older ones.
async fn intern_keys(
    transaction: &mut Transaction,
    wanted: &[(i64, &StateKey)],
) -> Result<HashMap<(Box<str>, Box<str>), i64>> {
    let mut given = HashMap::with_capacity(wanted.len());
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            for (nid, key) in wanted {
                let (nid,): (i64,) = sqlx::query_as(
                    "INSERT INTO state_keys (key_nid, event_type, state_key) VALUES ($1, $2, $3)
                     ON CONFLICT (event_type, state_key) DO UPDATE SET key_nid = state_keys.key_nid RETURNING key_nid",
                )
                .bind(nid)
                .bind(&*key.event_type)
                .bind(&*key.state_key)
                .fetch_one(&mut *connection)
                .await?;
                given.insert((key.event_type.clone(), key.state_key.clone()), nid);
            }
        }
        Engine::Postgres(connection) => {
            let nids: Vec<i64> = wanted.iter().map(|(nid, _)| *nid).collect();
            let types: Vec<&str> = wanted.iter().map(|(_, key)| &*key.event_type).collect();
            let state_keys: Vec<&str> = wanted.iter().map(|(_, key)| &*key.state_key).collect();
            sqlx::query(
                "INSERT INTO state_keys (key_nid, event_type, state_key)
                 SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) ON CONFLICT (event_type, state_key) DO NOTHING",
            )
            .bind(nids)
            .bind(&types)
            .bind(&state_keys)
            .execute(&mut *connection)
            .await?;
            let found: Vec<(String, String, i64)> = sqlx::query_as(
                "SELECT k.event_type, k.state_key, k.key_nid FROM unnest($1::text[], $2::text[]) AS w(event_type, state_key)
                 JOIN state_keys AS k USING (event_type, state_key)",
            )
            .bind(&types)
            .bind(&state_keys)
            .fetch_all(&mut *connection)
            .await?;
            given.extend(found.into_iter().map(|(event_type, key, nid)| ((event_type.into(), key.into()), nid)));
        }
    }
    Ok(given)
}

/// Whether a name can be kept.
pub(crate) fn is_storable(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && !name.contains('\0')
}

impl Store {
    /// The number of a user, given one now if there is none yet.
    pub async fn user_nid(&self, user_id: &UserId) -> Result<i64> {
        if let Some(nid) = self.known_user_nid(user_id).await? {
            return Ok(nid);
        }
        if !is_storable(user_id.as_str()) {
            return Err(Error::InvalidName);
        }
        let nid = self.take_nids(1).await?.start;
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO users (user_nid, user_id) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING",
            nid,
            user_id.as_str()
        )?;
        let (nid,): (i64,) = row!(transaction, "SELECT user_nid FROM users WHERE user_id = $1", user_id.as_str())?;
        transaction.commit().await?;
        self.names.users.insert(user_id.to_owned(), nid);
        Ok(nid)
    }

    /// The numbers of some users, given now where there are none yet, in the order asked. Users whose names cannot be
    /// kept are an error.
    pub async fn user_nids(&self, user_ids: &[&UserId]) -> Result<Vec<i64>> {
        let mut found: HashMap<&UserId, i64> =
            user_ids.iter().filter_map(|user_id| Some((*user_id, self.names.users.get(*user_id)?))).collect();
        let mut missing: Vec<&str> =
            user_ids.iter().filter(|user_id| !found.contains_key(**user_id)).map(|user_id| user_id.as_str()).collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            if !missing.iter().all(|user_id| is_storable(user_id)) {
                return Err(Error::InvalidName);
            }
            let fresh = self.take_nids(missing.len() as i64).await?;
            let mut transaction = self.database.begin().await?;
            match transaction.engine() {
                Engine::Sqlite(connection) => {
                    for (nid, user_id) in fresh.zip(&missing) {
                        sqlx::query(
                            "INSERT INTO users (user_nid, user_id) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING",
                        )
                        .bind(nid)
                        .bind(*user_id)
                        .execute(&mut *connection)
                        .await?;
                    }
                }
                Engine::Postgres(connection) => {
                    sqlx::query(
                        "INSERT INTO users (user_nid, user_id) SELECT * FROM unnest($1::bigint[], $2::text[])
                         ON CONFLICT (user_id) DO NOTHING",
                    )
                    .bind(fresh.collect::<Vec<_>>())
                    .bind(&missing)
                    .execute(&mut *connection)
                    .await?;
                }
            }
            let loaded: Vec<(i64, String)> = rows!(
                transaction,
                listed!("SELECT user_nid, user_id FROM users WHERE user_id ", "$1", ""),
                Texts(&missing)
            )?;
            transaction.commit().await?;
            let loaded: HashMap<String, i64> = loaded.into_iter().map(|(nid, user_id)| (user_id, nid)).collect();
            for user_id in user_ids {
                if let Some(nid) = loaded.get(user_id.as_str()) {
                    self.names.users.insert((*user_id).to_owned(), *nid);
                    found.insert(user_id, *nid);
                }
            }
        }
        user_ids.iter().map(|user_id| found.get(user_id).copied().ok_or(Error::Missing { what: "user" })).collect()
    }

    /// The number of a user, if one was ever given.
    pub async fn known_user_nid(&self, user_id: &UserId) -> Result<Option<i64>> {
        if let Some(nid) = self.names.users.get(user_id) {
            return Ok(Some(nid));
        }
        if !is_storable(user_id.as_str()) {
            return Ok(None);
        }
        let mut reader = self.database.reader().await?;
        let found: Option<(i64,)> =
            optional!(reader, "SELECT user_nid FROM users WHERE user_id = $1", user_id.as_str())?;
        Ok(found.map(|(nid,)| {
            self.names.users.insert(user_id.to_owned(), nid);
            nid
        }))
    }

    /// The users of some numbers, in the order asked.
    pub async fn user_ids(&self, nids: &[i64]) -> Result<Vec<OwnedUserId>> {
        // What was found once is kept: it may be put out to make room for what is loaded.
        let mut found: HashMap<i64, OwnedUserId> =
            nids.iter().filter_map(|nid| Some((*nid, self.names.user_nids.get(nid)?))).collect();
        let missing: Vec<i64> = nids.iter().copied().filter(|nid| !found.contains_key(nid)).collect();
        if !missing.is_empty() {
            let mut reader = self.database.reader().await?;
            let loaded: Vec<(i64, String)> =
                rows!(reader, listed!("SELECT user_nid, user_id FROM users WHERE user_nid ", "$1", ""), Ids(&missing))?;
            for (nid, user_id) in loaded {
                let user_id = UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" })?;
                self.names.user_nids.insert(nid, user_id.clone());
                found.insert(nid, user_id);
            }
        }
        nids.iter().map(|nid| found.get(nid).cloned().ok_or(Error::Missing { what: "user" })).collect()
    }

    /// The user of a number.
    pub async fn user_id(&self, nid: i64) -> Result<OwnedUserId> {
        self.user_ids(&[nid]).await?.pop().ok_or(Error::Missing { what: "user" })
    }

    /// The numbers of some state keys, given now where there are none yet, in the order asked.
    pub async fn key_nids(&self, keys: &[StateKey]) -> Result<Vec<i64>> {
        let mut nids = self.known_key_nids(keys).await?;
        let missing: Vec<usize> = (0..keys.len()).filter(|&place| nids[place].is_none()).collect();
        if !missing.is_empty() {
            if missing.iter().any(|&place| !keys[place].is_storable()) {
                return Err(Error::InvalidName);
            }
            let fresh = self.take_nids(missing.len() as i64).await?;
            let mut transaction = self.database.begin().await?;
            let wanted: Vec<(i64, &StateKey)> = fresh.zip(missing.iter().map(|&place| &keys[place])).collect();
            let given = intern_keys(&mut transaction, &wanted).await?;
            for &place in &missing {
                let key = &keys[place];
                nids[place] = given.get(&(key.event_type.clone(), key.state_key.clone())).copied();
            }
            transaction.commit().await?;
            for place in missing {
                if let Some(nid) = nids[place] {
                    self.names.keys.insert(Arc::new(keys[place].clone()), nid);
                }
            }
        }
        nids.into_iter().map(|nid| nid.ok_or(Error::Missing { what: "state key" })).collect()
    }

    /// Gives numbers to the keys that are asked for in every room, so that they are found in memory from then on also
    /// where no room has them.
    pub(crate) async fn intern_common_keys(&self) -> Result<()> {
        const COMMON: [&str; 13] = [
            "m.room.avatar",
            "m.room.canonical_alias",
            "m.room.create",
            "m.room.encryption",
            "m.room.guest_access",
            "m.room.history_visibility",
            "m.room.join_rules",
            "m.room.name",
            "m.room.pinned_events",
            "m.room.power_levels",
            "m.room.server_acl",
            "m.room.tombstone",
            "m.room.topic",
        ];
        let keys = COMMON.map(|event_type| StateKey::new(event_type, ""));
        self.key_nids(&keys).await.map(drop)
    }

    /// The numbers of some state keys, where they have one, in the order asked.
    pub async fn known_key_nids(&self, keys: &[StateKey]) -> Result<Vec<Option<i64>>> {
        let mut nids: Vec<Option<i64>> = keys.iter().map(|key| self.names.keys.get(key)).collect();
        let missing: Vec<usize> =
            (0..keys.len()).filter(|&place| nids[place].is_none() && keys[place].is_storable()).collect();
        if missing.is_empty() {
            return Ok(nids);
        }
        let wanted: Vec<(&str, &str)> =
            missing.iter().map(|&place| (&*keys[place].event_type, &*keys[place].state_key)).collect();
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String, String)> = match reader.engine() {
            Engine::Sqlite(connection) => {
                sqlx::query_as(
                    "SELECT k.key_nid, k.event_type, k.state_key FROM json_each($1) AS w
                     JOIN state_keys AS k ON k.event_type = w.value->>0 AND k.state_key = w.value->>1",
                )
                .bind(json_rows(&wanted))
                .fetch_all(connection)
                .await?
            }
            Engine::Postgres(connection) => {
                let (types, keys): (Vec<&str>, Vec<&str>) = wanted.into_iter().unzip();
                sqlx::query_as(
                    "SELECT k.key_nid, k.event_type, k.state_key
                     FROM unnest($1::text[], $2::text[]) AS w(event_type, state_key)
                     JOIN state_keys AS k USING (event_type, state_key)",
                )
                .bind(types)
                .bind(keys)
                .fetch_all(connection)
                .await?
            }
        };
        drop(reader);
        let places: HashMap<&StateKey, usize> = missing.iter().map(|&place| (&keys[place], place)).collect();
        for (nid, event_type, state_key) in found {
            let key = StateKey { event_type: event_type.into(), state_key: state_key.into() };
            if let Some(&place) = places.get(&key) {
                nids[place] = Some(nid);
            }
            self.names.keys.insert(Arc::new(key), nid);
        }
        // A key may have been asked for twice.
        for &place in &missing {
            nids[place] = nids[place].or_else(|| nids[places[&keys[place]]]);
        }
        Ok(nids)
    }

    /// The state keys of some numbers, in the order asked.
    pub async fn state_keys(&self, nids: &[i64]) -> Result<Vec<Arc<StateKey>>> {
        let mut found: HashMap<i64, Arc<StateKey>> =
            nids.iter().filter_map(|nid| Some((*nid, self.names.key_nids.get(nid)?))).collect();
        let missing: Vec<i64> = nids.iter().copied().filter(|nid| !found.contains_key(nid)).collect();
        if !missing.is_empty() {
            let mut reader = self.database.reader().await?;
            let loaded: Vec<(i64, String, String)> = rows!(
                reader,
                listed!("SELECT key_nid, event_type, state_key FROM state_keys WHERE key_nid ", "$1", ""),
                Ids(&missing)
            )?;
            for (nid, event_type, state_key) in loaded {
                let key = Arc::new(StateKey { event_type: event_type.into(), state_key: state_key.into() });
                self.names.key_nids.insert(nid, key.clone());
                found.insert(nid, key);
            }
        }
        nids.iter().map(|nid| found.get(nid).cloned().ok_or(Error::Missing { what: "state key" })).collect()
    }

    /// A room by its identifier.
    pub async fn room(&self, room_id: &RoomId) -> Result<Option<Arc<RoomName>>> {
        if let Some(room) = self.names.rooms.get(room_id) {
            return Ok(Some(room));
        }
        if !is_storable(room_id.as_str()) {
            return Ok(None);
        }
        let mut reader = self.database.reader().await?;
        let found: Option<(i64, String)> =
            optional!(reader, "SELECT room_nid, room_version FROM rooms WHERE room_id = $1", room_id.as_str())?;
        let Some((nid, version)) = found else { return Ok(None) };
        Ok(Some(self.remember_room(nid, room_id.to_owned(), &version)?))
    }

    /// The rooms of some numbers, in the order asked.
    pub async fn rooms(&self, nids: &[i64]) -> Result<Vec<Arc<RoomName>>> {
        let mut found: HashMap<i64, Arc<RoomName>> =
            nids.iter().filter_map(|nid| Some((*nid, self.names.room_nids.get(nid)?))).collect();
        let missing: Vec<i64> = nids.iter().copied().filter(|nid| !found.contains_key(nid)).collect();
        if !missing.is_empty() {
            let mut reader = self.database.reader().await?;
            let loaded: Vec<(i64, String, String)> = rows!(
                reader,
                listed!("SELECT room_nid, room_id, room_version FROM rooms WHERE room_nid ", "$1", ""),
                Ids(&missing)
            )?;
            for (nid, room_id, version) in loaded {
                let room_id = RoomId::parse(room_id).map_err(|_| Error::Corrupt { what: "room id" })?;
                found.insert(nid, self.remember_room(nid, room_id, &version)?);
            }
        }
        nids.iter().map(|nid| found.get(nid).cloned().ok_or(Error::Missing { what: "room" })).collect()
    }

    /// A room by its number.
    pub async fn room_by_nid(&self, nid: i64) -> Result<Arc<RoomName>> {
        self.rooms(&[nid]).await?.pop().ok_or(Error::Missing { what: "room" })
    }

    fn remember_room(&self, nid: i64, room_id: OwnedRoomId, version: &str) -> Result<Arc<RoomName>> {
        let version = RoomVersionId::try_from(version).map_err(|_| Error::Corrupt { what: "room version" })?;
        let room = Arc::new(RoomName { nid, room_id: room_id.clone(), version });
        self.names.rooms.insert(room_id, room.clone());
        self.names.room_nids.insert(nid, room.clone());
        Ok(room)
    }

    /// New internal numbers for rooms, users, devices, state keys.
    pub async fn take_nids(&self, count: i64) -> Result<Range<i64>> {
        self.nids.take(&self.database, count).await
    }

    /// New internal numbers for events.
    pub async fn take_event_nids(&self, count: i64) -> Result<Range<i64>> {
        self.event_nids.take(&self.database, count).await
    }
}
