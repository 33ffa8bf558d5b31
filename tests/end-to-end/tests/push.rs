//! People are told by their push gateways of what their rules notify of, whatever happens to the gateway or the server.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use myelin_end_to_end::{Engine, Homeserver, Person, Setup, encode, eventually, on_both_engines};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

on_both_engines!(gateways_are_told, nothing_is_lost, private_gateways_are_not_asked);

/// Longer than a notification may take, and than the lease of a server that was killed lasts.
const SOON: Duration = Duration::from_secs(60);

/// A push gateway.
struct Gateway {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Connections are closed without an answer.
    is_away: bool,
    tries: usize,
    rejected: Vec<String>,
    told: Vec<Value>,
}

impl Gateway {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let theirs = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&theirs)));
            }
        });
        Self { port, state }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("nobody has panicked with it"))
    }

    fn go_away(&self) {
        self.with(|state| state.is_away = true);
    }

    fn come_back(&self) {
        self.with(|state| state.is_away = false);
    }

    /// What a pusher was told, in order.
    fn told(&self, pushkey: &str) -> Vec<Value> {
        let is_theirs = |told: &&Value| told["devices"][0]["pushkey"] == pushkey;
        self.with(|state| state.told.iter().filter(is_theirs).cloned().collect())
    }

    /// Waits until a pusher was told of an event.
    async fn told_of(&self, pushkey: &str, event_id: &str) -> Value {
        let find = || {
            let found = self.told(pushkey).into_iter().find(|told| told["event_id"] == event_id);
            async move { found }
        };
        eventually(&format!("{pushkey} is told of {event_id}"), SOON, find).await
    }

    /// Waits until a gateway was told how much is unread, and of no event with it.
    async fn told_unread(&self, pushkey: &str, unread: u64) {
        let last = || {
            let last = self.told(pushkey).pop();
            let is_so = last.is_some_and(|told| told["event_id"].is_null() && told["counts"]["unread"] == unread);
            async move { is_so.then_some(()) }
        };
        eventually(&format!("{pushkey} is told that {unread} are unread"), SOON, last).await;
    }

    /// Waits until it was asked in vain.
    async fn missed(&self) {
        let before = self.with(|state| state.tries);
        let tried = || {
            let tries = self.with(|state| state.tries);
            async move { (tries > before).then_some(()) }
        };
        eventually("the gateway is asked in vain", SOON, tried).await;
    }

    fn pusher(&self, pushkey: &str, format: Option<&str>) -> Value {
        let url = format!("http://127.0.0.1:{}/_matrix/push/v1/notify", self.port);
        let mut data = json!({ "url": url, "org.example": true });
        if let Some(format) = format {
            data["format"] = format.into();
        }
        json!({
            "kind": "http", "app_id": "org.example.app", "pushkey": pushkey, "app_display_name": "App",
            "device_display_name": "Phone", "lang": "en", "data": data,
        })
    }
}

/// Answers requests on one connection, one after the other.
async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut first = String::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if first.is_empty() {
                first.clone_from(&line);
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a length");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        assert_eq!(first.trim(), "POST /_matrix/push/v1/notify HTTP/1.1");
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let answer = {
            let mut state = state.lock().expect("nobody has panicked with it");
            state.tries += 1;
            if state.is_away {
                return;
            }
            let notification = body["notification"].clone();
            let key = notification["devices"][0]["pushkey"].as_str().expect("a key").to_owned();
            let rejected: Vec<&String> = state.rejected.iter().filter(|rejected| **rejected == key).collect();
            let answer = json!({ "rejected": rejected }).to_string();
            state.told.push(notification);
            answer
        };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn start(engine: Engine) -> (Homeserver, Gateway, Person, Person) {
    let server = Setup::new(engine).set("outbound.allow_private_addresses", true).start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let name = format!("profile/{}/displayname", bob.user_id());
    bob.put(&name, json!({ "displayname": "Bob the Builder" })).await.ok();
    (server, Gateway::start().await, alice, bob)
}

async fn set(person: &Person, pusher: Value) {
    person.post("pushers/set", pusher).await.ok();
}

async fn keys(person: &Person) -> Vec<String> {
    let all = person.get("pushers").await.ok();
    let pushers = all["pushers"].as_array().expect("a list");
    pushers.iter().map(|pusher| pusher["pushkey"].as_str().expect("a key").to_owned()).collect()
}

async fn shared_room(alice: &Person, bob: &Person) -> String {
    let room = bob.create_room(json!({ "preset": "public_chat", "name": "Mission Control" })).await;
    alice.join(&room).await;
    room
}

fn names(told: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = told.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Whether the metrics count deliveries with an outcome.
async fn counts_deliveries(server: &Homeserver, outcome: &str) -> bool {
    let text = server.metrics().get("/metrics").await.text();
    let outcome = format!("outcome=\"{outcome}\"");
    text.lines().any(|line| line.starts_with("myelin_push_deliveries_total") && line.contains(&outcome))
}

/// Events are told in both formats, mentions with their tweaks, invites as such, muted rooms not at all, and that
/// everything is read; whose key is rejected or whose device is gone is told no more.
async fn gateways_are_told(engine: Engine) {
    let (server, gateway, alice, bob) = start(engine).await;
    set(&alice, gateway.pusher("full", None)).await;
    set(&alice, gateway.pusher("terse", Some("event_id_only"))).await;
    let room = shared_room(&alice, &bob).await;

    let hello = bob.say(&room, "1", "hello").await;
    let full = gateway.told_of("full", &hello).await;
    assert_eq!((&full["type"], &full["sender"]), (&json!("m.room.message"), &json!(bob.user_id())));
    assert_eq!((&full["room_id"], &full["room_name"]), (&json!(room), &json!("Mission Control")));
    assert_eq!((&full["sender_display_name"], &full["content"]["body"]), (&json!("Bob the Builder"), &json!("hello")));
    assert_eq!(full["counts"], json!({ "unread": 1 }));
    assert_eq!(full["devices"][0]["data"], json!({ "org.example": true }));
    assert!(full["devices"][0]["pushkey_ts"].is_u64() && full["user_is_target"].is_null());
    let terse = gateway.told_of("terse", &hello).await;
    assert_eq!(names(&terse), ["counts", "devices", "event_id", "prio", "room_id"]);

    let mention = json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [alice.user_id()] } });
    let sent = bob.put(&format!("rooms/{room}/send/m.room.message/2"), mention).await.ok();
    let told = gateway.told_of("full", sent["event_id"].as_str().expect("an event")).await;
    assert_eq!(told["devices"][0]["tweaks"], json!({ "highlight": true, "sound": "default" }));
    assert_eq!((&told["prio"], &told["counts"]["unread"]), (&json!("high"), &json!(2)));

    let mute = format!("pushrules/global/room/{room}");
    alice.put(&mute, json!({ "actions": [] })).await.ok();
    let other = shared_room(&alice, &bob).await;
    let quiet = bob.say(&room, "3", "quiet").await;
    let loud = bob.say(&other, "4", "loud").await;
    gateway.told_of("full", &loud).await;
    assert!(gateway.told("full").iter().all(|told| told["event_id"] != quiet), "the room was muted");
    alice.delete(&mute).await.ok();

    let private = bob.create_room(json!({ "preset": "private_chat", "invite": [alice.user_id()] })).await;
    let invited = || {
        let found = gateway.told("full").into_iter().find(|told| told["room_id"] == private);
        async move { found }
    };
    let invite = eventually("the invite is told", SOON, invited).await;
    assert_eq!((&invite["type"], &invite["user_is_target"]), (&json!("m.room.member"), &json!(true)));

    alice.post(&format!("rooms/{room}/receipt/m.read/{}", encode(&quiet)), json!({})).await.ok();
    gateway.told_unread("full", 1).await;
    alice.post(&format!("rooms/{other}/receipt/m.read/{}", encode(&loud)), json!({})).await.ok();
    gateway.told_unread("full", 0).await;
    gateway.told_unread("terse", 0).await;

    let tablet = alice.log_in().await;
    set(&tablet, gateway.pusher("tablet", None)).await;
    let both = bob.say(&room, "5", "to both").await;
    gateway.told_of("tablet", &both).await;
    tablet.post("logout", json!({})).await.ok();
    gateway.with(|state| state.rejected.push("terse".to_owned()));
    let last = bob.say(&room, "6", "not to the tablet").await;
    gateway.told_of("terse", &last).await;
    let only_full = || {
        let alice = alice.clone();
        async move { (keys(&alice).await == ["full"]).then_some(()) }
    };
    eventually("the rejected pusher is gone", SOON, only_full).await;
    let after = bob.say(&room, "7", "to one").await;
    gateway.told_of("full", &after).await;
    assert!(gateway.told("tablet").iter().all(|told| told["event_id"] != last));
    assert!(gateway.told("terse").iter().all(|told| told["event_id"] != after));

    let found = alice.get("notifications?limit=3").await.ok();
    let found: Vec<&Value> = found["notifications"].as_array().expect("a list").iter().collect();
    assert_eq!((&found[0]["event"]["event_id"], &found[0]["read"]), (&json!(after), &json!(false)));
    assert!(counts_deliveries(&server, "taken").await && counts_deliveries(&server, "rejected").await);
}

/// What happens while the gateway is away is told when it is back, in order; also if the server was killed meanwhile,
/// and also if it was killed right after it had answered.
async fn nothing_is_lost(engine: Engine) {
    let (mut server, gateway, alice, bob) = start(engine).await;
    set(&alice, gateway.pusher("full", None)).await;
    let room = shared_room(&alice, &bob).await;
    let first = bob.say(&room, "first", "first").await;
    gateway.told_of("full", &first).await;

    gateway.go_away();
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(bob.say(&room, &format!("away-{number}"), "are you there?").await);
    }
    gateway.missed().await;
    gateway.come_back();
    for event_id in &sent {
        gateway.told_of("full", event_id).await;
    }
    let told = gateway.told("full");
    let order: Vec<&Value> = told.iter().map(|told| &told["event_id"]).filter(|id| **id != first).collect();
    assert_eq!(order, sent.iter().collect::<Vec<_>>(), "in order, and once");

    gateway.go_away();
    let during = bob.say(&room, "during", "during").await;
    gateway.missed().await;
    server.kill();
    gateway.come_back();
    server.start_again().await;
    gateway.told_of("full", &during).await;

    let before = bob.say(&room, "before", "before the end").await;
    server.kill();
    server.start_again().await;
    gateway.told_of("full", &before).await;
    // It goes on from there.
    let after = bob.say(&room, "after", "after").await;
    let told = gateway.told_of("full", &after).await;
    assert_eq!(told["counts"]["unread"], 9);
}

/// Without the operator's leave, nothing in the server's own network is asked, and no gateway without TLS.
async fn private_gateways_are_not_asked(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let gateway = Gateway::start().await;
    alice.post("pushers/set", gateway.pusher("full", None)).await.refused(400, "M_INVALID_PARAM");
    let mut pusher = gateway.pusher("full", None);
    pusher["data"]["url"] = format!("https://127.0.0.1:{}/_matrix/push/v1/notify", gateway.port).into();
    set(&alice, pusher).await;
    let room = shared_room(&alice, &bob).await;
    bob.say(&room, "1", "hello").await;
    let refused = || async { counts_deliveries(&server, "private_address").await.then_some(()) };
    eventually("the address is refused", SOON, refused).await;
    assert_eq!(gateway.with(|state| state.tries), 0);
}
