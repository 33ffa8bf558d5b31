//! Rooms with a policy server.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use myelin_store::testing::Fresh;
use ruma::{
    OwnedServerName, ServerName, api::federation::policy::sign_event, canonical_json::redact, serde::Base64,
    signatures::Ed25519KeyPair,
};
use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::{InitialState, Transaction, remote::RemoteError};

/// Signs all but what has "spam" in it.
pub(super) struct PolicyServer {
    pub(super) name: OwnedServerName,
    key: Ed25519KeyPair,
    asked: AtomicUsize,
}

impl PolicyServer {
    fn new(name: OwnedServerName) -> Arc<Self> {
        let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "policy_server".to_owned()).unwrap();
        Arc::new(Self { name, key, asked: AtomicUsize::new(0) })
    }

    fn event(&self) -> Value {
        let key = Base64::<ruma::serde::base64::Standard>::new(self.key.public_key().to_vec());
        json!({ "via": self.name, "public_keys": { "ed25519": key } })
    }

    /// How often it was asked since the last time.
    fn take_asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }

    pub(super) fn answer(&self, pdu: &RawValue) -> Result<sign_event::v1::Response, RemoteError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let object: CanonicalJsonObject = serde_json::from_str(pdu.get()).unwrap();
        if pdu.get().contains("\"m.room.policy\"") && pdu.get().contains("\"state_key\":\"\"") {
            panic!("it must not be asked for a policy");
        }
        if pdu.get().contains("spam") {
            let body = json!({ "errcode": "M_FORBIDDEN", "error": "This is spam", "org.example.score": 9 });
            return Err(RemoteError::Refused {
                server: self.name.clone(),
                status: 400,
                errcode: "M_FORBIDDEN".into(),
                message: "This is spam".into(),
                body: body.as_object().cloned(),
            });
        }
        let rules = RoomVersionId::V11.rules().unwrap();
        let mut redacted = redact(object, &rules.redaction, None).unwrap();
        redacted.remove("signatures");
        ruma::signatures::sign_json(self.name.as_str(), &self.key, &mut redacted).unwrap();
        let signatures = redacted["signatures"].as_object().unwrap()[self.name.as_str()].as_object().unwrap();
        let signature = signatures["ed25519:policy_server"].as_str().unwrap().to_owned();
        Ok(sign_event::v1::Response::new(self.name.clone(), signature))
    }
}

/// Some servers on each engine.
pub(super) async fn on_both(count: usize, test: impl AsyncFn(&Arc<Network>)) {
    let mut engines: Vec<Vec<Fresh>> = Vec::new();
    for _ in 0..count {
        for (place, fresh) in Fresh::each().await.into_iter().enumerate() {
            if engines.len() <= place {
                engines.push(Vec::new());
            }
            engines[place].push(fresh);
        }
    }
    for databases in engines {
        Box::pin(test(&Network::new(databases).await)).await;
    }
}

fn is_signed_by(json: &str, server: &ServerName) -> bool {
    let event: Value = serde_json::from_str(json).unwrap();
    event["signatures"][server.as_str()]["ed25519:policy_server"].is_string()
}

/// A room of alice, with bob and the policy server's own user.
async fn guarded_room(network: &Network) -> (OwnedRoomId, Arc<PolicyServer>) {
    let policy = PolicyServer::new(name(2));
    network.policy_servers.lock().push(policy.clone());
    let (alice, bob, bot) = (user("alice", 0), user("bob", 1), user("bot", 2));
    let room = network.create(0, &alice, RoomVersionId::V11, Preset::PublicChat).await;
    network.enter(1, &room, 0, &bob, Join).await.unwrap();
    network.enter(2, &room, 0, &bot, Join).await.unwrap();
    network.deliver().await;
    assert_eq!(policy.take_asked(), 0, "nothing is asked in a room without a policy");
    set_policy(network, &room, policy.event()).await.unwrap();
    assert_eq!(policy.take_asked(), 0);
    (room, policy)
}

async fn set_policy(network: &Network, room: &OwnedRoomId, policy: Value) -> Result<(), Error> {
    let sent = network.send(0, room, Template::state(&user("alice", 0), "m.room.policy", "", content(policy))).await;
    network.deliver().await;
    sent
}

async fn newest(network: &Network, place: usize, room: &OwnedRoomId) -> String {
    let rooms = network.rooms(place);
    let room = network.room(place, room).await;
    let head = rooms.store().head(room.nid).await.unwrap();
    rooms.store().events(&head.extremities).await.unwrap().pop().unwrap().json().to_owned()
}

/// What a policy server recommends is sent with its signature, and taken without asking again; what it refuses is sent to
/// nobody, and the client hears why.
#[tokio::test]
async fn sending_asks_the_policy_server() {
    on_both(3, async |network| {
        let (room, policy) = guarded_room(network).await;
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        network.send(0, &room, message(&alice, "hello")).await.unwrap();
        network.deliver().await;
        network.send(1, &room, message(&bob, "hello to you")).await.unwrap();
        network.deliver().await;
        assert_eq!(policy.take_asked(), 2, "each event is shown once");
        for place in 0..3 {
            assert!(is_signed_by(&newest(network, place, &room).await, &name(2)), "on s{place}");
        }
        for (place, reader) in [(0, &alice), (1, &bob)] {
            assert_eq!(bodies(network, place, &room, reader, 9).await, ["hello", "hello to you"]);
        }
        let refused = network.send(0, &room, message(&alice, "spam")).await.unwrap_err();
        let Error::NotRecommended(reason) = refused else { panic!("{refused}") };
        assert!(matches!(&*reason, RemoteError::Refused { status: 400, message, .. } if message == "This is spam"));
        let topic = content(json!({ "topic": "spam" }));
        assert!(network.send(0, &room, Template::state(&alice, "m.room.topic", "", topic)).await.is_err());
        network.deliver().await;
        for (place, reader) in [(0, &alice), (1, &bob)] {
            assert_eq!(bodies(network, place, &room, reader, 9).await, ["hello", "hello to you"]);
        }
        must_agree(network, &room, &[0, 1, 2]).await;
    })
    .await;
}

/// A repeated transaction makes one event, also when it comes twice at a time; many senders at once do not lose anything.
#[tokio::test]
async fn transactions_and_crowds() {
    on_both(3, async |network| {
        let (room_id, policy) = guarded_room(network).await;
        let alice = user("alice", 0);
        let (rooms, room) = (network.rooms(0), network.room(0, &room_id).await);
        make_account(network, 0, &alice).await;
        let device_nid = device(network, &alice).await;
        let transaction = Transaction { device_nid, scope: "send".into(), id: "1".into() };
        let (one, two) = tokio::join!(
            rooms.send(&room, message(&alice, "once"), Some(&transaction)),
            rooms.send(&room, message(&alice, "once"), Some(&transaction)),
        );
        let event_id = one.unwrap();
        assert_eq!(two.unwrap(), event_id);
        let stored = rooms.store().event_by_id(&event_id).await.unwrap().unwrap();
        assert_eq!(stored.parts().device_nid, Some(device_nid), "the client knows it again");
        policy.take_asked();
        let texts: Vec<String> = (0..10).map(|number| format!("{number}")).collect();
        let sends = texts.iter().map(|text| rooms.send(&room, message(&alice, text), None));
        for sent in futures_util::future::join_all(sends).await {
            sent.unwrap();
        }
        network.deliver().await;
        let mut heard = bodies(network, 1, &room_id, &user("bob", 1), 100).await;
        heard.sort();
        let mut expected = texts;
        expected.push("once".into());
        expected.sort();
        assert_eq!(heard, expected);
        must_agree(network, &room_id, &[0, 1, 2]).await;
    })
    .await;
}

async fn device(network: &Network, user: &UserId) -> i64 {
    let store = network.rooms(0).store();
    let user_nid = store.user_nid(user).await.unwrap();
    let login = myelin_store::LogIn {
        user_nid,
        device_id: "A",
        initial_display_name: None,
        access_token_hash: b"token",
        expires_ts: None,
        refresh_token_hash: None,
        now_ms: 1,
    };
    store.log_in(login).await.unwrap().unwrap()
}

/// Redactions, memberships and invitations are shown too, and have their effects.
#[tokio::test]
async fn all_kinds_of_events_are_shown() {
    on_both(4, async |network| {
        let (room_id, policy) = guarded_room(network).await;
        let (alice, bob, carol) = (user("alice", 0), user("bob", 1), user("carol", 1));
        make_account(network, 1, &carol).await;
        let (rooms, room) = (network.rooms(0), network.room(0, &room_id).await);
        let said = rooms.send(&room, message(&alice, "regretted"), None).await.unwrap();
        rooms.redact(&room, &alice, &said, CanonicalJsonObject::new(), None).await.unwrap();
        network.change(0, &room_id, &alice, &bob, Kick).await.unwrap();
        network.change(0, &room_id, &alice, &carol, Invite).await.unwrap();
        network.deliver().await;
        assert_eq!(policy.take_asked(), 4);
        assert!(bodies(network, 0, &room_id, &alice, 9).await.is_empty(), "it was redacted");
        assert_eq!(membership(network, 2, &room_id, &bob).await, Some(Membership::Leave));
        assert_eq!(membership(network, 1, &room_id, &carol).await, Some(Membership::Invite));
        network.enter(1, &room_id, 0, &carol, Join).await.unwrap();
        network.deliver().await;
        assert!(policy.take_asked() >= 1, "a join through another server is shown by that server");
        let spam = user("spam", 3);
        make_account(network, 3, &spam).await;
        let invited = network.change(0, &room_id, &alice, &spam, Invite).await;
        assert!(matches!(invited, Err(Error::NotRecommended(_))));
        assert_eq!(membership(network, 3, &room_id, &spam).await, None, "nobody hears of it");
        assert!(matches!(network.enter(3, &room_id, 0, &spam, Join).await, Err(Error::Forbidden(_))));
        must_agree(network, &room_id, &[0, 2]).await;
    })
    .await;
}

/// What comes without a signature is shown to the policy server; it is not shown to clients if that refuses or is away.
#[tokio::test]
async fn receiving_asks_the_policy_server() {
    on_both(3, async |network| {
        let (room, policy) = guarded_room(network).await;
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        let bobs = network.rooms(1);
        let unsigned = async |text: &str| {
            // As a server sends it that knows nothing of policies.
            let event = network.unasked(0, &room, message(&alice, text)).await;
            bobs.receive(&name(0), vec![event]).await.unwrap().pop().unwrap().1
        };
        unsigned("asked for").await.unwrap();
        assert_eq!(policy.take_asked(), 1);
        assert!(is_signed_by(&newest(network, 1, &room).await, &name(2)));
        unsigned("more spam").await.expect("that it is not shown is not its sender's concern");
        assert_eq!(policy.take_asked(), 1);
        network.cut(1, 2);
        unsigned("nobody can be asked").await.unwrap();
        let sent = network.send(1, &room, message(&bob, "nor for what is sent")).await;
        assert!(matches!(sent, Err(Error::NotRecommended(_))));
        network.heal();
        assert_eq!(bodies(network, 1, &room, &bob, 9).await, ["asked for"]);
    })
    .await;
}

/// A policy of a server that is not in the room, or without a key, is none; one with another key lets nothing through but
/// its own end.
#[tokio::test]
async fn policies_begin_and_end() {
    on_both(3, async |network| {
        let (room, policy) = guarded_room(network).await;
        let alice = user("alice", 0);
        for none in
            [json!({ "via": "s2.test" }), json!({ "via": "elsewhere.test", "public_keys": { "ed25519": "AA" } })]
        {
            set_policy(network, &room, none).await.unwrap();
            network.send(0, &room, message(&alice, "free")).await.unwrap();
            network.deliver().await;
        }
        let wrong = PolicyServer::new(name(2)).event();
        set_policy(network, &room, wrong).await.unwrap();
        let sent = network.send(0, &room, message(&alice, "closed")).await;
        assert!(matches!(sent, Err(Error::NotRecommended(_))), "its signature is not by the room's key");
        assert_eq!(policy.take_asked(), 1);
        set_policy(network, &room, json!({})).await.unwrap();
        network.send(0, &room, message(&alice, "open")).await.unwrap();
        // The policy server leaves.
        set_policy(network, &room, policy.event()).await.unwrap();
        network.change(2, &room, &user("bot", 2), &user("bot", 2), Leave).await.unwrap();
        network.deliver().await;
        policy.take_asked();
        network.send(0, &room, message(&alice, "alone")).await.unwrap();
        assert_eq!(policy.take_asked(), 0);
        network.deliver().await;
        must_agree(network, &room, &[0, 1]).await;
        let heard = bodies(network, 1, &room, &user("bob", 1), 9).await;
        assert_eq!(heard, ["free", "free", "open", "alone"]);
    })
    .await;
}

/// A room may begin with a policy: it counts once a user of the policy server is there. That cannot be the server on
/// which the room is made.
#[tokio::test]
async fn rooms_begin_with_a_policy() {
    on_both(3, async |network| {
        let policy = PolicyServer::new(name(2));
        network.policy_servers.lock().push(policy.clone());
        let (alice, bob, bot) = (user("alice", 0), user("bob", 1), user("bot", 2));
        let make = async |said: Value| {
            let state =
                InitialState { event_type: "m.room.policy".into(), state_key: String::new(), content: content(said) };
            network.create_with(0, &alice, RoomVersionId::V11, Preset::PublicChat, vec![state]).await
        };
        let room = make(policy.event()).await.unwrap();
        network.send(0, &room, message(&alice, "alone")).await.unwrap();
        network.enter(1, &room, 0, &bob, Join).await.unwrap();
        assert_eq!(policy.take_asked(), 0, "the policy server is not in the room");
        network.enter(2, &room, 0, &bot, Join).await.unwrap();
        network.deliver().await;
        policy.take_asked();
        network.send(0, &room, message(&alice, "guarded")).await.unwrap();
        assert_eq!(policy.take_asked(), 1);
        assert!(is_signed_by(&newest(network, 0, &room).await, &name(2)));
        let own = PolicyServer::new(name(0)).event();
        assert!(matches!(make(own).await, Err(Error::InvalidRoomState(_))));
        make(json!({ "via": "s0.test" })).await.expect("that is no policy");
    })
    .await;
}

/// In a room without a policy, messages look nothing up: what is known of the state is known of them.
#[tokio::test]
async fn rooms_without_a_policy_pay_nothing() {
    on_both(2, async |network| {
        let (alice, bob) = (user("alice", 0), user("bob", 1));
        let room = network.create(0, &alice, RoomVersionId::V11, Preset::PublicChat).await;
        network.enter(1, &room, 0, &bob, Join).await.unwrap();
        let say = async |text: &str| {
            network.send(0, &room, message(&alice, text)).await.unwrap();
            network.deliver().await;
            [0, 1].map(|place| network.rooms(place).policies.snapshots())
        };
        let known = say("first").await;
        for text in ["second", "third", "fourth"] {
            assert_eq!(say(text).await, known);
        }
        let topic = content(json!({ "topic": "new" }));
        network.send(0, &room, Template::state(&alice, "m.room.topic", "", topic)).await.unwrap();
        assert_eq!(say("fifth").await, known.map(|known| known + 1), "each state is looked at once");
    })
    .await;
}
