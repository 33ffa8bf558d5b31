//! Events as clients see them.
//!
//! The stored bytes are spliced, not parsed: a client's event is the sender's content with a few fields around it.

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Event, Store};
use ruma::RoomId;
use serde_json::value::RawValue;

use crate::{
    Result, now_ms,
    relations::{Bundle, Bundles},
};

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
    present_bundled(store, events, form, &Bundles::default()).await
}

/// [`present`] with what is told together with some of the events.
pub async fn present_bundled(
    store: &Store,
    events: &[Arc<Event>],
    form: Form<'_>,
    bundles: &Bundles,
) -> Result<Vec<Box<RawValue>>> {
    let related: Vec<i64> =
        events.iter().flat_map(|event| event.replaces.into_iter().chain(event.redacted_by)).collect();
    let related: HashMap<i64, Arc<Event>> = if related.is_empty() {
        HashMap::new()
    } else {
        store.events(&related).await?.into_iter().map(|event| (event.nid, event)).collect()
    };
    let now = now_ms();
    let page = Page { related: &related, form, now, bundles };
    let write = |event: &Arc<Event>| {
        let mut out = String::with_capacity(event.content().len() + 384);
        page.write(&mut out, event, true);
        RawValue::from_string(out).map_err(crate::Error::Corrupt)
    };
    events.iter().map(write).collect()
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

/// What the events of one answer are written with.
struct Page<'a> {
    /// What they refer to, by number.
    related: &'a HashMap<i64, Arc<Event>>,
    form: Form<'a>,
    now: u64,
    bundles: &'a Bundles,
}

impl Page<'_> {
    fn write(&self, out: &mut String, event: &Event, with_thread: bool) {
        let Self { related, form, .. } = self;
        base(out, event, form.room_id);
        out.push_str(",\"unsigned\":{");
        field(out, "age", &self.now.saturating_sub(event.origin_server_ts()).to_string());
        if let Some(transaction_id) = event.transaction_id(form.device_nid) {
            text(out, "transaction_id", transaction_id);
        }
        if let Some(before) = event.replaces.and_then(|nid| related.get(&nid)) {
            field(out, "prev_content", before.content());
            text(out, "prev_sender", before.sender().as_str());
            text(out, "replaces_state", before.event_id.as_str());
        }
        if let Some(redaction) = event.redacted_by.and_then(|nid| related.get(&nid)) {
            text(out, "redacted_by", redaction.event_id.as_str());
            out.push_str(",\"redacted_because\":");
            base(out, redaction, form.room_id);
            out.push('}');
        }
        if let Some(bundle) = self.bundles.of(event) {
            self.write_bundle(out, bundle, with_thread);
        }
        out.push_str("}}");
    }

    /// What relates to the event. A thread has no threads within.
    fn write_bundle(&self, out: &mut String, bundle: &Bundle, with_thread: bool) {
        let thread = bundle.thread.as_ref().filter(|_| with_thread);
        if bundle.edit.is_none() && bundle.references.is_empty() && thread.is_none() {
            return;
        }
        out.push_str(",\"m.relations\":{");
        if !bundle.references.is_empty() {
            out.push_str("\"m.reference\":{\"chunk\":[");
            for (place, event_id) in bundle.references.iter().enumerate() {
                out.push_str(if place > 0 { ",{" } else { "{" });
                text(out, "event_id", event_id.as_str());
                out.push('}');
            }
            out.push_str("]}");
        }
        if let Some(edit) = &bundle.edit {
            out.push_str(if out.ends_with('{') { "\"m.replace\":" } else { ",\"m.replace\":" });
            // What relates to an edit is not told with what it edits.
            let alone = Page { bundles: &Bundles::default(), ..*self };
            alone.write(out, edit, false);
        }
        if let Some(thread) = thread {
            out.push_str(if out.ends_with('{') {
                "\"m.thread\":{\"latest_event\":"
            } else {
                ",\"m.thread\":{\"latest_event\":"
            });
            self.write(out, &thread.latest, false);
            field(out, "count", &thread.count.to_string());
            field(out, "current_user_participated", if thread.participated { "true" } else { "false" });
            out.push('}');
        }
        out.push('}');
    }
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
