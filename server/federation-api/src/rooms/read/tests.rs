use http::{Method, StatusCode};
use myelin_rooms::{Template, content};
use ruma::{EventId, OwnedEventId, UserId, user_id};
use serde_json::{Value, json, value::to_raw_value};

use crate::testing::{Peer, Server, on_both};

const V1: &str = "/_matrix/federation/v1";
const FORBIDDEN: (StatusCode, &str) = (StatusCode::FORBIDDEN, "M_FORBIDDEN");
const NOT_FOUND: (StatusCode, &str) = (StatusCode::NOT_FOUND, "M_NOT_FOUND");

fn segment(text: &str) -> String {
    text.replace('!', "%21").replace('$', "%24").replace(':', "%3A")
}

async fn refused(server: &Server, peer: &Peer, path: &str, (status, errcode): (StatusCode, &str)) {
    assert_eq!(peer.get(server, path).await.errcode(status), errcode, "{path}");
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect()
}

fn bodies(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().filter_map(|pdu| pdu["content"]["body"].as_str()).collect()
}

/// Every answer in the form of the specification, with the events as they are stored.
#[tokio::test]
async fn rooms_are_read() {
    on_both(async |server: &Server| {
        let (peer, stranger) = (server.peer("peer.org"), server.peer("stranger.org"));
        let alice = server.user("alice").await;
        let room = server.room(&alice).await;
        server.join(&room, user_id!("@bob:peer.org")).await;
        let rooms = &server.services.rooms;
        let mut said: Vec<OwnedEventId> = Vec::new();
        for body in ["1", "2", "3"] {
            let text = content(&to_raw_value(&json!({ "msgtype": "m.text", "body": body })).unwrap()).unwrap();
            let sender: &UserId = &alice;
            said.push(
                Box::pin(rooms.send(&room, Template::message(sender, "m.room.message", text), None)).await.unwrap(),
            );
        }
        let id = segment(room.room_id.as_str());
        let last = segment(said[2].as_str());
        let stored = server.services.store.event_by_id(&said[2]).await.unwrap().unwrap();

        let event = peer.get(server, &format!("{V1}/event/{last}")).await;
        let json = event.json(StatusCode::OK);
        assert_eq!(json["origin"], "example.org");
        assert!(json["origin_server_ts"].is_u64());
        assert!(String::from_utf8(event.body).unwrap().ends_with(&format!("\"pdus\":[{}]}}", stored.json())));

        let state = peer.get(server, &format!("{V1}/state/{id}?event_id={last}")).await.json(StatusCode::OK);
        let state_ids = peer.get(server, &format!("{V1}/state_ids/{id}?event_id={last}")).await.json(StatusCode::OK);
        assert_eq!(state["pdus"].as_array().unwrap().len(), ids(&state_ids["pdu_ids"]).len());
        assert_eq!(state["auth_chain"].as_array().unwrap().len(), ids(&state_ids["auth_chain_ids"]).len());
        let auth = peer.get(server, &format!("{V1}/event_auth/{id}/{last}")).await.json(StatusCode::OK);
        assert!(auth["auth_chain"].as_array().unwrap().iter().any(|pdu| pdu["type"] == "m.room.create"));

        let path = format!("{V1}/backfill/{id}?v={last}&v={}&limit=2", segment(said[0].as_str()));
        let backfill = peer.get(server, &path).await.json(StatusCode::OK);
        assert_eq!(bodies(&backfill["pdus"]), ["3", "2"]);
        let path = format!("{V1}/get_missing_events/{id}");
        let wanted = json!({ "earliest_events": [], "latest_events": [said[2]], "limit": 2 });
        let missing = peer.post(server, &path, &wanted).await.json(StatusCode::OK);
        assert_eq!(bodies(&missing["events"]), ["1", "2"]);
        let found = peer.get(server, &format!("{V1}/timestamp_to_event/{id}?ts=9000000000000&dir=b")).await;
        let found = found.json(StatusCode::OK);
        assert_eq!(found["event_id"], said[2].as_str());
        assert_eq!(found["origin_server_ts"], stored.origin_server_ts());
        let space = peer.get(server, &format!("{V1}/hierarchy/{id}?suggested_only=true")).await.json(StatusCode::OK);
        assert_eq!(space["room"]["name"], "Room");
        assert_eq!(space["room"]["num_joined_members"], 2);
        assert_eq!((&space["children"], &space["inaccessible_children"]), (&json!([]), &json!([])));

        let paths = [
            format!("{V1}/state/{id}?event_id={last}"),
            format!("{V1}/state_ids/{id}?event_id={last}"),
            format!("{V1}/event_auth/{id}/{last}"),
            format!("{V1}/backfill/{id}?v={last}&limit=2"),
            format!("{V1}/timestamp_to_event/{id}?ts=1&dir=f"),
        ];
        for path in &paths {
            refused(server, &stranger, path, FORBIDDEN).await;
            // A room that nobody knows looks the same.
            refused(server, &stranger, &path.replace(&id, "%21none%3Aexample.org"), FORBIDDEN).await;
        }
        refused(server, &stranger, &format!("{V1}/event/{last}"), NOT_FOUND).await;
        let answer = stranger.post(server, &format!("{V1}/get_missing_events/{id}"), &wanted).await;
        assert_eq!(answer.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        for path in &paths[..4] {
            refused(server, &peer, &path.replace(&last, "%24unknown"), NOT_FOUND).await;
        }
        refused(server, &peer, &format!("{V1}/event/%24unknown"), NOT_FOUND).await;
        refused(server, &peer, &format!("{V1}/timestamp_to_event/{id}?ts=9000000000000&dir=f"), NOT_FOUND).await;
        refused(server, &peer, &format!("{V1}/hierarchy/%21none%3Aexample.org"), NOT_FOUND).await;

        let list = content(&to_raw_value(&json!({ "allow": ["*"], "deny": ["peer.*"] })).unwrap()).unwrap();
        Box::pin(rooms.set_state(&room, &alice, "m.room.server_acl", "", list)).await.unwrap();
        for path in &paths {
            refused(server, &peer, path, FORBIDDEN).await;
        }
        let answer = peer.post(server, &format!("{V1}/get_missing_events/{id}"), &wanted).await;
        assert_eq!(answer.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
    })
    .await;
}

/// Requests without what they need, or with nonsense in it, are refused by name.
#[tokio::test]
async fn bad_requests() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let id = "%21room%3Aexample.org";
        for path in [
            format!("{V1}/state/{id}"),
            format!("{V1}/state_ids/{id}?event_id=nothing"),
            format!("{V1}/backfill/{id}?v=%24a&limit=-1"),
            format!("{V1}/timestamp_to_event/{id}?ts=1&dir=x"),
            format!("{V1}/event/nothing"),
        ] {
            let answer = peer.get(server, &path).await;
            let errcode = answer.errcode(StatusCode::BAD_REQUEST);
            assert!(errcode.starts_with("M_"), "{path}: {errcode}");
        }
        let event_id: &EventId = "$a".try_into().unwrap();
        let body = json!({ "earliest_events": [], "latest_events": [event_id], "limit": "many" });
        let answer = peer.post(server, &format!("{V1}/get_missing_events/{id}"), &body).await;
        assert_eq!(answer.errcode(StatusCode::BAD_REQUEST), "M_BAD_JSON");
        // Without a signature, nothing is told at all.
        let request = http::Request::builder().method(Method::GET).uri(format!("{V1}/event/%24a"));
        let answer = server.send(request.body(Vec::new()).unwrap()).await;
        assert_eq!(answer.errcode(StatusCode::UNAUTHORIZED), "M_UNAUTHORIZED");
    })
    .await;
}
