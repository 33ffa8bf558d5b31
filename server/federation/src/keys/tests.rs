use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use myelin_rooms::remote::{VerifyKeys, WantedKeys};
use myelin_store::SigningKey;
use ruma::{
    CanonicalJsonObject, OwnedServerName, ServerName, owned_server_name,
    serde::{Base64, base64::Standard},
    server_name,
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::json;

use super::{document, now_ms};
use crate::{
    Client, ClientOptions, Ports,
    testing::{self, Authority, FakeDns, Handler, Ours, Peer, always, handler, own_name},
};

const HOUR: i64 = 3_600_000;

/// Another server with a key.
struct Other {
    name: OwnedServerName,
    key: Arc<Ed25519KeyPair>,
}

impl Other {
    fn new(name: &str, version: &str) -> Self {
        let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), version.to_owned()).unwrap();
        Self { name: name.try_into().unwrap(), key: Arc::new(key) }
    }

    fn key_id(&self) -> String {
        format!("ed25519:{}", self.key.version())
    }

    fn public(&self) -> String {
        Base64::<Standard, _>::new(self.key.public_key()).encode()
    }

    /// The document in which it tells of its key, also signed by others.
    fn document(&self, valid_until_ts: i64, old: serde_json::Value, others: &[&Self]) -> String {
        let document = json!({
            "server_name": self.name,
            "verify_keys": { self.key_id(): { "key": self.public() } },
            "old_verify_keys": old,
            "valid_until_ts": valid_until_ts,
        });
        let mut document: CanonicalJsonObject = serde_json::from_value(document).unwrap();
        for signer in [self].iter().chain(others) {
            sign_json(signer.name.as_str(), &*signer.key, &mut document).unwrap();
        }
        serde_json::to_string(&document).unwrap()
    }
}

/// A peer on `port` of every name, and a client of ours.
struct World {
    ours: Ours,
    peer: Peer,
    authority: Authority,
}

const NAMES: [&str; 3] = ["a.example", "n.example", "gone.example"];

async fn world(handler: Handler, change: impl FnOnce(&mut ClientOptions)) -> World {
    let authority = Authority::new();
    // The peer has no certificate for the one that is gone.
    let peer = Peer::new(authority.config(&NAMES[..2], &[]), handler).await;
    let ports = Ports { https: 1, federation: peer.port() };
    let ours = testing::ours(&authority, FakeDns::here(&NAMES), ports, change).await;
    World { ours, peer, authority }
}

impl World {
    /// The same server once more: a replica, or after a restart.
    async fn again(&self) -> Arc<Client> {
        let ports = Ports { https: 1, federation: self.peer.port() };
        testing::client(&self.ours.store, &self.authority, FakeDns::here(&NAMES), ports, |_| {}).await
    }
}

fn wanted(server: &ServerName, key_ids: &[&str], valid_at_ts: i64) -> BTreeMap<OwnedServerName, WantedKeys> {
    let key_ids = key_ids.iter().map(ToString::to_string).collect();
    [(server.to_owned(), WantedKeys { key_ids, valid_at_ts: valid_at_ts.unsigned_abs() })].into()
}

fn valid_until(keys: &VerifyKeys, server: &ServerName, key_id: &str) -> Option<u64> {
    keys.0.get(server)?.get(key_id).map(|key| key.valid_until_ts)
}

/// Keys are asked for once, however many want them, and are still known after a restart without the server.
#[tokio::test]
async fn keys_are_fetched_once() {
    let other = Other::new("a.example", "1");
    let until = now_ms() + HOUR;
    let old = json!({ "ed25519:0": { "key": other.public(), "expired_ts": 77 } });
    let world = world(always(200, &other.document(until, old, &[])), |_| {}).await;
    let wanted = wanted(&other.name, &["ed25519:1", "ed25519:0"], now_ms());
    for keys in join_all((0..20).map(|_| world.ours.client.verify_keys_of(&wanted))).await {
        assert_eq!(valid_until(&keys, &other.name, "ed25519:1"), Some(until.unsigned_abs()));
        assert_eq!(valid_until(&keys, &other.name, "ed25519:0"), Some(77));
    }
    assert_eq!(world.peer.seen().len(), 1);
    assert_eq!(world.peer.seen()[0].path, "/_matrix/key/v2/server");
    let keys = world.again().await.verify_keys_of(&wanted).await;
    assert_eq!(valid_until(&keys, &other.name, "ed25519:1"), Some(until.unsigned_abs()));
    assert_eq!(world.peer.seen().len(), 1);
}

/// A key that is not there does not make us ask again and again; one that ran out does, once a while.
#[tokio::test]
async fn asking_is_limited() {
    let other = Other::new("a.example", "1");
    let world = world(always(200, &other.document(now_ms() - HOUR, json!({}), &[])), |_| {}).await;
    for key_id in ["ed25519:1", "ed25519:madeup", "ed25519:2", "curve:1"] {
        let keys = world.ours.client.verify_keys_of(&wanted(&other.name, &[key_id], now_ms())).await;
        assert_eq!(keys.0[&other.name].len(), 1);
    }
    // For what was signed before it ran out it is good.
    let keys = world.ours.client.verify_keys_of(&wanted(&other.name, &["ed25519:1"], now_ms() - 2 * HOUR)).await;
    assert!(valid_until(&keys, &other.name, "ed25519:1").is_some());
    assert_eq!(world.peer.seen().len(), 1);
}

/// Nobody's keys are valid for more than a week.
#[tokio::test]
async fn validity_is_bounded() {
    let other = Other::new("a.example", "1");
    let world = world(always(200, &other.document(now_ms() + 10_000 * HOUR, json!({}), &[])), |_| {}).await;
    let keys = world.ours.client.verify_keys_of(&wanted(&other.name, &["ed25519:1"], now_ms())).await;
    let until = valid_until(&keys, &other.name, "ed25519:1").unwrap();
    assert!(until <= (now_ms() + 7 * 24 * HOUR).unsigned_abs() && until > (now_ms() + 6 * 24 * HOUR).unsigned_abs());
}

/// Forged documents, and those of other servers, give no keys.
#[tokio::test]
async fn forged_documents_give_no_keys() {
    let (other, forger) = (Other::new("a.example", "1"), Other::new("b.example", "1"));
    let good = other.document(now_ms() + HOUR, json!({}), &[]);
    for bad in [
        good.replace(&other.public(), &forger.public()),
        forger.document(now_ms() + HOUR, json!({}), &[]),
        "nonsense".to_owned(),
    ] {
        let world = world(always(200, &bad), |_| {}).await;
        let keys = world.ours.client.verify_keys_of(&wanted(&other.name, &["ed25519:1"], now_ms())).await;
        assert!(keys.0[&other.name].is_empty(), "{bad}");
        assert!(world.ours.store.server_keys("a.example").await.unwrap().is_empty());
    }
}

/// A notary is asked for the keys of a server that is gone, and believed only with its own signature.
#[tokio::test]
async fn notaries_are_asked() {
    let (gone, notary) = (Other::new("gone.example", "1"), Other::new("n.example", "n"));
    let forger = Other::new("n.example", "n");
    for (signer, is_good) in [(&notary, true), (&forger, false)] {
        let told = gone.document(now_ms() + HOUR, json!({}), &[signer]);
        // It also tells of what it was not asked.
        let more = Other::new("a.example", "1").document(now_ms() + HOUR, json!({}), &[signer]);
        let answer = format!(r#"{{"server_keys":[{more},{told}]}}"#);
        let own = notary.document(now_ms() + HOUR, json!({}), &[]);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let answering = handler(move |request| {
            let body = match request.uri().path() {
                "/_matrix/key/v2/server" => own.clone(),
                "/_matrix/key/v2/query" => {
                    count.fetch_add(1, Ordering::SeqCst);
                    let asked: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
                    let criteria = &asked["server_keys"]["gone.example"]["ed25519:1"];
                    assert!(criteria["minimum_valid_until_ts"].as_i64().is_some_and(|ts| ts <= now_ms()));
                    answer.clone()
                }
                path => panic!("{path}"),
            };
            std::future::ready(testing::json(200, body))
        });
        let trusting = |options: &mut ClientOptions| options.trusted_key_servers = vec![notary.name.clone()];
        let world = world(answering, trusting).await;
        for _ in 0..3 {
            let keys = world.ours.client.verify_keys_of(&wanted(&gone.name, &["ed25519:1"], now_ms())).await;
            assert_eq!(valid_until(&keys, &gone.name, "ed25519:1").is_some(), is_good);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(world.ours.store.server_keys("a.example").await.unwrap().is_empty());
    }
}

/// What we tell of ourselves is what we demand of others.
#[tokio::test]
async fn our_own_document_is_good() {
    let world = world(always(404, ""), |_| {}).await;
    let client = &world.ours.client;
    let raw = client.key_document().await.unwrap();
    let document = document::check(raw.json().get(), &own_name()).unwrap();
    assert!(document.valid_until_ts > now_ms() + HOUR);
    assert_eq!(document.keys[0].public_key, client.key.public_key());
    let keys = client.verify_keys_of(&wanted(&own_name(), &[], now_ms())).await;
    assert_eq!(keys.0[&own_name()].len(), 1);
    assert!(world.peer.seen().is_empty());
}

/// When our key was replaced, both count while replicas may sign with either, and nobody may rely on our word for
/// longer; then the old one is told as such.
#[tokio::test]
async fn our_key_is_replaced() {
    let world = world(always(404, ""), |_| {}).await;
    let (store, client) = (&world.ours.store, &world.ours.client);
    let read = async |client: &Client| {
        let raw = client.key_document().await.unwrap();
        (document::check(raw.json().get(), &own_name()).unwrap(), raw.json().get().to_owned())
    };
    let (old, until) = (client.key.version().to_owned(), now_ms() + HOUR);
    let second = SigningKey::generate(now_ms());
    assert!(store.replace_signing_key(Some(&old), &second, until).await.unwrap());
    for client in [client, &world.again().await] {
        let (document, _) = read(client).await;
        assert_eq!(document.valid_until_ts, until);
        let mut told: Vec<_> = document.keys.iter().map(|key| (key.key_id.clone(), key.expired_ts)).collect();
        told.sort();
        let mut expected = [(format!("ed25519:{old}"), None), (format!("ed25519:{}", second.version), None)];
        expected.sort();
        assert_eq!(told, expected);
        let keys = client.verify_keys_of(&wanted(&own_name(), &[], now_ms())).await;
        assert_eq!(valid_until(&keys, &own_name(), &format!("ed25519:{old}")), Some(until.unsigned_abs()));
    }
    // The next one is in use at once.
    let third = SigningKey::generate(now_ms());
    assert!(store.replace_signing_key(Some(&second.version), &third, now_ms() - 1).await.unwrap());
    let (document, json) = read(&*world.again().await).await;
    let expired = document.keys.iter().find(|key| key.key_id.ends_with(&second.version)).unwrap();
    assert!(expired.expired_ts.is_some_and(|expired_ts| expired_ts < now_ms()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["verify_keys"].as_object().unwrap().len(), 2);
    assert_eq!(json["signatures"][own_name().as_str()].as_object().unwrap().len(), 2);
}

/// As a notary we tell of others with their signature and ours, of those that are gone as well, and of ourselves.
#[tokio::test]
async fn we_are_a_notary() {
    let other = Other::new("a.example", "1");
    let world = world(always(200, &other.document(now_ms() + HOUR, json!({}), &[])), |_| {}).await;
    let ask = async |client: &Client| {
        let servers = [owned_server_name!("a.example"), owned_server_name!("gone.example"), own_name()];
        client.notarised_keys(servers.map(|server| (server, BTreeMap::new())).into()).await
    };
    let told = ask(&world.ours.client).await;
    assert_eq!(told.len(), 2);
    let json = told[0].json().get();
    document::check(json, server_name!("a.example")).unwrap();
    let client = &world.ours.client;
    let ours = [(format!("ed25519:{}", client.key.version()), Base64::new(client.key.public_key().to_vec()))];
    document::check_notary(json, &own_name(), ours.into()).unwrap();
    assert_eq!(world.peer.seen().len(), 1);
    // Remembered, it is told again without asking, even by another replica.
    assert_eq!(ask(client).await.len(), 2);
    let replica = world.again().await;
    assert_eq!(ask(&replica).await.len(), 2);
    assert_eq!(world.peer.seen().len(), 1);
    assert!(world.ours.fresh.url().starts_with("sqlite"));
}
