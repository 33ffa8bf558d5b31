//! A server is killed in the middle of what it does with another one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use myelin_end_to_end::{Answer, Authority, Engine, Method, Peer, encode, on_both_engines};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    guest::{Guest, PATIENCE, agree, event_id, next, wait},
    together::Pair,
};

on_both_engines!(killed_while_joining, killed_while_receiving, killed_while_sending);

/// Memberships of a room that takes a while to join.
const MEMBERS: usize = 300;

/// How often a server that reads is killed.
const ROUNDS: usize = 3;

/// What arrives before a server is killed, and how many rooms are talked in at once.
const WORDS: usize = 40;
const ROOMS: usize = 3;

/// The server that joins is killed at some moment: whatever of the join there is, joining again makes it whole; if the
/// join was acknowledged, it is there.
async fn killed_while_joining(engine: Engine) {
    let authority = Authority::new();
    let (maker, mut joiner) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    let (alice, bob) = Pair { maker: &maker, joiner: &joiner, version: 11 }.people().await;

    let room = big_room(&alice).await;
    let began = Instant::now();
    join(&bob, &room, &maker).await.unwrap().ok();
    let whole = began.elapsed();
    let mut answers = Vec::new();
    for round in 0..ROUNDS {
        let room = big_room(&alice).await;
        let moment = match round {
            // The other server has taken the join; ours has its answer still before it, or has begun with it.
            0 => Moment::Taken,
            // Any moment of it.
            _ => Moment::After(whole.mul_f64(rand::random())),
        };
        let acknowledged = tokio::select! {
            biased;
            () = moment.comes(&alice, &bob, &room) => None,
            answer = join(&bob, &room, &maker) => answer,
        };
        joiner.kill();
        joiner.start_again().await;
        match acknowledged {
            Some(answer) => _ = answer.ok(),
            None => _ = bob.insists(Method::POST, &join_path(&room, &maker), json!({})).await,
        }
        agree(&alice, &bob, &room).await;
        let hello = alice.says(&room, "hello").await;
        bob.sees(&room, &hello).await;
        answers.push((bob.says(&room, "hi").await, room));
    }
    // Who was killed sends again once its lease has run out, which is once.
    for (hi, room) in &answers {
        alice.sees(room, hi).await;
        assert_eq!(sorted(alice.history(room).await), sorted(bob.history(room).await));
    }
}

/// The server that is written to is killed while much comes in: what it had shown or acknowledged stays, and the rest
/// arrives.
async fn killed_while_receiving(engine: Engine) {
    let authority = Authority::new();
    let (maker, mut joiner) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    let pair = Pair { maker: &maker, joiner: &joiner, version: 12 };
    let (alice, bob) = pair.people().await;
    let rooms = join_all((0..ROOMS).map(|_| pair.shared_room(&alice, &bob))).await;
    let mut talk = Talk::default();
    for _ in 0..ROUNDS {
        let (told, mut acknowledged) = mpsc::unbounded_channel::<(String, String)>();
        let interrupt = async {
            for _ in 0..WORDS {
                let (room, event) = acknowledged.recv().await.unwrap();
                bob.sees(&room, &event).await;
            }
            let seen = join_all(rooms.iter().map(|room| bob.history(room))).await;
            joiner.kill();
            joiner.start_again().await;
            for (room, seen) in rooms.iter().zip(seen) {
                let now = bob.history(room).await;
                assert!(now.starts_with(&seen), "{room}: what was shown is gone: {seen:?} {now:?}");
            }
        };
        tokio::join!(talk.go_on(&alice, &bob, &rooms, told), interrupt);
    }
    talk.is_heard(&alice, &bob, &rooms).await;
}

/// The server that somebody writes on is killed: what it acknowledged arrives once at the other server, and so does
/// what is sent again because nobody knows whether it was taken.
async fn killed_while_sending(engine: Engine) {
    let authority = Authority::new();
    let (mut maker, joiner) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    let pair = Pair { maker: &maker, joiner: &joiner, version: 12 };
    let (alice, bob) = pair.people().await;
    let rooms = join_all((0..ROOMS).map(|_| pair.shared_room(&alice, &bob))).await;
    let mut talk = Talk::default();
    let (told, mut acknowledged) = mpsc::unbounded_channel::<(String, String)>();
    let interrupt = async {
        for _ in 0..WORDS {
            let (room, event) = acknowledged.recv().await.unwrap();
            bob.sees(&room, &event).await;
        }
        maker.kill();
        maker.start_again().await;
    };
    tokio::join!(talk.go_on(&alice, &bob, &rooms, told), interrupt);
    talk.is_heard(&alice, &bob, &rooms).await;
}

/// When a server that joins is killed.
enum Moment {
    /// Once the other server has the join.
    Taken,
    /// After some time.
    After(Duration),
}

impl Moment {
    async fn comes(&self, alice: &Guest, bob: &Guest, room: &str) {
        match self {
            Self::Taken => while alice.state(room, "m.room.member", bob.user_id()).await.is_none() {},
            // Not in place of a condition: it is chance when a server dies.
            Self::After(time) => tokio::time::sleep(*time).await,
        }
    }
}

/// A public room with many memberships, and some words.
async fn big_room(alice: &Guest) -> String {
    let room = alice.create_room(json!({ "preset": "public_chat", "room_version": "11" })).await;
    let server = alice.user_id().split_once(':').unwrap().1;
    let banned = (0..MEMBERS).map(async |number| {
        let nobody = format!("@nobody-{number}:{server}");
        alice.sets(&room, "m.room.member", &nobody, json!({ "membership": "ban" })).await.ok();
    });
    join_all(banned).await;
    alice.says(&room, "before anybody came").await;
    room
}

fn join_path(room: &str, via: &Peer) -> String {
    format!("join/{}?via={}", encode(room), encode(via.name()))
}

/// Asks to join. There is no answer if the server is gone.
async fn join(who: &Guest, room: &str, via: &Peer) -> Option<Answer> {
    who.send_json(Method::POST, &join_path(room, via), &json!({})).await.ok()
}

fn sorted(mut words: Vec<String>) -> Vec<String> {
    words.sort();
    words
}

/// What somebody says in several rooms at once, and whispers to a device beside it.
#[derive(Default)]
struct Talk {
    said: usize,
}

impl Talk {
    /// Says more, in each room one thing after the other, and again what was not acknowledged; tells what was.
    async fn go_on(
        &mut self,
        alice: &Guest,
        bob: &Guest,
        rooms: &[String],
        told: mpsc::UnboundedSender<(String, String)>,
    ) {
        let numbers = self.said..self.said + 2 * WORDS;
        self.said = numbers.end;
        let speeches = rooms.iter().map(async |room| {
            for number in numbers.clone() {
                let path = format!("rooms/{}/send/m.room.message/t{}", encode(room), next());
                let words = json!({ "msgtype": "m.text", "body": number.to_string() });
                let event = event_id(&insists(alice, &path, &words).await);
                // Nobody listens any longer, once enough was told.
                let _ = told.send((room.clone(), event));
            }
        });
        let whispers = async {
            for number in numbers.clone() {
                let path = format!("sendToDevice/org.example.whisper/t{}", next());
                let messages = json!({ bob.user_id(): { bob.device_id(): { "number": number } } });
                insists(alice, &path, &json!({ "messages": messages })).await.ok();
            }
        };
        tokio::join!(join_all(speeches), whispers);
    }

    /// Everything arrives, once and in order.
    async fn is_heard(&self, alice: &Guest, bob: &Guest, rooms: &[String]) {
        let all: Vec<String> = (0..self.said).map(|number| number.to_string()).collect();
        for room in rooms {
            let what = format!("everything has come to {room}");
            let heard = wait(&what, async || {
                let heard = bob.history(room).await;
                (heard.len() >= all.len()).then_some(heard)
            });
            assert_eq!(heard.await, all);
            assert_eq!(alice.history(room).await, all);
            agree(alice, bob, room).await;
        }
        let mut whispers = BTreeMap::new();
        let mut since = None;
        let listening = async {
            while whispers.len() < self.said {
                let news = bob.sync(since.as_deref(), &json!({})).await;
                since = news["next_batch"].as_str().map(str::to_owned);
                for number in whispered(&news) {
                    *whispers.entry(number).or_insert(0) += 1;
                }
            }
        };
        let heard = tokio::time::timeout(PATIENCE, listening).await;
        assert!(heard.is_ok(), "of {} whispers came {}", self.said, whispers.len());
        assert!(whispers.values().all(|times| *times == 1), "a whisper has come twice: {whispers:?}");
    }
}

/// The numbers of the whispers in an answer to a sync.
fn whispered(news: &Value) -> Vec<u64> {
    let events = news["to_device"]["events"].as_array().into_iter().flatten();
    let whispers = events.filter(|event| event["type"] == "org.example.whisper");
    whispers.filter_map(|event| event["content"]["number"].as_u64()).collect()
}

/// Sends the same again until there is a success.
async fn insists(who: &Guest, path: &str, body: &Value) -> Answer {
    wait(&format!("{} succeeds with {path}", who.user_id()), async || {
        who.send_json(Method::PUT, path, body).await.ok().filter(|answer| answer.status == 200)
    })
    .await
}
