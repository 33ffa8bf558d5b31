//! Key backups by their endpoints, on each engine that is there.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::testing::{Server, on_both};

const VERSION: &str = "/_matrix/client/v3/room_keys/version";
const KEYS: &str = "/_matrix/client/v3/room_keys/keys";

fn description(public_key: &str) -> Value {
    let auth_data = json!({ "public_key": public_key, "signatures": {} });
    json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": auth_data })
}

fn key(index: u32) -> Value {
    json!({ "first_message_index": index, "forwarded_count": 0, "is_verified": false,
            "session_data": { "ephemeral": "e", "ciphertext": "c", "mac": "m" } })
}

/// A backup is made, filled, read back by another device, and removed.
#[tokio::test]
async fn backups_are_kept() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let ask =
            async |method: Method, path: &str, body: Value| server.request(method, path, Some(&alice), &body).await;
        let none = ask(Method::GET, VERSION, json!({})).await;
        assert_eq!(none.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let early = ask(Method::PUT, &format!("{KEYS}?version=1"), json!({ "rooms": {} })).await;
        assert_eq!(early.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let made = ask(Method::POST, VERSION, description("a")).await.json(StatusCode::OK);
        assert_eq!(made, json!({ "version": "1" }));
        let mut expected = description("a");
        expected["count"] = 0.into();
        expected["etag"] = "0".into();
        expected["version"] = "1".into();
        assert_eq!(ask(Method::GET, VERSION, json!({})).await.json(StatusCode::OK), expected);

        let rooms = json!({ "rooms": { "!a:example.org": { "sessions": { "one": key(1), "two": key(2) } } } });
        let put = ask(Method::PUT, &format!("{KEYS}?version=1"), rooms.clone()).await.json(StatusCode::OK);
        assert_eq!(put, json!({ "etag": "1", "count": 2 }));
        let put = ask(Method::PUT, &format!("{KEYS}?version=1"), rooms.clone()).await.json(StatusCode::OK);
        assert_eq!(put, json!({ "etag": "1", "count": 2 }), "nothing new");
        let room = format!("{KEYS}/!b:example.org?version=1");
        let put = ask(Method::PUT, &room, json!({ "sessions": { "three": key(3) } })).await.json(StatusCode::OK);
        assert_eq!(put, json!({ "etag": "2", "count": 3 }));
        let session = format!("{KEYS}/!a:example.org/one?version=1");
        let put = ask(Method::PUT, &session, key(0)).await.json(StatusCode::OK);
        assert_eq!(put, json!({ "etag": "3", "count": 3 }));
        assert_eq!(ask(Method::GET, &session, json!({})).await.json(StatusCode::OK), key(0));
        let all = ask(Method::GET, &format!("{KEYS}?version=1"), json!({})).await.json(StatusCode::OK);
        assert_eq!(all["rooms"]["!a:example.org"]["sessions"]["two"], key(2));
        assert_eq!(all["rooms"]["!b:example.org"], json!({ "sessions": { "three": key(3) } }));
        assert_eq!(ask(Method::GET, &room, json!({})).await.json(StatusCode::OK), all["rooms"]["!b:example.org"]);
        let empty = ask(Method::GET, &format!("{KEYS}/!c:example.org?version=1"), json!({})).await;
        assert_eq!(empty.json(StatusCode::OK), json!({ "sessions": {} }));
        let unknown = ask(Method::GET, &format!("{KEYS}/!a:example.org/none?version=1"), json!({})).await;
        assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let foreign = server.get(&format!("{KEYS}?version=1"), Some(&bob)).await;
        assert_eq!(foreign.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");

        let gone = ask(Method::DELETE, &session, json!({})).await.json(StatusCode::OK);
        assert_eq!(gone, json!({ "etag": "4", "count": 2 }));
        let gone = ask(Method::DELETE, &room, json!({})).await.json(StatusCode::OK);
        assert_eq!(gone, json!({ "etag": "5", "count": 1 }));
        let gone = ask(Method::DELETE, &format!("{KEYS}?version=1"), json!({})).await.json(StatusCode::OK);
        assert_eq!(gone, json!({ "etag": "6", "count": 0 }));
        let path = format!("{VERSION}/1");
        ask(Method::DELETE, &path, json!({})).await.json(StatusCode::OK);
        assert_eq!(ask(Method::GET, &path, json!({})).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        assert_eq!(ask(Method::GET, &session, json!({})).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
    })
    .await;
}

/// Keys go into the newest backup alone; what is no key, or no backup, is refused and changes nothing.
#[tokio::test]
async fn wrong_backups_are_refused() {
    on_both(async |server: &Server| {
        let alice = server.user("alice").await;
        let ask =
            async |method: Method, path: &str, body: Value| server.request(method, path, Some(&alice), &body).await;
        for name in ["a", "b"] {
            ask(Method::POST, VERSION, description(name)).await.json(StatusCode::OK);
        }
        let rooms = json!({ "rooms": { "!a:example.org": { "sessions": { "one": key(1) } } } });
        for version in ["1", "3", "02", "x"] {
            let refused = ask(Method::PUT, &format!("{KEYS}?version={version}"), rooms.clone()).await;
            assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_WRONG_ROOM_KEYS_VERSION");
            assert_eq!(refused.json(StatusCode::FORBIDDEN)["current_version"], "2");
        }
        let missing = ask(Method::PUT, KEYS, rooms.clone()).await;
        assert_eq!(missing.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        let mut bad = vec![json!({}), json!({ "session_data": {} })];
        for (field, value) in [
            ("first_message_index", json!(-1)),
            ("forwarded_count", json!("1")),
            ("is_verified", json!(1)),
            ("session_data", json!("x")),
        ] {
            let mut one = key(1);
            one[field] = value;
            bad.push(one);
        }
        for bad in bad {
            let path = format!("{KEYS}/!a:example.org/one?version=2");
            assert_eq!(ask(Method::PUT, &path, bad.clone()).await.status(), StatusCode::BAD_REQUEST, "{bad}");
        }
        let latest = ask(Method::GET, VERSION, json!({})).await.json(StatusCode::OK);
        assert_eq!((&latest["version"], &latest["count"]), (&json!("2"), &json!(0)));

        let path = format!("{VERSION}/1");
        let mut other = description("c");
        other["version"] = "2".into();
        assert_eq!(ask(Method::PUT, &path, other.clone()).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        other["version"] = "1".into();
        ask(Method::PUT, &path, other).await.json(StatusCode::OK);
        let shown = ask(Method::GET, &path, json!({})).await.json(StatusCode::OK);
        assert_eq!(shown["auth_data"]["public_key"], "c");
        let mut algorithm = description("c");
        algorithm["algorithm"] = "m.other".into();
        assert_eq!(ask(Method::PUT, &path, algorithm).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        let unknown = ask(Method::PUT, &format!("{VERSION}/9"), description("c")).await;
        assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        for bad in [json!({}), json!({ "algorithm": "a" }), json!({ "algorithm": "a", "auth_data": 5 })] {
            assert_eq!(ask(Method::POST, VERSION, bad).await.status(), StatusCode::BAD_REQUEST);
        }
    })
    .await;
}
