//! What a client asks for. ruma's type does not tell whether the context is wanted.

use myelin_store::TextField;
use ruma::api::client::filter::RoomEventFilter;
use serde::Deserialize;

/// Events before and after a result at the most.
const CONTEXT_MAX: usize = 50;

#[derive(Debug, Deserialize)]
pub(super) struct Body {
    pub(super) search_categories: Categories,
}

#[derive(Debug, Deserialize)]
pub(super) struct Categories {
    pub(super) room_events: Option<Criteria>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Criteria {
    pub(super) search_term: String,
    keys: Option<Vec<Key>>,
    #[serde(default)]
    pub(super) filter: RoomEventFilter,
    order_by: Option<Order>,
    pub(super) event_context: Option<EventContext>,
    #[serde(default)]
    pub(super) include_state: bool,
    #[serde(default)]
    groupings: Groupings,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Key {
    #[serde(rename = "content.body")]
    Body,
    #[serde(rename = "content.name")]
    Name,
    #[serde(rename = "content.topic")]
    Topic,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Order {
    Recent,
    Rank,
}

#[derive(Debug, Deserialize)]
pub(super) struct EventContext {
    #[serde(default = "five")]
    before_limit: usize,
    #[serde(default = "five")]
    after_limit: usize,
    #[serde(default)]
    pub(super) include_profile: bool,
}

fn five() -> usize {
    5
}

#[derive(Debug, Default, Deserialize)]
struct Groupings {
    #[serde(default)]
    group_by: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    key: Option<GroupKey>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum GroupKey {
    RoomId,
    Sender,
}

impl Criteria {
    /// "The keys to search. Defaults to all."
    pub(super) fn fields(&self) -> Vec<TextField> {
        let field = |key: &Key| match key {
            Key::Body => TextField::Body,
            Key::Name => TextField::Name,
            Key::Topic => TextField::Topic,
        };
        match &self.keys {
            None => vec![TextField::Body, TextField::Name, TextField::Topic],
            Some(keys) => keys.iter().map(field).collect(),
        }
    }

    /// "By default, this is rank."
    pub(super) fn is_recent(&self) -> bool {
        self.order_by == Some(Order::Recent)
    }

    pub(super) fn is_grouped_by(&self, key: GroupKey) -> bool {
        self.groupings.group_by.iter().any(|group| group.key == Some(key))
    }
}

impl EventContext {
    pub(super) fn limits(&self) -> (usize, usize) {
        (self.before_limit.min(CONTEXT_MAX), self.after_limit.min(CONTEXT_MAX))
    }
}
