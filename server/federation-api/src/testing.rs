//! The router over a fresh store, and a server that calls it, for the tests of this crate.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use axum::{Router, body::Body};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use myelin_accounts::{Accounts, AccountsOptions, NewUser, PasswordCost};
use myelin_encryption::Encryption;
use myelin_federation::{Client, ClientOptions, KeyQuery};
use myelin_http::{BoxError, RateLimiter, RateLimits, layers};
use myelin_media::{Media, MediaOptions};
use myelin_rooms::{
    CreateRoom, Error, JoinedRoom, MembershipAction, MembershipTemplate, Outcome, Preset, Rooms,
    remote::{RemoteError, RemoteServers, VerifyKey, VerifyKeys, WantedKeys},
};
use myelin_store::{RoomName, testing::Fresh};
use myelin_sync::{Sync, SyncOptions};
use parking_lot::Mutex;
use ruma::{
    EventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    api::federation::{
        authentication::{XMatrix, XMatrixSigningInput},
        discovery::ServerSigningKeys,
    },
    owned_server_name,
    serde::{Base64, Raw},
    signatures::Ed25519KeyPair,
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use tower::ServiceExt as _;

use crate::{Inbound, Peers, RemoteWrites, Services, router};

type RoomResult<T> = myelin_rooms::Result<T>;

pub(crate) const US: &str = "example.org";

/// A server.
pub(crate) struct Server {
    router: Router,
    pub(crate) services: Services,
    pub(crate) world: Arc<World>,
    pub(crate) writes: Arc<Writes>,
    folder: Arc<tempfile::TempDir>,
}

/// An answer, read to its end.
pub(crate) struct Answer {
    status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body of an answer with this status.
    #[track_caller]
    pub(crate) fn json(&self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The errcode of a refusal with this status.
    #[track_caller]
    pub(crate) fn errcode(&self, status: StatusCode) -> String {
        self.json(status)["errcode"].as_str().unwrap_or_default().to_owned()
    }
}

impl Server {
    /// The same server, whose rooms take what they are sent.
    pub(crate) fn with_rooms(&self) -> Self {
        self.services.rooms.connect(self.world.clone());
        let services = Services { writes: Arc::new(self.services.rooms.clone()), ..self.services.clone() };
        let router = layers(router(services.clone()));
        Self { router, services, world: self.world.clone(), writes: self.writes.clone(), folder: self.folder.clone() }
    }

    pub(crate) async fn send(&self, request: Request<Vec<u8>>) -> Answer {
        let response = self.router.clone().oneshot(request.map(Body::from)).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.into_body().collect().await.unwrap().to_bytes().to_vec() }
    }

    /// Without a signature.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Vec::new()).unwrap()).await
    }

    /// A server whose keys we can find.
    pub(crate) fn peer(&self, name: &str) -> Peer {
        let peer = Peer::new(name);
        self.world.publish(&peer, u64::MAX);
        peer
    }

    pub(crate) async fn user(&self, username: &str) -> OwnedUserId {
        let new = NewUser { username, password: "correct horse", is_admin: false, display_name: None };
        self.services.accounts.create_user(new).await.unwrap()
    }

    /// A public room of a user.
    pub(crate) async fn room(&self, creator: &UserId) -> Arc<RoomName> {
        let wanted = CreateRoom {
            creator: creator.to_owned(),
            version: RoomVersionId::V11,
            preset: Preset::PublicChat,
            is_public: true,
            alias: Some("#room:example.org".try_into().unwrap()),
            name: Some("Room".to_owned()),
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            creation_content: Default::default(),
            initial_state: Vec::new(),
            power_level_content_override: Default::default(),
        };
        Box::pin(self.services.rooms.create(wanted)).await.unwrap()
    }

    pub(crate) async fn join(&self, room: &Arc<RoomName>, user_id: &UserId) {
        let rooms = &self.services.rooms;
        Box::pin(rooms.change_membership(room, user_id, user_id, MembershipAction::Join, None, false)).await.unwrap();
    }
}

/// Another server.
pub(crate) struct Peer {
    pub(crate) name: OwnedServerName,
    pub(crate) key: Ed25519KeyPair,
}

impl Peer {
    pub(crate) fn new(name: &str) -> Self {
        let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "1".to_owned()).unwrap();
        Self { name: name.try_into().unwrap(), key }
    }

    /// A signed request, which a test may still spoil.
    pub(crate) fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Request<Vec<u8>> {
        self.request_to(US, method, path, body)
    }

    pub(crate) fn request_to(
        &self,
        destination: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Request<Vec<u8>> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
        let input = XMatrixSigningInput::new(self.name.clone(), destination.try_into().unwrap(), &self.key);
        let signature = XMatrix::sign_http_request(&request, input).unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, (&signature).into());
        request
    }

    pub(crate) async fn get(&self, server: &Server, path: &str) -> Answer {
        server.send(self.request(Method::GET, path, None)).await
    }

    pub(crate) async fn put(&self, server: &Server, path: &str, body: &Value) -> Answer {
        server.send(self.request(Method::PUT, path, Some(body))).await
    }

    pub(crate) async fn post(&self, server: &Server, path: &str, body: &Value) -> Answer {
        server.send(self.request(Method::POST, path, Some(body))).await
    }
}

/// The other servers, as we see them.
pub(crate) struct World {
    keys: Mutex<HashMap<OwnedServerName, HashMap<String, VerifyKey>>>,
    pub(crate) denied: Mutex<HashSet<OwnedServerName>>,
    pub(crate) heard: Mutex<Vec<OwnedServerName>>,
    /// Whose keys were asked for.
    pub(crate) asked: Mutex<Vec<OwnedServerName>>,
    /// Who was called.
    pub(crate) called: Mutex<Vec<OwnedServerName>>,
    /// Makes the documents of keys.
    client: Arc<Client>,
}

impl World {
    pub(crate) fn publish(&self, peer: &Peer, valid_until_ts: u64) {
        let key = VerifyKey { key: Base64::new(peer.key.public_key().to_vec()), valid_until_ts };
        let id = format!("ed25519:{}", peer.key.version());
        self.keys.lock().entry(peer.name.clone()).or_default().insert(id, key);
    }

    async fn call<R, A>(&self, server: &ServerName, _: R) -> Result<A, RemoteError> {
        self.called.lock().push(server.to_owned());
        Err(RemoteError::Unreachable { server: server.to_owned(), reason: "there is no network here".to_owned() })
    }
}

impl RemoteServers for World {
    fn verify_keys<'a>(&'a self, wanted: &'a BTreeMap<OwnedServerName, WantedKeys>) -> BoxFuture<'a, VerifyKeys> {
        self.asked.lock().extend(wanted.keys().cloned());
        let known = self.keys.lock();
        let found = wanted.keys().filter_map(|server| Some((server.clone(), known.get(server)?.clone())));
        let found = VerifyKeys(found.collect());
        Box::pin(async { found })
    }

    myelin_rooms::remote_requests_by_call!();
}

impl Peers for World {
    fn is_allowed(&self, server: &ServerName) -> bool {
        !self.denied.lock().contains(server)
    }

    fn heard_from(&self, server: &ServerName) {
        self.heard.lock().push(server.to_owned());
    }

    fn key_document(&self) -> BoxFuture<'_, Result<Raw<ServerSigningKeys>, BoxError>> {
        Peers::key_document(&*self.client)
    }

    fn notarised_keys(
        &self,
        queries: BTreeMap<OwnedServerName, KeyQuery>,
    ) -> BoxFuture<'_, Vec<Raw<ServerSigningKeys>>> {
        self.asked.lock().extend(queries.keys().cloned());
        Peers::notarised_keys(&*self.client, queries)
    }
}

/// Rooms that take what a test says, and remember what they were asked.
#[derive(Default)]
pub(crate) struct Writes {
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) denied_rooms: Mutex<HashSet<OwnedRoomId>>,
    /// The error of the next call.
    pub(crate) next_error: Mutex<Option<Error>>,
    pub(crate) joined: Mutex<Option<JoinedRoom>>,
    /// While this is locked, transactions take their time.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

impl Writes {
    fn called(&self, call: String) -> RoomResult<()> {
        self.calls.lock().push(call);
        self.next_error.lock().take().map_or(Ok(()), Err)
    }

    fn template(&self, call: String, user_id: &UserId) -> RoomResult<MembershipTemplate> {
        self.called(call)?;
        let event = to_raw_value(&json!({ "type": "m.room.member", "state_key": user_id })).unwrap();
        Ok(MembershipTemplate { room_version: RoomVersionId::V11, event })
    }

    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock())
    }
}

fn versions_of(versions: &[RoomVersionId]) -> String {
    versions.iter().map(RoomVersionId::as_str).collect::<Vec<_>>().join(",")
}

impl RemoteWrites for Writes {
    /// An event says itself what its identifier is, and whether it is bad.
    fn receive<'a>(
        &'a self,
        origin: &'a ServerName,
        pdus: Vec<Box<RawValue>>,
    ) -> BoxFuture<'a, myelin_rooms::Result<Vec<Outcome>>> {
        Box::pin(async move {
            self.calls.lock().push(format!("receive {origin} {}", pdus.len()));
            let _open = self.gate.lock().await;
            let outcome = |pdu: Box<RawValue>| {
                let pdu: Value = serde_json::from_str(pdu.get()).unwrap();
                let event_id = pdu["event_id"].as_str()?.try_into().unwrap();
                Some((event_id, pdu["bad"].as_str().map_or(Ok(()), |reason| Err(reason.to_owned()))))
            };
            Ok(pdus.into_iter().filter_map(outcome).collect())
        })
    }

    fn check_acl<'a>(&'a self, _: &'a ServerName, room_id: &'a RoomId) -> BoxFuture<'a, RoomResult<()>> {
        let is_denied = self.denied_rooms.lock().contains(room_id);
        let denied = || Error::Forbidden("your server is denied access to this room".to_owned());
        Box::pin(async move { if is_denied { Err(denied()) } else { Ok(()) } })
    }

    fn make_join<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        versions: &'a [RoomVersionId],
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>> {
        let call = format!("make_join {origin} {room_id} {user_id} {}", versions_of(versions));
        Box::pin(async move { self.template(call, user_id) })
    }

    fn make_leave<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>> {
        let call = format!("make_leave {origin} {room_id} {user_id}");
        Box::pin(async move { self.template(call, user_id) })
    }

    fn make_knock<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        versions: &'a [RoomVersionId],
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>> {
        let call = format!("make_knock {origin} {room_id} {user_id} {}", versions_of(versions));
        Box::pin(async move { self.template(call, user_id) })
    }

    fn send_join<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
        omit_members: bool,
    ) -> BoxFuture<'a, RoomResult<JoinedRoom>> {
        let called = self.called(format!("send_join {origin} {room_id} {event_id} {pdu} {omit_members}"));
        let joined = self.joined.lock().take();
        Box::pin(async move { called.and_then(|()| joined.ok_or(Error::NotFound("there is no such room"))) })
    }

    fn send_leave<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<()>> {
        Box::pin(async move { self.called(format!("send_leave {origin} {room_id} {event_id} {pdu}")) })
    }

    fn send_knock<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<Vec<Box<RawValue>>>> {
        let called = self.called(format!("send_knock {origin} {room_id} {event_id} {pdu}"));
        Box::pin(async move { called.map(|()| vec![pdu]) })
    }

    fn invite<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a OwnedRoomId,
        event_id: &'a EventId,
        room_version: &'a RoomVersionId,
        event: Box<RawValue>,
        room_state: Vec<Box<RawValue>>,
    ) -> BoxFuture<'a, RoomResult<Box<RawValue>>> {
        let state = room_state.len();
        let called = self.called(format!("invite {origin} {room_id} {event_id} {room_version} {event} {state}"));
        Box::pin(async move { called.map(|()| event) })
    }

    fn exchange_third_party_invite<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a OwnedRoomId,
        event: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<()>> {
        Box::pin(async move { self.called(format!("exchange {origin} {room_id} {event}")) })
    }
}

/// Runs a test on each engine that is there.
pub(crate) async fn on_both(test: impl AsyncFn(&Server)) {
    for fresh in Fresh::each().await {
        let store = fresh.open().await;
        let server_name = owned_server_name!("example.org");
        let options = AccountsOptions {
            password_cost: PasswordCost { memory_kib: 16, passes: 1 },
            ..AccountsOptions::new(server_name.clone())
        };
        let folder = tempfile::tempdir().unwrap();
        let media = MediaOptions::new(server_name.clone(), folder.path().to_owned());
        let (version, document) = store.signing_key().await.unwrap();
        let key = Ed25519KeyPair::from_der(&document, version).unwrap();
        let rooms = Rooms::new(store.clone(), server_name.clone(), key);
        let client = Client::new(store.clone(), ClientOptions::new(server_name)).await.unwrap();
        let world = Arc::new(World {
            keys: Mutex::default(),
            denied: Mutex::default(),
            heard: Mutex::default(),
            asked: Mutex::default(),
            called: Mutex::default(),
            client,
        });
        let writes = Arc::new(Writes::default());
        let services = Services {
            accounts: Accounts::open(store.clone(), options).await.unwrap(),
            encryption: Encryption::new(store.clone(), rooms.server_name().clone()),
            media: Media::open(store.clone(), media).await.unwrap(),
            sync: Sync::new(store.clone(), rooms.clone(), SyncOptions::default()),
            rooms,
            writes: writes.clone(),
            peers: world.clone(),
            inbound: Arc::new(Inbound::default()),
            rate_limiter: Arc::new(RateLimiter::new(&RateLimits::OFF).unwrap()),
            is_enabled: true,
            store: store.clone(),
        };
        let server =
            Server { router: layers(router(services.clone())), services, world, writes, folder: Arc::new(folder) };
        Box::pin(test(&server)).await;
        store.close().await;
    }
}
