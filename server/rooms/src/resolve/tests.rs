//! Rooms written down by hand: events with their auth events, states, and what they resolve to.

mod random;
mod reading;
mod v1;
mod v2;
mod v2_1;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use myelin_store::{
    Append, Event, EventParts, Head, NewRoom, Operation, StateKey, Store, flags, state_tree, testing::Fresh,
};
use ruma::{EventId, OwnedRoomId, RoomId, RoomVersionId, UserId, room_version_rules::RoomVersionRules};
use serde_json::{Value, json};

use super::{Draft, Drafts, Resolved, resolve_with};
use crate::{Pdu, Result, Rooms};

pub(super) const ALICE: &str = "@alice:example.org";
pub(super) const BOB: &str = "@bob:example.org";
pub(super) const CAROL: &str = "@carol:example.org";
pub(super) const DAVE: &str = "@dave:example.org";

/// A room under construction. Its events are known by short names.
pub(super) struct Room {
    pub(super) rooms: Arc<Rooms>,
    pub(super) version: RoomVersionId,
    pub(super) rules: RoomVersionRules,
    room_nid: i64,
    room_id: OwnedRoomId,
    /// Tells the events of this room from those of others in the same store.
    mark: String,
    nids: BTreeMap<String, i64>,
    keys: HashMap<i64, i64>,
    events: Vec<Event>,
    edges: Vec<(i64, Vec<i64>)>,
    drafts: Drafts,
    ts: u64,
}

/// An event to be made.
pub(super) struct New<'a> {
    pub(super) name: &'a str,
    pub(super) sender: &'a str,
    pub(super) event_type: &'a str,
    pub(super) state_key: Option<&'a str>,
    pub(super) content: Value,
    pub(super) auth: &'a [&'a str],
    pub(super) ts: Option<u64>,
    pub(super) depth: Option<i64>,
    pub(super) flags: i64,
}

pub(super) async fn open(fresh: &Fresh) -> Arc<Rooms> {
    let store = fresh.open().await;
    let (version, document) = store.signing_key().await.unwrap();
    let key = ruma::signatures::Ed25519KeyPair::from_der(&document, version).unwrap();
    Rooms::new(store, ruma::owned_server_name!("example.org"), key)
}

impl Room {
    /// A room of Alice's, with the event `create`.
    pub(super) async fn new(rooms: &Arc<Rooms>, version: RoomVersionId) -> Self {
        let room_nid = rooms.store.take_nids(1).await.unwrap().start;
        let rules = version.rules().unwrap();
        let mark = format!("{room_nid}.");
        let by_hash = rules.authorization.room_create_event_id_as_room_id;
        let room_id = if by_hash { format!("!{mark}create") } else { format!("!{room_nid}:example.org") };
        let mut room = Self {
            rooms: rooms.clone(),
            version: version.clone(),
            rules,
            room_nid,
            room_id: RoomId::parse(room_id).unwrap(),
            mark,
            nids: BTreeMap::new(),
            keys: HashMap::new(),
            events: Vec::new(),
            edges: Vec::new(),
            drafts: Drafts::new(),
            ts: 0,
        };
        let content = json!({ "creator": ALICE, "room_version": version });
        room.state("create", ALICE, "m.room.create", "", content, &[]).await;
        room
    }

    /// The beginning of most rooms: Alice's `alice`, her power levels `power`, and `public`, the rule that lets all join.
    pub(super) async fn with_basics(rooms: &Arc<Rooms>, version: RoomVersionId, levels: Value) -> Self {
        let mut room = Self::new(rooms, version).await;
        room.member("alice", ALICE, ALICE, "join", &["create"]).await;
        room.power("power", ALICE, levels, &["alice"]).await;
        room.join_rule("public", ALICE, "public", &["alice", "power"]).await;
        room
    }

    pub(super) fn store(&self) -> &Store {
        &self.rooms.store
    }

    pub(super) fn nid(&self, name: &str) -> i64 {
        self.nids.get(name).copied().unwrap_or_else(|| panic!("there is no event {name}"))
    }

    pub(super) fn name(&self, nid: i64) -> &str {
        self.nids.iter().find(|(_, known)| **known == nid).unwrap().0
    }

    pub(super) fn names(&self, nids: impl IntoIterator<Item = i64>) -> Vec<&str> {
        let mut names: Vec<&str> = nids.into_iter().map(|nid| self.name(nid)).collect();
        names.sort_unstable();
        names
    }

    /// Makes an event. The create event is left out of the auth events where the room's version wants that, and is
    /// added where it does not.
    pub(super) async fn add(&mut self, new: New<'_>) -> i64 {
        let by_hash = self.rules.authorization.room_create_event_id_as_room_id;
        let nid = self.store().take_event_nids(1).await.unwrap().start;
        self.ts += 1;
        let mut auth: Vec<&str> = new.auth.iter().copied().filter(|name| *name != "create").collect();
        if new.event_type != "m.room.create" && !by_hash {
            auth.insert(0, "create");
        }
        let depth = new.depth.unwrap_or(self.nids.len() as i64 + 1);
        let id = |name: &str| format!("${}{name}", self.mark);
        let mut object = json!({
            "type": new.event_type,
            "sender": new.sender,
            "content": new.content,
            "origin_server_ts": new.ts.unwrap_or(self.ts),
            "depth": depth,
            "auth_events": auth.iter().map(|name| id(name)).collect::<Vec<_>>(),
            "prev_events": [],
            "hashes": { "sha256": "" },
            "signatures": {},
        });
        if new.event_type == "m.room.member" && new.auth == ["create"] {
            object["prev_events"] = json!([id("create")]);
        }
        if !(new.event_type == "m.room.create" && by_hash) {
            object["room_id"] = json!(self.room_id);
        }
        let mut key_nid = None;
        if let Some(state_key) = new.state_key {
            object["state_key"] = json!(state_key);
            let key = StateKey::new(new.event_type, state_key);
            key_nid = self.store().key_nids(&[key]).await.unwrap().pop();
        }
        let parts = EventParts {
            nid,
            room_nid: self.room_nid,
            depth,
            sender_nid: self.store().user_nid(<&UserId>::try_from(new.sender).unwrap()).await.unwrap(),
            key_nid,
            flags: new.flags,
            ..EventParts::default()
        };
        let event = Event::new(parts, EventId::parse(id(new.name)).unwrap(), object.to_string().into()).unwrap();
        if let Some(key_nid) = key_nid {
            self.keys.insert(nid, key_nid);
            // An event that nobody knows has no number.
            self.edges.push((nid, auth.iter().filter_map(|name| self.nids.get(*name).copied()).collect()));
        }
        self.events.push(event);
        self.nids.insert(new.name.to_owned(), nid);
        nid
    }

    pub(super) async fn state(
        &mut self,
        name: &str,
        sender: &str,
        event_type: &str,
        state_key: &str,
        content: Value,
        auth: &[&str],
    ) -> i64 {
        self.add(New::state(name, sender, event_type, state_key, content, auth)).await
    }

    pub(super) async fn member(
        &mut self,
        name: &str,
        sender: &str,
        user: &str,
        membership: &str,
        auth: &[&str],
    ) -> i64 {
        self.state(name, sender, "m.room.member", user, json!({ "membership": membership }), auth).await
    }

    /// Power levels of users. Creators are left out where the room's version wants that.
    pub(super) async fn power(&mut self, name: &str, sender: &str, levels: Value, auth: &[&str]) -> i64 {
        self.add(New::power(name, sender, self.levels(levels), auth)).await
    }

    pub(super) fn levels(&self, mut levels: Value) -> Value {
        if self.rules.authorization.explicitly_privilege_room_creators {
            levels.as_object_mut().unwrap().remove(ALICE);
        }
        levels
    }

    pub(super) async fn join_rule(&mut self, name: &str, sender: &str, rule: &str, auth: &[&str]) -> i64 {
        self.state(name, sender, "m.room.join_rules", "", json!({ "join_rule": rule }), auth).await
    }

    pub(super) async fn topic(&mut self, name: &str, sender: &str, auth: &[&str]) -> i64 {
        self.state(name, sender, "m.room.topic", "", json!({ "topic": name }), auth).await
    }

    /// Stores what was made so far.
    pub(super) async fn commit(&mut self) {
        let last = self.events.last().map_or(0, |event| event.nid);
        let append = Append {
            room_nid: self.room_nid,
            expected_version: 0,
            create: Some(NewRoom {
                room_id: self.room_id.clone(),
                version: self.version.clone(),
                is_public: false,
                alias: None,
            }),
            events: std::mem::take(&mut self.events),
            auth_edges: std::mem::take(&mut self.edges),
            head: Head { version: last, last_pos: 0, depth: 1, extremities: vec![last], state_root: 0 },
            ..Append::default()
        };
        self.store().commit(Operation::Append(Box::new(append))).await.unwrap();
    }

    /// Keeps what was made since as drafts.
    pub(super) fn draft(&mut self) {
        let edges: HashMap<i64, Vec<i64>> = std::mem::take(&mut self.edges).into_iter().collect();
        for event in std::mem::take(&mut self.events) {
            let pdu = Arc::new(Pdu::from_event(&event, &self.rules).unwrap());
            self.drafts.insert(event.nid, Draft { pdu, auth: edges[&event.nid].clone().into() });
        }
    }

    /// A snapshot of these events.
    pub(super) async fn snapshot(&self, names: &[&str]) -> i64 {
        self.snapshot_of(&names.iter().map(|name| self.nid(name)).collect::<Vec<_>>()).await
    }

    pub(super) async fn snapshot_of(&self, nids: &[i64]) -> i64 {
        let changes: Vec<(i64, Option<i64>)> = nids.iter().map(|nid| (self.keys[nid], Some(*nid))).collect();
        assert_eq!(
            changes.iter().map(|(key, _)| key).collect::<HashSet<_>>().len(),
            nids.len(),
            "a key is there twice"
        );
        self.store().update_state(state_tree::EMPTY, &changes).await.unwrap().0
    }

    pub(super) async fn entries(&self, root: i64) -> BTreeMap<i64, i64> {
        state_tree::entries(self.store(), &[root]).await.unwrap().pop().unwrap().into_iter().collect()
    }

    pub(super) async fn resolve(&self, roots: &[i64]) -> Result<Resolved> {
        resolve_with(&self.rooms, &self.rules, roots, &self.drafts).await
    }

    /// The resolved state as a map from key to event, the same in whatever order the snapshots come.
    pub(super) async fn resolved(&self, roots: &[i64]) -> BTreeMap<i64, i64> {
        let resolved = self.resolve(roots).await.unwrap();
        let mut turned = roots.to_vec();
        for _ in 0..roots.len() {
            turned.rotate_left(1);
            turned.push(turned[0]);
            assert_eq!(self.resolve(&turned).await.unwrap(), resolved, "the order of the states matters");
            turned.pop();
        }
        turned.reverse();
        assert_eq!(self.resolve(&turned).await.unwrap(), resolved, "the order of the states matters");
        let mut state = self.entries(resolved.base).await;
        for (key, event) in &resolved.changes {
            match event {
                Some(event) => assert_ne!(state.insert(*key, *event), Some(*event), "a change that changes nothing"),
                None => assert!(state.remove(key).is_some(), "a change that changes nothing"),
            }
        }
        state
    }

    /// Checks what some states resolve to: these events and no others.
    pub(super) async fn expect(&self, states: &[&[&str]], expected: &[&str]) {
        let mut roots = Vec::new();
        for state in states {
            roots.push(self.snapshot(state).await);
        }
        let resolved = self.resolved(&roots).await;
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(self.names(resolved.into_values()), expected, "in room version {}", self.version);
    }
}

impl<'a> New<'a> {
    pub(super) fn state(
        name: &'a str,
        sender: &'a str,
        event_type: &'a str,
        state_key: &'a str,
        content: Value,
        auth: &'a [&'a str],
    ) -> Self {
        let state_key = Some(state_key);
        Self { name, sender, event_type, state_key, content, auth, ts: None, depth: None, flags: 0 }
    }

    pub(super) fn power(name: &'a str, sender: &'a str, levels: Value, auth: &'a [&'a str]) -> Self {
        Self::state(name, sender, "m.room.power_levels", "", json!({ "users": levels }), auth)
    }

    pub(super) fn topic(name: &'a str, sender: &'a str, auth: &'a [&'a str]) -> Self {
        Self::state(name, sender, "m.room.topic", "", json!({ "topic": name }), auth)
    }

    pub(super) fn at(self, ts: u64) -> Self {
        Self { ts: Some(ts), ..self }
    }

    pub(super) fn deep(self, depth: i64) -> Self {
        Self { depth: Some(depth), ..self }
    }

    pub(super) fn rejected(self) -> Self {
        Self { flags: flags::REJECTED, ..self }
    }
}
