//! What a gateway is told.

use bytes::Bytes;
use myelin_store::{Event, Pusher, StateKey, Store};
use ruma::push::Action;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use url::Url;

use crate::pushers::EVENT_ID_ONLY;

/// A pusher, with its settings read.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) pusher: Pusher,
    pub(crate) url: Url,
    /// Whether the gateway is told of an event no more than which one it is.
    pub(crate) is_terse: bool,
    /// "The `data` dictionary passed in at pusher creation minus the `url` key."
    data: Map<String, Value>,
}

impl Definition {
    /// Reads the settings; `None` if they are none that a gateway could be told by.
    pub(crate) fn read(pusher: Pusher) -> Option<Self> {
        let mut data: Map<String, Value> = serde_json::from_str(&pusher.settings.data).ok()?;
        let url = Url::parse(data.remove("url")?.as_str()?).ok()?;
        let is_terse = data.get("format").and_then(Value::as_str) == Some(EVENT_ID_ONLY);
        Some(Self { pusher, url, is_terse, data })
    }
}

/// What is told of an event beside itself: the same to everyone.
#[derive(Debug, Default)]
pub(crate) struct Details {
    room_id: String,
    sender_display_name: Option<String>,
    room_name: Option<String>,
    room_alias: Option<String>,
}

impl Details {
    /// Looks up what an event's room and sender are called at the event.
    pub(crate) async fn of(store: &Store, event: &Event) -> myelin_store::Result<Self> {
        #[derive(Deserialize)]
        struct Content {
            displayname: Option<String>,
            name: Option<String>,
            alias: Option<String>,
        }
        let room_id = store.room_by_nid(event.room_nid).await?.room_id.to_string();
        let keys = [
            StateKey::new("m.room.member", event.sender().as_str()),
            StateKey::new("m.room.name", ""),
            StateKey::new("m.room.canonical_alias", ""),
        ];
        let key_nids: Vec<i64> =
            store.known_key_nids(&keys).await?.into_iter().map(Option::unwrap_or_default).collect();
        let found = store.state_events(event.room_state, &key_nids).await?;
        let mut contents = found.into_iter().map(|event| {
            let event = event?;
            serde_json::from_str::<Content>(event.content()).ok()
        });
        let mut next = || contents.next().flatten();
        let (member, name, alias) = (next(), next(), next());
        Ok(Self {
            room_id,
            sender_display_name: member.and_then(|content| content.displayname),
            room_name: name.and_then(|content| content.name).filter(|name| !name.is_empty()),
            room_alias: alias.and_then(|content| content.alias).filter(|alias| !alias.is_empty()),
        })
    }
}

#[derive(Serialize)]
struct Body<'a> {
    notification: Notification<'a>,
}

#[derive(Default, Serialize)]
struct Notification<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    event_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_display_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_is_target: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a RawValue>,
    prio: &'static str,
    counts: Counts,
    devices: [Device<'a>; 1],
}

#[derive(Default, Serialize)]
struct Counts {
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<u64>,
}

#[derive(Default, Serialize)]
struct Device<'a> {
    app_id: &'a str,
    pushkey: &'a str,
    /// In seconds.
    pushkey_ts: i64,
    data: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    tweaks: Map<String, Value>,
}

/// A notification of an event.
pub(crate) fn of_event(
    definition: &Definition,
    event: &Event,
    details: &Details,
    actions: &[Action],
    unread: u64,
) -> serde_json::Result<Bytes> {
    let tweaks = tweaks(actions);
    let prio = if is_urgent(event, &tweaks) { "high" } else { "low" };
    let mut notification = Notification {
        event_id: Some(event.event_id.as_str()),
        room_id: Some(&details.room_id),
        prio,
        // "Counts whose value is zero should be omitted."
        counts: Counts { unread: Some(unread).filter(|unread| *unread > 0) },
        devices: [device(definition, tweaks)],
        ..Notification::default()
    };
    if !definition.is_terse {
        notification.event_type = Some(event.event_type());
        notification.sender = Some(event.sender().as_str());
        notification.sender_display_name = details.sender_display_name.as_deref();
        notification.room_name = details.room_name.as_deref();
        notification.room_alias = details.room_alias.as_deref();
        // "This is true if the user receiving the notification is the subject of a member event."
        let is_target =
            event.event_type() == "m.room.member" && event.state_key() == Some(definition.pusher.user_id.as_str());
        notification.user_is_target = is_target.then_some(true);
        notification.content = Some(serde_json::from_str(event.content())?);
    }
    written(notification)
}

/// A notification of nothing but how much is unread. That it is nothing is all there is to say then, so it is said.
pub(crate) fn of_badge(definition: &Definition, unread: u64) -> serde_json::Result<Bytes> {
    written(Notification {
        prio: "low",
        counts: Counts { unread: Some(unread) },
        devices: [device(definition, Map::new())],
        ..Notification::default()
    })
}

fn written(notification: Notification<'_>) -> serde_json::Result<Bytes> {
    serde_json::to_vec(&Body { notification }).map(Bytes::from)
}

fn device(definition: &Definition, tweaks: Map<String, Value>) -> Device<'_> {
    Device {
        app_id: &definition.pusher.settings.app_id,
        pushkey: &definition.pusher.settings.pushkey,
        pushkey_ts: definition.pusher.pushkey_ts / 1000,
        data: definition.data.clone(),
        tweaks,
    }
}

/// The tweaks of a rule's actions. "If a `highlight` tweak is given with no value, its value is defined to be `true`."
fn tweaks(actions: &[Action]) -> Map<String, Value> {
    let mut tweaks = Map::new();
    for action in actions {
        let Ok(Value::Object(mut action)) = serde_json::to_value(action) else { continue };
        if let Some(Value::String(name)) = action.remove("set_tweak") {
            tweaks.insert(name, action.remove("value").unwrap_or(Value::Bool(true)));
        }
    }
    tweaks
}

/// Whether someone would want to know at once. Of what is encrypted only the device can tell.
fn is_urgent(event: &Event, tweaks: &Map<String, Value>) -> bool {
    event.event_type() == "m.room.encrypted"
        || tweaks.contains_key("sound")
        || tweaks.get("highlight").is_some_and(|value| *value == Value::Bool(true))
}

/// The keys that a gateway rejects. An answer that cannot be read rejects none.
pub(crate) fn rejected(answer: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Answer {
        rejected: Vec<String>,
    }
    serde_json::from_slice::<Answer>(answer).ok().map(|answer| answer.rejected)
}
