//! Keys by their endpoints, on each engine that is there.

use http::{Method, StatusCode};
use ruma::{
    CanonicalJsonValue,
    serde::Base64,
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{Value, json};

use crate::testing::{Server, on_both};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";
const CROSS: &str = "/_matrix/client/v3/keys/device_signing/upload";
const SIGNATURES: &str = "/_matrix/client/v3/keys/signatures/upload";
const DEHYDRATED: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

/// A key that signs, named after a device or after itself.
pub(crate) struct Key {
    pair: Ed25519KeyPair,
    user: String,
    pub(crate) public: String,
}

impl Key {
    fn new(user: &str, name: Option<&str>) -> Self {
        let document = Ed25519KeyPair::generate();
        let public = Ed25519KeyPair::from_der(&document, "x".to_owned()).unwrap();
        let public: Base64 = Base64::new(public.public_key().to_vec());
        let public = public.encode();
        let pair = Ed25519KeyPair::from_der(&document, name.unwrap_or(&public).to_owned()).unwrap();
        Self { pair, user: user.to_owned(), public }
    }

    pub(crate) fn sign(&self, object: &Value) -> Value {
        let CanonicalJsonValue::Object(mut object): CanonicalJsonValue = object.clone().try_into().unwrap() else {
            panic!("only objects are signed");
        };
        sign_json(&self.user, &self.pair, &mut object).unwrap();
        serde_json::to_value(object).unwrap()
    }

    fn cross(&self, usage: &str) -> Value {
        let name = format!("ed25519:{}", self.public);
        json!({ "user_id": self.user, "usage": [usage], "keys": { name: self.public } })
    }
}

/// A logged-in device with its identity.
pub(crate) struct Device {
    pub(crate) token: String,
    pub(crate) key: Key,
    pub(crate) user: String,
    pub(crate) id: String,
}

impl Device {
    /// Logs a user in, who is made where there is none yet.
    pub(crate) async fn new(server: &Server, name: &str, id: &str) -> Self {
        let mut login = server.password_auth(name);
        login["device_id"] = id.into();
        login["initial_device_display_name"] = format!("{name}'s {id}").into();
        let path = "/_matrix/client/v3/login";
        let mut answer = server.post(path, None, &login).await;
        if answer.status() != StatusCode::OK {
            server.user(name).await;
            answer = server.post(path, None, &login).await;
        }
        let token = answer.json(StatusCode::OK)["access_token"].as_str().unwrap().to_owned();
        let user = format!("@{name}:example.org");
        Self { token, key: Key::new(&user, Some(id)), user, id: id.to_owned() }
    }

    pub(crate) fn identity(&self) -> Value {
        let id = &self.id;
        self.key.sign(&json!({
            "user_id": self.user, "device_id": id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": { format!("ed25519:{id}"): self.key.public, format!("curve25519:{id}"): self.key.public },
        }))
    }

    fn one_time(&self, name: &str) -> Value {
        self.key.sign(&json!({ "key": name }))
    }

    pub(crate) async fn upload(&self, server: &Server, body: Value) -> Value {
        server.post(UPLOAD, Some(&self.token), &body).await.json(StatusCode::OK)
    }

    pub(crate) async fn upload_identity(&self, server: &Server) {
        self.upload(server, json!({ "device_keys": self.identity() })).await;
    }

    pub(crate) async fn query(&self, server: &Server, user: &str) -> Value {
        let body = json!({ "device_keys": { user: [] } });
        server.post(QUERY, Some(&self.token), &body).await.json(StatusCode::OK)
    }

    async fn claim(&self, server: &Server, of: &Device) -> Value {
        let body = json!({ "one_time_keys": { &of.user: { &of.id: "signed_curve25519" } } });
        let claimed = server.post(CLAIM, Some(&self.token), &body).await.json(StatusCode::OK);
        claimed["one_time_keys"][&of.user][&of.id].clone()
    }
}

/// What one device uploads another one can find, with its name, and claim.
#[tokio::test]
async fn keys_are_found_and_claimed() {
    on_both(async |server: &Server| {
        let (phone, other) = (Device::new(server, "alice", "PHONE").await, Device::new(server, "bob", "B").await);
        let empty = json!({ "device_keys": { "@alice:example.org": {} } });
        let asked = other.query(server, "@alice:example.org").await;
        assert_eq!(asked, empty, "known, and without keys");
        let body = json!({
            "device_keys": phone.identity(),
            "one_time_keys": { "signed_curve25519:1": phone.one_time("one"), "signed_curve25519:2": phone.one_time("two") },
            "fallback_keys": { "signed_curve25519:f": phone.one_time("fallback") },
        });
        let left = json!({ "one_time_key_counts": { "signed_curve25519": 2 } });
        assert_eq!(phone.upload(server, body.clone()).await, left);
        assert_eq!(phone.upload(server, body).await, left, "sent again");
        let mut told = phone.identity();
        told["unsigned"] = json!({ "device_display_name": "alice's PHONE" });
        assert_eq!(other.query(server, "@alice:example.org").await["device_keys"]["@alice:example.org"]["PHONE"], told);
        let some = json!({ "device_keys": { "@alice:example.org": ["TABLET"], "@none:example.org": [] } });
        let some = server.post(QUERY, Some(&other.token), &some).await.json(StatusCode::OK);
        assert_eq!(some, empty);
        assert_eq!(other.claim(server, &phone).await, json!({ "signed_curve25519:1": phone.one_time("one") }));
        let sync = server.get("/_matrix/client/v3/sync", Some(&phone.token)).await.json(StatusCode::OK);
        assert_eq!(sync["device_one_time_keys_count"], json!({ "signed_curve25519": 1 }));
        assert_eq!(sync["device_unused_fallback_key_types"], json!(["signed_curve25519"]));
        assert_eq!(other.claim(server, &phone).await, json!({ "signed_curve25519:2": phone.one_time("two") }));
        for _ in 0..2 {
            assert_eq!(other.claim(server, &phone).await, json!({ "signed_curve25519:f": phone.one_time("fallback") }));
        }
        let since = format!("/_matrix/client/v3/sync?since={}", sync["next_batch"].as_str().unwrap());
        let sync = server.get(&since, Some(&phone.token)).await.json(StatusCode::OK);
        assert_eq!(sync["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
        assert_eq!(sync["device_unused_fallback_key_types"], json!([]));
        assert_eq!(phone.claim(server, &other).await, Value::Null, "that one has none");
        // Another server that cannot be asked is a failure of its own.
        let away = json!({ "device_keys": { "@eve:elsewhere.example": [], "@alice:example.org": [] } });
        let away = server.post(QUERY, Some(&other.token), &away).await.json(StatusCode::OK);
        assert!(away["failures"]["elsewhere.example"].is_object() && away["device_keys"]["@alice:example.org"].is_object());
    })
    .await;
}

/// What is not the device's own, forged, malformed or too much is refused, and changes nothing.
#[tokio::test]
async fn bad_keys_are_refused() {
    on_both(async |server: &Server| {
        let phone = Device::new(server, "alice", "PHONE").await;
        let tablet = Device::new(server, "alice", "TABLET").await;
        let bob = Device::new(server, "bob", "B").await;
        phone.upload_identity(server).await;
        let mut forged = phone.identity();
        forged["algorithms"] = json!(["m.other"]);
        let mut misnamed = phone.identity();
        misnamed["keys"]["curve25519:TABLET"] = "x".into();
        let mut malformed = phone.identity();
        malformed["keys"] = json!([1]);
        let many: serde_json::Map<String, Value> =
            (0..1001).map(|n| (format!("signed_curve25519:{n}"), json!({ "key": "x", "signatures": {} }))).collect();
        let mut forged_key = phone.one_time("aaaa");
        forged_key["key"] = "bbbb".into();
        let cases = [
            (json!({ "device_keys": tablet.identity() }), 400, "M_INVALID_PARAM"),
            (json!({ "device_keys": bob.identity() }), 400, "M_INVALID_PARAM"),
            (json!({ "device_keys": forged }), 400, "M_INVALID_SIGNATURE"),
            (json!({ "device_keys": misnamed }), 400, "M_INVALID_PARAM"),
            (json!({ "device_keys": malformed }), 400, "M_BAD_JSON"),
            (json!({ "one_time_keys": { "signed_curve25519:1": forged_key } }), 400, "M_INVALID_SIGNATURE"),
            (json!({ "one_time_keys": { "signed_curve25519:1": 5 } }), 400, "M_BAD_JSON"),
            (json!({ "one_time_keys": { "nothing": "x" } }), 400, "M_INVALID_PARAM"),
            (json!({ "one_time_keys": many }), 413, "M_TOO_LARGE"),
            (
                json!({ "fallback_keys": { "signed_curve25519:1": phone.one_time("aaaa"),
                                           "signed_curve25519:2": phone.one_time("bbbb") } }),
                400,
                "M_INVALID_PARAM",
            ),
        ];
        let before = bob.query(server, &phone.user).await;
        for (body, status, errcode) in cases {
            let refused = server.post(UPLOAD, Some(&phone.token), &body).await;
            assert_eq!(refused.errcode(StatusCode::from_u16(status).unwrap()), errcode, "{body}");
        }
        assert_eq!(bob.query(server, &phone.user).await, before);
        assert_eq!(phone.upload(server, json!({})).await, json!({ "one_time_key_counts": {} }));
        phone.upload(server, json!({ "one_time_keys": { "signed_curve25519:1": phone.one_time("aaaa") } })).await;
        let other = json!({ "one_time_keys": { "signed_curve25519:1": phone.one_time("bbbb") } });
        let refused = server.post(UPLOAD, Some(&phone.token), &other).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        assert_eq!(bob.claim(server, &phone).await, json!({ "signed_curve25519:1": phone.one_time("aaaa") }));
    })
    .await;
}

/// The first cross-signing keys need no password, the same again neither, and other ones do.
#[tokio::test]
async fn cross_signing_is_set_up_once() {
    on_both(async |server: &Server| {
        let phone = Device::new(server, "alice", "PHONE").await;
        let keys: Vec<Key> = (0..4).map(|_| Key::new(&phone.user, None)).collect();
        let [master, self_signing, user_signing, other] = &keys[..] else { panic!("four") };
        let body = json!({
            "master_key": master.cross("master"),
            "self_signing_key": master.sign(&self_signing.cross("self_signing")),
            "user_signing_key": master.sign(&user_signing.cross("user_signing")),
        });
        let send = async |body: &Value| server.post(CROSS, Some(&phone.token), body).await;
        let lone = json!({ "self_signing_key": body["self_signing_key"] });
        assert_eq!(send(&lone).await.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        let mut forged = body.clone();
        forged["self_signing_key"] = other.sign(&self_signing.cross("self_signing"));
        assert_eq!(send(&forged).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_SIGNATURE");
        let mut wrong = body.clone();
        wrong["master_key"]["usage"] = json!(["self_signing"]);
        assert_eq!(send(&wrong).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        wrong["master_key"] = Key::new("@bob:example.org", None).cross("master");
        assert_eq!(send(&wrong).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        send(&body).await.json(StatusCode::OK);
        send(&body).await.json(StatusCode::OK);
        let mut replaced = body.clone();
        replaced["self_signing_key"] = master.sign(&other.cross("self_signing"));
        let challenge = send(&replaced).await.json(StatusCode::UNAUTHORIZED);
        assert_eq!(phone.query(server, &phone.user).await["self_signing_keys"][&phone.user], body["self_signing_key"]);
        replaced["auth"] = server.password_auth("alice");
        replaced["auth"]["session"] = challenge["session"].clone();
        send(&replaced).await.json(StatusCode::OK);
        let found = phone.query(server, &phone.user).await;
        assert_eq!(found["self_signing_keys"][&phone.user], replaced["self_signing_key"]);
        assert_eq!(found["user_signing_keys"][&phone.user], body["user_signing_key"]);
        let bob = Device::new(server, "bob", "B").await;
        let found = bob.query(server, &phone.user).await;
        assert_eq!(found["master_keys"][&phone.user], body["master_key"]);
        assert!(found.get("user_signing_keys").is_none(), "that is alice's business");
        // A device may not be confused with a key.
        let named = Device::new(server, "bob", &master.public).await;
        let key = json!({ "user_id": named.user, "usage": ["master"],
                          "keys": { format!("ed25519:{}", master.public): master.public } });
        let refused = server.post(CROSS, Some(&named.token), &json!({ "master_key": key })).await;
        assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
    })
    .await;
}

/// Signatures are added where they are right, seen by those they concern, and named where they are wrong.
#[tokio::test]
async fn signatures_are_checked() {
    on_both(async |server: &Server| {
        let (phone, bob) = (Device::new(server, "alice", "PHONE").await, Device::new(server, "bob", "B").await);
        let mut crosses = Vec::new();
        for device in [&phone, &bob] {
            device.upload_identity(server).await;
            let [master, own, others] = [(); 3].map(|()| Key::new(&device.user, None));
            let body = json!({
                "master_key": master.cross("master"),
                "self_signing_key": master.sign(&own.cross("self_signing")),
                "user_signing_key": master.sign(&others.cross("user_signing")),
            });
            server.post(CROSS, Some(&device.token), &body).await.json(StatusCode::OK);
            crosses.push((master, own, others));
        }
        let (master, own, others) = &crosses[0];
        let bobs = &crosses[1].0;
        let signed_device = own.sign(&phone.identity());
        let signed_master = phone.key.sign(&master.cross("master"));
        let signed_bob = others.sign(&bobs.cross("master"));
        let body = json!({
            &phone.user: { "PHONE": signed_device, &master.public: signed_master, "NONE": signed_device },
            &bob.user: { &bobs.public: signed_bob, "B": bob.identity() },
        });
        let answer = server.post(SIGNATURES, Some(&phone.token), &body).await.json(StatusCode::OK);
        let failures = &answer["failures"];
        assert_eq!(failures[&phone.user]["NONE"]["errcode"], "M_NOT_FOUND");
        assert_eq!(failures[&bob.user]["B"]["errcode"], "M_NOT_FOUND");
        assert_eq!(failures[&phone.user].as_object().unwrap().len(), 1, "{failures}");
        assert_eq!(failures[&bob.user].as_object().unwrap().len(), 1, "{failures}");
        let own_view = phone.query(server, &phone.user).await;
        let mut device = own_view["device_keys"][&phone.user]["PHONE"].clone();
        device.as_object_mut().unwrap().remove("unsigned");
        assert_eq!(device, signed_device);
        assert_eq!(own_view["master_keys"][&phone.user], signed_master);
        assert_eq!(phone.query(server, &bob.user).await["master_keys"][&bob.user], signed_bob);
        assert_eq!(bob.query(server, &bob.user).await["master_keys"][&bob.user], bobs.cross("master"));
        let mut forged = signed_device.clone();
        forged["signatures"][&phone.user][format!("ed25519:{}", own.public)] =
            signed_master["signatures"][&phone.user]["ed25519:PHONE"].clone();
        let mut changed = signed_device.clone();
        changed["algorithms"] = json!([]);
        for (bad, errcode) in [(forged, "M_INVALID_SIGNATURE"), (changed, "M_INVALID_PARAM")] {
            let body = json!({ &phone.user: { "PHONE": bad } });
            let answer = server.post(SIGNATURES, Some(&phone.token), &body).await.json(StatusCode::OK);
            assert_eq!(answer["failures"][&phone.user]["PHONE"]["errcode"], errcode);
        }
        // New keys of the device are not signed.
        let again = Device { key: Key::new(&phone.user, Some("PHONE")), ..phone };
        again.upload_identity(server).await;
        let found = bob.query(server, &again.user).await;
        let signatures = found["device_keys"][&again.user]["PHONE"]["signatures"][&again.user].as_object().unwrap();
        assert_eq!(signatures.len(), 1);
    })
    .await;
}

/// Those in an encrypted room hear of new keys, of who comes and who goes; others do not.
#[tokio::test]
async fn device_lists_follow_rooms() {
    on_both(async |server: &Server| {
        let alice = Device::new(server, "alice", "A").await;
        let bob = Device::new(server, "bob", "B").await;
        let carol = Device::new(server, "carol", "C").await;
        let encryption = json!({ "type": "m.room.encryption", "state_key": "",
                                 "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
        let create = async |state: Value| {
            let body = json!({ "preset": "public_chat", "initial_state": state });
            let made = server.post("/_matrix/client/v3/createRoom", Some(&alice.token), &body).await;
            made.json(StatusCode::OK)["room_id"].as_str().unwrap().to_owned()
        };
        let act = async |who: &Device, room: &str, what: &str| {
            let path = format!("/_matrix/client/v3/rooms/{room}/{what}");
            server.post(&path, Some(&who.token), &json!({})).await.json(StatusCode::OK);
        };
        let mut tokens: std::collections::HashMap<String, String> = std::collections::HashMap::new();
        for device in [&alice, &bob, &carol] {
            let sync = server.get("/_matrix/client/v3/sync", Some(&device.token)).await.json(StatusCode::OK);
            assert!(sync.get("device_lists").is_none());
            tokens.insert(device.user.clone(), sync["next_batch"].as_str().unwrap().to_owned());
        }
        // What is told to a device: by /sync, and the same by /keys/changes.
        let mut news = async |device: &Device| -> (Vec<String>, Vec<String>) {
            let since = tokens[&device.user].clone();
            let path = format!("/_matrix/client/v3/sync?since={since}");
            let sync = server.get(&path, Some(&device.token)).await.json(StatusCode::OK);
            let next = sync["next_batch"].as_str().unwrap().to_owned();
            let path = format!("/_matrix/client/v3/keys/changes?from={since}&to={next}");
            let changes = server.get(&path, Some(&device.token)).await.json(StatusCode::OK);
            let list = |value: &Value| -> Vec<String> {
                let names = value.as_array().into_iter().flatten();
                names.map(|name| name.as_str().unwrap()[1..].split(':').next().unwrap().to_owned()).collect()
            };
            let told = (list(&sync["device_lists"]["changed"]), list(&sync["device_lists"]["left"]));
            assert_eq!(told, (list(&changes["changed"]), list(&changes["left"])));
            tokens.insert(device.user.clone(), next);
            told
        };
        let told = |changed: &[&str], left: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            (list(changed), list(left))
        };
        let secret = create(json!([encryption])).await;
        act(&bob, &secret, "join").await;
        assert_eq!(news(&alice).await, told(&["bob"], &[]));
        assert_eq!(news(&bob).await, told(&["alice"], &[]));
        assert_eq!(news(&carol).await, told(&[], &[]));
        bob.upload_identity(server).await;
        assert_eq!(news(&alice).await, told(&["bob"], &[]));
        assert_eq!(news(&bob).await, told(&["bob"], &[]), "the own list too");
        assert_eq!(news(&carol).await, told(&[], &[]));
        assert_eq!(news(&alice).await, told(&[], &[]), "once");
        // A second room changes nothing, and leaving one of two neither.
        let second = create(json!([encryption])).await;
        act(&bob, &second, "join").await;
        assert_eq!((news(&alice).await, news(&bob).await), (told(&[], &[]), told(&[], &[])));
        act(&bob, &secret, "leave").await;
        assert_eq!((news(&alice).await, news(&bob).await), (told(&[], &[]), told(&[], &[])));
        act(&bob, &second, "leave").await;
        assert_eq!((news(&alice).await, news(&bob).await), (told(&[], &["bob"]), told(&[], &["alice"])));
        bob.upload(
            server,
            json!({ "device_keys": Device { key: Key::new(&bob.user, Some("B")), token: String::new(),
            user: bob.user.clone(), id: bob.id.clone() }.identity() }),
        )
        .await;
        assert_eq!(news(&alice).await, told(&[], &[]), "they share nothing");
        act(&bob, &secret, "join").await;
        assert_eq!(news(&alice).await, told(&["bob"], &[]));
        assert_eq!(news(&bob).await, told(&["alice", "bob"], &[]));
        // A room that becomes encrypted; then one that is left although an open one is shared.
        let open = create(json!([])).await;
        for device in [&bob, &carol] {
            act(device, &open, "join").await;
        }
        assert_eq!(news(&carol).await, told(&["alice", "bob"], &[]));
        assert_eq!(news(&alice).await, told(&["carol"], &[]));
        news(&bob).await;
        act(&bob, &secret, "leave").await;
        assert_eq!(news(&alice).await, told(&[], &["bob"]), "no encrypted room any more");
        let path = format!("/_matrix/client/v3/rooms/{open}/state/m.room.encryption");
        server.request(Method::PUT, &path, Some(&alice.token), &encryption["content"]).await.json(StatusCode::OK);
        assert_eq!(news(&alice).await, told(&["bob", "carol"], &[]));
        assert_eq!(news(&carol).await, told(&["alice", "bob"], &[]));
        news(&bob).await;
        // The end of a device is news too.
        server.post("/_matrix/client/v3/logout", Some(&bob.token), &json!({})).await.json(StatusCode::OK);
        assert_eq!(news(&alice).await, told(&["bob"], &[]));
        assert_eq!(alice.query(server, &bob.user).await["device_keys"][&bob.user], json!({}));
    })
    .await;
}

/// A device waits with messages to it until another one takes it over.
#[tokio::test]
async fn dehydrated_devices_wait() {
    on_both(async |server: &Server| {
        let phone = Device::new(server, "alice", "PHONE").await;
        let bob = Device::new(server, "bob", "B").await;
        let none = server.get(DEHYDRATED, Some(&phone.token)).await;
        assert_eq!(none.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let waiting = Device {
            token: String::new(),
            key: Key::new(&phone.user, Some("WAITING")),
            user: phone.user.clone(),
            id: "WAITING".to_owned(),
        };
        let data = json!({ "algorithm": "org.matrix.msc3814.v2", "device_pickle": "abc", "nonce": "n" });
        let body = json!({
            "device_id": "WAITING", "device_data": data, "device_keys": waiting.identity(),
            "initial_device_display_name": "Dehydrated",
            "one_time_keys": { "signed_curve25519:1": waiting.one_time("one") },
            "fallback_keys": { "signed_curve25519:f": waiting.one_time("ffff") },
        });
        let mut foreign = body.clone();
        foreign["device_keys"] = phone.identity();
        let put = async |body: &Value| server.request(Method::PUT, DEHYDRATED, Some(&phone.token), body).await;
        assert_eq!(put(&foreign).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        assert_eq!(put(&body).await.json(StatusCode::OK), json!({ "device_id": "WAITING" }));
        let shown = server.get(DEHYDRATED, Some(&phone.token)).await.json(StatusCode::OK);
        assert_eq!(shown, json!({ "device_id": "WAITING", "device_data": data }));
        assert!(bob.query(server, &phone.user).await["device_keys"][&phone.user]["WAITING"].is_object());
        assert_eq!(bob.claim(server, &waiting).await, json!({ "signed_curve25519:1": waiting.one_time("one") }));
        for n in 0..3 {
            let path = format!("/_matrix/client/v3/sendToDevice/m.test/{n}");
            let body = json!({ "messages": { &phone.user: { "WAITING": { "n": n } } } });
            server.request(Method::PUT, &path, Some(&bob.token), &body).await.json(StatusCode::OK);
        }
        let events = format!("{DEHYDRATED}/WAITING/events");
        let got = server.post(&events, Some(&phone.token), &json!({})).await.json(StatusCode::OK);
        let numbers: Vec<&Value> =
            got["events"].as_array().unwrap().iter().map(|event| &event["content"]["n"]).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(got["events"][0]["sender"], bob.user);
        let next = json!({ "next_batch": got["next_batch"] });
        let got = server.post(&events, Some(&phone.token), &next).await.json(StatusCode::OK);
        assert_eq!(got["events"], json!([]));
        let other = server.post(&format!("{DEHYDRATED}/PHONE/events"), Some(&phone.token), &json!({})).await;
        assert_eq!(other.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        let gone = server.request(Method::DELETE, DEHYDRATED, Some(&phone.token), &json!({})).await;
        assert_eq!(gone.json(StatusCode::OK), json!({ "device_id": "WAITING" }));
        assert_eq!(bob.query(server, &phone.user).await["device_keys"][&phone.user], json!({}));
    })
    .await;
}
