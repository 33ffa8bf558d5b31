//! Messages to devices by their endpoint and /sync, on each engine that is there.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    keys::tests::Device,
    testing::{Server, on_both},
};

async fn send(server: &Server, from: &Device, txn: &str, messages: Value) -> StatusCode {
    let path = format!("/_matrix/client/v3/sendToDevice/m.test/{txn}");
    server.request(Method::PUT, &path, Some(&from.token), &json!({ "messages": messages })).await.status()
}

async fn sync(server: &Server, device: &Device, since: Option<&Value>) -> Value {
    let since = since.map_or(String::new(), |since| format!("?since={}", since["next_batch"].as_str().unwrap()));
    server.get(&format!("/_matrix/client/v3/sync{since}"), Some(&device.token)).await.json(StatusCode::OK)
}

fn bodies(sync: &Value) -> Vec<i64> {
    let events = sync["to_device"]["events"].as_array().into_iter().flatten();
    events.map(|event| event["content"]["n"].as_i64().unwrap()).collect()
}

/// Messages come in their order, again until they are acknowledged, and once however often they are sent.
#[tokio::test]
async fn messages_are_delivered_until_acknowledged() {
    on_both(async |server: &Server| {
        let (alice, bob) = (Device::new(server, "alice", "A").await, Device::new(server, "bob", "B").await);
        let start = sync(server, &bob, None).await;
        for n in 0..3 {
            for _ in 0..2 {
                let messages =
                    json!({ &bob.user: { "B": { "n": n }, "NONE": { "n": 9 } }, "@none:example.org": { "*": {} } });
                assert_eq!(send(server, &alice, &format!("{n}"), messages).await, StatusCode::OK);
            }
        }
        let first = sync(server, &bob, Some(&start)).await;
        assert_eq!(bodies(&first), [0, 1, 2]);
        let event = json!({ "sender": alice.user, "type": "m.test", "content": { "n": 0 } });
        assert_eq!(first["to_device"]["events"][0], event);
        assert_eq!(bodies(&sync(server, &bob, Some(&start)).await), [0, 1, 2], "not acknowledged");
        assert_eq!(bodies(&sync(server, &bob, None).await), [0, 1, 2], "nor by beginning anew");
        send(server, &alice, "later", json!({ &bob.user: { "B": { "n": 3 } } })).await;
        let second = sync(server, &bob, Some(&first)).await;
        assert_eq!(bodies(&second), [3]);
        assert_eq!(bodies(&sync(server, &bob, None).await), [3], "what was acknowledged is gone");
        assert!(sync(server, &bob, Some(&second)).await.get("to_device").is_none());
        assert!(sync(server, &bob, None).await.get("to_device").is_none());
        assert!(sync(server, &alice, None).await.get("to_device").is_none());
        for bad in [json!({ &bob.user: { "B": 5 } }), json!({ &bob.user: [] }), json!({ "bob": {} })] {
            assert_eq!(send(server, &alice, "bad", bad).await, StatusCode::BAD_REQUEST);
        }
        assert!(sync(server, &bob, None).await.get("to_device").is_none());
    })
    .await;
}

/// A message to all devices reaches each, but for those that get one of their own.
#[tokio::test]
async fn messages_reach_all_devices() {
    on_both(async |server: &Server| {
        let alice = Device::new(server, "alice", "A").await;
        let mut devices = Vec::new();
        for id in ["B", "C", "D"] {
            devices.push(Device::new(server, "bob", id).await);
        }
        let user = &devices[0].user;
        send(server, &alice, "1", json!({ user: { "*": { "n": 1 }, "C": { "n": 2 } } })).await;
        let mut got = Vec::new();
        for device in &devices {
            got.extend(bodies(&sync(server, device, None).await));
        }
        assert_eq!(got, [1, 2, 1]);
        let gone = server.post("/_matrix/client/v3/logout", Some(&devices[0].token), &json!({})).await;
        gone.json(StatusCode::OK);
        let again = Device::new(server, "bob", "B").await;
        assert!(bodies(&sync(server, &again, None).await).is_empty(), "the messages went with the device");
    })
    .await;
}

/// A long queue comes in several answers, none of it is lost, and each is acknowledged by itself.
#[tokio::test]
async fn long_queues_come_in_parts() {
    on_both(async |server: &Server| {
        let (alice, bob) = (Device::new(server, "alice", "A").await, Device::new(server, "bob", "B").await);
        let start = sync(server, &bob, None).await;
        for n in 0..230 {
            send(server, &alice, &format!("{n}"), json!({ &bob.user: { "B": { "n": n } } })).await;
        }
        let mut got = Vec::new();
        let mut last = start;
        for part in [100, 100, 30, 0] {
            let next = sync(server, &bob, Some(&last)).await;
            assert_eq!(bodies(&next).len(), part);
            assert_eq!(bodies(&sync(server, &bob, Some(&last)).await), bodies(&next), "again until acknowledged");
            got.extend(bodies(&next));
            last = next;
        }
        assert_eq!(got, (0..230).collect::<Vec<_>>());
    })
    .await;
}

/// Whoever waits is woken by a message to the own device, and by new keys of someone in the same room.
#[tokio::test]
async fn waiting_clients_are_woken() {
    on_both(async |server: &Server| {
        let (alice, bob) = (Device::new(server, "alice", "A").await, Device::new(server, "bob", "B").await);
        let room = json!({ "preset": "public_chat" });
        let made = server.post("/_matrix/client/v3/createRoom", Some(&alice.token), &room).await.json(StatusCode::OK);
        let join = format!("/_matrix/client/v3/rooms/{}/join", made["room_id"].as_str().unwrap());
        server.post(&join, Some(&bob.token), &json!({})).await.json(StatusCode::OK);
        let wait = async |since: &Value| {
            let since = since["next_batch"].as_str().unwrap();
            let path = format!("/_matrix/client/v3/sync?timeout=60000&since={since}");
            let waiting = server.get(&path, Some(&bob.token));
            let answer = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await;
            answer.expect("bob is woken").json(StatusCode::OK)
        };
        let start = sync(server, &bob, None).await;
        let to_bob = json!({ &bob.user: { "B": { "n": 1 } } });
        let (told, sent) = tokio::join!(wait(&start), send(server, &alice, "1", to_bob));
        assert_eq!((bodies(&told), sent), (vec![1], StatusCode::OK));
        let ((), told) = tokio::join!(alice.upload_identity(server), wait(&told));
        assert_eq!(told["device_lists"]["changed"], json!([alice.user]));
    })
    .await;
}
