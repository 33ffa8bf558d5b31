//! Requests that must not work are refused with the status and the code that the specification names, readably for web
//! clients too, and change nothing.

use std::iter;

use myelin_end_to_end::{Api, Engine, Homeserver, Method, Person, Setup, encode, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    malformed_bodies,
    oversized_requests,
    unknown_addresses,
    invalid_parameters,
    missing_and_stale_tokens,
    superseded_tokens,
    what_belongs_to_others,
    what_power_does_not_allow,
    what_is_not_there,
    refused_registrations,
);

const GET: Method = Method::GET;
const PUT: Method = Method::PUT;
const POST: Method = Method::POST;
const DELETE: Method = Method::DELETE;

/// The largest body that a request may have here, in bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// A request, and how it must be refused.
type Case<'a> = (&'a str, Method, String, String, u16, &'a str);

/// Alice owns a room that Bob is in and Eve is not.
struct Scene {
    server: Homeserver,
    alice: Person,
    bob: Person,
    eve: Person,
    room: String,
}

impl Scene {
    async fn set(engine: Engine) -> Self {
        let setup = Setup::new(engine).set("limits.max_body_bytes", BODY_BYTES_MAX as i64);
        let server = setup.start().await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let eve = server.register("eve").await;
        let room =
            alice.create_room(json!({ "preset": "private_chat", "name": "Ours", "invite": [bob.user_id()] })).await;
        bob.join(&room).await;
        alice.say(&room, "first", "The first word").await;
        Self { server, alice, bob, eve, room }
    }

    /// Sends each request, sees it refused, and sees that nothing came of any of them.
    async fn refuses(&self, who: &Api, cases: impl IntoIterator<Item = Case<'_>>) {
        let before = self.everything().await;
        for (what, method, path, body, status, errcode) in cases {
            eprintln!("{what}");
            let answer = who.send(method, &path, body).await.expect("the homeserver answers");
            answer.refused(status, errcode);
        }
        assert_eq!(self.everything().await, before, "a refused request changes nothing");
        assert!(!self.server.log_text().contains("panicked"), "no request makes a handler panic");
    }

    /// What Alice and Bob could see change.
    async fn everything(&self) -> Value {
        let room = &self.room;
        let mut views = Vec::new();
        for person in [&self.alice, &self.bob] {
            let mut sync = person.sync(None, &json!({ "presence": { "not_types": ["*"] } })).await;
            sync["next_batch"] = Value::Null;
            for (_, room) in sync["rooms"]["join"].as_object_mut().into_iter().flatten() {
                room["timeline"]["prev_batch"] = Value::Null;
                strip_age(&mut room["timeline"]["events"]);
                strip_age(&mut room["state"]["events"]);
            }
            let mut messages = person.get(&format!("rooms/{room}/messages?dir=b&limit=100")).await.ok()["chunk"].take();
            strip_age(&mut messages);
            let profile = person.get(&format!("profile/{}", person.user_id())).await.ok();
            views.push(json!([sync, messages, profile]));
        }
        Value::Array(views)
    }
}

/// Takes out what changes with the clock.
fn strip_age(events: &mut Value) {
    for event in events.as_array_mut().into_iter().flatten() {
        if let Some(unsigned) = event["unsigned"].as_object_mut() {
            unsigned.remove("age");
        }
    }
}

/// Bodies that are not JSON, are JSON of another shape, or lack something.
async fn malformed_bodies(engine: Engine) {
    let scene = Scene::set(engine).await;
    let (room, alice) = (&scene.room, scene.alice.user_id());
    let endpoints = [
        (POST, "login".to_owned()),
        (POST, "createRoom".to_owned()),
        (POST, format!("rooms/{room}/invite")),
        (POST, format!("rooms/{room}/kick")),
        (POST, format!("rooms/{room}/ban")),
        (PUT, format!("rooms/{room}/send/m.room.message/malformed")),
        (PUT, format!("rooms/{room}/state/m.room.topic")),
        (PUT, format!("rooms/{room}/typing/{alice}")),
        (PUT, format!("profile/{alice}/displayname")),
        (PUT, format!("user/{alice}/account_data/org.example.note")),
        (POST, format!("user/{alice}/filter")),
    ];
    let texts = [
        ("not JSON", "{\"body\": ", "M_NOT_JSON"),
        ("not even text", "\u{0}\u{1}", "M_NOT_JSON"),
        ("two values", "{} {}", "M_NOT_JSON"),
        ("a list", "[]", "M_BAD_JSON"),
        ("a string", "\"words\"", "M_BAD_JSON"),
        ("null", "null", "M_BAD_JSON"),
    ];
    let cases = endpoints.iter().flat_map(|(method, path)| {
        texts.map(|(what, text, errcode)| (what, method.clone(), path.clone(), text.to_owned(), 400, errcode))
    });
    scene.refuses(&scene.alice, cases).await;

    let send = |transaction: &str| format!("rooms/{room}/send/org.example.note/{transaction}");
    let nested = format!("{}{}", "{\"a\":".repeat(5000), "1".to_owned() + &"}".repeat(5000));
    scene
        .refuses(
            &scene.alice,
            [
                (
                    "a preset of another type",
                    POST,
                    "createRoom".into(),
                    json!({ "preset": 7 }).to_string(),
                    400,
                    "M_BAD_JSON",
                ),
                (
                    "a list that is none",
                    POST,
                    "createRoom".into(),
                    json!({ "invite": {} }).to_string(),
                    400,
                    "M_BAD_JSON",
                ),
                (
                    "a user that is a number",
                    POST,
                    format!("rooms/{room}/invite"),
                    json!({ "user_id": 1 }).to_string(),
                    400,
                    "M_BAD_JSON",
                ),
                (
                    "typing that is no bool",
                    PUT,
                    format!("rooms/{room}/typing/{alice}"),
                    json!({ "typing": "yes" }).to_string(),
                    400,
                    "M_BAD_JSON",
                ),
                ("nobody to invite", POST, format!("rooms/{room}/invite"), "{}".into(), 400, "M_MISSING_PARAM"),
                ("nobody to kick", POST, format!("rooms/{room}/kick"), "{}".into(), 400, "M_MISSING_PARAM"),
                ("nobody to ban", POST, format!("rooms/{room}/ban"), "{}".into(), 400, "M_MISSING_PARAM"),
                ("no typing", PUT, format!("rooms/{room}/typing/{alice}"), "{}".into(), 400, "M_MISSING_PARAM"),
                ("a log-in of no type", POST, "login".into(), "{}".into(), 400, "M_MISSING_PARAM"),
                ("a fraction", PUT, send("fraction"), json!({ "n": 1.5 }).to_string(), 400, "M_BAD_JSON"),
                ("a deep fraction", PUT, send("deep"), json!({ "a": [{ "n": 0.1 }] }).to_string(), 400, "M_BAD_JSON"),
                ("an exponent", PUT, send("exponent"), "{\"n\": 1e3}".into(), 400, "M_BAD_JSON"),
                ("a number over 2^53", PUT, send("large"), "{\"n\": 9007199254740993}".into(), 400, "M_BAD_JSON"),
                ("a number over 2^64", PUT, send("huge"), "{\"n\": 99999999999999999999}".into(), 400, "M_BAD_JSON"),
                (
                    "a fraction in a state",
                    PUT,
                    format!("rooms/{room}/state/org.example.note"),
                    json!({ "n": 1.5 }).to_string(),
                    400,
                    "M_BAD_JSON",
                ),
                (
                    "a member of no membership",
                    PUT,
                    format!("rooms/{room}/state/m.room.member/{alice}"),
                    "{}".into(),
                    400,
                    "M_BAD_JSON",
                ),
                ("a body too deep to read", PUT, send("nested"), nested, 400, "M_BAD_JSON"),
            ],
        )
        .await;
}

/// Bodies, events and identifiers over their bounds.
async fn oversized_requests(engine: Engine) {
    let scene = Scene::set(engine).await;
    let room = &scene.room;
    let message = |bytes: usize| json!({ "msgtype": "m.text", "body": "x".repeat(bytes) }).to_string();
    let long = "x".repeat(256);
    scene
        .refuses(
            &scene.alice,
            [
                (
                    "a body over the limit",
                    PUT,
                    format!("rooms/{room}/send/m.room.message/body"),
                    message(BODY_BYTES_MAX),
                    413,
                    "M_TOO_LARGE",
                ),
                (
                    "a body over the limit without a token's need",
                    POST,
                    "login".into(),
                    message(BODY_BYTES_MAX),
                    413,
                    "M_TOO_LARGE",
                ),
                (
                    "an event over 65,536 bytes",
                    PUT,
                    format!("rooms/{room}/send/m.room.message/event"),
                    message(65_536),
                    413,
                    "M_TOO_LARGE",
                ),
                (
                    "an event over them by its envelope",
                    PUT,
                    format!("rooms/{room}/send/m.room.message/envelope"),
                    message(65_450),
                    413,
                    "M_TOO_LARGE",
                ),
                (
                    "a state over 65,536 bytes",
                    PUT,
                    format!("rooms/{room}/state/org.example.note"),
                    message(65_536),
                    413,
                    "M_TOO_LARGE",
                ),
                ("a long event type", PUT, format!("rooms/{room}/send/{long}/type"), "{}".into(), 413, "M_TOO_LARGE"),
                (
                    "a long state key",
                    PUT,
                    format!("rooms/{room}/state/org.example.note/{long}"),
                    "{}".into(),
                    413,
                    "M_TOO_LARGE",
                ),
                (
                    "a long user to invite",
                    POST,
                    format!("rooms/{room}/invite"),
                    json!({ "user_id": format!("@{long}:myelin.test") }).to_string(),
                    400,
                    "M_INVALID_PARAM",
                ),
                (
                    "a long alias",
                    PUT,
                    format!("directory/room/{}", encode(&format!("#{long}:myelin.test"))),
                    json!({ "room_id": room }).to_string(),
                    400,
                    "M_INVALID_PARAM",
                ),
            ],
        )
        .await;
    let fits = message(60_000);
    scene.alice.send(PUT, &format!("rooms/{room}/send/m.room.message/fits"), fits).await.expect("an answer").ok();
}

/// Addresses that nobody answers at, and methods that an address does not know.
async fn unknown_addresses(engine: Engine) {
    let scene = Scene::set(engine).await;
    let room = &scene.room;
    let unknown =
        ["", "nothing", "rooms", "/_matrix/client/v9/sync", "/_matrix/client", "/_matrix", "/_matrix/media/v3/nothing"];
    let wrong = [
        (DELETE, "sync".to_owned()),
        (POST, "sync".to_owned()),
        (GET, "createRoom".to_owned()),
        (DELETE, "login".to_owned()),
        (POST, format!("rooms/{room}/send/m.room.message/method")),
        (PUT, "/_matrix/client/versions".to_owned()),
    ];
    let unknown =
        unknown.map(|path| ("an unknown address", GET, path.to_owned(), String::new(), 404, "M_UNRECOGNIZED"));
    let wrong = wrong.map(|(method, path)| ("a wrong method", method, path, "{}".to_owned(), 405, "M_UNRECOGNIZED"));
    scene.refuses(&scene.alice, unknown.into_iter().chain(wrong)).await;

    for path in ["sync", "createRoom", "nothing"] {
        let answer = scene.server.api().send(Method::OPTIONS, path, "").await.expect("an answer");
        assert!(matches!(answer.status, 200 | 204), "{answer}");
        assert!(answer.headers.contains_key("access-control-allow-origin"), "{answer}: {:?}", answer.headers);
    }
    let allowed = scene.server.api().send(Method::OPTIONS, "sync", "").await.expect("an answer").headers;
    let allowed = |name| allowed[name].to_str().expect("text").to_ascii_lowercase();
    assert!(allowed("access-control-allow-headers").contains("authorization"));
    assert!(["get", "post", "put", "delete"].iter().all(|m| allowed("access-control-allow-methods").contains(m)));
}

/// Parameters and identifiers that mean nothing.
async fn invalid_parameters(engine: Engine) {
    let scene = Scene::set(engine).await;
    let room = &scene.room;
    let get = |what, path: String, errcode| (what, GET, path, String::new(), 400, errcode);
    scene
        .refuses(
            &scene.alice,
            [
                get("a token from nowhere", "sync?since=yesterday".into(), "M_INVALID_PARAM"),
                get("a timeout that is no number", "sync?timeout=soon".into(), "M_INVALID_PARAM"),
                get("a filter that was never stored", "sync?filter=99999".into(), "M_INVALID_PARAM"),
                get("a page from nowhere", format!("rooms/{room}/messages?dir=b&from=there"), "M_INVALID_PARAM"),
                get("a page of no direction", format!("rooms/{room}/messages"), "M_MISSING_PARAM"),
                get("a page of a wrong direction", format!("rooms/{room}/messages?dir=up"), "M_INVALID_PARAM"),
                get("a limit that is no number", format!("rooms/{room}/messages?dir=b&limit=all"), "M_INVALID_PARAM"),
                get("a room that is none", "rooms/kitchen/state".into(), "M_INVALID_PARAM"),
                get("an event id of bytes that are no text", format!("rooms/{room}/event/$%FF"), "M_INVALID_PARAM"),
                get("a user that is none", "profile/alice".into(), "M_INVALID_PARAM"),
                (
                    "a user to invite that is none",
                    POST,
                    format!("rooms/{room}/invite"),
                    json!({ "user_id": "bob" }).to_string(),
                    400,
                    "M_INVALID_PARAM",
                ),
                (
                    "a room version that nobody knows",
                    POST,
                    "createRoom".into(),
                    json!({ "room_version": "0" }).to_string(),
                    400,
                    "M_UNSUPPORTED_ROOM_VERSION",
                ),
                (
                    "a way to log in that nobody knows",
                    POST,
                    "login".into(),
                    json!({ "type": "org.example.wink" }).to_string(),
                    400,
                    "M_UNKNOWN",
                ),
            ],
        )
        .await;
}

/// No token, one that never was, and one that was logged out.
async fn missing_and_stale_tokens(engine: Engine) {
    let scene = Scene::set(engine).await;
    let (room, alice) = (&scene.room, scene.alice.user_id());
    let protected = [
        (GET, "sync".to_owned()),
        (GET, "account/whoami".to_owned()),
        (GET, "joined_rooms".to_owned()),
        (POST, "createRoom".to_owned()),
        (POST, "logout".to_owned()),
        (GET, format!("rooms/{room}/state")),
        (GET, format!("rooms/{room}/messages?dir=b")),
        (PUT, format!("rooms/{room}/send/m.room.message/token")),
        (PUT, format!("profile/{alice}/displayname")),
        (GET, "devices".to_owned()),
    ];
    let cases = |errcode| {
        let body = |method: &Method| if *method == GET { String::new() } else { "{}".to_owned() };
        protected.clone().map(|(method, path)| ("a token", method.clone(), path, body(&method), 401, errcode))
    };
    scene.refuses(&scene.alice.without_token(), cases("M_MISSING_TOKEN")).await;
    scene.refuses(&scene.alice.with_token("never-issued"), cases("M_UNKNOWN_TOKEN")).await;

    let tablet = scene.alice.log_in().await;
    tablet.get("account/whoami").await.ok();
    tablet.post("logout", json!({})).await.ok();
    scene.refuses(&tablet, cases("M_UNKNOWN_TOKEN")).await;
    let gone = tablet.get("account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    assert_ne!(gone["soft_logout"], true, "the device is gone for good: {gone}");

    let session = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "a wrong pass phrase",
    });
    scene.server.api().post("login", session).await.refused(403, "M_FORBIDDEN");
}

/// A refreshed session goes on under its new token, and the old one is nobody's once the new one was used.
async fn superseded_tokens(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let alice = server.register("alice").await;
    let session = alice
        .post(
            "login",
            json!({
                "type": "m.login.password",
                "identifier": { "type": "m.id.user", "user": "alice" },
                "password": Person::PASSWORD,
                "refresh_token": true,
            }),
        )
        .await
        .ok();
    assert!(session["expires_in_ms"].as_u64().is_some_and(|life_ms| life_ms > 0), "{session}");
    let old = alice.with_token(session["access_token"].as_str().expect("a token"));
    old.get("account/whoami").await.ok();

    let refresh = json!({ "refresh_token": session["refresh_token"] });
    let refreshed = server.api().post("refresh", refresh).await.ok();
    let new = alice.with_token(refreshed["access_token"].as_str().expect("a token"));
    let who = new.get("account/whoami").await.ok();
    assert_eq!(who["device_id"], session["device_id"]);
    old.get("account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");

    server.api().post("refresh", json!({ "refresh_token": "never-issued" })).await.refused(401, "M_UNKNOWN_TOKEN");
    new.post("logout", json!({})).await.ok();
    let used = json!({ "refresh_token": refreshed["refresh_token"] });
    server.api().post("refresh", used).await.refused(401, "M_UNKNOWN_TOKEN");
}

/// What belongs to another user, and rooms that one is not in.
async fn what_belongs_to_others(engine: Engine) {
    let scene = Scene::set(engine).await;
    let (room, alice, bob) = (&scene.room, scene.alice.user_id(), scene.bob.user_id());
    let case = |what, method, path: String, body: Value| (what, method, path, body.to_string(), 403, "M_FORBIDDEN");
    let get = |what, path: String| (what, GET, path, String::new(), 403, "M_FORBIDDEN");
    scene
        .refuses(
            &scene.eve,
            [
                case("another's name", PUT, format!("profile/{alice}/displayname"), json!({ "displayname": "Fool" })),
                case(
                    "another's face",
                    PUT,
                    format!("profile/{alice}/avatar_url"),
                    json!({ "avatar_url": "mxc://a/b" }),
                ),
                case("another's data", PUT, format!("user/{alice}/account_data/org.example.note"), json!({})),
                get("another's data, read", format!("user/{alice}/account_data/m.push_rules")),
                case("another's filter", POST, format!("user/{alice}/filter"), json!({})),
                case("another's tag", PUT, format!("user/{alice}/rooms/{room}/tags/u.work"), json!({})),
                case("another's typing", PUT, format!("rooms/{room}/typing/{alice}"), json!({ "typing": true })),
                case(
                    "a word in a strange room",
                    PUT,
                    format!("rooms/{room}/send/m.room.message/eve"),
                    json!({ "msgtype": "m.text", "body": "hi" }),
                ),
                case(
                    "a strange room's topic",
                    PUT,
                    format!("rooms/{room}/state/m.room.topic"),
                    json!({ "topic": "Eve" }),
                ),
                case("a strange room's door", POST, format!("rooms/{room}/join"), json!({})),
                case("a strange room's guests", POST, format!("rooms/{room}/invite"), json!({ "user_id": bob })),
                case("a strange room's members", POST, format!("rooms/{room}/kick"), json!({ "user_id": bob })),
                get("a strange room's state", format!("rooms/{room}/state")),
                get("a strange room's name", format!("rooms/{room}/state/m.room.name")),
                get("a strange room's history", format!("rooms/{room}/messages?dir=b")),
                get("a strange room's members, read", format!("rooms/{room}/members")),
            ],
        )
        .await;
}

/// What needs more power than one has.
async fn what_power_does_not_allow(engine: Engine) {
    let scene = Scene::set(engine).await;
    let (room, alice) = (&scene.room, scene.alice.user_id());
    scene.eve.get("account/whoami").await.ok();
    scene.alice.put(&format!("rooms/{room}/state/m.room.topic"), json!({ "topic": "Tea" })).await.ok();
    let spoken = scene.alice.say(room, "spoken", "Mine to take back").await;
    let state = |kind: &str| format!("rooms/{room}/state/{kind}");
    let case = |what, method, path: String, body: Value| (what, method, path, body.to_string(), 403, "M_FORBIDDEN");
    scene
        .refuses(
            &scene.bob,
            [
                case("the topic", PUT, state("m.room.topic"), json!({ "topic": "Coffee" })),
                case("the name", PUT, state("m.room.name"), json!({ "name": "His" })),
                case("the power", PUT, state("m.room.power_levels"), json!({ "users_default": 100 })),
                case("the door", PUT, state("m.room.join_rules"), json!({ "join_rule": "public" })),
                case(
                    "the past",
                    PUT,
                    state("m.room.history_visibility"),
                    json!({ "history_visibility": "world_readable" }),
                ),
                case("to kick", POST, format!("rooms/{room}/kick"), json!({ "user_id": alice })),
                case("to ban", POST, format!("rooms/{room}/ban"), json!({ "user_id": alice })),
                case("to unban", POST, format!("rooms/{room}/unban"), json!({ "user_id": alice })),
                case("to take back another's words", PUT, format!("rooms/{room}/redact/{spoken}/redact"), json!({})),
                case("another's state key", PUT, state(&format!("org.example.note/{alice}")), json!({})),
                case(
                    "another's membership",
                    PUT,
                    state(&format!("m.room.member/{alice}")),
                    json!({ "membership": "leave" }),
                ),
                case("to replace the room", POST, format!("rooms/{room}/upgrade"), json!({ "new_version": "12" })),
            ],
        )
        .await;

    scene.alice.post(&format!("rooms/{room}/ban"), json!({ "user_id": scene.bob.user_id() })).await.ok();
    let words = json!({ "msgtype": "m.text", "body": "hi" });
    let banned = |path: &str| format!("rooms/{room}/{path}");
    scene.bob.post(&banned("join"), json!({})).await.refused(403, "M_FORBIDDEN");
    scene.bob.put(&banned("send/m.room.message/banned"), words).await.refused(403, "M_FORBIDDEN");
    let invitation = json!({ "user_id": scene.bob.user_id() });
    scene.alice.post(&banned("invite"), invitation).await.refused(403, "M_FORBIDDEN");
}

/// Things that are not there.
async fn what_is_not_there(engine: Engine) {
    let scene = Scene::set(engine).await;
    let (room, alice) = (&scene.room, scene.alice.user_id());
    let nobodys_alias = encode("#nowhere:myelin.test");
    let get = |what, path: String| (what, GET, path, String::new(), 404, "M_NOT_FOUND");
    scene
        .refuses(
            &scene.alice,
            [
                get("an event", format!("rooms/{room}/event/$none")),
                get("a state", format!("rooms/{room}/state/org.example.none")),
                get("a state key", format!("rooms/{room}/state/m.room.name/none")),
                get("the surroundings of an event", format!("rooms/{room}/context/$none")),
                get("an alias", format!("directory/room/{nobodys_alias}")),
                get("a profile", "profile/@nobody:myelin.test".into()),
                get("a device", "devices/NONE".into()),
                get("a note", format!("user/{alice}/account_data/org.example.none")),
                get("a filter", format!("user/{alice}/filter/99999")),
                get("a file", "/_matrix/client/v1/media/download/myelin.test/none".into()),
                (
                    "an alias to remove",
                    DELETE,
                    format!("directory/room/{nobodys_alias}"),
                    String::new(),
                    404,
                    "M_NOT_FOUND",
                ),
                ("an alias to join", POST, format!("join/{nobodys_alias}"), "{}".into(), 404, "M_NOT_FOUND"),
            ],
        )
        .await;
}

/// Accounts that cannot be had, and names and aliases that somebody has.
async fn refused_registrations(engine: Engine) {
    let scene = Scene::set(engine).await;
    let register = |name: &str| json!({ "username": name, "password": Person::PASSWORD }).to_string();
    let long = "x".repeat(256);
    let names = [
        ("alice", "M_USER_IN_USE"),
        ("Ünïcode", "M_INVALID_USERNAME"),
        ("two words", "M_INVALID_USERNAME"),
        (&*long, "M_INVALID_USERNAME"),
    ];
    let registrations =
        names.map(|(name, errcode)| ("a name to register", POST, "register".to_owned(), register(name), 400, errcode));
    let checks = names.map(|(name, errcode)| {
        ("a name to ask for", GET, format!("register/available?username={}", encode(name)), String::new(), 400, errcode)
    });
    let nameless = ("no name to ask for", GET, "register/available".to_owned(), String::new(), 400, "M_MISSING_PARAM");
    scene.refuses(scene.server.api(), registrations.into_iter().chain(checks).chain(iter::once(nameless))).await;

    let alias = json!({ "room_alias_name": "ours" });
    scene.alice.create_room(alias.clone()).await;
    scene.bob.post("createRoom", alias).await.refused(400, "M_ROOM_IN_USE");
    let path = format!("directory/room/{}", encode("#ours:myelin.test"));
    scene.bob.put(&path, json!({ "room_id": scene.room })).await.refused(409, "M_UNKNOWN");
}
