//! The endpoints of this module over the whole router.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::testing::{Server, on_both};

const SET: &str = "/_matrix/client/v3/pushers/set";
const PUSHERS: &str = "/_matrix/client/v3/pushers";

pub(super) fn pusher(pushkey: &str) -> Value {
    json!({
        "kind": "http",
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "app_display_name": "App",
        "device_display_name": "Phone",
        "profile_tag": "tag",
        "lang": "en",
        "data": { "url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only", "org.example": [1] },
    })
}

async fn keys(server: &Server, token: &str) -> Vec<String> {
    let all = server.get(PUSHERS, Some(token)).await.json(StatusCode::OK);
    let pushers = all["pushers"].as_array().unwrap();
    pushers.iter().map(|pusher| pusher["pushkey"].as_str().unwrap().to_owned()).collect()
}

/// Pushers are set, shown as they were set, changed, taken over by others, and removed.
#[tokio::test]
async fn pushers_are_set_and_shown() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert!(keys(server, &alice).await.is_empty());
        server.post(SET, Some(&alice), &pusher("a")).await.json(StatusCode::OK);
        let shown = server.get(PUSHERS, Some(&alice)).await.json(StatusCode::OK);
        assert_eq!(shown, json!({ "pushers": [pusher("a")] }));
        let mut changed = pusher("a");
        changed["lang"] = "de".into();
        server.post(SET, Some(&alice), &changed).await.json(StatusCode::OK);
        server.post(SET, Some(&alice), &pusher("b")).await.json(StatusCode::OK);
        let shown = server.get(PUSHERS, Some(&alice)).await.json(StatusCode::OK);
        assert_eq!(shown, json!({ "pushers": [changed, pusher("b")] }));

        let mut shared = pusher("a");
        shared["append"] = true.into();
        server.post(SET, Some(&bob), &shared).await.json(StatusCode::OK);
        assert_eq!((keys(server, &alice).await.len(), keys(server, &bob).await.len()), (2, 1));
        server.post(SET, Some(&bob), &pusher("b")).await.json(StatusCode::OK);
        assert_eq!(keys(server, &alice).await, ["a"], "it is one device, and another's now");

        let none = json!({ "kind": null, "app_id": "org.example.app", "pushkey": "a" });
        for _ in 0..2 {
            server.post(SET, Some(&alice), &none).await.json(StatusCode::OK);
            assert!(keys(server, &alice).await.is_empty());
        }
        assert_eq!(keys(server, &bob).await, ["a", "b"]);
    })
    .await;
}

/// A pusher goes with its device, and when the password is changed with the other devices.
#[tokio::test]
async fn pushers_go_with_their_devices() {
    on_both(async |server: &Server| {
        let phone = server.user("alice").await;
        let login = server.post("/_matrix/client/v3/login", None, &server.password_auth("alice")).await;
        let tablet = login.json(StatusCode::OK)["access_token"].as_str().unwrap().to_owned();
        let login = server.post("/_matrix/client/v3/login", None, &server.password_auth("alice")).await;
        let laptop = login.json(StatusCode::OK)["access_token"].as_str().unwrap().to_owned();
        for (token, key) in [(&phone, "phone"), (&tablet, "tablet"), (&laptop, "laptop")] {
            server.post(SET, Some(token), &pusher(key)).await.json(StatusCode::OK);
        }
        server.post("/_matrix/client/v3/logout", Some(&tablet), &json!({})).await.json(StatusCode::OK);
        assert_eq!(keys(server, &phone).await, ["phone", "laptop"]);
        let change = json!({ "new_password": "another long pass phrase", "auth": server.password_auth("alice") });
        let path = "/_matrix/client/v3/account/password";
        server.post(path, Some(&phone), &change).await.json(StatusCode::OK);
        assert_eq!(keys(server, &phone).await, ["phone"]);
    })
    .await;
}

/// What is no pusher, or one that is not told here, is refused, and changes nothing.
#[tokio::test]
async fn refuses_what_is_no_pusher() {
    on_both(async |server: &Server| {
        let alice = server.user("alice").await;
        let with = |name: &str, value: Value| {
            let mut pusher = pusher("a");
            match value {
                Value::Null => drop(pusher.as_object_mut().unwrap().remove(name)),
                value => pusher[name] = value,
            }
            pusher
        };
        let url = |url: &str| with("data", json!({ "url": url }));
        let cases = [
            (with("lang", Value::Null), "M_MISSING_PARAM"),
            (with("data", Value::Null), "M_MISSING_PARAM"),
            (with("data", json!({})), "M_MISSING_PARAM"),
            (with("app_display_name", Value::Null), "M_MISSING_PARAM"),
            (with("pushkey", Value::Null), "M_MISSING_PARAM"),
            (with("pushkey", json!(1)), "M_BAD_JSON"),
            (with("kind", json!("email")), "M_UNRECOGNIZED"),
            (with("kind", json!("org.example.kind")), "M_UNRECOGNIZED"),
            (with("app_id", json!("x".repeat(65))), "M_INVALID_PARAM"),
            (with("app_id", json!("")), "M_INVALID_PARAM"),
            (with("pushkey", json!("x".repeat(513))), "M_INVALID_PARAM"),
            (with("lang", json!("x".repeat(2000))), "M_INVALID_PARAM"),
            (
                with("data", json!({ "url": "https://a.b/_matrix/push/v1/notify", "format": "secret" })),
                "M_INVALID_PARAM",
            ),
            (url("ftp://push.example/_matrix/push/v1/notify"), "M_INVALID_PARAM"),
            (url("https://push.example/other"), "M_INVALID_PARAM"),
            (url("https://me:me@push.example/_matrix/push/v1/notify"), "M_INVALID_PARAM"),
            (url("https:///_matrix/push/v1/notify"), "M_INVALID_PARAM"),
            (url("not a url"), "M_INVALID_PARAM"),
            // Only where the operator says that gateways are in the own network.
            (url("http://push.example/_matrix/push/v1/notify"), "M_INVALID_PARAM"),
        ];
        for (body, errcode) in cases {
            let refused = server.post(SET, Some(&alice), &body).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), errcode, "{body}");
        }
        assert!(keys(server, &alice).await.is_empty());
        for answer in [
            server.post(SET, None, &pusher("a")).await,
            server.get(PUSHERS, None).await,
            server.get("/_matrix/client/v3/notifications", None).await,
        ] {
            assert_eq!(answer.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        }
        let guest = crate::account::tests::guest(server).await.access_token;
        for answer in [server.post(SET, Some(&guest), &pusher("a")).await, server.get(PUSHERS, Some(&guest)).await] {
            assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        }
    })
    .await;
}

struct Talk<'a> {
    server: &'a Server,
    room: String,
    sent: std::cell::Cell<u32>,
}

impl Talk<'_> {
    async fn say(&self, token: &str, content: Value) -> String {
        self.sent.set(self.sent.get() + 1);
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{}", self.room, self.sent.get());
        let sent = self.server.request(Method::PUT, &path, Some(token), &content).await.json(StatusCode::OK);
        sent["event_id"].as_str().unwrap().to_owned()
    }
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

async fn page(server: &Server, token: &str, query: &str) -> Value {
    server.get(&format!("/_matrix/client/v3/notifications?{query}"), Some(token)).await.json(StatusCode::OK)
}

fn told(page: &Value) -> Vec<(String, bool)> {
    let all = page["notifications"].as_array().unwrap();
    let one = |found: &Value| {
        (found["event"]["content"]["body"].as_str().unwrap_or_default().to_owned(), found["read"].as_bool().unwrap())
    };
    all.iter().map(one).collect()
}

/// The notifications of all rooms come newest first, in pages, by the user's rules, and say what is read; what was said
/// before one came, by oneself, or in a muted room is not among them.
#[tokio::test]
async fn notifications_by_the_rules() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut talks = Vec::new();
        for _ in 0..3 {
            let preset = json!({ "preset": "public_chat" });
            let made = server.post("/_matrix/client/v3/createRoom", Some(&bob), &preset).await.json(StatusCode::OK);
            let room = made["room_id"].as_str().unwrap().to_owned();
            talks.push(Talk { server, room, sent: std::cell::Cell::new(0) });
        }
        talks[0].say(&bob, text("before")).await;
        for talk in &talks {
            let path = format!("/_matrix/client/v3/rooms/{}/join", talk.room);
            server.post(&path, Some(&alice), &json!({})).await.json(StatusCode::OK);
        }
        let muted = format!("/_matrix/client/v3/pushrules/global/room/{}", talks[2].room);
        server.request(Method::PUT, &muted, Some(&alice), &json!({ "actions": [] })).await.json(StatusCode::OK);
        let read = talks[0].say(&bob, text("0")).await;
        talks[1].say(&bob, text("1")).await;
        talks[2].say(&bob, text("muted")).await;
        let mention = json!({ "msgtype": "m.text", "body": "2", "m.mentions": { "user_ids": ["@alice:example.org"] } });
        talks[1].say(&bob, mention).await;
        talks[1].say(&bob, json!({ "msgtype": "m.notice", "body": "notice" })).await;
        for number in 3..40 {
            talks[0].say(&bob, text(&number.to_string())).await;
        }
        let path = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{read}", talks[0].room);
        server.post(&path, Some(&alice), &json!({})).await.json(StatusCode::OK);

        let mut found = Vec::new();
        let mut from = String::new();
        loop {
            let page = page(server, &alice, &format!("limit=7&from={from}")).await;
            found.extend(told(&page));
            let Some(next) = page["next_token"].as_str() else { break };
            from = next.to_owned();
        }
        let mut expected: Vec<(String, bool)> = (1..40).rev().map(|number| (number.to_string(), false)).collect();
        expected.push(("0".to_owned(), true));
        assert_eq!(found, expected);
        assert_eq!(told(&page(server, &alice, "").await).len(), 20);
        let all = page(server, &alice, "limit=1000000").await;
        let first = &all["notifications"][0];
        // There are two in the room.
        let actions = json!(["notify", { "set_tweak": "sound", "value": "default" }]);
        assert_eq!((&first["room_id"], &first["actions"]), (&json!(talks[0].room), &actions));
        assert!(first["ts"].is_u64() && first["event"]["room_id"].is_null());
        assert!(first["event"]["event_id"].is_string());

        let highlights = page(server, &alice, "only=highlight").await;
        assert_eq!(told(&highlights), [("2".to_owned(), false)]);
        let actions = &highlights["notifications"][0]["actions"];
        assert!(actions.as_array().unwrap().contains(&json!({ "set_tweak": "highlight" })), "{actions}");

        // As many as /sync counts.
        let sync = server.get("/_matrix/client/v3/sync", Some(&alice)).await.json(StatusCode::OK);
        let unread = |talk: &Talk<'_>| {
            sync["rooms"]["join"][&talk.room]["unread_notifications"]["notification_count"].as_u64().unwrap()
        };
        let counted: u64 = talks.iter().map(unread).sum();
        assert_eq!(counted as usize, expected.iter().filter(|(_, read)| !read).count());

        // To say something is to have read.
        talks[0].say(&alice, text("mine")).await;
        let unread: Vec<_> =
            told(&page(server, &alice, "limit=100").await).into_iter().filter(|(_, read)| !read).collect();
        assert_eq!(unread, [("2".to_owned(), false), ("1".to_owned(), false)]);
        // Bob has what she said, and a token of Alice's gives him nothing of before that.
        assert_eq!(told(&page(server, &bob, "").await).len(), 1);
        assert!(told(&page(server, &bob, &format!("from={from}")).await).is_empty());
        for bad in ["from=x", "from=s1", "from=n-1", "from=n", "limit=x", "limit=-1"] {
            let refused = server.get(&format!("/_matrix/client/v3/notifications?{bad}"), Some(&alice)).await;
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{bad}");
        }
    })
    .await;
}
