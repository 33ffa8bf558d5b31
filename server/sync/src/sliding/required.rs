//! Which state a client wants of a room.

use myelin_store::StateKey;
use ruma::UserId;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Elements of one wish at the most.
const ELEMENTS_MAX: usize = 1000;
const MEMBER: &str = "m.room.member";

/// State events by type and state key; `None` stands for any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Element {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    event_type: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<Box<str>>,
}

impl Element {
    fn matches(&self, event_type: &str, state_key: &str) -> bool {
        self.event_type.as_deref().is_none_or(|wanted| wanted == event_type)
            && self.state_key.as_deref().is_none_or(|wanted| wanted == state_key)
    }

    fn may_be_member(&self) -> bool {
        self.event_type.as_deref().is_none_or(|wanted| wanted == MEMBER)
    }
}

/// A wish for state: "the set of state that the server should return for the room".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Required {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    include: Vec<Element>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<Element>,
    #[serde(default)]
    pub(super) lazy_members: bool,
}

/// As it is written by clients: in pairs with `*`, `$ME` and `$LAZY`, or as it was merged.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Body {
    Pairs(Vec<(Box<str>, Box<str>)>),
    Elements {
        #[serde(default)]
        include: Vec<Element>,
        #[serde(default)]
        exclude: Vec<Element>,
        #[serde(default)]
        lazy_members: bool,
    },
}

impl Required {
    pub(super) fn read(body: Option<Body>, user_id: &UserId) -> Result<Self> {
        let mut required = match body {
            None => Self::default(),
            Some(Body::Elements { include, exclude, lazy_members }) => Self { include, exclude, lazy_members },
            Some(Body::Pairs(pairs)) => Self::from_pairs(pairs, user_id),
        };
        if required.include.len() + required.exclude.len() > ELEMENTS_MAX {
            return Err(Error::InvalidParam(format!("required_state has at most {ELEMENTS_MAX} elements")));
        }
        for elements in [&mut required.include, &mut required.exclude] {
            elements.sort_unstable();
            elements.dedup();
        }
        Ok(required)
    }

    fn from_pairs(pairs: Vec<(Box<str>, Box<str>)>, user_id: &UserId) -> Self {
        let mut required = Self::default();
        for (event_type, state_key) in pairs {
            if &*event_type == MEMBER && &*state_key == "$LAZY" {
                required.lazy_members = true;
                continue;
            }
            let state_key = match &*state_key {
                "*" => None,
                "$ME" => Some(user_id.as_str().into()),
                _ => Some(state_key),
            };
            required.include.push(Element { event_type: Some(event_type).filter(|one| &**one != "*"), state_key });
        }
        required
    }

    /// Bytes that it takes, about.
    pub(super) fn weight(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let elements = self.include.iter().chain(&self.exclude);
        elements.map(|element| 32 + text(&element.event_type) + text(&element.state_key)).sum()
    }

    fn includes(&self, event_type: &str, state_key: &str) -> bool {
        let included = self.include.iter().any(|element| {
            // With members coming lazily, only those that are named come always.
            let is_open = self.lazy_members && event_type == MEMBER && element.state_key.is_none();
            !is_open && element.matches(event_type, state_key)
        });
        included && !self.exclude.iter().any(|element| element.matches(event_type, state_key))
    }

    fn includes_all_members(&self) -> bool {
        let open = |element: &Element| element.state_key.is_none() && element.may_be_member();
        !self.lazy_members && self.include.iter().any(open) && !self.exclude.iter().any(open)
    }
}

/// The wishes of a connection, by number, and some of them as a set of bits: "keep the required_state separate and return
/// any state that matches any of them".
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes<'a> {
    pub(super) all: &'a [Required],
    pub(super) mask: u64,
}

impl<'a> Wishes<'a> {
    fn each(self) -> impl Iterator<Item = &'a Required> {
        self.all.iter().enumerate().filter(move |(place, _)| self.mask & (1 << place) != 0).map(|(_, one)| one)
    }

    /// Whether a state event is wanted, other than as a member who comes lazily.
    pub(super) fn include(self, event_type: &str, state_key: &str) -> bool {
        self.each().any(|required| required.includes(event_type, state_key))
    }

    /// Whether all members are wanted.
    pub(super) fn all_members(self) -> bool {
        self.each().any(Required::includes_all_members)
    }

    /// "The combined config has lazy_members set to true if and only if a) any of the configs have lazy_members set to
    /// true AND b) there are no configs that return all membership events".
    pub(super) fn lazy_members(self) -> bool {
        self.each().any(|required| required.lazy_members) && !self.all_members()
    }

    /// The members who are wanted by their name.
    pub(super) fn named_members(self) -> impl Iterator<Item = StateKey> + 'a {
        let elements = self.each().flat_map(|required| &required.include).filter(|element| element.may_be_member());
        let names = elements.filter_map(|element| element.state_key.as_deref());
        names
            .filter(move |user_id| user_id.starts_with('@') && self.include(MEMBER, user_id))
            .map(|user_id| StateKey::new(MEMBER, user_id))
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::json;

    use super::{Body, Required, Wishes};

    fn read(body: serde_json::Value) -> Required {
        let body: Body = serde_json::from_value(body).unwrap();
        Required::read(Some(body), user_id!("@me:x")).unwrap()
    }

    /// Wildcards, the user's own key, members who come lazily, exclusions, and their combination.
    #[test]
    fn wishes() {
        let lazy = read(json!([["*", "*"], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]]));
        let open = read(json!({ "include": [{}], "exclude": [{ "type": "m.room.topic" }] }));
        let all = [lazy, open, read(json!([["m.room.name", ""]]))];
        let wishes = |mask| Wishes { all: &all, mask };
        assert!(wishes(1).include("m.room.topic", ""));
        assert!(wishes(1).include("m.room.member", "@me:x") && !wishes(1).include("m.room.member", "@you:x"));
        assert!(wishes(1).lazy_members() && !wishes(1).all_members());
        assert_eq!(wishes(1).named_members().count(), 1);
        assert!(!wishes(2).include("m.room.topic", "") && wishes(2).include("m.room.member", "@you:x"));
        assert!(wishes(3).all_members() && !wishes(3).lazy_members() && wishes(3).include("m.room.topic", ""));
        assert!(wishes(4).include("m.room.name", "") && !wishes(4).include("m.room.name", "x"));
        assert!(!wishes(0).include("m.room.name", ""));
    }
}
