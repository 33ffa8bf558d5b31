use http::StatusCode;
use myelin_store::RoomName;
use myelin_sync::ReceiptType;
use ruma::{UserId, presence::PresenceState, user_id};
use serde_json::{Value, json};

use crate::{
    metrics::EDUS,
    testing::{Peer, Server, on_both},
};

fn path(id: &str) -> String {
    format!("/_matrix/federation/v1/send/{id}")
}

fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

fn body(pdus: &[Value], edus: &[Value]) -> Value {
    json!({ "origin": "peer.org", "origin_server_ts": 1, "pdus": pdus, "edus": edus })
}

/// Sends one ephemeral message and tells how it was counted.
async fn edu(server: &Server, peer: &Peer, id: &str, edu_type: &str, content: Value) -> Vec<&'static str> {
    let label = if edu_type.starts_with("m.") { edu_type } else { "other" };
    let counts = || {
        ["ignored", "refused", "malformed", "failed", "accepted"]
            .map(|outcome| (outcome, EDUS.with_label_values(&[label, outcome]).get()))
    };
    let before = counts();
    let edu = json!({ "edu_type": edu_type, "content": content });
    let answer = peer.put(server, &path(id), &body(&[], &[edu])).await.json(StatusCode::OK);
    assert_eq!(answer, json!({ "pdus": {} }));
    counts().into_iter().zip(before).filter(|(after, before)| after != before).map(|(after, _)| after.0).collect()
}

/// Each event has its own result, and one that fails fails alone.
#[tokio::test]
async fn results_are_of_each_event() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let pdus = [json!({ "event_id": "$a" }), json!({ "event_id": "$b", "bad": "no" }), json!({ "nameless": 1 })];
        let answer = peer.put(server, &path("1"), &body(&pdus, &[])).await.json(StatusCode::OK);
        assert_eq!(answer, json!({ "pdus": { "$a": {}, "$b": { "error": "no" } } }));
        assert_eq!(server.writes.take_calls(), ["receive peer.org 3"]);
    })
    .await;
}

/// A repeated transaction is answered like the first, and its events are not looked at again; while it is under way, whoever
/// repeats it waits, and other servers' transactions do not.
#[tokio::test]
async fn repeated_transactions_are_done_once() {
    on_both(async |server: &Server| {
        let (peer, other) = (server.peer("peer.org"), server.peer("other.org"));
        let first = body(&[json!({ "event_id": "$a" })], &[]);
        let gate = server.writes.gate.lock().await;
        let path_1 = path("1");
        let both = async {
            let both = tokio::join!(peer.put(server, &path_1, &first), peer.put(server, &path_1, &first));
            [both.0, both.1]
        };
        let mut both = Box::pin(both);
        assert!(futures_util::poll!(&mut both).is_pending());
        let mut empty = body(&[], &[]);
        empty["origin"] = "other.org".into();
        // Of another server, and without events.
        let done = async {
            tokio::select! {
                _ = &mut both => unreachable!("the gate is closed"),
                answer = other.put(server, &path_1, &empty) => answer,
            }
        };
        assert_eq!(done.await.json(StatusCode::OK), json!({ "pdus": {} }));
        drop(gate);
        for answer in both.await {
            assert_eq!(answer.json(StatusCode::OK), json!({ "pdus": { "$a": {} } }));
        }
        let again = peer.put(server, &path_1, &body(&[], &[])).await.json(StatusCode::OK);
        assert_eq!(again, json!({ "pdus": { "$a": {} } }));
        assert_eq!(server.writes.take_calls(), ["receive peer.org 1"]);
    })
    .await;
}

/// What is over the limits, or another server's, is refused whole.
#[tokio::test]
async fn limits_are_kept() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let edu = json!({ "edu_type": "org.example", "content": {} });
        let full = body(&vec![json!({}); super::PDUS_MAX], &vec![edu.clone(); super::EDUS_MAX]);
        peer.put(server, &path("full"), &full).await.json(StatusCode::OK);
        assert_eq!(server.writes.take_calls(), ["receive peer.org 50"]);
        for over in [body(&vec![json!({}); super::PDUS_MAX + 1], &[]), body(&[], &vec![edu; super::EDUS_MAX + 1])] {
            let refused = peer.put(server, &path("over"), &over).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_TOO_LARGE");
        }
        let mut others = body(&[], &[]);
        others["origin"] = "other.org".into();
        let refused = peer.put(server, &path("others"), &others).await;
        assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        let refused = peer.put(server, &path("bad"), &json!({ "origin": "peer.org" })).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        assert!(server.writes.take_calls().is_empty());

        let gate = server.writes.gate.lock().await;
        let pdus = body(&[json!({ "event_id": "$a" })], &[]);
        let paths: Vec<String> = (0..5).map(|n| path(&format!("many{n}"))).collect();
        let many = paths.iter().map(|path| peer.put(server, path, &pdus));
        let mut many = Box::pin(futures_util::future::select_all(many.map(Box::pin)));
        // One is under way, three wait for their turn, and the fifth is sent away.
        let (limited, _, rest) = (&mut many).await;
        assert_eq!(limited.errcode(StatusCode::TOO_MANY_REQUESTS), "M_LIMIT_EXCEEDED");
        drop(gate);
        for answer in futures_util::future::join_all(rest).await {
            answer.json(StatusCode::OK);
        }
    })
    .await;
}

/// A room with Alice, who is ours, and Bob, who is not.
async fn shared_room(server: &Server, bob: &UserId) -> std::sync::Arc<RoomName> {
    let alice = server.user("alice").await;
    let room = server.room(&alice).await;
    server.join(&room, bob).await;
    room
}

/// Typing is told of the origin's users who are in a room that does not deny it.
#[tokio::test]
async fn typing_is_checked() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let room = shared_room(server, user_id!("@bob:peer.org")).await;
        let typing = |user: &str| json!({ "room_id": room.room_id, "user_id": user, "typing": true });
        assert_eq!(edu(server, &peer, "1", "m.typing", typing("@bob:peer.org")).await, ["accepted"]);
        assert_eq!(edu(server, &peer, "2", "m.typing", typing("@alice:example.org")).await, ["refused"]);
        assert_eq!(edu(server, &peer, "3", "m.typing", typing("@carol:peer.org")).await, ["ignored"]);
        server.services.store.user_nid(user_id!("@carol:peer.org")).await.unwrap();
        assert_eq!(edu(server, &peer, "4", "m.typing", typing("@carol:peer.org")).await, ["refused"]);
        let elsewhere = json!({ "room_id": "!other:peer.org", "user_id": "@bob:peer.org", "typing": true });
        assert_eq!(edu(server, &peer, "5", "m.typing", elsewhere).await, ["ignored"]);
        assert_eq!(edu(server, &peer, "6", "m.typing", json!({ "room_id": 1 })).await, ["malformed"]);
        server.writes.denied_rooms.lock().insert(room.room_id.clone());
        assert_eq!(edu(server, &peer, "7", "m.typing", typing("@bob:peer.org")).await, ["refused"]);
    })
    .await;
}

/// Receipts are kept of the origin's users who are in a room that does not deny it; one that is wrong spoils no other.
#[tokio::test]
async fn receipts_are_checked() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let bob = user_id!("@bob:peer.org");
        let room = shared_room(server, bob).await;
        let rooms = &server.services.rooms;
        let join = rooms.state_event(&room, "m.room.member", bob.as_str()).await.unwrap().unwrap();
        let receipt = |user: &str, event: &str| {
            json!({ room.room_id.as_str(): { "m.read": { user: { "event_ids": [event], "data": { "ts": 1 } } } } })
        };
        let event = join.event_id.as_str();
        assert_eq!(edu(server, &peer, "1", "m.receipt", receipt("@alice:example.org", event)).await, ["refused"]);
        assert_eq!(edu(server, &peer, "2", "m.receipt", receipt("@carol:peer.org", event)).await, ["ignored"]);
        assert_eq!(edu(server, &peer, "3", "m.receipt", receipt("bob", event)).await, ["malformed"]);
        assert_eq!(edu(server, &peer, "4", "m.receipt", receipt(bob.as_str(), "$unknown")).await, ["ignored"]);
        let none = json!({ room.room_id.as_str(): { "m.read": { bob.as_str(): { "event_ids": [], "data": {} } } } });
        assert_eq!(edu(server, &peer, "5", "m.receipt", none).await, ["malformed"]);
        assert_eq!(edu(server, &peer, "6", "m.receipt", json!([])).await, ["malformed"]);
        let bob_nid = server.services.store.user_nid(bob).await.unwrap();
        let kept = async || server.services.store.receipts_of_user(bob_nid, &[room.nid]).await.unwrap();
        assert!(kept().await.is_empty());

        server.writes.denied_rooms.lock().insert(room.room_id.clone());
        assert_eq!(edu(server, &peer, "7", "m.receipt", receipt(bob.as_str(), event)).await, ["refused"]);
        server.writes.denied_rooms.lock().clear();
        let mut mixed = receipt(bob.as_str(), event);
        mixed["not a room"] = json!({ "m.read": {} });
        mixed[room.room_id.as_str()]["m.read"]["@alice:example.org"] = json!({ "event_ids": [event] });
        assert_eq!(edu(server, &peer, "8", "m.receipt", mixed).await, ["accepted"]);
        let told = &kept().await[0];
        assert_eq!((told.event_nid, told.ts), (join.nid, 1), "the origin knows when it was");
        let alice_nid = server.services.store.user_nid(user_id!("@alice:example.org")).await.unwrap();
        let others = server.services.store.receipts_of_user(alice_nid, &[room.nid]).await.unwrap();
        assert!(others.iter().all(|receipt| *receipt.receipt_type != *"m.read"));
        // It is the one that clients set.
        let again = server.services.sync.mark_read(&room, bob_nid, ReceiptType::Read, None, &join.event_id).await;
        again.unwrap();
        assert_eq!(kept().await.len(), 1);

        // Nothing was read in the future, and what is no time is none.
        for (id, (thread, ts)) in [("main", json!((1_i64 << 53) - 1)), (event, json!("soon"))].into_iter().enumerate() {
            let data = json!({ "ts": ts, "thread_id": thread });
            let content =
                json!({ room.room_id.as_str(): { "m.read": { bob.as_str(): { "event_ids": [event], "data": data } } } });
            assert_eq!(edu(server, &peer, &format!("later{id}"), "m.receipt", content).await, ["accepted"]);
            let kept = kept().await;
            let receipt = kept.iter().find(|receipt| *receipt.thread == *thread).unwrap();
            assert!(receipt.ts > join.origin_server_ts() as i64 - 1 && receipt.ts <= now_ms() as i64, "{receipt:?}");
        }
    })
    .await;
}

/// Presence is told of the origin's users with whom we share a room, and work is bounded.
#[tokio::test]
async fn presence_is_checked() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let bob = user_id!("@bob:peer.org");
        shared_room(server, bob).await;
        let update = |user: &str, presence: &str| {
            json!({ "push": [{ "user_id": user, "presence": presence, "last_active_ago": 500, "status_msg": "here" }] })
        };
        let online = "online";
        assert_eq!(edu(server, &peer, "1", "m.presence", update("@alice:example.org", online)).await, ["refused"]);
        assert_eq!(edu(server, &peer, "2", "m.presence", update("@carol:peer.org", online)).await, ["ignored"]);
        server.services.store.user_nid(user_id!("@carol:peer.org")).await.unwrap();
        assert_eq!(edu(server, &peer, "3", "m.presence", update("@carol:peer.org", online)).await, ["ignored"]);
        assert_eq!(edu(server, &peer, "4", "m.presence", update(bob.as_str(), "asleep")).await, ["malformed"]);
        assert_eq!(edu(server, &peer, "5", "m.presence", json!({})).await, ["malformed"]);
        assert_eq!(edu(server, &peer, "6", "m.presence", update(bob.as_str(), online)).await, ["accepted"]);
        let (alice, bob) = (user_id!("@alice:example.org"), bob);
        let store = &server.services.store;
        let (alice, bob) = (store.user_nid(alice).await.unwrap(), store.user_nid(bob).await.unwrap());
        let presence = async || server.services.sync.presence(alice, bob).await.unwrap();
        // It goes over the bus.
        let told = async {
            while presence().await.state != PresenceState::Online {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), told).await.unwrap();
        assert_eq!(presence().await.status_msg.as_deref(), Some("here"));
        let ago = now_ms() - presence().await.last_active_ms;
        assert!((500..60_000).contains(&ago), "{ago}");
        assert_eq!(edu(server, &peer, "7", "org.example.unknown", json!({})).await, ["ignored"]);
        let nobody = json!({ "user_id": "@carol:peer.org", "presence": online, "last_active_ago": 0 });
        let mut many = vec![nobody; 2000];
        many.push(update("@bob:peer.org", online)["push"][0].clone());
        assert_eq!(edu(server, &peer, "8", "m.presence", json!({ "push": many })).await, ["ignored"]);
    })
    .await;
}

/// Messages to devices reach our users once, from the origin's users only.
#[tokio::test]
async fn to_device_messages_are_checked() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        server.user("alice").await;
        let message = |sender: &str| {
            let messages = json!({ "@alice:example.org": { "*": { "a": 1 } } });
            json!({ "sender": sender, "type": "org.example", "message_id": "1", "messages": messages })
        };
        let direct = "m.direct_to_device";
        assert_eq!(edu(server, &peer, "1", direct, message("@bob:peer.org")).await, ["accepted"]);
        assert_eq!(edu(server, &peer, "2", direct, message("@carol:other.org")).await, ["refused"]);
        assert_eq!(edu(server, &peer, "3", direct, json!({ "sender": "@bob:peer.org" })).await, ["malformed"]);
        let update = |user: &str| json!({ "user_id": user, "device_id": "PHONE", "stream_id": 1 });
        let list = "m.device_list_update";
        assert_eq!(edu(server, &peer, "4", list, update("@alice:example.org")).await, ["refused"]);
        assert_eq!(edu(server, &peer, "5", list, json!({})).await, ["malformed"]);
        let keys = json!({ "user_id": "@alice:example.org" });
        assert_eq!(edu(server, &peer, "6", "m.signing_key_update", keys).await, ["refused"]);
    })
    .await;
}
