//! Answers that are put together from JSON texts.

use std::sync::Arc;

use bytes::Bytes;
use myelin_http::{RawJson, Session};
use myelin_rooms::{
    Rooms,
    history::Reader,
    present::{Form, present, present_bundled},
    relations::{Audience, Bundles, Sight},
};
use myelin_store::Event;
use ruma::RoomId;
use serde_json::value::RawValue;

use crate::errors::Result;

/// Events as a session is shown them.
pub(super) async fn events(
    rooms: &Rooms,
    session: &Session,
    room_id: &RoomId,
    events: &[Arc<Event>],
) -> Result<Vec<Box<RawValue>>> {
    let form = Form { device_nid: session.device_nid, room_id: Some(room_id) };
    Ok(present(rooms.store(), events, form).await?)
}

/// Events as a session is shown them, with what relates to them.
pub(super) async fn related_events(
    rooms: &Rooms,
    session: &Session,
    reader: &Reader<'_>,
    events: &[Arc<Event>],
) -> Result<Vec<Box<RawValue>>> {
    let audience = Audience { user_id: &session.user_id, user_nid: session.user_nid, ignored: None };
    let bundles = rooms.bundles(&audience, &[Sight::from(reader)], events).await?;
    bundled_events(rooms, session, reader, events, &bundles).await
}

/// Events as a session is shown them, with what is known to relate to them.
pub(super) async fn bundled_events(
    rooms: &Rooms,
    session: &Session,
    reader: &Reader<'_>,
    events: &[Arc<Event>],
    bundles: &Bundles,
) -> Result<Vec<Box<RawValue>>> {
    let form = Form { device_nid: session.device_nid, room_id: Some(&reader.room.room_id) };
    Ok(present_bundled(rooms.store(), events, form, bundles).await?)
}

/// A JSON object under construction.
pub(super) struct Object(String);

impl Object {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut json = String::with_capacity(bytes + 64);
        json.push('{');
        Self(json)
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    /// A field that holds a text without characters that JSON escapes, as all tokens are.
    pub(super) fn token(&mut self, name: &str, token: impl std::fmt::Display) {
        self.name(name);
        self.0.push('"');
        self.0.push_str(&token.to_string());
        self.0.push('"');
    }

    /// A field that holds a number.
    pub(super) fn number(&mut self, name: &str, number: i64) {
        self.name(name);
        self.0.push_str(&number.to_string());
    }

    /// A field whose value is JSON already.
    pub(super) fn json(&mut self, name: &str, json: &RawValue) {
        self.name(name);
        self.0.push_str(json.get());
    }

    /// A field that holds a list of such values.
    pub(super) fn list(&mut self, name: &str, list: &[Box<RawValue>]) {
        self.name(name);
        push_list(&mut self.0, list);
    }

    pub(super) fn finish(mut self) -> RawJson {
        self.0.push('}');
        RawJson(Bytes::from(self.0))
    }
}

/// A list as the whole answer.
pub(super) fn list(list: &[Box<RawValue>]) -> RawJson {
    let mut json = String::with_capacity(size(list));
    push_list(&mut json, list);
    RawJson(Bytes::from(json))
}

/// The bytes that a list takes.
pub(super) fn size(list: &[Box<RawValue>]) -> usize {
    list.iter().map(|json| json.get().len() + 1).sum::<usize>() + 2
}

fn push_list(json: &mut String, list: &[Box<RawValue>]) {
    json.push('[');
    for (place, value) in list.iter().enumerate() {
        if place > 0 {
            json.push(',');
        }
        json.push_str(value.get());
    }
    json.push(']');
}
