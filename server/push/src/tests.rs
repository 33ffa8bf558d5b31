use std::sync::Arc;

use myelin_store::{Batch, Event, EventParts, Pusher, PusherSettings, PusherStanding};
use ruma::{owned_event_id, owned_user_id, push::Action};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    delivery::{Delivery, Job, Mode, What},
    payload::{self, Definition, Details},
    tail::Tail,
};

fn definition(data: &Value, pending_from: Option<i64>) -> Arc<Definition> {
    let settings = PusherSettings {
        app_id: "org.example.app".to_owned(),
        pushkey: "key".to_owned(),
        kind: "http".to_owned(),
        app_display_name: "App".to_owned(),
        device_display_name: "Phone".to_owned(),
        profile_tag: None,
        lang: "en".to_owned(),
        data: data.to_string(),
    };
    let pusher = Pusher {
        pusher_nid: 1,
        user_nid: 2,
        user_id: owned_user_id!("@alice:example.org"),
        settings,
        pushkey_ts: 12_345,
        since_pos: 0,
        standing: PusherStanding { pending_from, ..PusherStanding::default() },
    };
    Arc::new(Definition::read(pusher).unwrap())
}

fn full() -> Value {
    json!({ "url": "https://push.example/_matrix/push/v1/notify", "org.example": { "a": 1 } })
}

fn event(event_type: &str, content: &Value) -> Event {
    let json = json!({
        "type": event_type,
        "sender": "@bob:example.org",
        "state_key": if event_type == "m.room.member" { json!("@alice:example.org") } else { Value::Null },
        "origin_server_ts": 1,
        "content": content,
    });
    Event::new(EventParts::default(), owned_event_id!("$event:example.org"), json.to_string().into()).unwrap()
}

fn job(pos: i64) -> Job {
    Job { pos, what: What::Badge, found: Instant::now() }
}

fn of_event(pos: i64) -> Job {
    let event = Arc::new(event("m.room.message", &json!({ "body": "x" })));
    Job { what: What::Event { event, details: Arc::default(), actions: Vec::new().into() }, ..job(pos) }
}

/// A pusher that fails keeps what it is to be told, and says from where on it must be told again; what it was told of
/// holds nothing back.
#[test]
fn failures_are_written_down() {
    let mut delivery = Delivery::new(definition(&full(), None));
    assert!(delivery.is_idle());
    delivery.push(of_event(5));
    delivery.push(of_event(7));
    delivery.push(job(8));
    delivery.push(job(9));
    assert_eq!((delivery.holds_back(), delivery.is_due(0)), (Some(5), true));
    delivery.failed(1_000);
    let standing = delivery.standing;
    assert_eq!((standing.pending_from, standing.failures, standing.failing_since), (Some(5), 1, Some(1_000)));
    assert!((1_750..=2_250).contains(&standing.retry_at), "{standing:?}");
    assert_eq!((delivery.holds_back(), delivery.is_due(1_001), delivery.is_due(2_250)), (None, false, true));
    delivery.failed(2_000);
    assert!((3_500..=4_500).contains(&delivery.standing.retry_at), "the wait doubles");
    assert_eq!(delivery.taken().unwrap().pos, 5);
    assert_eq!(delivery.standing, PusherStanding { pending_from: Some(7), ..PusherStanding::default() });
    assert_eq!((delivery.taken().unwrap().pos, delivery.taken().unwrap().pos), (7, 8));
    assert!(delivery.taken().is_none(), "how much is unread is told once");
    assert!(delivery.is_idle());
}

/// What is too much for memory, or too old, is looked for when the gateway answers again; meanwhile nothing is kept.
#[test]
fn too_much_is_looked_for_later() {
    let mut delivery = Delivery::new(definition(&full(), None));
    for pos in 0..100 {
        delivery.push(of_event(10 + pos));
    }
    assert_eq!(
        (delivery.mode, delivery.standing.pending_from, delivery.next().is_none()),
        (Mode::Lagging, Some(10), true)
    );
    delivery.mode = Mode::Gathering;
    delivery.push(of_event(200));
    delivery.gathered(vec![of_event(108), of_event(109)]);
    let order: Vec<i64> = std::iter::from_fn(|| delivery.taken()).map(|job| job.pos).collect();
    assert_eq!((order, delivery.standing.pending_from), (vec![108, 109, 200], None));

    delivery.push(of_event(300));
    delivery.failed(1_000);
    delivery.failed(1_000 + 3 * 60 * 1_000);
    assert_eq!((delivery.mode, delivery.standing.pending_from), (Mode::Lagging, Some(300)));
    // What the database says of a pusher when this process begins.
    let delivery = Delivery::stored(definition(&full(), Some(4)));
    assert!(delivery.mode == Mode::Lagging && delivery.is_due(0) && !delivery.is_idle());
}

/// A gateway is told everything of an event, or only which one it is; never the address it was found by.
#[test]
fn both_formats() {
    let details: Details = Details::default();
    let actions: Vec<Action> = serde_json::from_value(json!([
        "notify",
        { "set_tweak": "sound", "value": "ring" },
        { "set_tweak": "highlight" },
        { "set_tweak": "org.example", "value": [1] },
    ]))
    .unwrap();
    let message = event("m.room.message", &json!({ "body": "x", "n": 1 }));
    let told = |data: &Value, event: &Event, actions: &[Action], unread| {
        let body = payload::of_event(&definition(data, None), event, &details, actions, unread).unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["notification"].clone()
    };
    let all = told(&full(), &message, &actions, 3);
    let device = json!({
        "app_id": "org.example.app",
        "pushkey": "key",
        "pushkey_ts": 12,
        "data": { "org.example": { "a": 1 } },
        "tweaks": { "sound": "ring", "highlight": true, "org.example": [1] },
    });
    let expected = json!({
        "event_id": "$event:example.org",
        "room_id": "",
        "type": "m.room.message",
        "sender": "@bob:example.org",
        "content": { "body": "x", "n": 1 },
        "prio": "high",
        "counts": { "unread": 3 },
        "devices": [device],
    });
    assert_eq!(all, expected);

    let terse = json!({ "url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only" });
    let few = told(&terse, &message, &[Action::Notify], 0);
    let mut names: Vec<&String> = few.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["counts", "devices", "event_id", "prio", "room_id"]);
    assert_eq!((&few["prio"], &few["counts"]), (&json!("low"), &json!({})));
    assert_eq!(few["devices"][0]["data"], json!({ "format": "event_id_only" }));

    let invite = told(&full(), &event("m.room.member", &json!({ "membership": "invite" })), &actions, 1);
    assert_eq!(invite["user_is_target"], true);
    let badge = payload::of_badge(&definition(&full(), None), 0).unwrap();
    let badge = serde_json::from_slice::<Value>(&badge).unwrap();
    assert_eq!(badge["notification"]["counts"], json!({ "unread": 0 }));
    assert!(badge["notification"]["event_id"].is_null());
}

/// An answer that is none rejects nothing.
#[test]
fn rejections_are_read() {
    assert_eq!(payload::rejected(br#"{"rejected":["a","b"],"x":1}"#).unwrap(), ["a", "b"]);
    assert_eq!(payload::rejected(b"{\"rejected\":[]}").unwrap(), [""; 0]);
    for nonsense in [&b""[..], b"{}", b"[]", b"{\"rejected\":\"a\"}", b"\xff"] {
        assert!(payload::rejected(nonsense).is_none());
    }
}

/// What was not heard from the beginning, or is too much, is to be read.
#[test]
fn the_tail_says_what_it_lacks() {
    let tail = Tail::default();
    let batch = |from, to| Batch { from, to, changes: Vec::new() };
    assert_eq!(tail.after(3, 9).unwrap_err(), 9, "nothing was heard yet");
    tail.committed(&batch(5, 7));
    assert_eq!(tail.after(3, 9).unwrap_err(), 5);
    tail.committed(&batch(7, 8));
    assert_eq!(tail.after(6, 9).unwrap().1, 8);
    assert_eq!(tail.after(6, 9).unwrap_err(), 8, "what was taken is not there any more");
    tail.committed(&batch(10, 12));
    assert_eq!(tail.after(8, 12).unwrap_err(), 10, "there is a gap");
    tail.pushers_changed(4);
    tail.sessions_ended();
    let heard = tail.take_heard();
    assert!(heard.users.contains(&4) && heard.are_gone && !heard.is_missed);
    assert!(!tail.take_heard().are_gone);
}
