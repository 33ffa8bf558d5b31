//! Sliding sync over the whole router, in both of its forms.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::testing::{Server, on_both};

const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const STABLE: &str = "/_matrix/client/v4/sync";

fn all() -> Value {
    let list = json!({ "ranges": [[0, 19]], "timeline_limit": 5, "required_state": [["m.room.create", ""]] });
    json!({ "lists": { "all": list }, "txn_id": "t1" })
}

/// Both paths answer; a position goes on, and is good for history; an unknown one is answered so that clients begin anew.
#[tokio::test]
async fn both_paths() {
    on_both(async |server: &Server| {
        let versions = server.get("/_matrix/client/versions", None).await.json(StatusCode::OK);
        assert_eq!(versions["unstable_features"]["org.matrix.simplified_msc3575"], true);
        assert_eq!(server.post(UNSTABLE, None, &all()).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        let token = server.user("alice").await;
        let room = server.post("/_matrix/client/v3/createRoom", Some(&token), &json!({})).await.json(StatusCode::OK);
        let room = room["room_id"].as_str().unwrap();
        let first = server.post(UNSTABLE, Some(&token), &all()).await.json(StatusCode::OK);
        assert_eq!((&first["txn_id"], &first["lists"]["all"]["count"]), (&json!("t1"), &json!(1)));
        assert_eq!(first["rooms"][room]["required_state"][0]["type"], "m.room.create");
        let pos = first["pos"].as_str().unwrap();
        let next = server.post(&format!("{UNSTABLE}?pos={pos}&timeout=0"), Some(&token), &all()).await;
        assert!(next.json(StatusCode::OK)["rooms"].is_null());
        let history = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&from={pos}");
        let history = server.get(&history, Some(&token)).await.json(StatusCode::OK);
        assert!(!history["chunk"].as_array().unwrap().is_empty());

        let list = json!({ "range": [0, 19], "timeline_limit": 5, "required_state": { "include": [{}] } });
        let body = json!({ "conn_id": "main", "lists": { "all": list } });
        let merged = server.post(STABLE, Some(&token), &body).await.json(StatusCode::OK);
        assert_eq!(merged["rooms"][room]["membership"], "join");
        let mut again = body.clone();
        again["pos"] = merged["pos"].clone();
        assert!(server.post(STABLE, Some(&token), &again).await.json(StatusCode::OK)["rooms"].is_null());

        let bob = server.user("bob").await;
        let refused = server.post(STABLE, Some(&bob), &again).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_UNKNOWN_POS", "it is another's");
        for pos in ["x", "p1_2_3_4_5_6", "s1_2", "p99999999_0_1_1_1_1"] {
            let refused = server.post(&format!("{UNSTABLE}?pos={pos}"), Some(&token), &all()).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_UNKNOWN_POS", "{pos}");
        }
    })
    .await;
}

/// What is malformed or too much is refused.
#[tokio::test]
async fn refusals() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let subscriptions = |count: usize| {
            let rooms: Map<String, Value> =
                (0..count).map(|number| (format!("!{number}:example.org"), json!({ "timeline_limit": 1 }))).collect();
            json!({ "room_subscriptions": rooms })
        };
        let list = |list: Value| json!({ "lists": { "a": list } });
        for (body, errcode) in [
            (list(json!({ "ranges": [[9, 0]] })), "M_INVALID_PARAM"),
            (list(json!({ "ranges": [[-1, 0]] })), "M_BAD_JSON"),
            (json!({ "conn_id": "x".repeat(256) }), "M_INVALID_PARAM"),
            (json!({ "lists": 1 }), "M_BAD_JSON"),
            (subscriptions(2000), "M_INVALID_PARAM"),
        ] {
            assert_eq!(server.post(UNSTABLE, Some(&token), &body).await.errcode(StatusCode::BAD_REQUEST), errcode);
        }
        let refused = server.post(UNSTABLE, Some(&token), &subscriptions(100_000)).await;
        assert_eq!(refused.errcode(StatusCode::PAYLOAD_TOO_LARGE), "M_TOO_LARGE");
        for query in ["timeout=-1", "timeout=x", "set_presence=asleep"] {
            let refused = server.post(&format!("{UNSTABLE}?{query}"), Some(&token), &all()).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM", "{query}");
        }
    })
    .await;
}
