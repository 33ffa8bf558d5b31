//! The other events that an event names.

use std::borrow::Cow;

use myelin_store::Event;
use ruma::{EventId, OwnedEventId};
use serde::Deserialize;

/// Events that one may follow and that are looked at. Events of today have at most 20; old ones may have more.
const LINKS_MAX: usize = 100;

#[derive(Deserialize)]
struct PrevEvents<'a> {
    #[serde(borrow)]
    prev_events: Vec<Reference<'a>>,
}

/// An event named by its identifier alone, or with its hash in room versions 1 and 2.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reference<'a> {
    Id(#[serde(borrow)] Cow<'a, str>),
    WithHash(#[serde(borrow)] Cow<'a, str>, serde::de::IgnoredAny),
}

/// The events that an event follows.
pub(super) fn prev_events(event: &Event) -> Vec<OwnedEventId> {
    serde_json::from_str::<PrevEvents<'_>>(event.json()).map(|links| ids(links.prev_events)).unwrap_or_default()
}

fn ids(references: Vec<Reference<'_>>) -> Vec<OwnedEventId> {
    let ids = references.into_iter().map(|reference| match reference {
        Reference::Id(id) | Reference::WithHash(id, _) => id,
    });
    ids.filter_map(|id| EventId::parse(id.as_ref()).ok()).take(LINKS_MAX).collect()
}
