//! Tests of sliding sync.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use myelin_rooms::MembershipAction;
use myelin_store::{
    AccountCreation, LogIn, NewAccount, Operation, ToDevice, ToDeviceMessage,
    testing::{Fresh, on_both},
};
use proptest::prelude::*;
use serde_json::{Value, json, value::to_raw_value};

use super::{Person, World, filtered};
use crate::{Error, ReceiptType, SlidingCaller, SlidingForm, SlidingQuery, SlidingRequest};

/// A client with a connection.
#[derive(Clone)]
struct Device {
    person: Person,
    nid: i64,
}

impl World {
    /// A user with an account and a device, which connections are kept for.
    async fn device(&self, name: &str) -> Device {
        let person = self.person(name).await;
        let store = self.rooms.store();
        let new = NewAccount {
            user_id: &person.id,
            password_hash: None,
            is_admin: false,
            is_guest: false,
            registration_token: None,
            now_ms: 1,
        };
        assert!(matches!(store.create_account(new).await.unwrap(), AccountCreation::Created(_)));
        let login = LogIn {
            user_nid: person.nid,
            device_id: "DEVICE",
            initial_display_name: None,
            access_token_hash: name.as_bytes(),
            expires_ts: None,
            refresh_token_hash: None,
            now_ms: 1,
        };
        Device { nid: store.log_in(login).await.unwrap().unwrap(), person }
    }

    async fn slide(&self, device: &Device, last: Option<&Value>, body: Value) -> Value {
        serde_json::from_slice(&self.sync.sliding_sync(slid(device, last, body)).await.unwrap()).unwrap()
    }

    async fn name(&self, room: &myelin_store::RoomName, sender: &Person, name: &str) {
        let room = self.rooms.store().room_by_nid(room.nid).await.unwrap();
        let content = serde_json::from_value(json!({ "name": name })).unwrap();
        self.rooms.set_state(&room, &sender.id, "m.room.name", "", content).await.unwrap();
    }
}

fn read(device: &Device, form: SlidingForm, last: Option<&Value>, mut body: Value) -> Result<SlidingRequest, Error> {
    if let Some(last) = last {
        body["pos"] = last["pos"].clone();
    }
    body["set_presence"] = json!("offline");
    let caller =
        SlidingCaller { user_nid: device.person.nid, user_id: device.person.id.clone(), device_nid: device.nid };
    SlidingRequest::parse(caller, form, SlidingQuery::default(), body.to_string().as_bytes())
}

fn slid(device: &Device, last: Option<&Value>, body: Value) -> SlidingRequest {
    read(device, SlidingForm::Unstable, last, body).unwrap()
}

/// One list of the first rooms.
fn window(end: usize, limit: usize, required: &Value) -> Value {
    json!({ "lists": { "all": { "ranges": [[0, end]], "timeline_limit": limit, "required_state": required } } })
}

fn timeline(room: &Value) -> Vec<&str> {
    let events = room["timeline"].as_array().into_iter().flatten();
    events.filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn state(room: &Value) -> Vec<String> {
    let events = room["required_state"].as_array().into_iter().flatten();
    let mut keys: Vec<String> = events
        .map(|event| format!("{} {}", event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap()))
        .collect();
    keys.sort();
    keys
}

/// The newest rooms come first; what was told is not told again; a window that grows brings the rest.
#[tokio::test]
async fn a_window_on_rooms() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.device("bob").await);
        let mut rooms = Vec::new();
        for number in 0..4 {
            let room = world.room(&alice).await;
            world.join(&room, &bob.person).await;
            world.say(&room, &alice, &format!("first of {number}")).await;
            rooms.push(room);
        }
        world.name(&rooms[3], &alice, "Three").await;
        let required = json!([["m.room.create", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]]);
        let first = world.slide(&bob, None, window(1, 1, &required)).await;
        assert_eq!(first["lists"]["all"]["count"], 4);
        let id = |number: usize| rooms[number].room_id.as_str();
        let told: BTreeSet<&str> = first["rooms"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(told, BTreeSet::from([id(2), id(3)]));
        let three = &first["rooms"][id(3)];
        assert_eq!(
            (&three["name"], &three["initial"], &three["joined_count"]),
            (&json!("Three"), &json!(true), &json!(2))
        );
        assert!(three["heroes"].is_null() && three["limited"] == true && three["num_live"] == 0);
        let two = &first["rooms"][id(2)];
        assert_eq!(timeline(two), ["first of 2"]);
        assert_eq!(two["heroes"][0]["user_id"], "@alice:example.org");
        assert!(two["name"].is_null());
        assert_eq!(
            state(two),
            ["m.room.create ", "m.room.member @alice:example.org", "m.room.member @bob:example.org"]
        );
        assert_eq!(two["notification_count"], 1);
        // The name is no message: the order that clients show is another one.
        assert!(two["bump_stamp"].as_i64() < three["bump_stamp"].as_i64());

        let quiet = world.slide(&bob, Some(&first), window(1, 1, &required)).await;
        assert!(quiet["rooms"].is_null(), "{quiet}");
        world.say(&rooms[0], &alice, "second of 0").await;
        let next = world.slide(&bob, Some(&quiet), window(1, 1, &required)).await;
        let zero = &next["rooms"][id(0)];
        assert_eq!(next["rooms"].as_object().unwrap().len(), 1);
        assert_eq!(
            (timeline(zero), &zero["initial"], &zero["num_live"]),
            (vec!["second of 0"], &json!(true), &json!(1))
        );
        world.say(&rooms[0], &alice, "third of 0").await;
        let again = world.slide(&bob, Some(&next), window(1, 1, &required)).await;
        let zero = &again["rooms"][id(0)];
        assert_eq!(timeline(zero), ["third of 0"]);
        assert!(zero["initial"].is_null() && zero["limited"].is_null() && zero["joined_count"].is_null());
        assert!(state(zero).is_empty(), "alice is known: {zero}");

        // A member who comes lazily is told once, and again if that answer got lost.
        let carol = world.person("carol").await;
        world.join(&rooms[0], &carol).await;
        let joined = world.slide(&bob, Some(&again), window(1, 0, &required)).await;
        world.say(&rooms[0], &carol, "I am carol").await;
        let told = |answer: &Value| state(&answer["rooms"][id(0)]).len();
        let said = world.slide(&bob, Some(&joined), window(1, 1, &required)).await;
        let repeated = world.slide(&bob, Some(&joined), window(1, 1, &required)).await;
        assert_eq!((told(&said), told(&repeated)), (1, 1), "{said}");
        world.say(&rooms[0], &carol, "third of 0").await;
        let again = world.slide(&bob, Some(&repeated), window(1, 1, &required)).await;
        assert_eq!((told(&again), timeline(&again["rooms"][id(0)])), (0, vec!["third of 0"]));

        let grown = world.slide(&bob, Some(&again), window(99, 1, &required)).await;
        let told: Vec<&String> = grown["rooms"].as_object().unwrap().keys().collect();
        assert_eq!(told, [id(1)]);

        // More of the timeline, and other state, on demand.
        let more = json!([["m.room.create", ""], ["m.room.topic", ""]]);
        world.topic(&rooms[0], &alice, "A topic").await;
        let shown = world.slide(&bob, Some(&grown), window(99, 1, &required)).await;
        let body = json!({
            "lists": window(99, 1, &required)["lists"],
            "room_subscriptions": { id(0): { "timeline_limit": 10, "required_state": more } },
        });
        let subscribed = world.slide(&bob, Some(&shown), body.clone()).await;
        let zero = &subscribed["rooms"][id(0)];
        let all = ["first of 0", "second of 0", "third of 0", "I am carol", "third of 0"];
        assert_eq!(timeline(zero), all);
        assert_eq!((&zero["unstable_expanded_timeline"], &zero["num_live"]), (&json!(true), &json!(0)));
        assert!(
            state(zero).contains(&"m.room.topic ".to_owned()) && !state(zero).contains(&"m.room.create ".to_owned())
        );
        let quiet = world.slide(&bob, Some(&subscribed), body).await;
        assert!(quiet["rooms"].is_null(), "{quiet}");
        world.rooms.store().close().await;
    })
    .await;
}

/// Invitations, knocks on doors, and ends: told once, as they are; gone after.
#[tokio::test]
async fn coming_and_going() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.device("bob").await);
        let room = world.room(&alice).await;
        let id = room.room_id.as_str();
        let required = json!([["m.room.member", "$ME"]]);
        let body = window(9, 5, &required);
        let first = world.slide(&bob, None, body.clone()).await;
        assert_eq!(first["lists"]["all"]["count"], 0);
        world.act(&room, &alice, &bob.person, MembershipAction::Invite).await;
        let invited = world.slide(&bob, Some(&first), body.clone()).await;
        let told = &invited["rooms"][id];
        assert!(told["timeline"].is_null() && told["initial"] == true);
        assert!(told["invite_state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
        let stable =
            json!({ "lists": { "all": { "range": [0, 9], "timeline_limit": 5, "filters": { "is_invited": true } } } });
        let request = read(&bob, SlidingForm::Stable, None, stable).unwrap();
        let merged: Value = serde_json::from_slice(&world.sync.sliding_sync(request).await.unwrap()).unwrap();
        let told = &merged["rooms"][id];
        assert_eq!((&told["membership"], &told["lists"]), (&json!("invite"), &json!(["all"])));
        assert!(told["stripped_state"].is_array() && told["invite_state"].is_null());
        let invited = world.slide(&bob, None, body.clone()).await;

        world.join(&room, &bob.person).await;
        world.say(&room, &alice, "welcome").await;
        let joined = world.slide(&bob, Some(&invited), body.clone()).await;
        let told = &joined["rooms"][id];
        assert!(told["initial"] == true && told["invite_state"].is_null());
        assert_eq!(timeline(told), ["welcome"]);

        world.act(&room, &bob.person, &bob.person, MembershipAction::Leave).await;
        world.say(&room, &alice, "not for bob").await;
        let left = world.slide(&bob, Some(&joined), body.clone()).await;
        let told = &left["rooms"][id];
        assert_eq!(told["required_state"][0]["content"]["membership"], "leave");
        assert!(timeline(told).is_empty(), "{told}");
        let gone = world.slide(&bob, Some(&left), body.clone()).await;
        assert!(gone["rooms"].is_null() && gone["lists"]["all"]["count"] == 0, "{gone}");
        assert_eq!(world.slide(&bob, None, body.clone()).await["lists"]["all"]["count"], 0, "one knows that one left");

        // Whom others put out may not have seen it.
        world.join(&room, &bob.person).await;
        world.act(&room, &alice, &bob.person, MembershipAction::Ban).await;
        let anew = world.slide(&bob, None, body.clone()).await;
        assert_eq!(anew["rooms"][id]["required_state"][0]["content"]["membership"], "ban");
        world.rooms.store().forget_room(room.nid, bob.person.nid).await.unwrap();
        assert!(world.slide(&bob, None, body).await["rooms"].is_null(), "what is forgotten stays so");
        world.rooms.store().close().await;
    })
    .await;
}

/// A position stays good until the next is used, also after a restart; one of somebody else's, or an old one, does not.
#[tokio::test]
async fn positions() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.device("alice").await, world.device("bob").await);
        let room = world.room(&alice.person).await;
        world.join(&room, &bob.person).await;
        let body = window(9, 5, &json!([["m.room.member", "$LAZY"]]));
        let first = world.slide(&bob, None, body.clone()).await;
        // A room that is new is remembered with the answer; what is new in it is not.
        let enter = async || {
            let room = world.room(&alice.person).await;
            world.join(&room, &bob.person).await;
        };
        enter().await;
        world.say(&room, &alice.person, "one").await;
        let lost = world.slide(&bob, Some(&first), body.clone()).await;
        world.sync.sliding.forget();
        let again = world.slide(&bob, Some(&first), body.clone()).await;
        for answer in [&lost, &again] {
            assert_eq!(timeline(&answer["rooms"][room.room_id.as_str()]), ["one"]);
            assert_eq!(answer["rooms"].as_object().unwrap().len(), 2);
        }
        let refused = |device: &Device, last: &Value| {
            let request = slid(device, Some(last), body.clone());
            let sync = world.sync.clone();
            async move { matches!(sync.sliding_sync(request).await, Err(Error::UnknownPos)) }
        };
        assert!(refused(&bob, &lost).await, "its answer was taken back");
        assert!(refused(&alice, &again).await, "it is not hers");
        world.say(&room, &alice.person, "two").await;
        enter().await;
        let next = world.slide(&bob, Some(&again), body.clone()).await;
        assert_eq!(timeline(&next["rooms"][room.room_id.as_str()]), ["two"]);
        enter().await;
        let last = world.slide(&bob, Some(&next), body.clone()).await;
        assert!(refused(&bob, &again).await, "it is too old");
        // After a restart with nothing in memory, it goes on where it was.
        world.sync.sliding.forget();
        let quiet = world.slide(&bob, Some(&last), body.clone()).await;
        assert!(quiet["rooms"].is_null());
        let other = json!({ "conn_id": "other", "lists": body["lists"] });
        world.slide(&bob, None, other).await;
        world.slide(&bob, Some(&quiet), body.clone()).await;
        world.slide(&bob, None, body.clone()).await;
        assert!(refused(&bob, &quiet).await, "the connection began anew");
        world.rooms.store().close().await;
    })
    .await;
}

/// Who waits is woken by what is in the windows and extensions asked for; who waits in vain is told so, and how to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.device("bob").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob.person).await;
        let enabled = json!({ "enabled": true });
        let mut body = window(9, 5, &json!([]));
        body["timeout"] = json!(20_000);
        body["extensions"] = json!({ "typing": enabled, "receipts": enabled, "account_data": enabled, "e2ee": enabled,
            "to_device": { "enabled": true } });
        let first = world.slide(&bob, None, body.clone()).await;
        assert!(first["extensions"]["e2ee"]["device_one_time_keys_count"].is_object());
        assert!(first["extensions"]["to_device"]["next_batch"].is_string());
        let global = first["extensions"]["account_data"]["global"].as_array().unwrap();
        assert!(global.iter().any(|data| data["type"] == "m.push_rules"));
        let poll = |last: &Value| {
            let (sync, mut body) = (world.sync.clone(), body.clone());
            body["extensions"]["to_device"]["since"] = last["extensions"]["to_device"]["next_batch"].clone();
            let request = slid(&bob, Some(last), body);
            tokio::spawn(async move {
                let answer = tokio::time::timeout(Duration::from_secs(10), sync.sliding_sync(request)).await;
                serde_json::from_slice::<Value>(&answer.unwrap().unwrap()).unwrap()
            })
        };
        let id = room.room_id.as_str();
        let waits = poll(&first);
        let event = world.say(&room, &alice, "hello").await;
        let answer = waits.await.unwrap();
        assert_eq!(timeline(&answer["rooms"][id]), ["hello"]);
        assert_eq!(answer["rooms"][id]["notification_count"], 1);

        let waits = poll(&answer);
        world.sync.set_typing(&room, alice.nid, true, None).await.unwrap();
        let answer = waits.await.unwrap();
        let users = &answer["extensions"]["typing"]["rooms"][id]["content"]["user_ids"];
        assert_eq!(users, &json!(["@alice:example.org"]));
        assert!(answer["rooms"].is_null());

        // One's own receipt changes the counts.
        let waits = poll(&answer);
        world.sync.mark_read(&room, bob.person.nid, ReceiptType::Read, None, &event).await.unwrap();
        let answer = waits.await.unwrap();
        assert_eq!(answer["rooms"][id]["notification_count"], 0);
        let receipts = &answer["extensions"]["receipts"]["rooms"][id]["content"][event.as_str()]["m.read"];
        assert!(receipts["@bob:example.org"]["ts"].is_number(), "{answer}");

        let waits = poll(&answer);
        let direct = to_raw_value(&json!({ "@alice:example.org": [id] })).unwrap();
        world.sync.set_account_data(bob.person.nid, None, "m.direct", &direct).await.unwrap();
        let answer = waits.await.unwrap();
        assert_eq!(answer["extensions"]["account_data"]["global"][0]["type"], "m.direct");
        assert_eq!(answer["rooms"][id]["is_dm"], true);
        let waits = poll(&answer);
        world.sync.set_tag(bob.person.nid, room.nid, "m.favourite", Some(json!({}))).await.unwrap();
        let answer = waits.await.unwrap();
        assert_eq!(answer["extensions"]["account_data"]["rooms"][id][0]["type"], "m.tag");

        // A message to the device comes until it is acknowledged, then no more.
        let waits = poll(&answer);
        let message = ToDeviceMessage { user_nid: bob.person.nid, device_nid: bob.nid, content: "{\"a\":1}".into() };
        let to_device = ToDevice {
            origin: "1".into(),
            txn: "txn".into(),
            sender: alice.id.as_str().into(),
            event_type: "org.example.message".into(),
            messages: vec![message],
            edus: Vec::new(),
            now_ms: 1,
            pos: 0,
        };
        world.rooms.store().commit(Operation::ToDevice(Box::new(to_device))).await.unwrap();
        let answer = waits.await.unwrap();
        assert_eq!(answer["extensions"]["to_device"]["events"][0]["content"]["a"], 1);
        let next = answer["extensions"]["to_device"]["next_batch"].clone();
        let mut short = body.clone();
        short["timeout"] = json!(0);
        let again = world.slide(&bob, Some(&answer), short.clone()).await;
        assert_eq!(again["extensions"]["to_device"]["events"][0]["content"]["a"], 1, "it was not acknowledged");
        short["extensions"]["to_device"]["since"] = next;
        let empty = world.slide(&bob, Some(&again), short.clone()).await;
        assert!(empty["extensions"]["to_device"]["events"].is_null());
        short["extensions"]["to_device"].as_object_mut().unwrap().remove("since");
        let empty = world.slide(&bob, Some(&empty), short).await;
        assert!(empty["extensions"]["to_device"]["events"].is_null(), "it is deleted");

        // Nobody is left waiting by a server that stops.
        let waits = poll(&empty);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waits.is_finished());
        world.sync.stop();
        assert!(waits.await.unwrap()["rooms"].is_null());
        world.rooms.store().close().await;
    })
    .await;
}

/// Lists take the rooms that their filters describe.
#[tokio::test]
async fn filters() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.device("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..4 {
            let room = world.room(&alice).await;
            world.join(&room, &bob.person).await;
            rooms.push(room);
        }
        let content = serde_json::from_value(json!({ "algorithm": "m.megolm.v1.aes-sha2" })).unwrap();
        world.rooms.set_state(&rooms[0], &alice.id, "m.room.encryption", "", content).await.unwrap();
        world.sync.set_tag(bob.person.nid, rooms[1].nid, "m.favourite", Some(json!({}))).await.unwrap();
        world.sync.set_tag(bob.person.nid, rooms[1].nid, "u.work", Some(json!({}))).await.unwrap();
        let direct = to_raw_value(&json!({ "@alice:example.org": [rooms[2].room_id] })).unwrap();
        world.sync.set_account_data(bob.person.nid, None, "m.direct", &direct).await.unwrap();
        let child = rooms[1].room_id.as_str();
        for (via, room) in [(json!(["example.org"]), child), (json!([]), rooms[2].room_id.as_str())] {
            let content = serde_json::from_value(json!({ "via": via })).unwrap();
            world.rooms.set_state(&rooms[3], &alice.id, "m.space.child", room, content).await.unwrap();
        }
        let cases = [
            (json!({}), 4),
            (json!({ "is_encrypted": true }), 1),
            (json!({ "is_encrypted": false }), 3),
            (json!({ "is_dm": true }), 1),
            (json!({ "is_dm": false, "is_encrypted": false }), 2),
            (json!({ "tags": ["m.favourite"] }), 1),
            (json!({ "tags": ["m.favourite"], "not_tags": ["u.work"] }), 0),
            (json!({ "not_tags": ["u.work"] }), 3),
            (json!({ "spaces": [rooms[3].room_id, "!unknown"] }), 1),
            (json!({ "is_invite": true }), 0),
            (json!({ "room_types": [null] }), 4),
            (json!({ "room_types": ["m.space"] }), 0),
            (json!({ "not_room_types": ["m.space"] }), 4),
            (json!({ "room_types": [null], "not_room_types": [null] }), 0),
        ];
        for (filters, count) in cases {
            let list = json!({ "ranges": [[0, 9]], "timeline_limit": 0, "required_state": [], "filters": filters });
            let answer = world.slide(&bob, None, json!({ "lists": { "a": list } })).await;
            assert_eq!(answer["lists"]["a"]["count"], count, "{filters}");
            assert_eq!(answer["rooms"].as_object().map_or(0, serde_json::Map::len), count, "{filters}");
        }
        world.rooms.store().close().await;
    })
    .await;
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Say(usize),
    Topic(usize),
    Bob(usize, MembershipAction),
    Alice(usize, MembershipAction),
    Read(usize),
    /// Sync, with so many rooms in the window.
    Sync(usize),
    /// Sync, and lose the answer.
    Lose,
    Restart,
}

const ROOMS: usize = 3;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    use MembershipAction::{Ban, Invite, Join, Kick, Leave, Unban};
    let room = 0..ROOMS;
    let act = prop_oneof![
        10 => room.clone().prop_map(Act::Say),
        4 => room.clone().prop_map(Act::Topic),
        3 => (room.clone(), prop_oneof![4 => Just(Join), 1 => Just(Leave)]).prop_map(|(room, act)| Act::Bob(room, act)),
        1 => (room.clone(), prop_oneof![Just(Invite), Just(Kick), Just(Ban), Just(Unban)])
            .prop_map(|(room, act)| Act::Alice(room, act)),
        1 => room.prop_map(Act::Read),
        4 => (1..=ROOMS).prop_map(Act::Sync),
        1 => Just(Act::Lose),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 1..60)
}

/// What a client keeps of a room that it is in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    timeline: Vec<String>,
    state: BTreeMap<(String, String), String>,
}

#[derive(Debug, Default)]
struct Client {
    last: Option<Value>,
    rooms: BTreeMap<String, Kept>,
    invited: BTreeSet<String>,
}

fn event_id(event: &Value) -> String {
    event["event_id"].as_str().unwrap().to_owned()
}

impl Kept {
    fn set(&mut self, event: &Value) {
        let key = |name: &str| event[name].as_str().unwrap().to_owned();
        self.state.insert((key("type"), key("state_key")), event_id(event));
    }
}

impl Client {
    async fn slide(&mut self, world: &World, bob: &Device, rooms: usize) {
        let answer = world.slide(bob, self.last.as_ref(), window(rooms - 1, 100, &json!([["*", "*"]]))).await;
        for (room_id, room) in answer["rooms"].as_object().into_iter().flatten() {
            let own = room["required_state"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|event| event["type"] == "m.room.member" && event["state_key"] == bob.person.id.as_str());
            let is_out = own.is_some_and(|own| own["content"]["membership"] != "join");
            if room["invite_state"].is_array() || is_out {
                self.rooms.remove(room_id);
                self.invited.remove(room_id);
                if room["invite_state"].is_array() {
                    self.invited.insert(room_id.clone());
                }
                continue;
            }
            self.invited.remove(room_id);
            if room["initial"] == true {
                self.rooms.remove(room_id);
            }
            let kept = self.rooms.entry(room_id.clone()).or_default();
            assert!(room["limited"].is_null(), "no timeline has a hundred events");
            for event in room["timeline"].as_array().into_iter().flatten() {
                assert!(!kept.timeline.contains(&event_id(event)), "an event came twice");
                kept.timeline.push(event_id(event));
            }
            for event in room["required_state"].as_array().into_iter().flatten() {
                kept.set(event);
            }
        }
        self.last = Some(answer);
    }

    /// What a client of the older kind keeps that begins now.
    async fn of_v2(world: &World, bob: &Device) -> Self {
        let mut client = Self::default();
        let filter = json!({ "room": { "timeline": { "limit": 100 } } });
        let answer = world.ask(filtered(&bob.person, None, filter)).await;
        for (room_id, room) in answer["rooms"]["join"].as_object().into_iter().flatten() {
            let kept = client.rooms.entry(room_id.clone()).or_default();
            let events = |part: &str| room[part]["events"].as_array().into_iter().flatten();
            kept.timeline.extend(events("timeline").map(event_id));
            for event in events("state").chain(events("timeline").filter(|event| event["state_key"].is_string())) {
                kept.set(event);
            }
        }
        client.invited.extend(answer["rooms"]["invite"].as_object().into_iter().flatten().map(|(id, _)| id.clone()));
        client
    }
}

async fn run(acts: Vec<Act>) {
    let fresh = Fresh::sqlite();
    let world = World::open(&fresh, false).await;
    let (alice, bob) = (world.person("alice").await, world.device("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room = world.room(&alice).await;
        world.join(&room, &bob.person).await;
        rooms.push(room);
    }
    let mut client = Client::default();
    for (count, act) in acts.into_iter().enumerate() {
        // What the rules of the room refuse has no effect, here as anywhere.
        let change = async |room: usize, sender: &Person, action| {
            drop(world.rooms.change_membership(&rooms[room], &sender.id, &bob.person.id, action, None, false).await);
        };
        match act {
            Act::Say(room) => drop(world.say(&rooms[room], &alice, &count.to_string()).await),
            Act::Topic(room) => world.topic(&rooms[room], &alice, &count.to_string()).await,
            Act::Bob(room, action) => change(room, &bob.person, action).await,
            Act::Alice(room, action) => change(room, &alice, action).await,
            Act::Read(room) => {
                let event = world.say(&rooms[room], &alice, "read this").await;
                drop(world.sync.mark_read(&rooms[room], bob.person.nid, ReceiptType::Read, None, &event).await);
            }
            Act::Sync(rooms) => client.slide(&world, &bob, rooms).await,
            Act::Lose => {
                let body = window(ROOMS, 100, &json!([["*", "*"]]));
                if client.last.is_some() {
                    world.slide(&bob, client.last.as_ref(), body).await;
                }
            }
            Act::Restart => world.sync.sliding.forget(),
        }
    }
    client.slide(&world, &bob, ROOMS).await;
    let expected = Client::of_v2(&world, &bob).await;
    assert_eq!(client.invited, expected.invited);
    let names = |client: &Client| client.rooms.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&client), names(&expected));
    for (room_id, expected) in &expected.rooms {
        let kept = &client.rooms[room_id];
        assert_eq!(kept.state, expected.state);
        // What came before the last join is history that either may have or not; the end is the same.
        let common = kept.timeline.len().min(expected.timeline.len());
        let end = |timeline: &[String]| timeline[timeline.len() - common..].to_vec();
        assert_eq!(end(&kept.timeline), end(&expected.timeline));
        assert!(common > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() })]

    /// Whatever happens, whenever a client syncs meanwhile, however small its window is, and whatever gets lost: once all
    /// rooms are in the window, it has what a client of the older kind is told.
    #[test]
    fn windows_add_up(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(run(acts));
    }
}
