//! Events as clients see them.
//!
//! The stored bytes are spliced, not parsed: a client's event is the sender's content with a few fields around it.

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Event, Store};
use ruma::RoomId;
use serde_json::value::RawValue;

use crate::{Result, now_ms};

/// For whom, and in which form.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form<'a> {
    /// The device that reads: it is told its own transaction ids. 0 for none.
    pub device_nid: i64,
    /// The room to name in each event; sync answers leave it out.
    pub room_id: Option<&'a RoomId>,
}

/// Writes events for a client, in the same order, with their `unsigned` part.
pub async fn present(store: &Store, events: &[Arc<Event>], form: Form<'_>) -> Result<Vec<Box<RawValue>>> {
    let related: Vec<i64> =
        events.iter().flat_map(|event| event.replaces.into_iter().chain(event.redacted_by)).collect();
    let related: HashMap<i64, Arc<Event>> = if related.is_empty() {
        HashMap::new()
    } else {
        store.events(&related).await?.into_iter().map(|event| (event.nid, event)).collect()
    };
    let now = now_ms();
    events.iter().map(|event| write(event, &related, form, now)).collect()
}

/// Writes one event.
pub async fn present_one(store: &Store, event: &Arc<Event>, form: Form<'_>) -> Result<Box<RawValue>> {
    let mut written = present(store, std::slice::from_ref(event), form).await?;
    Ok(written.pop().expect("one event in, one event out"))
}

/// Writes a state event with no more than an invited user may know.
pub fn present_stripped(event: &Event) -> Result<Box<RawValue>> {
    let mut out = String::with_capacity(event.content().len() + 192);
    out.push('{');
    field(&mut out, "content", event.content());
    text(&mut out, "sender", event.sender().as_str());
    if let Some(state_key) = event.state_key() {
        text(&mut out, "state_key", state_key);
    }
    text(&mut out, "type", event.event_type());
    out.push('}');
    RawValue::from_string(out).map_err(crate::Error::Corrupt)
}

fn write(event: &Event, related: &HashMap<i64, Arc<Event>>, form: Form<'_>, now: u64) -> Result<Box<RawValue>> {
    let mut out = String::with_capacity(event.content().len() + 384);
    base(&mut out, event, form.room_id);
    out.push_str(",\"unsigned\":{");
    field(&mut out, "age", &now.saturating_sub(event.origin_server_ts()).to_string());
    if let Some(transaction_id) = event.transaction_id(form.device_nid) {
        text(&mut out, "transaction_id", transaction_id);
    }
    if let Some(before) = event.replaces.and_then(|nid| related.get(&nid)) {
        field(&mut out, "prev_content", before.content());
        text(&mut out, "prev_sender", before.sender().as_str());
        text(&mut out, "replaces_state", before.event_id.as_str());
    }
    if let Some(redaction) = event.redacted_by.and_then(|nid| related.get(&nid)) {
        text(&mut out, "redacted_by", redaction.event_id.as_str());
        out.push_str(",\"redacted_because\":");
        base(&mut out, redaction, form.room_id);
        out.push('}');
    }
    out.push_str("}}");
    RawValue::from_string(out).map_err(crate::Error::Corrupt)
}

/// Everything but `unsigned` and the closing brace.
fn base(out: &mut String, event: &Event, room_id: Option<&RoomId>) {
    out.push('{');
    field(out, "content", event.content());
    text(out, "event_id", event.event_id.as_str());
    field(out, "origin_server_ts", &event.origin_server_ts().to_string());
    if event.event_type() == "m.room.redaction" && event.redacted_by.is_none() {
        // Clients of older room versions look for it here, those of newer ones in the content.
        if let Some(redacts) = myelin_store::redacted_event_id(event) {
            text(out, "redacts", &redacts);
        }
    }
    if let Some(room_id) = room_id {
        text(out, "room_id", room_id.as_str());
    }
    text(out, "sender", event.sender().as_str());
    if let Some(state_key) = event.state_key() {
        text(out, "state_key", state_key);
    }
    text(out, "type", event.event_type());
}

/// A field whose value is JSON already.
fn field(out: &mut String, name: &str, json: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push('"');
    out.push_str(name);
    out.push_str("\":");
    out.push_str(json);
}

/// A field whose value is a string.
fn text(out: &mut String, name: &str, value: &str) {
    let value = serde_json::to_string(value).expect("a string can always be written as JSON");
    field(out, name, &value);
}
