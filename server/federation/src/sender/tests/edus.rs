use std::sync::Arc;

use futures_util::future::BoxFuture;
use myelin_store::{
    Ephemeral, Operation, Receipt,
    testing::{Fresh, on_both},
};
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName, user_id};
use serde_json::{Value, json};

use super::{
    super::{Clock as _, EduSource, QueuedEdu},
    world::{Behaviour, Network, Room, Running, TestClock, Write, name, options, until},
};

fn pass(store: &myelin_store::Store, kind: &str, notice: Value) {
    store.pass(&Ephemeral { kind: kind.to_owned(), json: notice.to_string() });
}

/// Typing goes to the servers of the room, and ends by itself; others' typing is not ours to tell.
#[tokio::test]
async fn typing() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let running = Running::start(&store, &network, options(&clock)).await;
        let room = Room::with(&store, &["a.example"]).await;
        let alice = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
        let other = store.user_nid(user_id!("@u:a.example")).await.unwrap();
        pass(&store, "typing", json!({ "room": room.nid, "user": other, "timeout_ms": 30_000 }));
        pass(&store, "typing", json!({ "room": room.nid, "user": alice, "timeout_ms": 30_000 }));
        let edu = |typing: bool| {
            json!({ "edu_type": "m.typing", "content": { "room_id": format!("!room{}:example.org", room.nid),
                "user_id": "@alice:example.org", "typing": typing } })
        };
        network.until("a.example", |peer| peer.edus() == [edu(true)]).await;
        clock.advance(30_000);
        network.until("a.example", |peer| peer.edus() == [edu(true), edu(false)]).await;
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}

/// Receipts of our users go out as the specification has them: public ones, and not for the reader's own events.
#[tokio::test]
async fn receipts() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let mut room = Room::with(&store, &["a.example"]).await;
        let theirs = room.write(vec![Write::Message { sender: "@u:a.example", number: 1, flags: 0 }]).await.remove(0);
        let ours = room.say([2]).await.remove(0);
        let alice = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
        let receipt = |receipt_type: &str, thread: &str, event: &myelin_store::Event| {
            Operation::Receipt(Receipt {
                room_nid: room.nid,
                user_nid: alice,
                receipt_type: receipt_type.into(),
                thread: thread.into(),
                event_nid: event.nid,
                event_pos: event.pos.unwrap(),
                ts: 99,
                pos: 0,
            })
        };
        store.commit(receipt("m.read.private", "", &theirs)).await.unwrap();
        store.commit(receipt("m.read", "", &theirs)).await.unwrap();
        let edu = |data: Value| {
            json!({ "edu_type": "m.receipt", "content": { format!("!room{}:example.org", room.nid): { "m.read": {
                "@alice:example.org": { "data": data, "event_ids": [theirs.event_id] } } } } })
        };
        // The first one is read from the database, the second one comes by.
        let running = Running::start(&store, &network, options(&clock)).await;
        network.until("a.example", |peer| peer.edus() == [edu(json!({ "ts": 99 }))]).await;
        store.commit(receipt("m.read", "", &ours)).await.unwrap();
        store.commit(receipt("m.read", "main", &theirs)).await.unwrap();
        let threaded = edu(json!({ "ts": 99, "thread_id": "main" }));
        network.until("a.example", |peer| peer.edus().last() == Some(&threaded)).await;
        network.peer("a.example", |peer| assert_eq!(peer.edus().len(), 2));
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}

/// Presence goes once to each server that shares a room with the user; nowhere when it is switched off.
#[tokio::test]
async fn presence() {
    on_both(async |fresh: &Fresh| {
        for is_on in [true, false] {
            let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
            let mut options = options(&clock);
            options.presence = is_on;
            let running = Running::start(&store, &network, options).await;
            let mut rooms = Vec::new();
            for servers in [&["a.example"][..], &["a.example", "b.example"]] {
                rooms.push(Room::with(&store, servers).await);
            }
            let alice = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
            let notice = json!({ "origin": 1, "cause": "set", "user": alice, "user_id": "@alice:example.org",
                "presence": "online", "active_ms": clock.now_ms() - 5, "idle": false,
                "rooms": [rooms[0].nid, rooms[1].nid] });
            pass(&store, "presence", notice);
            rooms[1].say([1]).await;
            for server in ["a.example", "b.example"] {
                network.until(server, |peer| peer.numbers() == [1] && peer.edus().len() == usize::from(is_on)).await;
            }
            if is_on {
                let update = json!({ "user_id": "@alice:example.org", "presence": "online", "last_active_ago": 5,
                    "currently_active": true });
                network.peer("a.example", |peer| {
                    assert_eq!(peer.edus(), [json!({ "edu_type": "m.presence", "content": { "push": [update] } })]);
                });
            }
            running.stop(&clock).await;
            store.close().await;
        }
    })
    .await;
}

/// EDUs that are kept until they are taken.
#[derive(Default)]
struct Kept(Mutex<Vec<QueuedEdu>>);

impl EduSource for Kept {
    fn pending<'a>(&'a self, server: &'a ServerName, limit: usize) -> BoxFuture<'a, Vec<QueuedEdu>> {
        let edus = self.0.lock();
        let is_known = server == "a.example";
        let pending = edus.iter().filter(|_| is_known).take(limit).cloned().collect();
        Box::pin(async move { pending })
    }

    fn sent<'a>(&'a self, _server: &'a ServerName, up_to: i64) -> BoxFuture<'a, ()> {
        self.0.lock().retain(|edu| edu.id > up_to);
        Box::pin(async {})
    }

    fn servers(&self) -> BoxFuture<'_, Vec<OwnedServerName>> {
        let servers = if self.0.lock().is_empty() { Vec::new() } else { vec![name("a.example")] };
        Box::pin(async move { servers })
    }
}

/// Durable EDUs come in order, through failures and restarts, within the limit of a transaction.
#[tokio::test]
async fn durable() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let kept = Arc::new(Kept::default());
        let add = |ids: std::ops::Range<i64>| {
            let edus = ids.map(|id| {
                let json = json!({ "edu_type": "m.direct_to_device", "content": { "id": id } });
                QueuedEdu { id, json: serde_json::value::to_raw_value(&json).unwrap() }
            });
            kept.0.lock().extend(edus);
        };
        let mut options = options(&clock);
        options.sources = vec![kept.clone()];
        // Kept before the sender came to be: nobody notifies.
        add(0..250);
        network.set("a.example", Behaviour::Refuses);
        let running = Running::start(&store, &network, options.clone()).await;
        network.until("a.example", |peer| peer.tries.len() == 1).await;
        running.kill().await;
        network.set("a.example", Behaviour::Answers);
        let running = Running::start(&store, &network, options).await;
        clock.advance(10_000);
        let ids = |peer: &super::world::Peer| -> Vec<i64> {
            peer.edus().iter().filter_map(|edu| edu["content"]["id"].as_i64()).collect()
        };
        network.until("a.example", |peer| ids(peer).len() == 250).await;
        add(250..260);
        running.sender.notify(&name("a.example"));
        network.until("a.example", |peer| ids(peer).len() == 260).await;
        network.peer("a.example", |peer| {
            assert_eq!(ids(peer), (0..260).collect::<Vec<_>>());
            assert!(peer.taken.iter().all(|transaction| transaction.edus.len() <= 100));
        });
        until(async || kept.0.lock().is_empty()).await;
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}
