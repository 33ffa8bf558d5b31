//! Tests of whole syncs, on each engine that is there.

mod model;
mod sliding;

use std::{sync::Arc, time::Duration};

use myelin_rooms::{CreateRoom, MembershipAction, Preset, Rooms, Template};
use myelin_store::{
    Operation, Receipt, RoomName,
    testing::{Fresh, on_both},
};
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedUserId, RoomVersionId, owned_server_name, presence::PresenceState,
    signatures::Ed25519KeyPair,
};
use serde_json::{Value, json, value::to_raw_value};

use crate::{
    Error, Filter, ReceiptType, Request, StateForm, Sync, SyncOptions,
    summary::{Asked, Summaries},
    token::Token,
};

/// A server without its HTTP.
struct World {
    rooms: Arc<Rooms>,
    sync: Arc<Sync>,
}

/// A user with one device.
#[derive(Clone)]
struct Person {
    nid: i64,
    id: OwnedUserId,
}

impl World {
    async fn open(fresh: &Fresh, presence: bool) -> Self {
        let store = fresh.open().await;
        let (version, document) = store.signing_key().await.unwrap();
        let key = Ed25519KeyPair::from_der(&document, version).unwrap();
        let rooms = Rooms::new(store.clone(), owned_server_name!("example.org"), key);
        let options = SyncOptions { presence, ..SyncOptions::default() };
        Self { sync: Sync::new(store, rooms.clone(), options), rooms }
    }

    async fn person(&self, name: &str) -> Person {
        let id = OwnedUserId::try_from(format!("@{name}:example.org")).unwrap();
        Person { nid: self.rooms.store().user_nid(&id).await.unwrap(), id }
    }

    async fn room(&self, creator: &Person) -> Arc<RoomName> {
        let room = CreateRoom {
            creator: creator.id.clone(),
            version: RoomVersionId::V12,
            preset: Preset::PublicChat,
            is_public: false,
            alias: None,
            name: None,
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            creation_content: CanonicalJsonObject::new(),
            initial_state: Vec::new(),
            power_level_content_override: CanonicalJsonObject::new(),
        };
        self.rooms.create(room).await.unwrap()
    }

    async fn act(&self, room: &Arc<RoomName>, sender: &Person, target: &Person, action: MembershipAction) {
        self.rooms.change_membership(room, &sender.id, &target.id, action, None, false).await.unwrap();
    }

    async fn join(&self, room: &Arc<RoomName>, person: &Person) {
        self.act(room, person, person, MembershipAction::Join).await;
    }

    async fn send(&self, room: &Arc<RoomName>, sender: &Person, content: Value) -> OwnedEventId {
        let content = serde_json::from_value(content).unwrap();
        self.rooms.send(room, Template::message(&sender.id, "m.room.message", content), None).await.unwrap()
    }

    async fn say(&self, room: &Arc<RoomName>, sender: &Person, body: &str) -> OwnedEventId {
        self.send(room, sender, json!({ "msgtype": "m.text", "body": body })).await
    }

    async fn topic(&self, room: &Arc<RoomName>, sender: &Person, topic: &str) {
        let content = serde_json::from_value(json!({ "topic": topic })).unwrap();
        self.rooms.set_state(room, &sender.id, "m.room.topic", "", content).await.unwrap();
    }

    async fn ask(&self, request: Request) -> Value {
        serde_json::from_slice(&self.sync.sync(request).await.unwrap()).unwrap()
    }

    async fn initial(&self, person: &Person) -> Value {
        self.ask(request(person, None)).await
    }

    async fn next(&self, person: &Person, since: &Value) -> Value {
        self.ask(request(person, Some(since))).await
    }
}

fn request(person: &Person, since: Option<&Value>) -> Request {
    Request {
        user_nid: person.nid,
        user_id: person.id.clone(),
        device_nid: person.nid + 1_000_000,
        since: since.map(|answer| answer["next_batch"].as_str().unwrap().parse::<Token>().unwrap()),
        filter: Arc::default(),
        full_state: false,
        timeout: Duration::ZERO,
        set_presence: PresenceState::Offline,
        state_form: StateForm::Before,
    }
}

fn filtered(person: &Person, since: Option<&Value>, filter: Value) -> Request {
    Request { filter: Arc::new(Filter::parse(&filter.to_string()).unwrap()), ..request(person, since) }
}

fn joined<'a>(answer: &'a Value, room: &RoomName) -> &'a Value {
    &answer["rooms"]["join"][room.room_id.as_str()]
}

fn bodies(room: &Value) -> Vec<&str> {
    let events = room["timeline"]["events"].as_array().into_iter().flatten();
    events.filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn keys(events: &Value) -> Vec<String> {
    let events = events["events"].as_array().into_iter().flatten();
    let mut keys: Vec<String> = events
        .map(|event| format!("{} {}", event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap_or("-")))
        .collect();
    keys.sort();
    keys
}

fn of_type<'a>(events: &'a Value, event_type: &str) -> Vec<&'a Value> {
    events["events"].as_array().into_iter().flatten().filter(|event| event["type"] == event_type).collect()
}

/// A new account learns its push rules; a conversation comes in order, once.
#[tokio::test]
async fn a_conversation() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.person("bob").await);
        let first = world.initial(&bob).await;
        assert_eq!(of_type(&first["account_data"], "m.push_rules").len(), 1);
        assert!(first["rooms"].is_null());

        let room = world.room(&alice).await;
        world.say(&room, &alice, "one").await;
        world.act(&room, &alice, &bob, MembershipAction::Invite).await;
        let invited = world.next(&bob, &first).await;
        let stripped = keys(&invited["rooms"]["invite"][room.room_id.as_str()]["invite_state"]);
        for key in [
            "m.room.create ",
            "m.room.join_rules ",
            "m.room.member @alice:example.org",
            "m.room.member @bob:example.org",
        ] {
            assert!(stripped.iter().any(|found| found == key), "{key} is not in {stripped:?}");
        }
        assert!(world.next(&bob, &invited).await["rooms"].is_null());

        world.join(&room, &bob).await;
        let came = world.next(&bob, &invited).await;
        assert!(came["rooms"]["invite"].is_null());
        let entered = joined(&came, &room);
        assert_eq!(bodies(entered), ["one"]);
        assert_eq!(entered["summary"]["m.joined_member_count"], 2);
        assert_eq!(entered["summary"]["m.heroes"], json!(["@alice:example.org"]));

        world.say(&room, &alice, "two").await;
        world.say(&room, &bob, "three").await;
        let talk = world.next(&bob, &came).await;
        assert_eq!(bodies(joined(&talk, &room)), ["two", "three"]);
        assert_eq!(joined(&talk, &room)["timeline"]["limited"], false);
        assert!(joined(&talk, &room)["summary"].as_object().unwrap().is_empty());
        assert_eq!(keys(&joined(&talk, &room)["state"]), Vec::<String>::new());
        let nothing = world.next(&bob, &talk).await;
        assert!(nothing["rooms"].is_null());
    })
    .await;
}

/// Who waits is woken by what concerns them, and by nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob, carol) = (world.person("alice").await, world.person("bob").await, world.person("carol").await);
        let room = world.room(&alice).await;
        let other = world.room(&carol).await;
        world.join(&room, &bob).await;
        let first = world.initial(&bob).await;
        let poll = |first: &Value| {
            let (sync, request) = (world.sync.clone(), request(&bob, Some(first)));
            let request = Request { timeout: Duration::from_secs(20), ..request };
            tokio::spawn(async move {
                let answer: Value = serde_json::from_slice(&sync.sync(request).await.unwrap()).unwrap();
                answer
            })
        };
        let waiting = poll(&first);
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.say(&other, &carol, "not for bob").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        world.say(&room, &alice, "for bob").await;
        let answer = tokio::time::timeout(Duration::from_millis(900), waiting).await.unwrap().unwrap();
        assert_eq!(bodies(joined(&answer, &room)), ["for bob"]);

        // Invitations, account data and typing wake too.
        let waiting = poll(&answer);
        world.act(&other, &carol, &bob, MembershipAction::Invite).await;
        let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
        assert!(answer["rooms"]["invite"][other.room_id.as_str()].is_object());
        let waiting = poll(&answer);
        let content = to_raw_value(&json!({ "a": 1 })).unwrap();
        world.sync.set_account_data(bob.nid, None, "org.example", &content).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
        assert_eq!(of_type(&answer["account_data"], "org.example")[0]["content"]["a"], 1);
        let waiting = poll(&answer);
        world.sync.set_typing(&room, alice.nid, true, None).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
        let ephemeral = &joined(&answer, &room)["ephemeral"];
        assert_eq!(of_type(ephemeral, "m.typing")[0]["content"]["user_ids"], json!(["@alice:example.org"]));
        world.sync.set_typing(&room, alice.nid, false, None).await.unwrap();
        let answer = world.next(&bob, &answer).await;
        assert_eq!(of_type(&joined(&answer, &room)["ephemeral"], "m.typing")[0]["content"]["user_ids"], json!([]));
        assert!(matches!(world.sync.set_typing(&room, carol.nid, true, None).await, Err(Error::Forbidden(_))));

        // Without news, the answer comes when the time is over, and its token goes on from there.
        let short = Request { timeout: Duration::from_millis(150), ..request(&bob, Some(&answer)) };
        let empty = world.ask(short).await;
        assert!(empty["rooms"].is_null());
        world.say(&room, &alice, "later").await;
        let answer = world.next(&bob, &empty).await;
        assert_eq!(bodies(joined(&answer, &room)), ["later"]);

        // Nobody is left waiting by a server that stops.
        let waiting = poll(&answer);
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.sync.stop();
        let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap();
        assert!(answer["next_batch"].is_string());
    })
    .await;
}

/// Over a gap, the state is what changed in it; with `state_after`, what changed up to the end.
#[tokio::test]
async fn gaps() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.person("bob").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        let first = world.initial(&bob).await;
        world.topic(&room, &alice, "gap").await;
        for count in 0..4 {
            world.say(&room, &alice, &count.to_string()).await;
        }
        world.topic(&room, &alice, "end").await;
        world.say(&room, &alice, "last").await;

        let filter = json!({ "room": { "timeline": { "limit": 3 } } });
        let answer = world.ask(filtered(&bob, Some(&first), filter.clone())).await;
        let told = joined(&answer, &room);
        assert_eq!(bodies(told), ["3", "last"]);
        assert_eq!(told["timeline"]["limited"], true);
        assert_eq!(told["state"]["events"].as_array().unwrap().len(), 1);
        assert_eq!(told["state"]["events"][0]["content"]["topic"], "gap");
        let prev: Token = told["timeline"]["prev_batch"].as_str().unwrap().parse().unwrap();
        let since: Token = first["next_batch"].as_str().unwrap().parse().unwrap();
        let hidden = world
            .rooms
            .store()
            .page(room.nid, myelin_store::Direction::Backward, prev.pos + 1, Some(since.pos), 100)
            .await
            .unwrap();
        assert_eq!(hidden.len(), 4, "the topic and three messages are before the token");

        let request = filtered(&bob, Some(&first), filter);
        let answer = world.ask(Request { state_form: StateForm::After, ..request.clone() }).await;
        let told = joined(&answer, &room);
        assert!(told["state"].is_null());
        assert_eq!(told["state_after"]["events"].as_array().unwrap().len(), 1);
        assert_eq!(told["state_after"]["events"][0]["content"]["topic"], "end");
        let answer = world.ask(Request { state_form: StateForm::AfterUnstable, ..request }).await;
        assert!(joined(&answer, &room)["org.matrix.msc4222.state_after"].is_object());

        // Where the filter leaves state out of the timeline, it is in the state all the same.
        let filter = json!({ "room": { "timeline": { "types": ["m.room.message"] } } });
        let answer = world.ask(filtered(&bob, Some(&first), filter)).await;
        let told = joined(&answer, &room);
        assert_eq!(bodies(told), ["0", "1", "2", "3", "last"]);
        assert_eq!(told["state"]["events"][0]["content"]["topic"], "end");

        // The whole state, with the timeline since the token.
        let full = Request { full_state: true, ..crate::tests::request(&bob, Some(&answer)) };
        let answer = world.ask(full).await;
        let told = joined(&answer, &room);
        assert!(told["timeline"]["events"].as_array().unwrap().is_empty());
        assert!(keys(&told["state"]).contains(&"m.room.member @bob:example.org".to_owned()));
        let topic = of_type(&told["state"], "m.room.topic");
        assert_eq!(topic[0]["content"]["topic"], "end");
    })
    .await;
}

/// One who leaves learns of the leave and of nothing after it; forgotten rooms are gone.
#[tokio::test]
async fn leaving() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.person("bob").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        let first = world.initial(&bob).await;
        world.say(&room, &alice, "before").await;
        world.act(&room, &alice, &bob, MembershipAction::Kick).await;
        world.say(&room, &alice, "after").await;
        let left = world.next(&bob, &first).await;
        assert!(joined(&left, &room).is_null());
        let part = &left["rooms"]["leave"][room.room_id.as_str()];
        assert_eq!(bodies(part), ["before"]);
        assert_eq!(part["timeline"]["events"].as_array().unwrap().len(), 2);
        assert!(world.next(&bob, &left).await["rooms"].is_null());

        assert!(world.initial(&bob).await["rooms"].is_null());
        let with_left = filtered(&bob, None, json!({ "room": { "include_leave": true } }));
        let archive = world.ask(with_left.clone()).await;
        assert!(bodies(&archive["rooms"]["leave"][room.room_id.as_str()]).contains(&"before"));
        world.rooms.store().forget_room(room.nid, bob.nid).await.unwrap();
        assert!(world.ask(with_left).await["rooms"].is_null());
        let other_device = world.next(&bob, &first).await;
        assert!(other_device["rooms"]["leave"][room.room_id.as_str()].is_object(), "it believes to be in the room");
        assert!(world.next(&bob, &left).await["rooms"].is_null());

        // Back again, everything is told anew; an invitation that is declined ends.
        world.join(&room, &bob).await;
        let back = world.next(&bob, &left).await;
        assert!(bodies(joined(&back, &room)).contains(&"after"));
        let other = world.room(&alice).await;
        world.act(&other, &alice, &bob, MembershipAction::Invite).await;
        let invited = world.next(&bob, &back).await;
        world.act(&other, &bob, &bob, MembershipAction::Leave).await;
        let declined = world.next(&bob, &invited).await;
        let part = &declined["rooms"]["leave"][other.room_id.as_str()];
        assert_eq!(part["timeline"]["events"].as_array().unwrap().len(), 1);
    })
    .await;
}

/// What happens in a room is not told to those who are out of it: neither to one who was never in, nor what came between
/// the leaving and a ban.
#[tokio::test]
async fn left_rooms_keep_their_secrets() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob, carol) = (world.person("alice").await, world.person("bob").await, world.person("carol").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        world.topic(&room, &alice, "known").await;
        let first = world.initial(&bob).await;
        world.say(&room, &alice, "heard").await;
        world.act(&room, &alice, &bob, MembershipAction::Kick).await;
        world.topic(&room, &alice, "secret").await;
        let name = serde_json::from_value(json!({ "name": "secret" })).unwrap();
        world.rooms.set_state(&room, &alice.id, "m.room.name", "", name).await.unwrap();
        world.say(&room, &alice, "secret").await;
        let out = world.ask(filtered(&bob, None, json!({ "room": { "include_leave": true } }))).await;
        for person in [&bob, &carol] {
            world.act(&room, &alice, person, MembershipAction::Ban).await;
        }
        let left = |answer: &Value| answer["rooms"]["leave"][room.room_id.as_str()].clone();
        let types = |events: &Value| -> Vec<String> { keys(events) };

        let lazy = json!({ "lazy_load_members": true });
        for state in [json!({}), lazy] {
            for limit in [0, 1, 2, 50] {
                for form in [StateForm::Before, StateForm::After] {
                    let filter = json!({ "room":
                        { "include_leave": true, "timeline": { "limit": limit }, "state": state.clone() } });
                    let ask = async |person: &Person, since: Option<&Value>| {
                        let request = filtered(person, since, filter.clone());
                        left(&world.ask(Request { state_form: form, ..request }).await)
                    };
                    let beside = if form == StateForm::Before { "state" } else { "state_after" };
                    // Carol was never in the room.
                    let part = ask(&carol, None).await;
                    assert!(types(&part[beside]).is_empty(), "{part}");
                    assert!(part["timeline"]["events"].as_array().unwrap().len() <= 1, "{part}");
                    // Bob knows the room up to the kick, and that he was banned.
                    let part = ask(&bob, None).await;
                    assert!(!part.to_string().contains("secret"), "{part}");
                    let topics = [of_type(&part[beside], "m.room.topic"), of_type(&part["timeline"], "m.room.topic")];
                    assert!(topics.concat().iter().any(|topic| topic["content"]["topic"] == "known"), "{part}");
                    if limit > 0 {
                        let last = part["timeline"]["events"].as_array().unwrap().last().unwrap().clone();
                        assert_eq!(last["content"]["membership"], "ban");
                    }
                    if form == StateForm::After {
                        let own = of_type(&part[beside], "m.room.member");
                        let own = own.iter().find(|event| event["state_key"] == "@bob:example.org").unwrap();
                        assert_eq!(own["content"]["membership"], "ban");
                    }
                    let part = ask(&bob, Some(&first)).await;
                    assert!(!part.to_string().contains("secret"), "{part}");
                    assert_eq!(bodies(&part), if limit > 2 { vec!["heard"] } else { vec![] });
                    // One who knew of the kick learns of the ban alone.
                    let part = ask(&bob, Some(&out)).await;
                    assert!(types(&part[beside]).is_empty(), "{part}");
                    assert_eq!(part["timeline"]["events"].as_array().unwrap().len(), limit.min(1));
                }
            }
        }
    })
    .await;
}

/// One who sends a receipt behind another one is not told back, even if the two went to the database at once.
#[tokio::test]
async fn receipts_move_forward() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.person("bob").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        let first = world.initial(&alice).await;
        let store = world.rooms.store();
        let mut receipts = Vec::new();
        for body in ["one", "two"] {
            let event_id = world.say(&room, &alice, body).await;
            let event = store.event_by_id(&event_id).await.unwrap().unwrap();
            receipts.push(Receipt {
                room_nid: room.nid,
                user_nid: bob.nid,
                receipt_type: "m.read".into(),
                thread: "".into(),
                event_nid: event.nid,
                event_pos: event.pos.unwrap(),
                ts: 1,
                pos: 0,
            });
        }
        store.commit(Operation::Receipt(receipts[1].clone())).await.unwrap();
        let told = world.next(&alice, &first).await;
        assert_eq!(of_type(&joined(&told, &room)["ephemeral"], "m.receipt").len(), 1);
        store.commit(Operation::Receipt(receipts[0].clone())).await.unwrap();
        assert!(world.next(&alice, &told).await["rooms"].is_null());
        let ahead = Receipt { thread: "main".into(), ..receipts[0].clone() };
        store.commit(Operation::Receipt(ahead)).await.unwrap();
        let told = world.next(&alice, &told).await;
        assert_eq!(of_type(&joined(&told, &room)["ephemeral"], "m.receipt").len(), 1, "each thread has its own");
    })
    .await;
}

/// A thread is an event's identifier, whatever events say they relate to.
#[tokio::test]
async fn threads_have_names_of_events() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob) = (world.person("alice").await, world.person("bob").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        for root in ["no event".to_owned(), "$nul\u{0}".into(), format!("${}", "x".repeat(255)), "$".into()] {
            let content = json!({ "msgtype": "m.text", "body": "x",
                "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
            let event = world.send(&room, &alice, content).await;
            let marked = world.sync.mark_read(&room, bob.nid, ReceiptType::Read, Some(&root), &event).await;
            assert!(matches!(marked, Err(Error::InvalidParam(_))), "{root:?}: {marked:?}");
            world.sync.mark_read(&room, bob.nid, ReceiptType::Read, Some("main"), &event).await.unwrap();
        }
    })
    .await;
}

/// A token from beyond the stream is one of before the database was restored: the client begins anew.
#[tokio::test]
async fn tokens_from_beyond() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let alice = world.person("alice").await;
        let room = world.room(&alice).await;
        world.say(&room, &alice, "kept").await;
        let known = world.initial(&alice).await;
        let pos = world.rooms.store().position();
        let beyond = Request { since: Some(Token::sync(pos + 50, 1)), ..request(&alice, None) };
        for full_state in [false, true] {
            let answer = world.ask(Request { full_state, ..beyond.clone() }).await;
            assert_eq!(bodies(joined(&answer, &room)), ["kept"]);
            let next: Token = answer["next_batch"].as_str().unwrap().parse().unwrap();
            assert_eq!(next.pos, pos);
        }
        assert!(world.next(&alice, &known).await["rooms"].is_null(), "any other token is as good as before");
    })
    .await;
}

/// Counts follow the push rules and the receipts; private receipts are nobody else's business.
#[tokio::test]
async fn unread_counts_and_receipts() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob, carol) = (world.person("alice").await, world.person("bob").await, world.person("carol").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        world.join(&room, &carol).await;
        let (first, carols) = (world.initial(&bob).await, world.initial(&carol).await);
        let one = world.say(&room, &alice, "one").await;
        let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": ["@bob:example.org"] } });
        let two = world.send(&room, &alice, mention).await;
        world.topic(&room, &alice, "no notification").await;
        let counts = |answer: &Value| {
            let unread = &joined(answer, &room)["unread_notifications"];
            (unread["notification_count"].as_u64().unwrap(), unread["highlight_count"].as_u64().unwrap())
        };
        let answer = world.next(&bob, &first).await;
        assert_eq!(counts(&answer), (2, 1));
        assert_eq!(counts(&world.initial(&bob).await), (2, 1));

        world.sync.mark_read(&room, bob.nid, ReceiptType::ReadPrivate, None, &one).await.unwrap();
        let read = world.next(&bob, &answer).await;
        assert_eq!(counts(&read), (1, 1));
        let own = of_type(&joined(&read, &room)["ephemeral"], "m.receipt");
        assert!(own[0]["content"][one.as_str()]["m.read.private"]["@bob:example.org"]["ts"].is_u64());
        let others = world.next(&carol, &carols).await;
        assert!(of_type(&joined(&others, &room)["ephemeral"], "m.receipt").is_empty());
        assert!(of_type(&joined(&world.initial(&carol).await, &room)["ephemeral"], "m.receipt").is_empty());

        world.sync.mark_read(&room, bob.nid, ReceiptType::Read, Some("main"), &two).await.unwrap();
        let others = world.next(&carol, &others).await;
        let seen = of_type(&joined(&others, &room)["ephemeral"], "m.receipt");
        assert_eq!(seen[0]["content"][two.as_str()]["m.read"]["@bob:example.org"]["thread_id"], "main");
        let read = world.next(&bob, &read).await;
        assert_eq!(counts(&read), (0, 0));
        // Backwards it does not go.
        world.sync.mark_read(&room, bob.nid, ReceiptType::Read, Some("main"), &one).await.unwrap();
        assert!(world.next(&bob, &read).await["rooms"].is_null());
        let wrong = world.sync.mark_read(&room, bob.nid, ReceiptType::Read, Some("$thread"), &one).await;
        assert!(matches!(wrong, Err(Error::InvalidParam(_))));

        // Threads are counted apart for those who ask; saying something is reading.
        let in_thread = json!({ "msgtype": "m.text", "body": "t",
            "m.relates_to": { "rel_type": "m.thread", "event_id": one } });
        world.send(&room, &alice, in_thread).await;
        world.say(&room, &alice, "main").await;
        let threads = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
        let apart = world.ask(filtered(&bob, Some(&read), threads)).await;
        assert_eq!(counts(&apart), (1, 0));
        assert_eq!(joined(&apart, &room)["unread_thread_notifications"][one.as_str()]["notification_count"], 1);
        assert_eq!(counts(&world.next(&bob, &read).await), (2, 0));
        world.say(&room, &bob, "answer").await;
        assert_eq!(counts(&world.next(&bob, &read).await), (0, 0));

        // The marker is account data of the room, which no one sets directly.
        world.sync.mark_read(&room, bob.nid, ReceiptType::FullyRead, None, &two).await.unwrap();
        let marked = world.next(&bob, &read).await;
        let data = of_type(&joined(&marked, &room)["account_data"], "m.fully_read");
        assert_eq!(data[0]["content"]["event_id"], two.as_str());
        let content = to_raw_value(&json!({})).unwrap();
        let refused = world.sync.set_account_data(bob.nid, Some(room.nid), "m.fully_read", &content).await;
        assert!(matches!(refused, Err(Error::ServerManaged(_))));
    })
    .await;
}

/// Counts are the same after a restart, which has nothing in memory.
#[tokio::test]
async fn counts_outlive_a_restart() {
    let fresh = Fresh::sqlite();
    let world = World::open(&fresh, false).await;
    let (alice, bob) = (world.person("alice").await, world.person("bob").await);
    let room = world.room(&alice).await;
    world.join(&room, &bob).await;
    let mut last = None;
    for count in 0..90 {
        let event = world.say(&room, &alice, "x").await;
        if count == 69 {
            last = Some(event);
        }
    }
    let count = |answer: &Value| joined(answer, &room)["unread_notifications"]["notification_count"].clone();
    let before = world.initial(&bob).await;
    assert_eq!(count(&before), 90);
    world.sync.mark_read(&room, bob.nid, ReceiptType::Read, None, &last.unwrap()).await.unwrap();
    world.say(&room, &alice, "x").await;

    let again = World::open(&fresh, false).await;
    assert_eq!(count(&again.initial(&bob).await), 21);
    let next = again.next(&bob, &before).await;
    assert_eq!(bodies(joined(&next, &room)).len(), 1);
    assert_eq!(of_type(&joined(&next, &room)["ephemeral"], "m.receipt").len(), 1);
    assert_eq!(count(&world.next(&bob, &before).await), 21);
}

/// Lazily loaded members: those who speak, once; over a gap, all who changed.
#[tokio::test]
async fn lazy_members() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob, carol, dave) = (
            world.person("alice").await,
            world.person("bob").await,
            world.person("carol").await,
            world.person("dave").await,
        );
        let room = world.room(&alice).await;
        world.topic(&room, &alice, "a name would stand for it").await;
        for person in [&bob, &carol, &dave] {
            world.join(&room, person).await;
        }
        let name = serde_json::from_value(json!({ "name": "the room" })).unwrap();
        world.rooms.set_state(&room, &alice.id, "m.room.name", "", name).await.unwrap();
        for _ in 0..3 {
            world.say(&room, &alice, "x").await;
        }
        let lazy = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 2 } } });
        let members = |answer: &Value| -> Vec<String> {
            let keys = keys(&joined(answer, &room)["state"]);
            keys.into_iter().filter_map(|key| key.strip_prefix("m.room.member ").map(str::to_owned)).collect()
        };
        let first = world.ask(filtered(&bob, None, lazy.clone())).await;
        assert_eq!(members(&first), ["@alice:example.org", "@bob:example.org"]);
        world.say(&room, &carol, "x").await;
        world.say(&room, &alice, "x").await;
        let second = world.ask(filtered(&bob, Some(&first), lazy.clone())).await;
        assert_eq!(members(&second), ["@carol:example.org"]);
        let repeated = world.ask(filtered(&bob, Some(&first), lazy.clone())).await;
        assert_eq!(members(&repeated), ["@carol:example.org"], "the answer may have been lost");
        world.say(&room, &carol, "x").await;
        let third = world.ask(filtered(&bob, Some(&second), lazy.clone())).await;
        assert!(members(&third).is_empty());
        let mut redundant = lazy.clone();
        redundant["room"]["state"]["include_redundant_members"] = true.into();
        let third = world.ask(filtered(&bob, Some(&second), redundant)).await;
        assert_eq!(members(&third), ["@carol:example.org"]);

        world.act(&room, &dave, &dave, MembershipAction::Leave).await;
        for _ in 0..3 {
            world.say(&room, &alice, "x").await;
        }
        let gap = world.ask(filtered(&bob, Some(&third), lazy.clone())).await;
        assert_eq!(members(&gap), ["@dave:example.org"]);

        // An answer with a member is lost, and the next one has a gap in the member's place.
        world.join(&room, &dave).await;
        let third = world.ask(filtered(&bob, None, lazy.clone())).await;
        world.say(&room, &carol, "x").await;
        let lost = world.ask(filtered(&bob, Some(&third), lazy.clone())).await;
        assert_eq!(members(&lost), ["@carol:example.org"]);
        for _ in 0..3 {
            world.say(&room, &alice, "x").await;
        }
        let gap = world.ask(filtered(&bob, Some(&third), lazy.clone())).await;
        assert_eq!(joined(&gap, &room)["timeline"]["limited"], true);
        assert!(!members(&gap).contains(&"@carol:example.org".to_owned()));
        world.say(&room, &carol, "x").await;
        let late = world.ask(filtered(&bob, Some(&gap), lazy)).await;
        assert_eq!(members(&late), ["@carol:example.org"]);
        world.act(&room, &dave, &dave, MembershipAction::Leave).await;
        let gap = world.next(&bob, &late).await;
        assert_eq!(joined(&gap, &room)["summary"]["m.joined_member_count"], 3);
    })
    .await;
}

/// Filters leave out rooms, types, senders; ignored people are not heard.
#[tokio::test]
async fn filters_and_ignored_people() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let (alice, bob, carol) = (world.person("alice").await, world.person("bob").await, world.person("carol").await);
        let (room, other) = (world.room(&alice).await, world.room(&alice).await);
        for person in [&bob, &carol] {
            world.join(&room, person).await;
            world.join(&other, person).await;
        }
        let first = world.initial(&bob).await;
        for room in [&room, &other] {
            world.say(room, &alice, "alice").await;
            world.say(room, &carol, "carol").await;
        }
        let not_other = json!({ "room": { "not_rooms": [other.room_id] } });
        let answer = world.ask(filtered(&bob, Some(&first), not_other)).await;
        assert_eq!(bodies(joined(&answer, &room)), ["alice", "carol"]);
        assert!(joined(&answer, &other).is_null());
        let senders =
            json!({ "room": { "timeline": { "senders": ["@carol:example.org"], "not_rooms": [other.room_id] } } });
        let answer = world.ask(filtered(&bob, Some(&first), senders)).await;
        assert_eq!(bodies(joined(&answer, &room)), ["carol"]);
        assert!(joined(&answer, &other).is_null());

        let list = to_raw_value(&json!({ "ignored_users": { "@carol:example.org": {} } })).unwrap();
        world.sync.set_account_data(bob.nid, None, "m.ignored_user_list", &list).await.unwrap();
        let answer = world.next(&bob, &first).await;
        assert_eq!(bodies(joined(&answer, &room)), ["alice"]);
        let private = world.room(&carol).await;
        world.act(&private, &carol, &bob, MembershipAction::Invite).await;
        assert!(world.next(&bob, &answer).await["rooms"].is_null());
    })
    .await;
}

/// All who are woken at once get the same summary, made once; and it is what a reading of all members gives.
#[tokio::test]
async fn summaries_are_made_once() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, false).await;
        let store = world.rooms.store().clone();
        let alice = world.person("alice").await;
        let mut people = Vec::new();
        for count in 0..9 {
            people.push(world.person(&format!("p{count}")).await);
        }
        let rooms = [world.room(&alice).await, world.room(&alice).await];
        let summaries = Summaries::new();
        let asked = || {
            let pos = store.position();
            rooms.iter().map(move |room| Asked { room_nid: room.nid, members_pos: pos, root: None })
        };
        let asked = || -> Vec<Asked> { asked().collect() };
        summaries.of(&store, &asked()).await.unwrap();
        use MembershipAction::{Ban, Invite, Join, Leave, Unban};
        for (count, person) in people.iter().enumerate() {
            for room in &rooms {
                world.join(room, person).await;
                if count % 3 == 1 {
                    world.act(room, person, person, Leave).await;
                    world.act(room, &alice, person, Invite).await;
                }
                if count % 4 == 3 {
                    world.act(room, &alice, person, Ban).await;
                }
            }
            if count == 7 {
                world.act(&rooms[0], &alice, &people[3], Unban).await;
                world.act(&rooms[0], &people[1], &people[1], Join).await;
            }
            let asked = asked();
            let woken = futures_util::future::join_all((0..4).map(|_| summaries.of(&store, &asked))).await;
            let woken: Vec<_> = woken.into_iter().map(Result::unwrap).collect();
            let anew = Summaries::new().of(&store, &asked).await.unwrap();
            for room in &rooms {
                let summary = &woken[0][&room.nid];
                assert!(woken.iter().all(|other| Arc::ptr_eq(&other[&room.nid], summary)));
                assert_eq!(summary, &anew[&room.nid]);
                assert_eq!(summary.heroes(alice.nid), anew[&room.nid].heroes(alice.nid));
            }
        }
        assert_eq!(summaries.read(), 2, "all members of each room were read once");
    })
    .await;
}

/// People who share a room learn of each other's presence.
#[tokio::test]
async fn presence() {
    on_both(async |fresh: &Fresh| {
        let world = World::open(fresh, true).await;
        let (alice, bob, carol) = (world.person("alice").await, world.person("bob").await, world.person("carol").await);
        let room = world.room(&alice).await;
        world.join(&room, &bob).await;
        let (first, carols) = (world.initial(&bob).await, world.initial(&carol).await);
        assert!(first["presence"].is_null());
        world.ask(Request { set_presence: PresenceState::Online, ..request(&alice, None) }).await;
        let answer = world.next(&bob, &first).await;
        let shown = &of_type(&answer["presence"], "m.presence")[0];
        assert_eq!((&shown["sender"], &shown["content"]["presence"]), (&json!("@alice:example.org"), &json!("online")));
        assert!(world.next(&carol, &carols).await["presence"].is_null());
        assert!(matches!(world.sync.presence(carol.nid, alice.nid).await, Err(Error::Forbidden(_))));
        world.sync.set_presence(alice.nid, PresenceState::Unavailable, Some("tea".into())).await.unwrap();
        let known = world.sync.presence(bob.nid, alice.nid).await.unwrap();
        assert_eq!((known.state, known.status_msg.as_deref()), (PresenceState::Unavailable, Some("tea")));
        world.join(&room, &carol).await;
        let answer = world.next(&carol, &carols).await;
        assert!(!of_type(&answer["presence"], "m.presence").is_empty(), "newcomers learn who is there");
        let bobs = world.next(&bob, &first).await;
        world.act(&room, &alice, &alice, MembershipAction::Leave).await;
        world.sync.set_presence(alice.nid, PresenceState::Online, Some("gone".into())).await.unwrap();
        assert!(world.next(&bob, &bobs).await["presence"].is_null(), "the two share no room any more");
    })
    .await;
}

/// A waiting poll is small, and its answer is made elsewhere.
#[tokio::test]
async fn a_poll_is_small() {
    let fresh = Fresh::sqlite();
    let world = World::open(&fresh, false).await;
    let alice = world.person("alice").await;
    let first = world.initial(&alice).await;
    let future = world.sync.sync(request(&alice, Some(&first)));
    assert!(std::mem::size_of_val(&future) < 2048, "{} bytes", std::mem::size_of_val(&future));
}
