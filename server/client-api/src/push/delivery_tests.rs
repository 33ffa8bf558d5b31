//! From the router to a gateway, which is one of the test's own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use myelin_push::{Duty, Gateway, GatewayError};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::testing::{Server, on_both};

const WAIT: Duration = Duration::from_secs(30);

/// A gateway that remembers what it was told.
#[derive(Default)]
struct Phone {
    is_away: AtomicBool,
    rejects: AtomicBool,
    told: watch::Sender<Vec<Value>>,
    missed: watch::Sender<usize>,
}

impl Gateway for Phone {
    fn notify<'a>(&'a self, url: &'a Url, body: Bytes) -> BoxFuture<'a, Result<Vec<u8>, GatewayError>> {
        Box::pin(async move {
            assert_eq!(url.as_str(), "https://push.example/_matrix/push/v1/notify");
            if self.is_away.load(Ordering::SeqCst) {
                self.missed.send_modify(|missed| *missed += 1);
                return Err(GatewayError::Status(StatusCode::BAD_GATEWAY));
            }
            let told: Value = serde_json::from_slice(&body).unwrap();
            let told = told["notification"].clone();
            let key = told["devices"][0]["pushkey"].clone();
            let rejected = if self.rejects.load(Ordering::SeqCst) { vec![key] } else { Vec::new() };
            self.told.send_modify(|all| all.push(told));
            Ok(json!({ "rejected": rejected }).to_string().into_bytes())
        })
    }
}

impl Phone {
    /// Waits until it was told something, and answers the last such thing.
    async fn told(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut told = self.told.subscribe();
        let waiting = tokio::time::timeout(WAIT, told.wait_for(|told| told.iter().any(&is_it))).await;
        let told = waiting.unwrap_or_else(|_| panic!("not told: {what}")).unwrap();
        told.iter().rfind(|told| is_it(told)).unwrap().clone()
    }

    async fn told_of(&self, event_id: &str) -> Value {
        self.told(event_id, |told| told["event_id"] == event_id).await
    }

    fn was_told_of(&self, event_id: &str) -> usize {
        self.told.borrow().iter().filter(|told| told["event_id"] == event_id).count()
    }
}

/// Alice's device, and a room where Bob speaks to her.
struct Scene<'a> {
    server: &'a Server,
    alice: String,
    bob: String,
    room: String,
}

impl<'a> Scene<'a> {
    async fn new(server: &'a Server) -> Self {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut scene = Self { server, alice, bob, room: String::new() };
        scene.room = scene.shared_room().await;
        scene
    }

    async fn shared_room(&self) -> String {
        let preset = json!({ "preset": "public_chat", "name": "Mission Control" });
        let made = self.server.post("/_matrix/client/v3/createRoom", Some(&self.bob), &preset).await;
        let room = made.json(StatusCode::OK)["room_id"].as_str().unwrap().to_owned();
        let path = format!("/_matrix/client/v3/rooms/{room}/join");
        self.server.post(&path, Some(&self.alice), &json!({})).await.json(StatusCode::OK);
        room
    }

    async fn set_pusher(&self, data: Value) {
        let mut pusher = super::tests::pusher("phone");
        pusher["data"] = data;
        pusher["data"]["url"] = "https://push.example/_matrix/push/v1/notify".into();
        self.server.post("/_matrix/client/v3/pushers/set", Some(&self.alice), &pusher).await.json(StatusCode::OK);
    }

    async fn say(&self, room: &str, transaction: &str, content: Value) -> String {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}");
        let sent = self.server.request(Method::PUT, &path, Some(&self.bob), &content).await.json(StatusCode::OK);
        sent["event_id"].as_str().unwrap().to_owned()
    }

    async fn text(&self, transaction: &str) -> String {
        self.say(&self.room, transaction, json!({ "msgtype": "m.text", "body": transaction })).await
    }

    async fn read(&self, event_id: &str) {
        let path = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{event_id}", self.room);
        self.server.post(&path, Some(&self.alice), &json!({})).await.json(StatusCode::OK);
    }

    /// Starts to push to a gateway.
    fn push(&self, phone: &Arc<Phone>) -> Arc<Duty> {
        let services = &self.server.services;
        let duty = Duty::new(services.store.clone(), services.sync.clone(), phone.clone());
        tokio::spawn(duty.clone().run(CancellationToken::new()));
        duty
    }
}

/// Messages, mentions and invites are told with what the rules say of them, muted rooms are not, and that a room was read
/// is; whose key is rejected is told no more.
#[tokio::test]
async fn gateways_are_told_by_the_rules() {
    on_both(async |server: &Server| {
        let scene = Scene::new(server).await;
        let phone = Arc::new(Phone::default());
        let duty = scene.push(&phone);
        scene.set_pusher(json!({ "org.example": 1 })).await;
        let hello = scene.text("hello").await;
        let told = phone.told_of(&hello).await;
        assert_eq!((&told["content"]["body"], &told["room_name"]), (&json!("hello"), &json!("Mission Control")));
        assert_eq!(
            (&told["counts"], &told["devices"][0]["data"]),
            (&json!({ "unread": 1 }), &json!({ "org.example": 1 }))
        );

        scene.set_pusher(json!({ "format": "event_id_only" })).await;
        let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": ["@alice:example.org"] } });
        let mention = scene.say(&scene.room, "mention", mention).await;
        let told = phone.told_of(&mention).await;
        assert_eq!(told["devices"][0]["tweaks"], json!({ "highlight": true, "sound": "default" }));
        assert_eq!((&told["counts"]["unread"], &told["content"]), (&json!(2), &Value::Null));

        let muted = scene.shared_room().await;
        let rule = format!("/_matrix/client/v3/pushrules/global/room/{muted}");
        let quiet = json!({ "actions": [] });
        server.request(Method::PUT, &rule, Some(&scene.alice), &quiet).await.json(StatusCode::OK);
        let quiet = scene.say(&muted, "quiet", json!({ "msgtype": "m.text", "body": "quiet" })).await;
        let private = json!({ "preset": "private_chat", "invite": ["@alice:example.org"] });
        let made = server.post("/_matrix/client/v3/createRoom", Some(&scene.bob), &private).await.json(StatusCode::OK);
        phone.told("the invite", |told| told["room_id"] == made["room_id"]).await;
        assert_eq!(phone.was_told_of(&quiet), 0, "events are looked at in their order");

        scene.read(&mention).await;
        phone.told("nothing is unread", |told| told["event_id"].is_null() && told["counts"]["unread"] == 0).await;

        phone.rejects.store(true, Ordering::SeqCst);
        let last = scene.text("last").await;
        phone.told_of(&last).await;
        let alice = server.services.store.user_nid(ruma::user_id!("@alice:example.org")).await.unwrap();
        let gone = async {
            while !server.services.pushers.of(alice).await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WAIT, gone).await.expect("the pusher is removed");
        duty.close().await;
    })
    .await;
}

/// What a gateway did not take is told in its order when it takes it, and by who has the duty then.
#[tokio::test]
async fn nothing_is_lost() {
    on_both(async |server: &Server| {
        let scene = Scene::new(server).await;
        let phone = Arc::new(Phone::default());
        let duty = scene.push(&phone);
        scene.set_pusher(json!({})).await;
        phone.is_away.store(true, Ordering::SeqCst);
        let mut sent = Vec::new();
        for number in 0..4 {
            sent.push(scene.text(&number.to_string()).await);
        }
        let mut missed = phone.missed.subscribe();
        tokio::time::timeout(WAIT, missed.wait_for(|missed| *missed > 1)).await.unwrap().unwrap();
        phone.is_away.store(false, Ordering::SeqCst);
        phone.told_of(&sent[3]).await;
        let order: Vec<Value> = phone.told.borrow().iter().map(|told| told["event_id"].clone()).collect();
        assert_eq!(order, sent);

        phone.is_away.store(true, Ordering::SeqCst);
        let before = *missed.borrow_and_update();
        let last = scene.text("last").await;
        tokio::time::timeout(WAIT, missed.wait_for(|missed| *missed > before)).await.unwrap().unwrap();
        duty.close().await;
        let stopped = scene.text("stopped").await;
        let next = Arc::new(Phone::default());
        let duty = scene.push(&next);
        next.told_of(&last).await;
        let told = next.told_of(&stopped).await;
        assert_eq!((&told["counts"]["unread"], next.was_told_of(&sent[3])), (&json!(6), 0));
        duty.close().await;
    })
    .await;
}
