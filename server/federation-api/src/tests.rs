//! A user of another server comes, talks, and leaves.

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, RoomVersionId,
    signatures::{hash_and_sign_event, reference_hash},
};
use serde_json::{Value, json};

use crate::testing::{Peer, Server, on_both};

const V1: &str = "/_matrix/federation/v1";
const V2: &str = "/_matrix/federation/v2";

/// Completes an event as its server does; its identifier, and its JSON.
fn signed(peer: &Peer, event: Value) -> (String, Value) {
    let rules = RoomVersionId::V11.rules().unwrap();
    let mut object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
    hash_and_sign_event(peer.name.as_str(), &peer.key, &mut object, &rules.redaction).unwrap();
    let event_id = format!("${}", reference_hash(&object, &rules).unwrap());
    (event_id, serde_json::to_value(object).unwrap())
}

fn path_of(text: &str) -> String {
    text.replace('!', "%21").replace('$', "%24").replace('@', "%40").replace(':', "%3A")
}

/// A message of Bob after these events.
fn message(room_id: &str, text: &str, after: &str, allowed_by: &[&str], depth: u64) -> Value {
    json!({
        "type": "m.room.message",
        "room_id": room_id,
        "sender": "@bob:peer.org",
        "content": { "msgtype": "m.text", "body": text },
        "origin_server_ts": 1_700_000_000_000_u64,
        "depth": depth,
        "prev_events": [after],
        "auth_events": allowed_by,
    })
}

/// The answers are those of real rooms: a join is in the room, a message after it too, a forged one is not, and the rest of
/// its transaction does not suffer from it.
#[tokio::test]
async fn a_visit() {
    on_both(async |server: &Server| {
        let server = &server.with_rooms();
        let peer = server.peer("peer.org");
        let alice = server.user("alice").await;
        let room = server.room(&alice).await;
        let room_id = room.room_id.as_str();

        let make = format!("{V1}/make_join/{}/{}?ver=11", path_of(room_id), path_of("@bob:peer.org"));
        let template = peer.get(server, &make).await.json(StatusCode::OK);
        let mut join = template["event"].clone();
        let depth = join["depth"].as_u64().unwrap();
        join["origin_server_ts"] = 1_700_000_000_000_u64.into();
        let mut allowed_by: Vec<String> = serde_json::from_value(join["auth_events"].clone()).unwrap();
        let (join_id, join) = signed(&peer, join);
        let send = format!("{V2}/send_join/{}/{}", path_of(room_id), path_of(&join_id));
        let other = peer.put(server, &send.replace("send_join", "send_leave"), &join).await;
        assert!(matches!(other.errcode(StatusCode::BAD_REQUEST).as_str(), "M_INVALID_PARAM" | "M_BAD_JSON"));
        let joined = peer.put(server, &send, &join).await.json(StatusCode::OK);
        assert!(joined["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
        assert_eq!(joined["event"]["state_key"], "@bob:peer.org");
        let old = make.replace("ver=11", "ver=1").replace("bob", "carol");
        let refused = peer.get(server, &old).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INCOMPATIBLE_ROOM_VERSION");

        // Join rules allow joins alone.
        let rules = server.services.rooms.state_event(&room, "m.room.join_rules", "").await.unwrap().unwrap();
        allowed_by.retain(|event_id| *event_id != rules.event_id.as_str());
        allowed_by.push(join_id.clone());
        let allowed_by: Vec<&str> = allowed_by.iter().map(String::as_str).collect();
        let (good_id, good) = signed(&peer, message(room_id, "hello", &join_id, &allowed_by, depth + 1));
        let forger = Peer { name: peer.name.clone(), ..Peer::new("peer.org") };
        let (forged_id, forged) = signed(&forger, message(room_id, "forged", &join_id, &allowed_by, depth + 1));
        let transaction = json!({ "origin": "peer.org", "origin_server_ts": 1, "pdus": [forged, good], "edus": [] });
        let answer = peer.put(server, &format!("{V1}/send/1"), &transaction).await.json(StatusCode::OK);
        assert_eq!(answer["pdus"][&good_id], json!({}), "{answer}");
        assert!(answer["pdus"][&forged_id]["error"].is_string(), "{answer}");
        let event = |id: &str| <&ruma::EventId>::try_from(id).unwrap().to_owned();
        let store = &server.services.store;
        assert!(store.event_by_id(&event(&good_id)).await.unwrap().unwrap().is_shown());
        assert!(store.event_by_id(&event(&forged_id)).await.unwrap().is_none());
    })
    .await;
}
