//! Whatever happens in between, a client that follows by incremental syncs knows what a fresh one is told, and history
//! reads the same in both directions.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    env,
    sync::Arc,
};

use myelin_end_to_end::{Answer, Engine, Homeserver, Method, Person, encode, on_both_engines};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, RngSeed, TestRunner},
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

on_both_engines!(followed_is_fresh, gaps_are_filled_by_prev_batch);

const PEOPLE: usize = 3;
const ROOMS_MAX: usize = 3;
const CASES: u32 = 16;
const SEED: u64 = 0x4d79_656c_696e;

/// More pages than any history here has.
const PAGES_MAX: usize = 1000;

/// A sequence of incremental syncs, at any moments and with any bounds, adds up to one fresh initial sync.
async fn followed_is_fresh(engine: Engine) {
    let server = Arc::new(Homeserver::start(engine).await);
    let mut config =
        Config { max_shrink_iters: 80, failure_persistence: None, rng_seed: RngSeed::Fixed(SEED), ..Config::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let theirs = Arc::clone(&server);
    let runtime = Handle::current();
    let playing = tokio::task::spawn_blocking(move || {
        let case = Cell::new(0);
        TestRunner::new(config).run(&story(), |story| {
            case.set(case.get() + 1);
            runtime.block_on(play(&theirs, case.get(), story));
            Ok(())
        })
    });
    let result = playing.await.expect("the runner catches what panics");
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// What three people do, and how they follow it.
#[derive(Clone, Debug)]
struct Story {
    state_after: [bool; PEOPLE],
    steps: Vec<Step>,
    page: usize,
}

#[derive(Clone, Debug)]
struct Step {
    who: usize,
    room: usize,
    act: Act,
}

#[derive(Clone, Debug)]
enum Act {
    Create { preset: &'static str },
    Invite { whom: usize },
    Join,
    Leave,
    Kick { whom: usize },
    Ban { whom: usize },
    Unban { whom: usize },
    Say,
    Note { key: u8 },
    Topic,
    Visibility { name: &'static str },
    Redact { back: usize },
    Type { typing: bool },
    Read { back: usize, kind: &'static str },
    RoomData { kind: u8 },
    Data { kind: u8 },
    Rename,
    Sync { limit: usize },
}

fn story() -> impl Strategy<Value = Story> {
    (any::<[bool; PEOPLE]>(), vec(step(), 10..70), 1..8_usize).prop_map(|(state_after, steps, page)| Story {
        state_after,
        steps,
        page,
    })
}

fn step() -> impl Strategy<Value = Step> {
    (0..PEOPLE, 0..ROOMS_MAX, act()).prop_map(|(who, room, act)| Step { who, room, act })
}

fn act() -> impl Strategy<Value = Act> {
    let whom = 0..PEOPLE;
    prop_oneof![
        2 => prop_oneof![Just("public_chat"), Just("private_chat"), Just("trusted_private_chat")]
            .prop_map(|preset| Act::Create { preset }),
        4 => whom.clone().prop_map(|whom| Act::Invite { whom }),
        6 => Just(Act::Join),
        2 => Just(Act::Leave),
        1 => whom.clone().prop_map(|whom| Act::Kick { whom }),
        1 => whom.clone().prop_map(|whom| Act::Ban { whom }),
        1 => whom.prop_map(|whom| Act::Unban { whom }),
        10 => Just(Act::Say),
        3 => (0..3_u8).prop_map(|key| Act::Note { key }),
        2 => Just(Act::Topic),
        1 => prop_oneof![Just("shared"), Just("joined"), Just("invited"), Just("world_readable")]
            .prop_map(|name| Act::Visibility { name }),
        2 => (0..6_usize).prop_map(|back| Act::Redact { back }),
        1 => any::<bool>().prop_map(|typing| Act::Type { typing }),
        3 => (0..6_usize, prop_oneof![Just("m.read"), Just("m.read.private"), Just("m.fully_read")])
            .prop_map(|(back, kind)| Act::Read { back, kind }),
        1 => (0..2_u8).prop_map(|kind| Act::RoomData { kind }),
        1 => (0..2_u8).prop_map(|kind| Act::Data { kind }),
        1 => Just(Act::Rename),
        10 => (1..7_usize).prop_map(|limit| Act::Sync { limit }),
    ]
}

/// Plays a story with people of its own, and compares in the end.
async fn play(server: &Homeserver, case: usize, story: Story) {
    let mut views = Vec::new();
    for (number, state_after) in story.state_after.into_iter().enumerate() {
        let person = server.register(&format!("case{case}-{number}")).await;
        views.push(View::new(person, state_after));
    }
    let mut world = World::default();
    let first = Step { who: 0, room: 0, act: Act::Create { preset: "public_chat" } };
    for (number, step) in std::iter::once(first).chain(story.steps).enumerate() {
        if let Act::Sync { limit } = step.act {
            views[step.who].follow(limit).await;
        } else {
            world.act(&views, &step, number).await;
        }
    }
    for view in &mut views {
        view.follow(2).await;
        let mut fresh = View::new(view.person.clone(), view.state_after);
        fresh.follow(story.page).await;
        view.compare(&fresh).await;
        for (room, _) in fresh.in_membership(Membership::Joined) {
            reads_the_same_in_both_directions(&view.person, room, story.page).await;
        }
    }
}

/// The rooms that were made, and the events in each.
#[derive(Default)]
struct World {
    rooms: Vec<(String, Vec<String>)>,
}

impl World {
    /// Does something, which the rules may refuse; then nothing must come of it, which the comparison shows.
    async fn act(&mut self, views: &[View], step: &Step, number: usize) {
        let person = &views[step.who].person;
        let me = person.user_id();
        if let Act::Create { preset } = step.act {
            if self.rooms.len() < ROOMS_MAX {
                let room = person.create_room(json!({ "preset": preset, "name": format!("Room {number}") })).await;
                self.rooms.push((room, Vec::new()));
            }
            return;
        }
        let rooms = self.rooms.len();
        let (room, events) = &mut self.rooms[step.room % rooms];
        let path = |rest: String| format!("rooms/{room}/{rest}");
        let user = |whom: usize| json!({ "user_id": views[whom].person.user_id() });
        let recent = |back: usize| events.iter().rev().nth(back).or(events.last());
        let (method, path, body) = match &step.act {
            Act::Create { .. } | Act::Sync { .. } => return,
            Act::Invite { whom } => (Method::POST, path("invite".into()), user(*whom)),
            Act::Join => (Method::POST, path("join".into()), json!({})),
            Act::Leave => (Method::POST, path("leave".into()), json!({})),
            Act::Kick { whom } => (Method::POST, path("kick".into()), user(*whom)),
            Act::Ban { whom } => (Method::POST, path("ban".into()), user(*whom)),
            Act::Unban { whom } => (Method::POST, path("unban".into()), user(*whom)),
            Act::Say => {
                let content = json!({ "msgtype": "m.text", "body": format!("step {number}") });
                (Method::PUT, path(format!("send/m.room.message/{number}")), content)
            }
            Act::Note { key } => {
                (Method::PUT, path(format!("state/org.example.note/{key}")), json!({ "step": number }))
            }
            Act::Topic => {
                (Method::PUT, path("state/m.room.topic".into()), json!({ "topic": format!("step {number}") }))
            }
            Act::Visibility { name } => {
                (Method::PUT, path("state/m.room.history_visibility".into()), json!({ "history_visibility": name }))
            }
            Act::Redact { back } => {
                let Some(event) = recent(*back) else { return };
                (Method::PUT, path(format!("redact/{event}/{number}")), json!({ "reason": "so" }))
            }
            Act::Type { typing } => {
                (Method::PUT, path(format!("typing/{me}")), json!({ "typing": typing, "timeout": 600_000 }))
            }
            Act::Read { back, kind } => {
                let Some(event) = recent(*back) else { return };
                (Method::POST, path(format!("receipt/{kind}/{event}")), json!({}))
            }
            Act::RoomData { kind } => {
                let path = format!("user/{me}/rooms/{room}/account_data/org.example.data{kind}");
                (Method::PUT, path, json!({ "step": number }))
            }
            Act::Data { kind } => {
                (Method::PUT, format!("user/{me}/account_data/org.example.data{kind}"), json!({ "step": number }))
            }
            Act::Rename => {
                (Method::PUT, format!("profile/{me}/displayname"), json!({ "displayname": format!("Step {number}") }))
            }
        };
        let answer = person.send_json(method, &path, &body).await.expect("the homeserver answers");
        by_the_rules(&answer);
        if answer.status == 200
            && let Some(event) = answer.json()["event_id"].as_str()
        {
            events.push(event.to_owned());
        }
    }
}

/// A request that a person might make is done or refused; it is not too much for the homeserver.
fn by_the_rules(answer: &Answer) {
    assert!(matches!(answer.status, 200 | 400 | 403 | 404), "{answer}");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Joined,
    Invited,
    Left,
}

/// What somebody's client knows from its syncs.
struct View {
    person: Person,
    /// Whether it asks for the state after the timeline rather than before it.
    state_after: bool,
    since: Option<String>,
    rooms: BTreeMap<String, RoomView>,
    data: BTreeMap<String, Value>,
}

struct RoomView {
    membership: Membership,
    /// The ids of all events that may be seen, oldest first.
    events: Vec<String>,
    /// The id of the event for each type and key.
    state: BTreeMap<(String, String), String>,
    members: BTreeMap<String, String>,
    typing: BTreeSet<String>,
    /// The event for each kind, thread and user.
    receipts: BTreeMap<(String, String, String), String>,
    data: BTreeMap<String, Value>,
    summary: BTreeMap<&'static str, u64>,
    unread: [u64; 2],
}

impl View {
    fn new(person: Person, state_after: bool) -> Self {
        Self { person, state_after, since: None, rooms: BTreeMap::new(), data: BTreeMap::new() }
    }

    fn in_membership(&self, membership: Membership) -> impl Iterator<Item = (&String, &RoomView)> {
        self.rooms.iter().filter(move |(_, room)| room.membership == membership)
    }

    /// Syncs once, without waiting, with at most so many events a room.
    async fn follow(&mut self, limit: usize) {
        let filter = json!({ "room": { "timeline": { "limit": limit }, "include_leave": true } });
        let mut path =
            format!("sync?timeout=0&use_state_after={}&filter={}", self.state_after, encode(&filter.to_string()));
        if let Some(since) = &self.since {
            path = format!("{path}&since={}", encode(since));
        }
        let update = self.person.get(&path).await.ok();
        self.since = Some(text(&update["next_batch"]));
        merge_data(&mut self.data, &update["account_data"]);
        for (room, news) in entries(&update["rooms"]["join"]) {
            self.joined(room, news, limit).await;
        }
        for (room, news) in entries(&update["rooms"]["invite"]) {
            let me = self.person.user_id();
            let mine = |event: &Value| event["state_key"] == me && event["content"]["membership"] == "invite";
            assert!(list(&news["invite_state"]["events"]).iter().any(mine), "an invitation shows itself: {news}");
            self.room(room).membership = Membership::Invited;
        }
        for (room, _) in entries(&update["rooms"]["leave"]) {
            self.room(room).membership = Membership::Left;
        }
    }

    fn room(&mut self, room: &str) -> &mut RoomView {
        self.rooms.entry(room.to_owned()).or_insert_with(RoomView::unknown)
    }

    async fn joined(&mut self, id: &str, news: &Value, limit: usize) {
        let (person, state_after) = (self.person.clone(), self.state_after);
        let room = self.room(id);
        let timeline = list(&news["timeline"]["events"]);
        assert!(timeline.len() <= limit, "no more than {limit} events were asked for: {news}");

        // Who comes back may see what happened meanwhile: that history is read anew.
        let follows_on = room.membership == Membership::Joined;
        if !follows_on {
            room.events.clear();
        }
        if !follows_on || news["timeline"]["limited"] == true {
            let before = read_back(&person, id, news["timeline"]["prev_batch"].as_str(), &room.events, limit + 1).await;
            room.events.extend(before);
        }
        room.events.extend(timeline.iter().map(|event| text(&event["event_id"])));
        let distinct: BTreeSet<_> = room.events.iter().collect();
        assert_eq!(distinct.len(), room.events.len(), "an event comes once: {news}");

        room.membership = Membership::Joined;
        if state_after {
            assert!(news["state"]["events"].is_null(), "the state after takes the place of the state before: {news}");
            room.apply(list(&news["state_after"]["events"]));
        } else {
            assert!(news["state_after"].is_null(), "nobody asked for the state after: {news}");
            room.apply(list(&news["state"]["events"]));
            room.apply(timeline);
        }
        for event in list(&news["ephemeral"]["events"]) {
            room.notice(event, person.user_id());
        }
        merge_data(&mut room.data, &news["account_data"]);
        for field in ["m.joined_member_count", "m.invited_member_count"] {
            if let Some(count) = news["summary"][field].as_u64() {
                room.summary.insert(field, count);
            }
        }
        for (place, field) in ["notification_count", "highlight_count"].into_iter().enumerate() {
            if let Some(count) = news["unread_notifications"][field].as_u64() {
                room.unread[place] = count;
            }
        }
    }

    /// Compares what was followed with what a fresh client is told.
    async fn compare(&self, fresh: &Self) {
        let me = self.person.user_id();
        let names = |view: &Self, membership| -> BTreeSet<_> {
            view.in_membership(membership).map(|(room, _)| room.clone()).collect()
        };
        for membership in [Membership::Joined, Membership::Invited] {
            assert_eq!(names(self, membership), names(fresh, membership), "rooms that {me} is {membership:?}");
        }
        let left = names(self, Membership::Left);
        assert!(left.is_subset(&names(fresh, Membership::Left)), "rooms that {me} has left: {left:?}");
        assert_eq!(self.data, fresh.data, "account data of {me}");
        for (id, told) in fresh.in_membership(Membership::Joined) {
            let known = &self.rooms[id];
            assert_eq!(known.events, told.events, "events of {id} for {me}");
            assert_eq!(known.state, told.state, "state of {id} for {me}");
            assert_eq!(known.present(&known.typing), told.present(&told.typing), "who types in {id} for {me}");
            assert_eq!(known.current_receipts(), told.current_receipts(), "receipts of {id} for {me}");
            assert_eq!(known.data, told.data, "account data of {id} for {me}");
            assert_eq!(known.summary, told.summary, "summary of {id} for {me}");
            assert_eq!(known.unread, told.unread, "unread in {id} for {me}");

            let state = self.person.get(&format!("rooms/{id}/state")).await.ok();
            let mut asked = RoomView::unknown();
            asked.apply(list(&state));
            assert_eq!(asked.state, told.state, "state of {id} as asked for by {me}");
        }
    }
}

impl RoomView {
    fn unknown() -> Self {
        Self {
            membership: Membership::Left,
            events: Vec::new(),
            state: BTreeMap::new(),
            members: BTreeMap::new(),
            typing: BTreeSet::new(),
            receipts: BTreeMap::new(),
            data: BTreeMap::new(),
            summary: BTreeMap::new(),
            unread: [0; 2],
        }
    }

    fn apply(&mut self, events: &[Value]) {
        for event in events.iter().filter(|event| event["state_key"].is_string()) {
            let (kind, key) = (text(&event["type"]), text(&event["state_key"]));
            if kind == "m.room.member" {
                self.members.insert(key.clone(), text(&event["content"]["membership"]));
            }
            self.state.insert((kind, key), text(&event["event_id"]));
        }
    }

    /// Takes note of who types and who has read what.
    fn notice(&mut self, event: &Value, me: &str) {
        match event["type"].as_str() {
            Some("m.typing") => self.typing = list(&event["content"]["user_ids"]).iter().map(text).collect(),
            Some("m.receipt") => {
                for (event, kinds) in entries(&event["content"]) {
                    for (kind, users) in entries(kinds) {
                        for (user, receipt) in entries(users) {
                            assert!(kind != "m.read.private" || user == me, "{user}'s private receipt is not for {me}");
                            let thread = receipt["thread_id"].as_str().unwrap_or_default();
                            let key = (kind.clone(), thread.to_owned(), user.clone());
                            self.receipts.insert(key, event.clone());
                        }
                    }
                }
            }
            other => panic!("an ephemeral event of type {other:?}"),
        }
    }

    fn is_present(&self, user: &str) -> bool {
        self.members.get(user).is_some_and(|membership| membership == "join")
    }

    fn present<'a>(&'a self, users: &'a BTreeSet<String>) -> BTreeSet<&'a String> {
        users.iter().filter(|user| self.is_present(user)).collect()
    }

    fn current_receipts(&self) -> Vec<(&(String, String, String), &String)> {
        self.receipts.iter().filter(|((_, _, user), _)| self.is_present(user)).collect()
    }
}

/// Reads backwards from a place, until an event that is known or the first that may be seen. Oldest first.
async fn read_back(person: &Person, room: &str, from: Option<&str>, known: &[String], page: usize) -> Vec<String> {
    let mut events = Vec::new();
    let mut from = from.map(str::to_owned);
    for _ in 0..PAGES_MAX {
        let Some(place) = from else { break };
        let (ids, end) = page_of(person, room, 'b', Some(&place), page).await;
        if let Some(met) = ids.iter().position(|id| known.contains(id)) {
            events.extend_from_slice(&ids[..met]);
            break;
        }
        events.extend(ids);
        from = end;
    }
    events.reverse();
    events
}

/// One page of a room's history, and where the next begins.
async fn page_of(
    person: &Person,
    room: &str,
    direction: char,
    from: Option<&str>,
    limit: usize,
) -> (Vec<String>, Option<String>) {
    let mut path = format!("rooms/{room}/messages?dir={direction}&limit={limit}");
    if let Some(from) = from {
        path = format!("{path}&from={}", encode(from));
    }
    let page = person.get(&path).await.ok();
    let ids: Vec<_> = list(&page["chunk"]).iter().map(|event| text(&event["event_id"])).collect();
    assert!(ids.len() <= limit, "no more than {limit} events were asked for: {page}");
    (ids, page["end"].as_str().map(str::to_owned))
}

/// A history in pages, and the place after each.
async fn pages(
    person: &Person,
    room: &str,
    direction: char,
    from: Option<&str>,
    limit: usize,
) -> Vec<(Vec<String>, Option<String>)> {
    let mut pages = Vec::<(_, Option<String>)>::new();
    let mut from = from.map(str::to_owned);
    while pages.len() < PAGES_MAX {
        let page = page_of(person, room, direction, from.as_deref(), limit).await;
        from = page.1.clone();
        pages.push(page);
        if from.is_none() {
            return pages;
        }
    }
    panic!("the history of {room} has no end in direction {direction}");
}

fn flat(pages: &[(Vec<String>, Option<String>)]) -> Vec<String> {
    pages.iter().flat_map(|(ids, _)| ids.clone()).collect()
}

fn reversed(mut ids: Vec<String>) -> Vec<String> {
    ids.reverse();
    ids
}

/// Pages forwards are the pages backwards turned round, from the ends and from every place between.
async fn reads_the_same_in_both_directions(person: &Person, room: &str, limit: usize) {
    let backwards = pages(person, room, 'b', None, limit).await;
    let forwards = pages(person, room, 'f', None, limit + 1).await;
    assert_eq!(flat(&forwards), reversed(flat(&backwards)), "the history of {room}");
    for (number, (_, place)) in backwards.iter().enumerate() {
        let Some(place) = place else { continue };
        let newer = flat(&pages(person, room, 'f', Some(place), limit).await);
        assert_eq!(newer, reversed(flat(&backwards[..=number])), "from page {number} on in {room}");
    }
}

/// After a time away, a short timeline says that it is short, and leads to what it leaves out.
async fn gaps_are_filled_by_prev_batch(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let filter = json!({ "room": { "timeline": { "limit": 5 } } });
    let since = text(&bob.sync(None, &filter).await["next_batch"]);

    let mut sent = Vec::new();
    for number in 0..23 {
        sent.push(alice.say(&room, &format!("gap{number}"), "meanwhile").await);
        if number == 10 {
            let topic = json!({ "topic": "said in the gap" });
            let answer = alice.put(&format!("rooms/{room}/state/m.room.topic"), topic).await.ok();
            sent.push(text(&answer["event_id"]));
        }
    }
    let news = bob.sync(Some(&since), &filter).await;
    let news = &news["rooms"]["join"][&room];
    let timeline: Vec<_> = list(&news["timeline"]["events"]).iter().map(|event| text(&event["event_id"])).collect();
    assert_eq!(news["timeline"]["limited"], true, "{news}");
    assert_eq!(timeline, sent[sent.len() - 5..]);
    let state: Vec<_> = list(&news["state"]["events"]).iter().map(|event| text(&event["type"])).collect();
    assert_eq!(state, ["m.room.topic"], "the state that changed in the gap, and no other");

    let prev_batch = encode(news["timeline"]["prev_batch"].as_str().expect("a place"));
    let missing = &sent[..sent.len() - 5];
    let path = format!("rooms/{room}/messages?dir=b&limit={}&from={prev_batch}", missing.len());
    let gap = bob.get(&path).await.ok();
    let gap = reversed(list(&gap["chunk"]).iter().map(|event| text(&event["event_id"])).collect());
    assert_eq!(gap, missing, "the gap joins the timeline without a seam");
}

fn merge_data(data: &mut BTreeMap<String, Value>, news: &Value) {
    for event in list(&news["events"]) {
        data.insert(text(&event["type"]), event["content"].clone());
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string where {value} is")).to_owned()
}
