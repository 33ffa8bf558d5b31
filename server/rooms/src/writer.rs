//! The one writer of a room.
//!
//! Holding a [`RoomWriter`] proves that you may write: no one else in this process builds on the room's head.
//! What it appends is a draft until [`RoomWriter::submit`] queues it for the group commit; the next writer may then
//! build on it before it is committed. If the commit fails, everything that was built on it fails too.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, LazyLock},
    time::Duration,
};

use myelin_store::{
    Append, Committed, Database, Event, EventParts, Fate, Head, Membership, MembershipChange, NewRoom, Operation,
    Redaction, RoomName, StateKey, flags, state_tree::Node,
};
use prometheus::{IntCounter, register_int_counter};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{EventIdFormatVersion, EventsReferenceFormatVersion, RoomVersionRules},
};
use ruma_state_res::{
    auth_types_for_event, check_pdu_format, check_state_dependent_auth_rules, check_state_independent_auth_rules,
};
use serde_json::value::RawValue;
use tokio::sync::OwnedMutexGuard;

use crate::{
    Error, Result, Rooms,
    pdu::{self, Pdu},
};

/// State events that a room's head keeps parsed.
const PARSED: usize = 64;
/// Events that a new one may follow directly, and that a room's head consists of.
pub(crate) const PREV_EVENTS: usize = 20;
/// The greatest depth that canonical JSON can say.
const DEPTH_MAX: i64 = (1 << 53) - 1;

/// How long is waited at once for a write to be committed that another one repeats.
const CONFIRM: Duration = Duration::from_millis(50);
/// The longest event type and state key, in bytes.
const NAME_BYTES_MAX: usize = 255;

static RELOADS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_rooms_head_loads_total", "Times a room's head was read from the database.")
        .expect("metric names are unique")
});

/// What a caller wants an event to be.
#[derive(Clone, Debug)]
pub struct Template {
    /// The type.
    pub event_type: String,
    /// The state key of a state event.
    pub state_key: Option<String>,
    /// The sender.
    pub sender: OwnedUserId,
    /// The content.
    pub content: CanonicalJsonObject,
    /// The event to redact.
    pub redacts: Option<OwnedEventId>,
    /// The time to give it, in milliseconds since 1970, if not the present.
    pub timestamp_ms: Option<u64>,
    /// The sending device's number, and its transaction: the endpoint's scope, a space, the client's id.
    pub transaction: Option<(i64, String)>,
}

impl Template {
    /// A message.
    pub fn message(sender: &UserId, event_type: &str, content: CanonicalJsonObject) -> Self {
        Self {
            event_type: event_type.to_owned(),
            state_key: None,
            sender: sender.to_owned(),
            content,
            redacts: None,
            timestamp_ms: None,
            transaction: None,
        }
    }

    /// A state event.
    pub fn state(sender: &UserId, event_type: &str, state_key: &str, content: CanonicalJsonObject) -> Self {
        Self { state_key: Some(state_key.to_owned()), ..Self::message(sender, event_type, content) }
    }
}

/// A room's head in memory, shared by the writers that follow each other.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The room's version when it was read from the database.
    version: i64,
    head: Head,
    extremities: Vec<Extremity>,
    parsed: HashMap<i64, Arc<Pdu>>,
    fate: Arc<Fate>,
}

impl Loaded {
    /// A state event, if it is at hand.
    pub(crate) fn parsed(&self, nid: i64) -> Option<Arc<Pdu>> {
        self.parsed.get(&nid).cloned()
    }
}

/// An event that no other follows, and the snapshot after it.
#[derive(Clone, Debug)]
pub(crate) struct Extremity {
    pub(crate) pdu: Arc<Pdu>,
    pub(crate) state: i64,
}

/// The place of a room's head.
pub(crate) type Slot = tokio::sync::Mutex<Option<Loaded>>;

/// An event made from a template.
struct Built {
    /// Without hash and signature.
    object: CanonicalJsonObject,
    signed: CanonicalJsonObject,
    event_id: OwnedEventId,
    /// The state that decides about it.
    auth: AuthState,
    auth_nids: Vec<i64>,
    /// The number of its state key.
    key_nid: Option<i64>,
}

/// State events that decide about another event, by their keys.
pub(crate) type AuthState = Vec<((StateEventType, String), Arc<Pdu>)>;

/// The exclusive right to append to a room.
pub struct RoomWriter {
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) room: Arc<RoomName>,
    pub(crate) rules: Box<RoomVersionRules>,
    pub(crate) slot: OwnedMutexGuard<Option<Loaded>>,
    /// The head was read from the database just now.
    is_fresh: bool,
    /// The version that the room must have when this is committed.
    pub(crate) base_version: i64,
    pub(crate) head: Head,
    pub(crate) extremities: Vec<Extremity>,
    pub(crate) draft: Box<Draft>,
    /// What is known of the graph so far, by identifier; see [`crate::receive`].
    pub(crate) graph: Box<crate::receive::Known>,
}

/// What is to be committed.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) create: Option<NewRoom>,
    pub(crate) events: Vec<Event>,
    pub(crate) history: Vec<Event>,
    pub(crate) outliers: Vec<Event>,
    pub(crate) promoted: HashSet<i64>,
    pub(crate) pdus: Vec<Arc<Pdu>>,
    pub(crate) nodes: Vec<(i64, Arc<Node>)>,
    pub(crate) memberships: Vec<MembershipChange>,
    pub(crate) redactions: Vec<Redaction>,
    pub(crate) waiting_redactions: Vec<(OwnedEventId, i64)>,
    pub(crate) auth_edges: Vec<(i64, Vec<i64>)>,
    pub(crate) gaps: Vec<(OwnedEventId, i64)>,
    pub(crate) filled: Vec<OwnedEventId>,
    pub(crate) stripped_state: Option<(i64, Box<str>)>,
    /// Whether the events were made here, and nobody else has seen them yet.
    pub(crate) is_ours: bool,
}

impl Draft {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.history.is_empty() && self.outliers.is_empty()
    }
}

/// An appended event: new, or the one that said the same already.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The event.
    pub event_id: OwnedEventId,
    /// False when the state was just so already and nothing was appended.
    pub is_new: bool,
}

impl RoomWriter {
    /// Takes the room's writer, waiting for the one before.
    pub(crate) async fn open(rooms: &Arc<Rooms>, room: &Arc<RoomName>) -> Result<Self> {
        let rules = rules_of(&room.version)?;
        let mut slot = rooms.slot(room.nid).lock_owned().await;
        let is_fresh = slot.as_ref().is_none_or(|loaded| loaded.fate.has_failed());
        if is_fresh {
            *slot = Some(load(rooms, room, &rules).await?);
        }
        let loaded = slot.as_mut().expect("it was loaded just now");
        if loaded.parsed.len() > PARSED {
            // What is not committed yet can be read nowhere else.
            let committed = loaded.fate.committed();
            loaded.parsed.retain(|nid, _| *nid > committed);
        }
        let (head, extremities) = (loaded.head.clone(), loaded.extremities.clone());
        Ok(Self {
            rooms: rooms.clone(),
            room: room.clone(),
            rules: Box::new(rules),
            slot,
            is_fresh,
            base_version: head.version,
            head,
            extremities,
            draft: Box::default(),
            graph: Box::default(),
        })
    }

    /// Opens a room that is not in the database yet, for what comes of it from other servers.
    pub(crate) async fn open_new(rooms: &Arc<Rooms>, room: &Arc<RoomName>) -> Result<Self> {
        let slot = rooms.slot(room.nid).lock_owned().await;
        Ok(Self::empty(rooms, room.clone(), rules_of(&room.version)?, slot))
    }

    fn empty(
        rooms: &Arc<Rooms>,
        room: Arc<RoomName>,
        rules: RoomVersionRules,
        slot: OwnedMutexGuard<Option<Loaded>>,
    ) -> Self {
        Self {
            rooms: rooms.clone(),
            room,
            rules: Box::new(rules),
            slot,
            is_fresh: true,
            base_version: 0,
            head: Head::default(),
            extremities: Vec::new(),
            draft: Box::default(),
            graph: Box::default(),
        }
    }

    /// Starts a new room with its create event.
    pub(crate) async fn found(
        rooms: &Arc<Rooms>,
        version: &RoomVersionId,
        creator: &UserId,
        content: CanonicalJsonObject,
        is_public: bool,
        alias: Option<(String, i64, i64)>,
    ) -> Result<Self> {
        let rules = rules_of(version)?;
        let nid = rooms.store.take_nids(1).await?.start;
        let mut template = Template::state(creator, "m.room.create", "", content);
        template.timestamp_ms = Some(rooms.create_ts());
        let by_hash = rules.authorization.room_create_event_id_as_room_id;
        let room_id = if by_hash {
            // The identifier is the create event's: known once that is signed.
            RoomId::parse("!unknown").expect("a room id without a server name is valid")
        } else {
            RoomId::new_v1(&rooms.server_name)
        };
        let provisional = Arc::new(RoomName { nid, room_id, version: version.clone() });
        let slot = rooms.slot(nid).lock_owned().await;
        let mut writer = Self::empty(rooms, provisional, rules, slot);
        let create = writer.append(template).await?;
        if by_hash {
            let room_id = create.event_id.as_str().replacen('$', "!", 1);
            let room_id = RoomId::parse(room_id).map_err(|_| Error::BadJson("the room's id is invalid".into()))?;
            writer.room = Arc::new(RoomName { nid, room_id, version: version.clone() });
        }
        writer.draft.create =
            Some(NewRoom { room_id: writer.room.room_id.clone(), version: version.clone(), is_public, alias });
        Ok(writer)
    }

    /// The room.
    pub fn room(&self) -> &Arc<RoomName> {
        &self.room
    }

    /// The rules of its version.
    pub fn rules(&self) -> &RoomVersionRules {
        &self.rules
    }

    /// The snapshot of the state, drafts included.
    pub fn state_root(&self) -> i64 {
        self.head.state_root
    }

    /// The state event of a key, drafts included.
    pub async fn state_event(&mut self, event_type: &str, state_key: &str) -> Result<Option<Arc<Pdu>>> {
        let key = StateKey::new(event_type, state_key);
        let nids = self.rooms.store.known_key_nids(std::slice::from_ref(&key)).await?;
        let Some(key_nid) = nids[0] else { return Ok(None) };
        Ok(self.state_pdus(&[key_nid]).await?.pop().flatten())
    }

    /// The state events of some keys, in the order asked.
    async fn state_pdus(&mut self, key_nids: &[i64]) -> Result<Vec<Option<Arc<Pdu>>>> {
        self.state_pdus_at(self.head.state_root, key_nids).await
    }

    /// [`Self::state_pdus`] of a snapshot.
    pub(crate) async fn state_pdus_at(&mut self, root: i64, key_nids: &[i64]) -> Result<Vec<Option<Arc<Pdu>>>> {
        let nids = self.rooms.store.state_event_nids(root, key_nids).await?;
        let loaded = self.slot.as_ref();
        let mut found: Vec<Option<Arc<Pdu>>> = nids
            .iter()
            .map(|nid| {
                let nid = (*nid)?;
                let drafted = self.draft.pdus.iter().find(|pdu| pdu.nid == nid);
                drafted.or_else(|| loaded?.parsed.get(&nid)).cloned()
            })
            .collect();
        let missing: Vec<i64> =
            nids.iter().zip(&found).filter(|(_, pdu)| pdu.is_none()).filter_map(|(nid, _)| *nid).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        for event in self.rooms.store.events(&missing).await? {
            let pdu = Arc::new(Pdu::from_event(&event, &self.rules)?);
            if let Some(loaded) = self.slot.as_mut() {
                loaded.parsed.insert(pdu.nid, pdu.clone());
            }
            for (nid, place) in nids.iter().zip(&mut found) {
                if *nid == Some(pdu.nid) {
                    *place = Some(pdu.clone());
                }
            }
        }
        Ok(found)
    }

    /// Makes an event, checks it by the room's rules and adds it to the draft.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the rules refuse it, [`Error::TooLarge`], [`Error::BadJson`]. The draft is then as
    /// it was before.
    pub async fn append(&mut self, template: Template) -> Result<Appended> {
        if [&template.event_type].into_iter().chain(&template.state_key).any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Error::TooLarge);
        }
        let built = Box::pin(self.build(&template)).await?;
        let Built { object: _, signed, event_id, auth, auth_nids, key_nid } = built;
        let replaces = match key_nid {
            Some(key_nid) => self.state_pdus(&[key_nid]).await?.pop().flatten(),
            None => None,
        };
        let json = serde_json::to_string(&signed).map_err(|error| Error::BadJson(error.to_string()))?;
        let nid = self.rooms.store.take_event_nids(1).await?.start;
        let depth = self.next_depth();
        let pdu = Arc::new(Pdu::parse(nid, depth, event_id.clone(), &json, false, &self.rules)?);
        self.authorise(&pdu, &auth)?;
        if let Some(same) = &replaces
            && ruma_state_res::Event::sender(&**same) == template.sender
            && same.content_as::<CanonicalJsonObject>().as_ref() == Some(&template.content)
        {
            return Ok(Appended { event_id: same.id().clone(), is_new: false });
        }
        if key_nid.is_some() {
            self.draft.auth_edges.push((nid, auth_nids));
        }
        Box::pin(self.add(&template, pdu, json, key_nid, replaces.map(|pdu| pdu.nid))).await?;
        Ok(Appended { event_id, is_new: true })
    }

    /// The event that a template would become here, without hash and signature, for another server to complete. The
    /// rules of the room allow it; the draft stays as it is.
    pub(crate) async fn propose(&mut self, template: &Template) -> Result<CanonicalJsonObject> {
        let built = Box::pin(self.build(template)).await?;
        let json = serde_json::to_string(&built.signed).map_err(|error| Error::BadJson(error.to_string()))?;
        let pdu = Arc::new(Pdu::parse(0, self.next_depth(), built.event_id, &json, false, &self.rules)?);
        self.authorise(&pdu, &built.auth)?;
        Ok(built.object)
    }

    async fn build(&mut self, template: &Template) -> Result<Built> {
        let event_type = TimelineEventType::from(template.event_type.as_str());
        let content = serde_json::to_string(&template.content).map_err(|error| Error::BadJson(error.to_string()))?;
        let content = RawValue::from_string(content).map_err(|error| Error::BadJson(error.to_string()))?;

        let auth_types = auth_types_for_event(
            &event_type,
            &template.sender,
            template.state_key.as_deref(),
            &content,
            &self.rules.authorization,
        )
        .map_err(Error::BadJson)?;
        let auth = self.auth_state(&auth_types).await?;
        let key_nid = match &template.state_key {
            Some(state_key) => {
                let key = StateKey::new(&template.event_type, state_key);
                Some(self.rooms.store.key_nids(&[key]).await?[0])
            }
            None => None,
        };
        let auth_events: Vec<&Arc<Pdu>> = auth
            .iter()
            .filter(|(_, pdu)| {
                // From version 12 on, the create event is implied by the room's id.
                !(self.rules.authorization.room_create_event_id_as_room_id
                    && *ruma_state_res::Event::event_type(&**pdu) == TimelineEventType::RoomCreate)
            })
            .filter(|(key, _)| auth_types.iter().any(|(wanted, state_key)| *wanted == key.0 && *state_key == key.1))
            .map(|(_, pdu)| pdu)
            .collect();
        let object = self.object(template, self.next_depth(), &auth_events);
        let auth_nids = auth_events.iter().map(|pdu| pdu.nid).collect();
        let mut signed = object.clone();
        let event_id = self.sign(&mut signed)?;
        check_pdu_format(&signed, &self.rules.event_format).map_err(|reason| {
            if reason.contains("larger") || reason.contains("long") { Error::TooLarge } else { Error::BadJson(reason) }
        })?;
        Ok(Built { object, signed, event_id, auth, auth_nids, key_nid })
    }

    /// The state that decides about an event, with the create event in any case.
    async fn auth_state(&mut self, auth_types: &[(StateEventType, String)]) -> Result<AuthState> {
        self.auth_state_at(self.head.state_root, auth_types).await
    }

    /// [`Self::auth_state`] of a snapshot.
    pub(crate) async fn auth_state_at(
        &mut self,
        root: i64,
        auth_types: &[(StateEventType, String)],
    ) -> Result<AuthState> {
        let mut wanted = auth_types.to_vec();
        if !wanted.iter().any(|(event_type, _)| *event_type == StateEventType::RoomCreate) {
            wanted.push((StateEventType::RoomCreate, String::new()));
        }
        let keys: Vec<StateKey> =
            wanted.iter().map(|(event_type, key)| StateKey::new(&event_type.to_string(), key)).collect();
        let nids = self.rooms.store.known_key_nids(&keys).await?;
        let (wanted, nids): (Vec<_>, Vec<i64>) =
            wanted.into_iter().zip(nids).filter_map(|(key, nid)| Some((key, nid?))).unzip();
        let found = self.state_pdus_at(root, &nids).await?;
        Ok(wanted.into_iter().zip(found).filter_map(|(key, pdu)| Some((key, pdu?))).collect())
    }

    /// Checks an event by the [authorisation rules], both parts.
    ///
    /// [authorisation rules]: https://spec.matrix.org/v1.19/server-server-api/#authorization-rules
    fn authorise(&self, pdu: &Arc<Pdu>, auth: &AuthState) -> Result<()> {
        let events: Vec<Arc<Pdu>> = auth.iter().map(|(_, pdu)| pdu.clone()).collect();
        let rules = &self.rules.authorization;
        let by_id = |event_id: &EventId| {
            pdu::find(&events, event_id).cloned().or_else(|| {
                // The room's id names the create event.
                let create = events
                    .iter()
                    .find(|pdu| *ruma_state_res::Event::event_type(&***pdu) == TimelineEventType::RoomCreate)?;
                (create.id() == event_id).then(|| create.clone())
            })
        };
        check_state_independent_auth_rules(rules, pdu.clone(), by_id).map_err(Error::Forbidden)?;
        let by_key = |event_type: &StateEventType, state_key: &str| {
            auth.iter().find(|(key, _)| key.0 == *event_type && key.1 == state_key).map(|(_, pdu)| pdu.clone())
        };
        check_state_dependent_auth_rules(rules, pdu.clone(), by_key).map_err(Error::Forbidden)
    }

    fn next_depth(&self) -> i64 {
        let depth = self.extremities.iter().map(|extremity| extremity.pdu.depth).max().unwrap_or(0);
        depth.saturating_add(1).clamp(1, DEPTH_MAX)
    }

    fn object(&self, template: &Template, depth: i64, auth_events: &[&Arc<Pdu>]) -> CanonicalJsonObject {
        let text = |value: &str| CanonicalJsonValue::String(value.to_owned());
        let number = |value: u64| {
            CanonicalJsonValue::Integer(i64::try_from(value).ok().and_then(|n| n.try_into().ok()).unwrap_or_default())
        };
        let mut object = CanonicalJsonObject::new();
        let is_create = template.event_type == "m.room.create";
        if !(is_create && self.rules.authorization.room_create_event_id_as_room_id) {
            object.insert("room_id".into(), text(self.room.room_id.as_str()));
        }
        object.insert("type".into(), text(&template.event_type));
        object.insert("sender".into(), text(template.sender.as_str()));
        object.insert("content".into(), CanonicalJsonValue::Object(template.content.clone()));
        object.insert("depth".into(), number(depth as u64));
        object.insert("origin_server_ts".into(), number(template.timestamp_ms.unwrap_or_else(crate::now_ms)));
        if let Some(state_key) = &template.state_key {
            object.insert("state_key".into(), text(state_key));
        }
        if let Some(redacts) = &template.redacts {
            object.insert("redacts".into(), text(redacts.as_str()));
        }
        if self.rules.event_format.require_event_id {
            object.insert("event_id".into(), text(EventId::new_v1(&self.rooms.server_name).as_str()));
        }
        let prev: Vec<&Arc<Pdu>> =
            self.extremities.iter().rev().take(PREV_EVENTS).map(|extremity| &extremity.pdu).collect();
        object.insert("prev_events".into(), self.references(&prev));
        object.insert("auth_events".into(), self.references(auth_events));
        object
    }

    fn references(&self, pdus: &[&Arc<Pdu>]) -> CanonicalJsonValue {
        let with_hash = matches!(self.rules.events_reference_format, EventsReferenceFormatVersion::V1);
        let one = |pdu: &&Arc<Pdu>| {
            let id = CanonicalJsonValue::String(pdu.id().to_string());
            match (&pdu.reference_hash, with_hash) {
                (Some(hash), true) => {
                    let hash = CanonicalJsonValue::String(hash.clone());
                    let hashes = CanonicalJsonObject::from([("sha256".to_owned(), hash)]);
                    CanonicalJsonValue::Array(vec![id, CanonicalJsonValue::Object(hashes)])
                }
                _ => id,
            }
        };
        CanonicalJsonValue::Array(pdus.iter().map(one).collect())
    }

    /// Adds hash and signature; answers the event's identifier.
    fn sign(&self, object: &mut CanonicalJsonObject) -> Result<OwnedEventId> {
        let name = self.rooms.server_name.as_str();
        ruma::signatures::hash_and_sign_event(name, &self.rooms.key, object, &self.rules.redaction)
            .map_err(sign_error)?;
        match self.rules.event_id_format {
            EventIdFormatVersion::V1 => {
                let id = object.get("event_id").and_then(CanonicalJsonValue::as_str).unwrap_or_default();
                EventId::parse(id).map_err(|_| Error::BadJson("the event's id is invalid".into()))
            }
            _ => {
                let hash = ruma::signatures::reference_hash(object, &self.rules).map_err(sign_error)?;
                EventId::parse(format!("${hash}")).map_err(|_| Error::BadJson("the event's id is invalid".into()))
            }
        }
    }

    async fn add(
        &mut self,
        template: &Template,
        pdu: Arc<Pdu>,
        json: String,
        key_nid: Option<i64>,
        replaces: Option<i64>,
    ) -> Result<()> {
        let store = &self.rooms.store;
        let state_before = self.head.state_root;
        let mut room_state = state_before;
        let sender_nid = store.user_nid(&template.sender).await?;
        let mut membership = None;
        if let Some(key_nid) = key_nid {
            if template.event_type == "m.room.member" {
                membership = Some(self.membership_change(template, pdu.nid).await?);
            }
            let (root, nodes) = self.rooms.store.update_state(state_before, &[(key_nid, Some(pdu.nid))]).await?;
            room_state = root;
            self.draft.nodes.extend(nodes);
        }
        let (device_nid, txn) = match &template.transaction {
            Some((device_nid, txn)) => (Some(*device_nid), Some(txn.as_str().into())),
            None => (None, None),
        };
        let parts = EventParts {
            nid: pdu.nid,
            room_nid: self.room.nid,
            pos: None,
            depth: pdu.depth,
            sender_nid,
            key_nid,
            state_before,
            room_state,
            forked_state: None,
            replaces,
            redacted_by: None,
            device_nid,
            txn,
            flags: 0,
        };
        let event = Event::new(parts, pdu.id().clone(), json.into_boxed_str())?;
        self.draft.memberships.extend(membership);
        self.draft.is_ours = true;
        self.draft.events.push(event);
        self.head.version = pdu.nid;
        self.head.depth = self.head.depth.max(pdu.depth);
        self.head.extremities = vec![pdu.nid];
        self.head.state_root = room_state;
        self.extremities = vec![Extremity { pdu: pdu.clone(), state: room_state }];
        self.draft.pdus.push(pdu);
        Ok(())
    }

    async fn membership_change(&self, template: &Template, event_nid: i64) -> Result<MembershipChange> {
        let word = template.content.get("membership").and_then(CanonicalJsonValue::as_str).unwrap_or_default();
        let membership = Membership::from_word(word)
            .ok_or_else(|| Error::BadJson("membership must be one that the specification knows".into()))?;
        let user_id = UserId::parse(template.state_key.as_deref().unwrap_or_default())
            .map_err(|_| Error::InvalidParam("the state key of a membership must be a user id".into()))?;
        let user_nid = self.rooms.store.user_nid(&user_id).await?;
        Ok(MembershipChange { user_nid, membership, event_nid })
    }

    /// Takes the content of an event away, once the draft is committed.
    pub fn redact(&mut self, target: Arc<Event>, by: &EventId, json: Box<str>) {
        if let Some(redaction) = self.draft.events.iter().find(|event| event.event_id == by) {
            let by = redaction.nid;
            self.draft.redactions.push(Redaction { target, by, json });
        }
    }

    /// Queues the draft and lets the next writer in; answers once it is committed.
    pub async fn submit(self) -> Result<Committed> {
        // What waits for the commit is kept small: there are many at a time.
        Box::pin(self.commit()).await
    }

    async fn commit(mut self) -> Result<Committed> {
        if self.draft.is_empty() {
            return self.confirm().await;
        }
        let rooms = self.rooms.clone();
        let place = rooms.store.place().await?;
        let mut draft = std::mem::take(&mut self.draft);
        let fate = match self.slot.as_mut() {
            Some(loaded) => {
                loaded.head = self.head.clone();
                loaded.extremities = std::mem::take(&mut self.extremities);
                loaded.fate.clone()
            }
            None => {
                let fate = Arc::new(Fate::default());
                *self.slot = Some(Loaded {
                    version: 0,
                    head: self.head.clone(),
                    extremities: std::mem::take(&mut self.extremities),
                    parsed: HashMap::new(),
                    fate: fate.clone(),
                });
                fate
            }
        };
        if let Some(loaded) = self.slot.as_mut() {
            // Only state is asked for again.
            let state = draft.pdus.drain(..).filter(|pdu| ruma_state_res::Event::state_key(&**pdu).is_some());
            loaded.parsed.extend(state.map(|pdu| (pdu.nid, pdu)));
            for redaction in &draft.redactions {
                let target = &redaction.target;
                if let Entry::Occupied(mut parsed) = loaded.parsed.entry(target.nid) {
                    let rejected = target.flags & flags::REJECTED != 0;
                    let (id, json) = (target.event_id.clone(), &redaction.json);
                    parsed.insert(Arc::new(Pdu::parse(target.nid, target.depth, id, json, rejected, &self.rules)?));
                }
            }
        }
        let waiting = place.submit(Operation::Append(Box::new(Append {
            room_nid: self.room.nid,
            expected_version: self.base_version,
            create: draft.create.take(),
            events: std::mem::take(&mut draft.events),
            nodes: std::mem::take(&mut draft.nodes),
            head: self.head.clone(),
            memberships: std::mem::take(&mut draft.memberships),
            redactions: std::mem::take(&mut draft.redactions),
            auth_edges: std::mem::take(&mut draft.auth_edges),
            history: std::mem::take(&mut draft.history),
            outliers: std::mem::take(&mut draft.outliers),
            promoted: std::mem::take(&mut draft.promoted),
            gaps: std::mem::take(&mut draft.gaps),
            filled: std::mem::take(&mut draft.filled),
            waiting_redactions: std::mem::take(&mut draft.waiting_redactions),
            stripped_state: draft.stripped_state.take(),
            fate,
        })));
        // While this is under way the room's head stays in memory, so that what follows builds on it.
        let _in_use = OwnedMutexGuard::mutex(&self.slot).clone();
        drop(self);
        Ok(waiting.await.map_err(|_| myelin_store::Error::Closed)??)
    }
}

impl RoomWriter {
    /// Whether what was drafted stood on ground that has gone: a write that failed, or one that another replica has
    /// followed. The next writer then starts from the database.
    pub(crate) async fn give_up(mut self) -> Result<bool> {
        let Some((fate, loaded_version)) = self.slot.as_ref().map(|loaded| (loaded.fate.clone(), loaded.version))
        else {
            return Ok(false);
        };
        let is_shared = matches!(self.rooms.store.database(), Database::Postgres { .. });
        let was_committed = self.base_version == loaded_version || fate.committed() >= self.base_version;
        let is_behind = is_shared
            && was_committed
            && !self.is_fresh
            && self.rooms.store.head(self.room.nid).await?.version != self.base_version;
        let must_reload = fate.has_failed() || is_behind;
        if must_reload {
            *self.slot = None;
        }
        Ok(must_reload)
    }

    /// Waits until all that was queued for the room is committed; `None` if it failed and the room must be opened anew.
    pub(crate) async fn settle(mut self) -> Result<Option<Self>> {
        let mut positions = self.rooms.store.positions();
        loop {
            let Some(loaded) = self.slot.as_ref() else { return Ok(None) };
            positions.borrow_and_update();
            if loaded.fate.has_failed() {
                *self.slot = None;
                return Ok(None);
            }
            if self.base_version == loaded.version || loaded.fate.committed() >= self.base_version {
                return Ok(Some(self));
            }
            let _ = tokio::time::timeout(CONFIRM, positions.changed()).await;
        }
    }

    /// Sees that what was found to be just so already is committed, and still so. Holds the room meanwhile: it is rare.
    async fn confirm(mut self) -> Result<Committed> {
        let Some((fate, loaded_version)) = self.slot.as_ref().map(|loaded| (loaded.fate.clone(), loaded.version))
        else {
            return Ok(Committed::default());
        };
        let mut positions = self.rooms.store.positions();
        loop {
            positions.borrow_and_update();
            if self.rooms.store.head(self.room.nid).await?.version == self.base_version {
                return Ok(Committed::default());
            }
            let was_committed = self.base_version == loaded_version || fate.committed() >= self.base_version;
            if fate.has_failed() || was_committed {
                *self.slot = None;
                return Err(Error::Store(myelin_store::Error::Conflict));
            }
            // What it stands on is about to be committed, or to fail, which moves nothing.
            let _ = tokio::time::timeout(CONFIRM, positions.changed()).await;
        }
    }
}

impl Drop for RoomWriter {
    fn drop(&mut self) {
        self.rooms.store.discard_nodes(&self.draft.nodes);
    }
}

fn sign_error(error: ruma::signatures::JsonError) -> Error {
    match error {
        ruma::signatures::JsonError::PduTooLarge => Error::TooLarge,
        other => Error::Sign(other),
    }
}

/// The rules of a room version that we know.
pub(crate) fn rules_of(version: &RoomVersionId) -> Result<RoomVersionRules> {
    version.rules().ok_or_else(|| Error::UnsupportedRoomVersion(version.to_string()))
}

async fn load(rooms: &Rooms, room: &RoomName, rules: &RoomVersionRules) -> Result<Loaded> {
    RELOADS.inc();
    let head = rooms.store.head(room.nid).await?;
    let extremities = rooms.store.events(&head.extremities).await?;
    let extremities = extremities
        .iter()
        .map(|event| Ok(Extremity { pdu: Arc::new(Pdu::from_event(event, rules)?), state: event.state_after() }))
        .collect::<Result<Vec<_>>>()?;
    Ok(Loaded { version: head.version, head, extremities, parsed: HashMap::new(), fate: Arc::new(Fate::default()) })
}
