//! What a server might do to make us run in circles, or take more than we asked for.

use ruma::{CanonicalJsonObject, EventId};
use serde_json::{Value, json, value::RawValue};

use super::{
    refusals::{Scene, set},
    *,
};

fn raw(event: &Value) -> Box<RawValue> {
    RawValue::from_string(event.to_string()).unwrap()
}

/// A reference as the first room versions have it.
fn reference(event_id: &str) -> Value {
    json!([event_id, { "sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos" }])
}

async fn called(scene: &Scene, event_id: &str, change: impl FnOnce(&mut CanonicalJsonObject)) -> Box<RawValue> {
    let mut object = scene.draft().await;
    set(&mut object, "event_id", json!(event_id));
    change(&mut object);
    raw(&scene.signed(object, 1).await)
}

/// In the first room versions an event's sender chooses its name, and so can make events that follow each other, or
/// themselves, or allow each other.
#[tokio::test]
async fn circles() {
    for version in [RoomVersionId::V1, RoomVersionId::V2] {
        let scene = Scene::new(version).await;
        let receiver = scene.network.rooms(0);
        let mut tried = Vec::new();
        for (names, field) in [
            (&["$a:s1.test"][..], "prev_events"),
            (&["$b:s1.test", "$c:s1.test"], "prev_events"),
            (&["$d:s1.test", "$e:s1.test", "$f:s1.test"], "auth_events"),
            (&["$g:s1.test"], "auth_events"),
        ] {
            let mut events = Vec::new();
            for (place, event_id) in names.iter().enumerate() {
                let next = names[(place + 1) % names.len()];
                let event = called(&scene, event_id, |object| {
                    let mut referred = serde_json::to_value(&object[field]).unwrap();
                    match field {
                        "prev_events" => referred = json!([reference(next)]),
                        _ => referred.as_array_mut().unwrap().push(reference(next)),
                    }
                    set(object, field, referred);
                });
                events.push(event.await);
            }
            let outcomes = receiver.receive(&name(1), events).await.unwrap();
            assert!(outcomes.iter().all(|(_, outcome)| outcome.is_err()), "{field}: {outcomes:?}");
            assert_eq!(outcomes.len(), names.len());
            tried.extend(names.iter().copied());
        }
        scene.must_go_on().await;
        for event_id in tried {
            let event_id = EventId::parse(event_id).unwrap();
            let kept = receiver.store().event_by_id(&event_id).await.unwrap();
            assert!(kept.is_none_or(|event| !event.is_shown()), "{event_id}");
        }
    }
}

/// Events with more predecessors than there may be are dropped.
#[tokio::test]
async fn thousands_of_predecessors() {
    let scene = Scene::new(RoomVersionId::V11).await;
    for count in [21, 1_000] {
        let mut object = scene.draft().await;
        let many: Vec<String> = (0..count).map(|number| format!("${number:0>43}")).collect();
        set(&mut object, "prev_events", json!(many));
        let event = raw(&scene.signed(object, 1).await);
        let outcomes = scene.network.rooms(0).receive(&name(1), vec![event]).await.unwrap();
        assert!(outcomes.iter().all(|(_, outcome)| outcome.is_err()), "{count}: {outcomes:?}");
    }
    scene.must_go_on().await;
}

/// Of what answers the question for missing events, only those are taken.
#[tokio::test]
async fn unasked_events_are_dropped() {
    let scene = Scene::new(RoomVersionId::V11).await;
    let (network, room) = (&scene.network, &scene.room);
    let other = network.create(0, &scene.alice, RoomVersionId::V11, Preset::PublicChat).await;
    let unasked = scene.signed(scene.draft().await, 1).await;
    let mut forged = scene.draft().await;
    set(&mut forged, "content", json!({ "body": "hello", "msgtype": "m.notice" }));
    let forged = scene.signed(forged, 2).await;
    let elsewhere = network.unasked(0, &other, message(&scene.alice, "hello")).await;
    let mut beside = vec![raw(&unasked), raw(&forged), elsewhere, raw(&json!({ "depth": 1.5 })), raw(&json!([]))];
    // More than was asked for, and the same again and again.
    beside.extend(vec![raw(&unasked); 500]);
    *network.beside_missing.lock() = beside;

    network.send(1, room, message(&scene.bob, "missing")).await.unwrap();
    network.forget(1, 0).await;
    network.send(1, room, message(&scene.bob, "found")).await.unwrap();
    network.deliver().await;
    let heard = bodies(network, 0, room, &scene.alice, 100).await;
    assert_eq!(heard, ["missing", "found"]);
    scene.must_go_on().await;
}
