//! Which of the news a client wants.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#filtering)

use myelin_store::Event;
use ruma::{
    RoomId, UserId,
    api::client::filter::{self as api, EventFormat, FilterDefinition, LazyLoadOptions, RoomEventFilter, UrlFilter},
};
use serde_json::{Map, Value, value::RawValue};

use crate::{Error, Result};

/// Events of a timeline where the client does not say how many.
pub(crate) const TIMELINE_LIMIT: usize = 10;
/// Events of a timeline at the most.
pub(crate) const TIMELINE_LIMIT_MAX: usize = 100;

/// A filter for `/sync`.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    definition: FilterDefinition,
    fields: Option<Vec<Vec<String>>>,
}

/// Which member events a client wants in the state of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    All,
    /// Of those who say something, and only if the client does not know them.
    Needed,
    /// Of those who say something.
    NeededAlways,
}

impl Filter {
    /// Reads a filter's JSON.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`] when it is none.
    pub fn parse(json: &str) -> Result<Self> {
        let definition =
            serde_json::from_str(json).map_err(|error| Error::BadJson(format!("not a filter: {error}")))?;
        Ok(Self::new(definition))
    }

    /// A filter from its parts.
    #[must_use]
    pub fn new(definition: FilterDefinition) -> Self {
        let fields = definition.event_fields.as_ref().map(|fields| fields.iter().map(|field| path(field)).collect());
        Self { definition, fields }
    }

    pub(crate) fn timeline_limit(&self) -> usize {
        let limit = self.definition.room.timeline.limit;
        limit.map_or(TIMELINE_LIMIT, |limit| u64::from(limit).min(TIMELINE_LIMIT_MAX as u64) as usize)
    }

    pub(crate) fn includes_left_rooms(&self) -> bool {
        self.definition.room.include_leave
    }

    pub(crate) fn counts_threads(&self) -> bool {
        self.definition.room.timeline.unread_thread_notifications
    }

    pub(crate) fn is_federation_format(&self) -> bool {
        self.definition.event_format == EventFormat::Federation
    }

    pub(crate) fn members(&self) -> Members {
        match self.definition.room.state.lazy_load_options {
            LazyLoadOptions::Disabled => Members::All,
            LazyLoadOptions::Enabled { include_redundant_members: false } => Members::Needed,
            LazyLoadOptions::Enabled { include_redundant_members: true } => Members::NeededAlways,
        }
    }

    pub(crate) fn wants_room(&self, room_id: &RoomId) -> bool {
        let room = &self.definition.room;
        in_lists(room_id, room.rooms.as_deref(), &room.not_rooms)
    }

    pub(crate) fn timeline(&self) -> Selection<'_> {
        Selection(&self.definition.room.timeline)
    }

    pub(crate) fn state(&self) -> Selection<'_> {
        Selection(&self.definition.room.state)
    }

    pub(crate) fn ephemeral(&self) -> Selection<'_> {
        Selection(&self.definition.room.ephemeral)
    }

    pub(crate) fn room_account_data(&self) -> Selection<'_> {
        Selection(&self.definition.room.account_data)
    }

    pub(crate) fn wants_account_data(&self, event_type: &str) -> bool {
        wants_type(event_type, self.definition.account_data.types.as_deref(), &self.definition.account_data.not_types)
    }

    pub(crate) fn wants_presence(&self, user_id: &UserId) -> bool {
        let api::Filter { types, not_types, senders, not_senders, .. } = &self.definition.presence;
        wants_type("m.presence", types.as_deref(), not_types) && in_lists(user_id, senders.as_deref(), not_senders)
    }

    /// True if the client wants no presence at all: nothing has to be looked up.
    pub(crate) fn excludes_presence(&self) -> bool {
        let api::Filter { types, not_types, .. } = &self.definition.presence;
        !wants_type("m.presence", types.as_deref(), not_types)
    }

    /// Leaves out of an event what the client did not ask for.
    pub(crate) fn prune(&self, event: Box<RawValue>) -> Result<Box<RawValue>> {
        let Some(fields) = &self.fields else { return Ok(event) };
        let Value::Object(whole) = serde_json::from_str(event.get()).map_err(Error::Write)? else { return Ok(event) };
        let mut kept = Map::new();
        for field in fields {
            keep(&whole, &mut kept, field);
        }
        serde_json::value::to_raw_value(&kept).map_err(Error::Write)
    }
}

/// A filter of a room's events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection<'a>(&'a RoomEventFilter);

impl Selection<'_> {
    /// True if nothing is left out, so that nobody has to look.
    pub(crate) fn is_everything(self) -> bool {
        let RoomEventFilter { not_types, not_rooms, rooms, not_senders, senders, types, url_filter, .. } = self.0;
        not_types.is_empty()
            && not_rooms.is_empty()
            && rooms.is_none()
            && not_senders.is_empty()
            && senders.is_none()
            && types.is_none()
            && url_filter.is_none()
    }

    pub(crate) fn wants_room(self, room_id: &RoomId) -> bool {
        in_lists(room_id, self.0.rooms.as_deref(), &self.0.not_rooms)
    }

    pub(crate) fn wants_type(self, event_type: &str) -> bool {
        wants_type(event_type, self.0.types.as_deref(), &self.0.not_types)
    }

    /// Whether an event of a room that is wanted is wanted.
    pub(crate) fn wants(self, event: &Event) -> bool {
        self.wants_type(event.event_type())
            && in_lists(event.sender(), self.0.senders.as_deref(), &self.0.not_senders)
            && self.0.url_filter.is_none_or(|wanted| (wanted == UrlFilter::EventsWithUrl) == has_url(event))
    }
}

fn has_url(event: &Event) -> bool {
    #[derive(serde::Deserialize)]
    struct Content {
        url: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(event.content()).is_ok_and(|content| content.url.is_some())
}

/// "A matching room will be excluded even if it is listed in the rooms filter", and so for senders.
fn in_lists<T: PartialEq<O> + ?Sized, O>(id: &T, included: Option<&[O]>, excluded: &[O]) -> bool {
    included.is_none_or(|list| list.iter().any(|item| id == item)) && !excluded.iter().any(|item| id == item)
}

fn wants_type(event_type: &str, included: Option<&[String]>, excluded: &[String]) -> bool {
    included.is_none_or(|list| list.iter().any(|pattern| matches(pattern, event_type)))
        && !excluded.iter().any(|pattern| matches(pattern, event_type))
}

/// "A * can be used as a wildcard to match any sequence of characters."
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(place) => text = &text[place + part.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}

/// The parts of a path: dots part them, `\.` is a dot and `\\` a backslash in a name.
fn path(field: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = field.chars().peekable();
    while let Some(char) = chars.next() {
        let part = parts.last_mut().expect("there is always a last part");
        match char {
            '.' => parts.push(String::new()),
            '\\' => match chars.next_if(|next| matches!(next, '.' | '\\')) {
                Some(escaped) => part.push(escaped),
                None => part.push('\\'),
            },
            other => part.push(other),
        }
    }
    parts
}

fn keep(whole: &Map<String, Value>, kept: &mut Map<String, Value>, path: &[String]) {
    let Some((name, rest)) = path.split_first() else { return };
    let Some(value) = whole.get(name) else { return };
    if rest.is_empty() {
        kept.insert(name.clone(), value.clone());
        return;
    }
    if let Value::Object(inner) = value
        && let Value::Object(place) = kept.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()))
    {
        keep(inner, place, rest);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::{Filter, Members, matches, path};

    /// Wildcards stand for any run of characters, anywhere.
    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.topic", true),
            ("m.room.*", "m.reaction", false),
            ("*", "", true),
            ("*.topic", "m.room.topic", true),
            ("m.*.t*c", "m.room.topic", true),
            ("m.*.t*d", "m.room.topic", false),
            ("a*a", "a", false),
            ("a*b*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    /// Only the fields asked for remain, also where names have dots.
    #[test]
    fn event_fields() {
        assert_eq!(path(r"content.m\.relates_to.a\\b"), ["content", "m.relates_to", r"a\b"]);
        let filter =
            Filter::parse(r#"{"event_fields":["type","content.body","content.m\\.x.y","sender.no"]}"#).unwrap();
        let event =
            json!({"type": "m", "sender": "@a:b", "content": {"body": "hi", "other": 1, "m.x": {"y": 2, "z": 3}}});
        let pruned = filter.prune(to_raw_value(&event).unwrap()).unwrap();
        let pruned: serde_json::Value = serde_json::from_str(pruned.get()).unwrap();
        assert_eq!(pruned, json!({"type": "m", "content": {"body": "hi", "m.x": {"y": 2}}}));
    }

    /// The defaults, the bounds, and a filter of a wrong shape.
    #[test]
    fn reads_filters() {
        let none = Filter::parse("{}").unwrap();
        assert_eq!((none.timeline_limit(), none.members()), (10, Members::All));
        let some = Filter::parse(r#"{"room":{"timeline":{"limit":4000},"state":{"lazy_load_members":true}}}"#).unwrap();
        assert_eq!((some.timeline_limit(), some.members()), (100, Members::Needed));
        assert!(Filter::parse(r#"{"room":{"timeline":{"limit":"x"}}}"#).is_err());
        assert!(Filter::parse("[]").is_err());
    }
}
