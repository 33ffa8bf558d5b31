//! Some servers whose requests go straight to each other, without HTTP, over links that can be cut.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Weak},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use myelin_store::{Event, RoomName, flags, testing::Fresh};
use parking_lot::Mutex;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId,
    ServerName, UInt, UserId,
    api::Direction,
    api::federation::{
        authorization::get_event_authorization,
        backfill::get_backfill,
        directory::get_public_rooms_filtered,
        event::{get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids},
        membership::{
            RawStrippedState, create_invite, create_join_event, create_knock_event, create_leave_event,
            prepare_join_event, prepare_knock_event, prepare_leave_event,
        },
        policy::sign_event,
        query::{get_profile_information, get_room_information},
        space::{SpaceHierarchyParentSummary, get_hierarchy},
        thirdparty::exchange_invite,
    },
    room::RoomSummary,
    signatures::Ed25519KeyPair,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::policy::PolicyServer;
use crate::{
    CreateRoom, Error, InitialState, MembershipAction, Outcome, Preset, Result, Rooms, Template,
    remote::{Answer, RemoteError, RemoteServers, VerifyKeys, WantedKeys},
    serve::MissingEvents,
};

/// One server.
pub(super) struct Node {
    pub(super) rooms: Arc<Rooms>,
    /// What it has still to send, by receiver.
    queues: Mutex<Vec<VecDeque<Arc<Event>>>>,
    sent: Mutex<i64>,
    _database: Fresh,
}

/// The servers and the links between them.
pub(super) struct Network {
    pub(super) nodes: Vec<Node>,
    cut: Mutex<HashSet<(usize, usize)>>,
    /// Who signs events, under the names of the servers.
    pub(super) policy_servers: Mutex<Vec<Arc<PolicyServer>>>,
    /// What answers to `get_missing_events` have besides what they should.
    pub(super) beside_missing: Mutex<Vec<Box<RawValue>>>,
}

struct Link {
    network: Weak<Network>,
    own: OwnedServerName,
    place: usize,
}

impl Network {
    /// Servers named `s0.test`, `s1.test`, …
    pub(super) async fn new(databases: Vec<Fresh>) -> Arc<Self> {
        let mut nodes = Vec::new();
        let count = databases.len();
        for (place, database) in databases.into_iter().enumerate() {
            let store = database.open().await;
            let (version, document) = store.signing_key().await.unwrap();
            let key = Ed25519KeyPair::from_der(&document, version).unwrap();
            let rooms = Rooms::new(store, name(place), key);
            let queues = Mutex::new(vec![VecDeque::new(); count]);
            nodes.push(Node { rooms, queues, sent: Mutex::new(0), _database: database });
        }
        let network = Arc::new(Self {
            nodes,
            cut: Mutex::default(),
            policy_servers: Mutex::default(),
            beside_missing: Mutex::default(),
        });
        for (place, node) in network.nodes.iter().enumerate() {
            node.rooms.connect(Arc::new(Link { network: Arc::downgrade(&network), own: name(place), place }));
        }
        network
    }

    pub(super) fn rooms(&self, place: usize) -> &Arc<Rooms> {
        &self.nodes[place].rooms
    }

    pub(super) fn cut(&self, a: usize, b: usize) {
        self.cut.lock().extend([(a, b), (b, a)]);
    }

    pub(super) fn heal(&self) {
        self.cut.lock().clear();
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.lock().contains(&(a, b))
    }

    /// Sends what there is to send, until nothing is left that could go.
    pub(super) async fn deliver(&self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        loop {
            let mut moved = false;
            for from in 0..self.nodes.len() {
                self.collect(from).await;
                for to in 0..self.nodes.len() {
                    if from == to || self.is_cut(from, to) {
                        continue;
                    }
                    let events: Vec<Arc<Event>> = {
                        let mut queues = self.nodes[from].queues.lock();
                        let count = queues[to].len().min(50);
                        queues[to].drain(..count).collect()
                    };
                    if events.is_empty() {
                        continue;
                    }
                    moved = true;
                    let pdus = events.iter().map(|event| raw(event)).collect();
                    outcomes.extend(self.rooms(to).receive(&name(from), pdus).await.unwrap());
                }
            }
            if !moved {
                return outcomes;
            }
        }
    }

    /// Loses what one server was to send to another.
    pub(super) async fn forget(&self, from: usize, to: usize) {
        self.collect(from).await;
        self.nodes[from].queues.lock()[to].clear();
    }

    /// Puts a server's new events into its queues.
    async fn collect(&self, from: usize) {
        let node = &self.nodes[from];
        let store = node.rooms.store();
        let (after, to) = (*node.sent.lock(), store.position());
        *node.sent.lock() = to;
        for event in store.events_to_distribute(node.rooms.server_name().as_str(), after, to).await.unwrap() {
            let is_ours = event.sender().server_name() == node.rooms.server_name();
            if event.is_outlier() || !(is_ours || event.flags & flags::TO_SEND != 0) {
                continue;
            }
            for queue in &mut *node.queues.lock() {
                queue.push_back(event.clone());
            }
        }
    }

    pub(super) async fn create(
        &self,
        place: usize,
        creator: &UserId,
        version: RoomVersionId,
        preset: Preset,
    ) -> OwnedRoomId {
        self.create_with(place, creator, version, preset, Vec::new()).await.unwrap()
    }

    pub(super) async fn create_with(
        &self,
        place: usize,
        creator: &UserId,
        version: RoomVersionId,
        preset: Preset,
        initial_state: Vec<InitialState>,
    ) -> Result<OwnedRoomId> {
        let room = self.rooms(place).create(CreateRoom {
            creator: creator.to_owned(),
            version,
            preset,
            is_public: false,
            is_direct: false,
            name: None,
            topic: None,
            alias: None,
            invite: Vec::new(),
            initial_state,
            creation_content: CanonicalJsonObject::new(),
            power_level_content_override: CanonicalJsonObject::new(),
        });
        Ok(room.await?.room_id.clone())
    }

    pub(super) async fn room(&self, place: usize, room_id: &RoomId) -> Arc<RoomName> {
        self.rooms(place).room(room_id).await.unwrap()
    }

    pub(super) async fn enter(
        &self,
        place: usize,
        room_id: &OwnedRoomId,
        via: usize,
        user: &UserId,
        action: MembershipAction,
    ) -> Result<()> {
        self.rooms(place).enter(room_id, &[name(via)], user, action, None, false).await
    }

    pub(super) async fn change(
        &self,
        place: usize,
        room_id: &RoomId,
        sender: &UserId,
        target: &UserId,
        action: MembershipAction,
    ) -> Result<()> {
        let room = self.rooms(place).room(room_id).await?;
        self.rooms(place).change_membership(&room, sender, target, action, None, false).await
    }

    pub(super) async fn send(&self, place: usize, room_id: &RoomId, template: Template) -> Result<()> {
        let room = self.rooms(place).room(room_id).await?;
        self.rooms(place).send(&room, template, None).await.map(drop)
    }

    /// An event as a server would send it that asks nobody before; it does not keep it.
    pub(super) async fn unasked(&self, place: usize, room_id: &RoomId, template: Template) -> Box<RawValue> {
        let (rooms, room) = (self.rooms(place), self.room(place, room_id).await);
        let mut object = rooms.attempts(&room).open().await.unwrap().propose(&template).await.unwrap();
        rooms.sign(&mut object, &room.version).unwrap();
        serde_json::value::to_raw_value(&object).unwrap()
    }

    /// A server's current state of a room: event ids by type and key.
    pub(super) async fn state(&self, place: usize, room_id: &RoomId) -> BTreeMap<(String, String), String> {
        let room = self.room(place, room_id).await;
        let rooms = self.rooms(place);
        let root = rooms.state_root(&room).await.unwrap();
        let events = rooms.store().all_state_events(root).await.unwrap();
        let key = |event: &Event| (event.event_type().to_owned(), event.state_key().unwrap_or_default().to_owned());
        events.iter().map(|event| (key(event), event.event_id.to_string())).collect()
    }
}

pub(super) fn name(place: usize) -> OwnedServerName {
    OwnedServerName::try_from(format!("s{place}.test")).unwrap()
}

pub(super) fn user(local: &str, place: usize) -> OwnedUserId {
    UserId::parse(format!("@{local}:s{place}.test")).unwrap()
}

fn raw(event: &Event) -> Box<RawValue> {
    RawValue::from_string(event.json().to_owned()).unwrap()
}

impl Link {
    fn to(&self, server: &ServerName) -> Result<Arc<Rooms>, RemoteError> {
        let unreachable = || RemoteError::Unreachable { server: server.to_owned(), reason: "cut".into() };
        let network = self.network.upgrade().ok_or_else(unreachable)?;
        let place = (0..network.nodes.len()).find(|place| name(*place) == server).ok_or_else(unreachable)?;
        if network.is_cut(self.place, place) {
            return Err(unreachable());
        }
        Ok(network.nodes[place].rooms.clone())
    }
}

fn refused(server: &ServerName, error: Error) -> RemoteError {
    let (status, errcode) = match &error {
        Error::Forbidden(_) => (403, "M_FORBIDDEN"),
        Error::NotFound(_) => (404, "M_NOT_FOUND"),
        _ => (400, "M_UNKNOWN"),
    };
    RemoteError::Refused {
        server: server.to_owned(),
        status,
        errcode: errcode.into(),
        message: error.to_string(),
        body: None,
    }
}

macro_rules! answered {
    ($(fn $name:ident($link:ident, $rooms:ident, $request:ident: $kind:ty) -> $answer:ty $body:block)+) => {
        $(
            fn $name<'a>(&'a self, server: &'a ServerName, $request: $kind) -> Answer<'a, $answer> {
                let $link = self;
                async move {
                    let $rooms = self.to(server)?;
                    let answer: Result<$answer> = async move { $body }.await;
                    answer.map_err(|error| refused(server, error))
                }
                .boxed()
            }
        )+
    };
}

macro_rules! unanswered {
    ($($name:ident: $module:ident,)+) => {
        $(
            fn $name<'a>(
                &'a self,
                server: &'a ServerName,
                _request: $module::v1::Request,
            ) -> Answer<'a, $module::v1::Response> {
                let error = RemoteError::Unreachable { server: server.to_owned(), reason: "not in this test".into() };
                async move { Err(error) }.boxed()
            }
        )+
    };
}

impl RemoteServers for Link {
    fn verify_keys<'a>(&'a self, wanted: &'a BTreeMap<OwnedServerName, WantedKeys>) -> BoxFuture<'a, VerifyKeys> {
        async move {
            let mut keys = VerifyKeys::default();
            let Some(network) = self.network.upgrade() else { return keys };
            for server in wanted.keys() {
                if let Some(place) = (0..network.nodes.len()).find(|place| name(*place) == *server) {
                    let own = network.nodes[place].rooms.own_keys().await.unwrap();
                    keys.0.insert(server.clone(), (*own).clone());
                }
            }
            keys
        }
        .boxed()
    }

    answered! {
        fn make_join(link, rooms, request: prepare_join_event::v1::Request) -> prepare_join_event::v1::Response {
            let made = rooms.make_join_for(&link.own, &request.room_id, &request.user_id, &request.ver).await?;
            let mut answer = prepare_join_event::v1::Response::new(made.event);
            answer.room_version = Some(made.room_version);
            Ok(answer)
        }
        fn send_join(link, rooms, request: create_join_event::v2::Request) -> create_join_event::v2::Response {
            let joined = rooms
                .send_join_for(&link.own, &request.room_id, &request.event_id, request.pdu, request.omit_members)
                .await?;
            let mut state = create_join_event::v2::RoomState::new();
            state.event = Some(raw(&joined.event));
            state.state = joined.state.iter().map(|event| raw(event)).collect();
            state.auth_chain = joined.auth_chain.iter().map(|event| raw(event)).collect();
            Ok(create_join_event::v2::Response::new(state))
        }
        fn make_leave(link, rooms, request: prepare_leave_event::v1::Request) -> prepare_leave_event::v1::Response {
            let made = rooms.make_leave_for(&link.own, &request.room_id, &request.user_id).await?;
            Ok(prepare_leave_event::v1::Response::new(Some(made.room_version), made.event))
        }
        fn send_leave(link, rooms, request: create_leave_event::v2::Request) -> create_leave_event::v2::Response {
            rooms.send_leave_for(&link.own, &request.room_id, &request.event_id, request.pdu).await?;
            Ok(create_leave_event::v2::Response::new())
        }
        fn make_knock(link, rooms, request: prepare_knock_event::v1::Request) -> prepare_knock_event::v1::Response {
            let made = rooms.make_knock_for(&link.own, &request.room_id, &request.user_id, &request.ver).await?;
            Ok(prepare_knock_event::v1::Response::new(made.room_version, made.event))
        }
        fn send_knock(link, rooms, request: create_knock_event::v1::Request) -> create_knock_event::v1::Response {
            let told = rooms.send_knock_for(&link.own, &request.room_id, &request.event_id, request.pdu).await?;
            Ok(create_knock_event::v1::Response::new(told.into_iter().map(RawStrippedState::Pdu).collect()))
        }
        fn invite(link, rooms, request: create_invite::v2::Request) -> create_invite::v2::Response {
            let state = request.invite_room_state.iter().map(|event| serde_json::value::to_raw_value(event).unwrap());
            let (room_id, event_id, state) = (&request.room_id, &request.event_id, state.collect());
            let version = &request.room_version;
            let signed = rooms.invited_by(&link.own, room_id, event_id, version, request.event, state).await?;
            Ok(create_invite::v2::Response::new(signed))
        }
        fn event(link, rooms, request: get_event::v1::Request) -> get_event::v1::Response {
            let event = rooms.serve_event(&link.own, &request.event_id).await?;
            Ok(get_event::v1::Response::new(rooms.server_name().clone(), MilliSecondsSinceUnixEpoch::now(), raw(&event)))
        }
        fn missing_events(link, rooms, request: get_missing_events::v1::Request) -> get_missing_events::v1::Response {
            let wanted = MissingEvents {
                earliest: request.earliest_events,
                latest: request.latest_events,
                limit: u64::from(request.limit) as usize,
                min_depth: u64::from(request.min_depth) as i64,
            };
            let events = rooms.serve_missing_events(&link.own, &request.room_id, &wanted).await?;
            let mut events: Vec<Box<RawValue>> = events.iter().map(|event| raw(event)).collect();
            events.extend(link.network.upgrade().unwrap().beside_missing.lock().iter().cloned());
            Ok(get_missing_events::v1::Response::new(events))
        }
        fn state_ids(link, rooms, request: get_room_state_ids::v1::Request) -> get_room_state_ids::v1::Response {
            let served = rooms.serve_state_ids(&link.own, &request.room_id, &request.event_id).await?;
            Ok(get_room_state_ids::v1::Response::new(served.auth_chain_ids, served.pdu_ids))
        }
        fn state(link, rooms, request: get_room_state::v1::Request) -> get_room_state::v1::Response {
            #[derive(Deserialize)]
            struct State {
                auth_chain: Vec<Box<RawValue>>,
                pdus: Vec<Box<RawValue>>,
            }
            let served = rooms.serve_state(&link.own, &request.room_id, &request.event_id).await?;
            let state: State = serde_json::from_str(&served).unwrap();
            Ok(get_room_state::v1::Response::new(state.auth_chain, state.pdus))
        }
        fn event_auth(link, rooms, request: get_event_authorization::v1::Request)
            -> get_event_authorization::v1::Response
        {
            #[derive(Deserialize)]
            struct Chain {
                auth_chain: Vec<Box<RawValue>>,
            }
            let served = rooms.serve_event_auth(&link.own, &request.room_id, &request.event_id).await?;
            let chain: Chain = serde_json::from_str(&served).unwrap();
            Ok(get_event_authorization::v1::Response::new(chain.auth_chain))
        }
        fn backfill(link, rooms, request: get_backfill::v1::Request) -> get_backfill::v1::Response {
            let limit = u64::from(request.limit) as usize;
            let events = rooms.serve_backfill(&link.own, &request.room_id, &request.v, limit).await?;
            let pdus = events.iter().map(|event| raw(event)).collect();
            Ok(get_backfill::v1::Response::new(rooms.server_name().clone(), MilliSecondsSinceUnixEpoch::now(), pdus))
        }
        fn exchange_invite(link, rooms, request: exchange_invite::v1::Request) -> exchange_invite::v1::Response {
            let event = RawValue::from_string(serde_json::json!({
                "type": "m.room.member", "sender": request.sender, "state_key": request.state_key,
                "content": request.content,
            }).to_string()).unwrap();
            rooms.exchange_third_party_invite_for(&link.own, &request.room_id, event).await?;
            Ok(exchange_invite::v1::Response::new())
        }
        fn room_by_alias(_link, rooms, request: get_room_information::v1::Request)
            -> get_room_information::v1::Response
        {
            let (room_id, servers) = rooms.find_alias(&request.room_alias).await?;
            Ok(get_room_information::v1::Response::new(room_id, servers))
        }
    }

    answered! {
        fn hierarchy(link, rooms, request: get_hierarchy::v1::Request) -> get_hierarchy::v1::Response {
            #[derive(Deserialize)]
            struct Hierarchy {
                room: SpaceHierarchyParentSummary,
                children: Vec<RoomSummary>,
                inaccessible_children: Vec<OwnedRoomId>,
            }
            let served = rooms.serve_hierarchy(&link.own, &request.room_id, request.suggested_only).await?;
            let told: Hierarchy = serde_json::from_str(&serde_json::to_string(&served).unwrap()).unwrap();
            let mut answer = get_hierarchy::v1::Response::new(told.room);
            (answer.children, answer.inaccessible_children) = (told.children, told.inaccessible_children);
            Ok(answer)
        }
        fn event_by_timestamp(link, rooms, request: get_event_by_timestamp::v1::Request)
            -> get_event_by_timestamp::v1::Response
        {
            let direction = match request.dir {
                Direction::Backward => myelin_store::Direction::Backward,
                Direction::Forward => myelin_store::Direction::Forward,
            };
            let event = rooms.serve_event_at(&link.own, &request.room_id, request.ts.get().into(), direction).await?;
            let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(event.origin_server_ts()));
            Ok(get_event_by_timestamp::v1::Response::new(event.event_id.clone(), ts))
        }
        fn profile(_link, rooms, request: get_profile_information::v1::Request)
            -> get_profile_information::v1::Response
        {
            let account = rooms.store().account(&request.user_id).await?;
            account.ok_or(Error::NotFound("there is no such user"))?;
            let fields = rooms.store().member_profile(&request.user_id).await?;
            Ok(fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
        }
    }

    unanswered! {
        public_rooms: get_public_rooms_filtered,
    }

    fn sign_event<'a>(
        &'a self,
        server: &'a ServerName,
        request: sign_event::v1::Request,
    ) -> Answer<'a, sign_event::v1::Response> {
        async move {
            self.to(server)?;
            let network = self.network.upgrade().unwrap();
            let found = network.policy_servers.lock().iter().find(|policy| *policy.name == *server).cloned();
            let nobody = || refused(server, Error::NotFound("this server is no policy server"));
            found.ok_or_else(nobody)?.answer(&request.pdu)
        }
        .boxed()
    }
}
