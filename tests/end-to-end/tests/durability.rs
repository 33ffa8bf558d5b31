//! What was acknowledged stays, once and in order, whatever happens to the homeserver or its database meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use myelin_end_to_end::{
    Answer, Engine, Homeserver, Method, Person, Postgres, Setup, encode, eventually, on_both_engines,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

on_both_engines!(killed_while_sending, terminated_while_sending);

const SENDERS: usize = 8;
const ROOMS: usize = 3;

/// Messages that are acknowledged before each of the homeserver's or the database's ends.
const MESSAGES_A_ROUND: usize = 160;
const ROUNDS: usize = 3;

/// How long the senders may take for a round, and a reader to catch up.
const PATIENCE: Duration = Duration::from_secs(90);

/// `kill -9` while eight clients send: what was acknowledged is there once, in order, and a retry finds it.
async fn killed_while_sending(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    let mut chat = Chat::start(&server).await;
    for _ in 0..ROUNDS {
        let load = chat.send(AfterFailure::GiveUp);
        load.acknowledges(MESSAGES_A_ROUND).await;
        server.kill();
        load.stops(&mut chat).await;
        server.start_again().await;
        chat.retry().await;
    }
    chat.verify().await;
}

/// The same with an orderly end: it is clean, and loses nothing either.
async fn terminated_while_sending(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    let mut chat = Chat::start(&server).await;
    for _ in 0..ROUNDS {
        let load = chat.send(AfterFailure::GiveUp);
        load.acknowledges(MESSAGES_A_ROUND).await;
        let status = server.terminate().await;
        assert!(status.success(), "an orderly end is a success: {status}");
        load.stops(&mut chat).await;
        server.start_again().await;
        chat.retry().await;
    }
    chat.verify().await;
}

/// PostgreSQL crashes and comes back under load: the homeserver says so meanwhile, recovers by itself, and has neither
/// lost nor doubled anything.
#[test]
fn database_down_while_sending() {
    myelin_end_to_end::run(async {
        let database = Postgres::start();
        let mut server = Setup::on_database(&database.create_database()).start().await;
        let mut chat = Chat::start(&server).await;
        let load = chat.send(AfterFailure::Retry);
        for _ in 0..ROUNDS {
            load.acknowledges(MESSAGES_A_ROUND).await;
            database.stop();
            let before = load.failures.load(Ordering::SeqCst);
            eventually("every sender is told that something is wrong", PATIENCE, || async {
                (load.failures.load(Ordering::SeqCst) >= before + SENDERS).then_some(())
            })
            .await;
            eventually("the homeserver says that it is not ready", PATIENCE, || async {
                (server.api().get("/health/ready").await.status == 503).then_some(())
            })
            .await;
            assert_eq!(server.api().get("/health/live").await.status, 200, "it lives nevertheless");
            database.start_again();
            load.acknowledges(MESSAGES_A_ROUND).await;
            eventually("the homeserver says that it is ready", PATIENCE, || async {
                (server.api().get("/health/ready").await.status == 200).then_some(())
            })
            .await;
        }
        assert!(server.is_running(), "it was never restarted");
        load.stops(&mut chat).await;
        chat.retry().await;
        chat.verify().await;
    });
}

/// People in the same rooms, what each has sent, and a reader who has seen every bit of it arrive.
struct Chat {
    rooms: Arc<[String]>,
    senders: Vec<Sender>,
    reader: Reader,
}

/// Somebody who sends messages numbered from 0, one after the other, in turns into the rooms.
struct Sender {
    person: Person,
    sent: Vec<Message>,
}

/// A message that was put under way.
#[derive(Debug)]
struct Message {
    room: String,
    /// Its transaction id and its words.
    words: String,
    /// The id that it was acknowledged with.
    acknowledged: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterFailure {
    /// Stop: the homeserver is gone.
    GiveUp,
    /// Send the same again under the same transaction id until it is acknowledged.
    Retry,
}

impl Chat {
    async fn start(server: &Homeserver) -> Self {
        let host = server.register("reader").await;
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            rooms.push(host.create_public_room().await);
        }
        let mut senders = Vec::new();
        for number in 0..SENDERS {
            let person = server.register(&format!("sender{number}")).await;
            for room in &rooms {
                person.join(room).await;
            }
            senders.push(Sender { person, sent: Vec::new() });
        }
        Self { rooms: rooms.into(), senders, reader: Reader::start(host) }
    }

    /// Lets all send until the load is stopped, or fails.
    fn send(&mut self, after_failure: AfterFailure) -> Load {
        let load = Load {
            acknowledged: Arc::default(),
            failures: Arc::default(),
            stop: Arc::default(),
            tasks: Mutex::default(),
        };
        let tasks = self.senders.drain(..).map(|sender| {
            let rooms = Arc::clone(&self.rooms);
            let (acknowledged, failures, stop) =
                (Arc::clone(&load.acknowledged), Arc::clone(&load.failures), Arc::clone(&load.stop));
            tokio::spawn(sender.run(rooms, after_failure, acknowledged, failures, stop))
        });
        *load.tasks.lock().unwrap() = tasks.collect();
        load
    }

    /// Sends the last messages of everybody once more, as clients do that do not know whether they came through.
    async fn retry(&mut self) {
        for sender in &mut self.senders {
            let Sender { person, sent } = sender;
            let last = sent.len().saturating_sub(3);
            for message in &mut sent[last..] {
                let event = message.put(person).await.expect("the homeserver answers").ok()["event_id"].clone();
                let event = event.as_str().expect("an event id").to_owned();
                let before = message.acknowledged.get_or_insert_with(|| event.clone());
                assert_eq!(*before, event, "the same transaction is the same event: {}", message.words);
            }
        }
    }

    /// Checks what everybody finds against what was acknowledged.
    async fn verify(self) {
        let visitor = &self.senders[0].person;
        let mut histories = HashMap::new();
        for room in self.rooms.iter() {
            histories.insert(room.clone(), history(visitor, room).await);
        }
        for sender in &self.senders {
            for room in self.rooms.iter() {
                let sent = sender.sent.iter().filter(|message| message.room == *room);
                let sent: Vec<_> =
                    sent.map(|message| (message.acknowledged.as_deref().expect("retried"), &*message.words)).collect();
                let found = histories[room].iter().filter(|event| event["sender"] == sender.person.user_id());
                let found: Vec<_> = found.map(|event| (id(event), words(event))).collect();
                assert_eq!(found, sent, "what {} said in {room}, once and in order", sender.person.user_id());
            }
        }
        let all: usize = histories.values().map(Vec::len).sum();
        assert_eq!(all, self.senders.iter().map(|sender| sender.sent.len()).sum::<usize>(), "nothing else is there");

        let seen = self.reader.sees(all).await;
        for (room, history) in histories {
            let history: Vec<_> = history.iter().map(id).collect();
            let arrived: Vec<_> = seen[&room].iter().map(String::as_str).collect();
            assert_eq!(arrived, history, "what the reader's syncs brought from {room} is what is there");
        }
    }
}

impl Sender {
    async fn run(
        mut self,
        rooms: Arc<[String]>,
        after_failure: AfterFailure,
        acknowledged: Arc<AtomicUsize>,
        failures: Arc<AtomicUsize>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        while !stop.load(Ordering::SeqCst) {
            let number = self.sent.len();
            let mut message = Message {
                room: rooms[number % rooms.len()].clone(),
                words: format!("{}-{number}", self.person.device_id()),
                acknowledged: None,
            };
            while message.acknowledged.is_none() {
                match message.put(&self.person).await {
                    Ok(answer) if answer.status == 200 => {
                        message.acknowledged = Some(id(&answer.json()).to_owned());
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                    answer => {
                        failures.fetch_add(1, Ordering::SeqCst);
                        if let Ok(answer) = answer {
                            is_server_failure(&answer);
                        } else if after_failure == AfterFailure::Retry {
                            panic!("the homeserver answers even while it cannot work: {answer:?}");
                        }
                        if after_failure == AfterFailure::GiveUp {
                            self.sent.push(message);
                            return self;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            self.sent.push(message);
        }
        self
    }
}

impl Message {
    async fn put(&self, person: &Person) -> Result<Answer, impl std::fmt::Debug + use<>> {
        let path = format!("rooms/{}/send/m.room.message/{}", self.room, self.words);
        person.send_json(Method::PUT, &path, &json!({ "msgtype": "m.text", "body": self.words })).await
    }
}

/// People who are sending.
struct Load {
    acknowledged: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    tasks: Mutex<Vec<JoinHandle<Sender>>>,
}

impl Load {
    /// Waits until so many more messages are acknowledged.
    async fn acknowledges(&self, messages: usize) {
        let goal = self.acknowledged.load(Ordering::SeqCst) + messages;
        eventually("the messages are acknowledged", PATIENCE, || async {
            let finished = self.tasks.lock().unwrap().iter().any(JoinHandle::is_finished);
            assert!(!finished, "nobody gives up before the homeserver does");
            (self.acknowledged.load(Ordering::SeqCst) >= goal).then_some(())
        })
        .await;
    }

    /// Ends the sending, and gives everybody back to the chat.
    async fn stops(self, chat: &mut Chat) {
        self.stop.store(true, Ordering::SeqCst);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in tasks {
            chat.senders.push(task.await.expect("a sender ends in order"));
        }
    }
}

/// Somebody who syncs all the time, over every failure, and notes the messages as they come.
struct Reader {
    seen: Arc<Mutex<HashMap<String, Vec<String>>>>,
    task: JoinHandle<()>,
}

impl Reader {
    fn start(person: Person) -> Self {
        let seen = Arc::<Mutex<HashMap<_, _>>>::default();
        let task = tokio::spawn(Self::follow(person, Arc::clone(&seen)));
        Self { seen, task }
    }

    async fn follow(person: Person, seen: Arc<Mutex<HashMap<String, Vec<String>>>>) {
        // A short timeline, so that there are gaps to fill.
        let filter = json!({ "room": { "timeline": { "limit": 5 } } });
        let mut since = None::<String>;
        loop {
            let mut path = format!("sync?timeout=10000&filter={}", encode(&filter.to_string()));
            if let Some(since) = &since {
                path = format!("{path}&since={}", encode(since));
            }
            let Some(update) = insist(&person, &path).await else { continue };
            for (room, news) in update["rooms"]["join"].as_object().into_iter().flatten() {
                let timeline = &news["timeline"];
                let known: HashSet<_> = seen.lock().unwrap().get(room).into_iter().flatten().cloned().collect();
                let mut events = Vec::new();
                if timeline["limited"] == true {
                    events = gap(&person, room, &timeline["prev_batch"], &known).await;
                }
                events.extend(
                    timeline["events"].as_array().expect("a timeline").iter().filter(|e| is_message(e)).cloned(),
                );
                let mut seen = seen.lock().unwrap();
                let seen = seen.entry(room.clone()).or_default();
                for event in events {
                    assert!(!known.contains(id(&event)), "an event comes by sync once: {event}");
                    seen.push(id(&event).to_owned());
                }
            }
            since = Some(update["next_batch"].as_str().expect("a token").to_owned());
        }
    }

    /// Waits until so many messages have come, and returns them by room.
    async fn sees(self, messages: usize) -> HashMap<String, Vec<String>> {
        eventually("the reader has seen every message", PATIENCE, || async {
            assert!(!self.task.is_finished(), "the reader goes on");
            let seen = self.seen.lock().unwrap();
            (seen.values().map(Vec::len).sum::<usize>() >= messages).then(|| seen.clone())
        })
        .await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The messages between those that are known and a place in the history.
async fn gap(person: &Person, room: &str, from: &Value, known: &HashSet<String>) -> Vec<Value> {
    let mut from = from.as_str().map(str::to_owned);
    let mut events = Vec::new();
    while let Some(place) = from {
        let path = format!("rooms/{room}/messages?dir=b&limit=50&from={}", encode(&place));
        let Some(page) = insist(person, &path).await else {
            from = Some(place);
            continue;
        };
        for event in page["chunk"].as_array().expect("a chunk").iter().filter(|event| is_message(event)) {
            if known.contains(id(event)) {
                events.reverse();
                return events;
            }
            events.push(event.clone());
        }
        from = page["end"].as_str().map(str::to_owned);
    }
    events.reverse();
    events
}

/// Asks, and is given nothing when the homeserver is away or cannot work. Any other refusal is wrong.
async fn insist(person: &Person, path: &str) -> Option<Value> {
    match person.send(Method::GET, path, "").await {
        Ok(answer) if answer.status == 200 => return Some(answer.json()),
        Ok(answer) => is_server_failure(&answer),
        Err(_) => {}
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    None
}

/// The messages of a room, oldest first.
async fn history(person: &Person, room: &str) -> Vec<Value> {
    let mut events = Vec::new();
    let mut path = format!("rooms/{room}/messages?dir=f&limit=100");
    loop {
        let page = person.get(&path).await.ok();
        events.extend(page["chunk"].as_array().expect("a chunk").iter().filter(|event| is_message(event)).cloned());
        let Some(end) = page["end"].as_str() else { return events };
        path = format!("rooms/{room}/messages?dir=f&limit=100&from={}", encode(end));
    }
}

/// A homeserver that cannot work says that it is its own fault: a client must not believe that it is logged out.
fn is_server_failure(answer: &Answer) {
    assert!((500..600).contains(&answer.status), "{answer}");
    assert!(answer.json()["errcode"].is_string(), "{answer}");
}

fn is_message(event: &Value) -> bool {
    event["type"] == "m.room.message"
}

fn id(event: &Value) -> &str {
    event["event_id"].as_str().unwrap_or_else(|| panic!("an event id in {event}"))
}

fn words(event: &Value) -> &str {
    event["content"]["body"].as_str().unwrap_or_else(|| panic!("words in {event}"))
}
