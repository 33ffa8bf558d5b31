//! Two servers that share a room, on each engine that is there.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use myelin_rooms::remote::{Answer, RemoteError};
use myelin_store::{
    AccountCreation, Append, DatabaseOptions, Event, EventParts, Head, LogIn, Membership, MembershipChange, NewAccount,
    NewRoom, Operation, Store, StoreOptions,
    testing::{Fresh, on_both},
};
use parking_lot::Mutex;
use ruma::{
    OneTimeKeyAlgorithm, OwnedUserId, RoomVersionId, ServerName, UserId,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
        transactions::edu::Edu,
    },
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::{Value, json, value::RawValue};

use crate::{EduOutcome, Encryption, Messages, Outbox, Owner, RemoteDevices};

/// The way to the other server.
struct Link {
    there: Arc<Encryption>,
    is_down: AtomicBool,
}

impl Link {
    fn answer<T>(&self, server: &ServerName, answer: Option<T>) -> Result<T, RemoteError> {
        let unreachable = RemoteError::Unreachable { server: server.to_owned(), reason: "it is down".to_owned() };
        answer.filter(|_| !self.is_down.load(Ordering::SeqCst) && server == self.there.server_name).ok_or(unreachable)
    }
}

impl RemoteDevices for Link {
    fn user_devices<'a>(
        &'a self,
        server: &'a ServerName,
        request: get_devices::v1::Request,
    ) -> Answer<'a, get_devices::v1::Response> {
        Box::pin(async move { self.answer(server, self.there.local_devices(&request.user_id).await.unwrap()) })
    }

    fn keys_query<'a>(
        &'a self,
        server: &'a ServerName,
        request: get_keys::v1::Request,
    ) -> Answer<'a, get_keys::v1::Response> {
        Box::pin(async move { self.answer(server, self.there.query_local_keys(request.device_keys).await.ok()) })
    }

    fn keys_claim<'a>(
        &'a self,
        server: &'a ServerName,
        request: claim_keys::v1::Request,
    ) -> Answer<'a, claim_keys::v1::Response> {
        Box::pin(async move {
            if self.is_down.load(Ordering::SeqCst) {
                return self.answer(server, None);
            }
            self.answer(server, self.there.claim_local_keys(request.one_time_keys).await.ok())
        })
    }
}

/// Remembers which servers it was told of.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Outbox for Told {
    fn notify(&self, server: &ServerName) {
        self.0.lock().push(server.to_string());
    }
}

/// Alice is here, Eve elsewhere, and both are in a room.
struct World {
    here: Arc<Encryption>,
    there: Arc<Encryption>,
    link: Arc<Link>,
    told: Arc<Told>,
    alice: Owner,
    eve: Owner,
}

async fn open(fresh: &Fresh, server_name: &str) -> Arc<Store> {
    let options = StoreOptions {
        database: DatabaseOptions::new(fresh.url()),
        server_name: server_name.to_owned(),
        cache_bytes: 8 * 1024 * 1024,
    };
    Store::open(&options).await.unwrap()
}

async fn device(store: &Store, user_id: &UserId, device_id: &str) -> Owner {
    let account = match store.account(user_id).await.unwrap() {
        Some(account) => account.user_nid,
        None => {
            let new = NewAccount {
                user_id,
                password_hash: None,
                is_admin: false,
                is_guest: false,
                registration_token: None,
                now_ms: 0,
            };
            match store.create_account(new).await.unwrap() {
                AccountCreation::Created(nid) => nid,
                other => panic!("{other:?}"),
            }
        }
    };
    let hash: [u8; 8] = rand::random();
    let login = LogIn {
        user_nid: account,
        device_id,
        initial_display_name: Some("a name"),
        access_token_hash: &hash,
        expires_ts: None,
        refresh_token_hash: None,
        now_ms: 0,
    };
    let device_nid = store.log_in(login).await.unwrap().unwrap();
    Owner { user_nid: account, user_id: user_id.to_owned(), device_nid, device_id: device_id.into() }
}

/// A room in which some users are, as if they had joined, or were out of it again.
async fn set_members(store: &Store, version: i64, users: &[(&UserId, Membership)]) {
    let mut memberships = Vec::new();
    for (user_id, membership) in users {
        let user_nid = store.user_nid(user_id).await.unwrap();
        memberships.push(MembershipChange { user_nid, membership: *membership, event_nid: version + 1 });
    }
    let sender_nid = memberships[0].user_nid;
    let parts = EventParts {
        nid: version + 1,
        room_nid: 1,
        pos: None,
        depth: 1,
        sender_nid,
        key_nid: None,
        state_before: 0,
        room_state: 0,
        forked_state: None,
        replaces: None,
        redacted_by: None,
        device_nid: None,
        txn: None,
        flags: 0,
    };
    let json = r#"{"type":"m.room.message","sender":"@a:example.org","content":{},"origin_server_ts":1,"depth":1}"#;
    let event_id = ruma::EventId::parse(format!("$event{version}")).unwrap();
    let head = Head { version: version + 1, last_pos: 0, depth: 1, extremities: vec![version + 1], state_root: 0 };
    let append = Append {
        room_nid: 1,
        expected_version: version,
        create: (version == 0).then(|| NewRoom {
            room_id: ruma::room_id!("!room:example.org").to_owned(),
            version: RoomVersionId::V12,
            is_public: false,
            alias: None,
        }),
        events: vec![Event::new(parts, event_id, json.into()).unwrap()],
        memberships,
        head,
        ..Append::default()
    };
    store.commit(Operation::Append(Box::new(append))).await.unwrap();
}

impl World {
    async fn open(fresh: &Fresh) -> (Self, Fresh) {
        let other = if fresh.url().starts_with("sqlite") { Fresh::sqlite() } else { Fresh::postgres().await.unwrap() };
        let (here, there) = (open(fresh, "example.org").await, open(&other, "elsewhere.example").await);
        let alice = device(&here, ruma::user_id!("@alice:example.org"), "PHONE").await;
        let eve = device(&there, ruma::user_id!("@eve:elsewhere.example"), "LAPTOP").await;
        let both = [(&*alice.user_id, Membership::Join), (&*eve.user_id, Membership::Join)];
        for store in [&here, &there] {
            set_members(store, 0, &both).await;
        }
        let here = Encryption::new(here, "example.org".try_into().unwrap());
        let there = Encryption::new(there, "elsewhere.example".try_into().unwrap());
        let link = Arc::new(Link { there: there.clone(), is_down: AtomicBool::new(false) });
        let told = Arc::new(Told::default());
        here.connect(link.clone(), told.clone());
        there.connect(Arc::new(Link { there: here.clone(), is_down: AtomicBool::new(false) }), told.clone());
        (Self { here, there, link, told, alice, eve }, other)
    }

    async fn close(self) {
        self.here.store.close().await;
        self.there.store.close().await;
    }

    fn cut(&self, is_down: bool) {
        self.link.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Eve uploads the keys of a device; `mark` tells them from others.
    async fn upload(&self, owner: &Owner, mark: &str) {
        let keys = json!({
            "user_id": owner.user_id, "device_id": owner.device_id, "algorithms": [mark],
            "keys": { format!("ed25519:{}", owner.device_id): "x" }, "signatures": {},
        });
        let keys = Raw::new(&keys).unwrap().cast_unchecked();
        self.there.upload_keys(owner, Some(&keys), &BTreeMap::new(), &BTreeMap::new()).await.unwrap();
    }

    /// The devices of Eve's that Alice finds, with their marks; `None` if Eve's server did not answer.
    async fn found(&self) -> Option<BTreeMap<String, String>> {
        let wanted = BTreeMap::from([(self.eve.user_id.clone(), Vec::new())]);
        let mut found = self.here.query_keys(self.alice.user_nid, wanted, None).await.unwrap();
        if !found.failures.is_empty() {
            assert!(found.failures.contains_key("elsewhere.example"));
            return None;
        }
        let devices = found.device_keys.remove(&self.eve.user_id).unwrap();
        let mark = |keys: Raw<_>| {
            let keys: Value = serde_json::from_str(keys.json().get()).unwrap();
            keys["algorithms"][0].as_str().unwrap().to_owned()
        };
        Some(devices.into_iter().map(|(id, keys)| (id.to_string(), mark(keys))).collect())
    }

    /// What Eve's server has to tell, taken from it.
    async fn take_edus(&self) -> Vec<Edu> {
        let server = ruma::server_name!("example.org");
        let pending = self.there.pending_edus(server, 100).await.unwrap();
        if let Some((last, _)) = pending.last() {
            self.there.edus_sent(server, *last).await.unwrap();
        }
        pending.into_iter().map(|(_, edu)| read(edu)).collect()
    }

    async fn receive(&self, edu: &Edu) -> EduOutcome {
        self.here.receive_edu(ruma::server_name!("elsewhere.example"), edu).await.unwrap()
    }
}

fn read(edu: Box<RawValue>) -> Edu {
    Raw::from_json(edu).deserialize().unwrap()
}

fn devices(devices: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    Some(devices.iter().map(|(id, mark)| ((*id).to_owned(), (*mark).to_owned())).collect())
}

/// A list is asked for once, follows the changes that are told, and is asked for again when one was missed.
#[tokio::test]
async fn lists_are_followed() {
    on_both(async |fresh: &Fresh| {
        let (world, _other) = World::open(fresh).await;
        world.upload(&world.eve, "one").await;
        world.take_edus().await;
        assert_eq!(world.found().await, devices(&[("LAPTOP", "one")]));
        world.cut(true);
        assert_eq!(world.found().await, devices(&[("LAPTOP", "one")]), "it is kept");

        let tablet = device(&world.there.store, &world.eve.user_id, "TABLET").await;
        world.upload(&tablet, "two").await;
        let edus = world.take_edus().await;
        assert_eq!(edus.len(), 1);
        assert_eq!(
            world.here.receive_edu(ruma::server_name!("bad.example"), &edus[0]).await.unwrap(),
            EduOutcome::Refused
        );
        assert_eq!(world.receive(&edus[0]).await, EduOutcome::Accepted);
        assert_eq!(world.found().await, devices(&[("LAPTOP", "one"), ("TABLET", "two")]));
        let before = world.here.store.position();
        assert_eq!(world.receive(&edus[0]).await, EduOutcome::Accepted, "sent again");
        assert_eq!(world.here.store.position(), before);

        // Two changes of which one is lost.
        world.upload(&world.eve, "three").await;
        world.take_edus().await;
        world.upload(&tablet, "four").await;
        for edu in world.take_edus().await {
            world.receive(&edu).await;
        }
        let changed = world.here.store.device_lists_changed(world.alice.user_nid, before, i64::MAX).await.unwrap();
        assert_eq!(changed.len(), 1, "alice is told all the same");
        assert_eq!(world.found().await, None, "and nobody is given what is old");
        world.cut(false);
        world.here.resync().await.unwrap();
        world.cut(true);
        assert_eq!(world.found().await, devices(&[("LAPTOP", "three"), ("TABLET", "four")]));

        world.there.store.delete_devices(world.eve.user_nid, &["TABLET"]).await.unwrap();
        for edu in world.take_edus().await {
            assert_eq!(world.receive(&edu).await, EduOutcome::Accepted);
        }
        assert_eq!(world.found().await, devices(&[("LAPTOP", "three")]));

        // Who is in no room with ours is not followed.
        set_members(&world.here.store, 1, &[(&world.eve.user_id, Membership::Leave)]).await;
        assert_eq!(world.found().await, None);
        assert_eq!(world.here.store.forget_unshared_device_lists().await.unwrap(), 1);
        world.cut(false);
        assert_eq!(world.found().await, devices(&[("LAPTOP", "three")]), "but can be asked for");
        world.close().await;
    })
    .await;
}

/// Keys are claimed from the other server, and messages reach its devices, once.
#[tokio::test]
async fn messages_and_keys_cross_servers() {
    on_both(async |fresh: &Fresh| {
        let (world, _other) = World::open(fresh).await;
        let keys = BTreeMap::from([("curve25519:1".try_into().unwrap(), Raw::new(&"abc").unwrap().cast_unchecked())]);
        world.there.upload_keys(&world.eve, None, &keys, &BTreeMap::new()).await.unwrap();
        let wanted = |algorithm: &str| {
            let of_device = BTreeMap::from([(world.eve.device_id.clone(), OneTimeKeyAlgorithm::from(algorithm))]);
            BTreeMap::from([(world.eve.user_id.clone(), of_device)])
        };
        let claim = async |algorithm: &str| world.here.claim_keys(wanted(algorithm), None).await.unwrap();
        world.cut(true);
        assert!(claim("curve25519").await.failures.contains_key("elsewhere.example"));
        world.cut(false);
        assert_eq!(claim("curve25519").await.one_time_keys.len(), 1);
        assert!(claim("curve25519").await.one_time_keys.is_empty(), "it is given out once");

        let content = Raw::new(&json!({ "n": 1 })).unwrap().cast_unchecked();
        let messages: Messages = BTreeMap::from([(
            world.eve.user_id.clone(),
            BTreeMap::from([(DeviceIdOrAllDevices::AllDevices, content)]),
        )]);
        for _ in 0..2 {
            world.here.send_to_device(&world.alice, "m.test", "1", messages.clone()).await.unwrap();
        }
        assert!(world.told.0.lock().contains(&"elsewhere.example".to_owned()));
        let server = ruma::server_name!("elsewhere.example");
        let pending = world.here.pending_edus(server, 100).await.unwrap();
        assert_eq!(pending.len(), 1);
        let edu = read(pending[0].1.clone());
        let from = ruma::server_name!("example.org");
        assert_eq!(world.there.receive_edu(server, &edu).await.unwrap(), EduOutcome::Refused, "alice is not theirs");
        for _ in 0..2 {
            assert_eq!(world.there.receive_edu(from, &edu).await.unwrap(), EduOutcome::Accepted);
        }
        let got = world.there.store.to_device_messages(world.eve.device_nid, 0, i64::MAX, 10).await.unwrap();
        assert_eq!(got.len(), 1);
        assert_eq!(
            (&*got[0].sender, &*got[0].event_type, &*got[0].content),
            ("@alice:example.org", "m.test", "{\"n\":1}")
        );
        world.here.edus_sent(server, pending[0].0).await.unwrap();
        assert!(world.here.pending_edus(server, 100).await.unwrap().is_empty());
        world.close().await;
    })
    .await;
}

/// What cannot be true of another server's devices is not taken.
#[tokio::test]
async fn bad_edus_are_refused() {
    on_both(async |fresh: &Fresh| {
        let (world, _other) = World::open(fresh).await;
        world.upload(&world.eve, "one").await;
        world.take_edus().await;
        world.found().await;
        let keys = |user: &OwnedUserId, device: &str| {
            json!({ "user_id": user, "device_id": device, "algorithms": [], "keys": {}, "signatures": {} })
        };
        let update = |user: &OwnedUserId, device: &str, keys: Value| {
            let content = json!({ "user_id": user, "device_id": device, "stream_id": 99, "keys": keys });
            let edu = json!({ "edu_type": "m.device_list_update", "content": content });
            Raw::new(&edu).unwrap().cast_unchecked::<Edu>().deserialize().unwrap()
        };
        let (alice, eve) = (&world.alice.user_id, &world.eve.user_id);
        let unknown = OwnedUserId::try_from("@none:elsewhere.example").unwrap();
        assert_eq!(world.receive(&update(alice, "PHONE", keys(alice, "PHONE"))).await, EduOutcome::Refused);
        assert_eq!(world.receive(&update(eve, "A", keys(eve, "B"))).await, EduOutcome::Malformed);
        assert_eq!(world.receive(&update(eve, "A", keys(alice, "A"))).await, EduOutcome::Malformed);
        assert_eq!(world.receive(&update(&unknown, "A", keys(&unknown, "A"))).await, EduOutcome::Ignored);
        world.cut(true);
        assert_eq!(world.found().await, devices(&[("LAPTOP", "one")]));
        world.close().await;
    })
    .await;
}
