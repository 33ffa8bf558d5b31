//! What a client is told of what was found.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use myelin_http::{ApiError, RawJson, Session};
use myelin_rooms::{
    Rooms,
    present::{Form, present, present_bundled},
    relations::{Audience, Sight},
    search::{Found, SearchGroup, SearchResults},
};
use myelin_store::{Event, RoomName};
use myelin_sync::token::Token;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::request::{Criteria, GroupKey};
use crate::errors::Result;

/// An answer under construction.
pub(super) struct Answering<'a> {
    pub(super) rooms: &'a Arc<Rooms>,
    pub(super) session: &'a Session,
    pub(super) criteria: &'a Criteria,
    pub(super) results: SearchResults,
}

#[derive(Serialize)]
struct Answer<'a> {
    search_categories: Categories<'a>,
}

#[derive(Serialize)]
struct Categories<'a> {
    room_events: RoomEvents<'a>,
}

#[derive(Serialize)]
struct RoomEvents<'a> {
    count: i64,
    highlights: &'a [String],
    results: Vec<ResultJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<BTreeMap<String, Vec<Box<RawValue>>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<&'static str, BTreeMap<String, GroupJson>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

#[derive(Serialize)]
struct ResultJson {
    rank: f64,
    result: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<ContextJson>,
}

#[derive(Serialize)]
struct ContextJson {
    start: String,
    end: String,
    events_before: Vec<Box<RawValue>>,
    events_after: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile_info: Option<BTreeMap<String, ProfileJson>>,
}

/// What a membership tells of its user, as it is told to others.
#[derive(Default, Deserialize, Serialize)]
struct ProfileJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    displayname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
}

#[derive(Default, Serialize)]
struct GroupJson {
    order: usize,
    results: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

impl Answering<'_> {
    pub(super) async fn json(&self) -> Result<RawJson> {
        let mut results = Vec::with_capacity(self.results.found.len());
        for found in &self.results.found {
            results.push(Box::pin(self.result(found)).await?);
        }
        let state = if self.criteria.include_state { Some(self.state().await?) } else { None };
        let room_events = RoomEvents {
            count: self.results.count,
            highlights: &self.results.highlights,
            results,
            state,
            groups: self.groups(),
            next_batch: self.results.next.map(|next| next.to_string()),
        };
        let answer = Answer { search_categories: Categories { room_events } };
        Ok(RawJson::from(serde_json::to_vec(&answer).map_err(ApiError::unknown)?))
    }

    async fn result(&self, found: &Found) -> Result<ResultJson> {
        let Some(wanted) = &self.criteria.event_context else {
            let mut written = self.related(found, std::slice::from_ref(&found.event)).await?;
            let result = written.pop().ok_or_else(|| ApiError::unknown("an event was not written"))?;
            return Ok(ResultJson { rank: found.rank, result, context: None });
        };
        let (before, after) = wanted.limits();
        let user = (&*self.session.user_id, self.session.user_nid);
        let around = self.rooms.surroundings(user, found, before, after, wanted.include_profile);
        let around = Box::pin(around).await?;
        let all: Vec<_> = around.before.iter().chain(&around.after).chain([&found.event]).cloned().collect();
        let mut written = self.related(found, &all).await?;
        let result = written.pop().ok_or_else(|| ApiError::unknown("an event was not written"))?;
        let events_after = written.split_off(around.before.len().min(written.len()));
        let profile = |event: &Arc<Event>| {
            let user_id = event.state_key().unwrap_or_default().to_owned();
            (user_id, serde_json::from_str::<ProfileJson>(event.content()).unwrap_or_default())
        };
        let context = ContextJson {
            start: Token::timeline(around.start).to_string(),
            end: Token::timeline(around.end).to_string(),
            events_before: written,
            events_after,
            profile_info: wanted.include_profile.then(|| around.members.iter().map(profile).collect()),
        };
        Ok(ResultJson { rank: found.rank, result, context: Some(context) })
    }

    /// Some events of a room, the one that was found with what relates to it.
    async fn related(&self, found: &Found, events: &[Arc<Event>]) -> Result<Vec<Box<RawValue>>> {
        let (user_id, user_nid) = (&*self.session.user_id, self.session.user_nid);
        let reader = self.rooms.reader(&found.room.room_id, user_id, user_nid).await?;
        let audience = Audience { user_id, user_nid, ignored: None };
        let bundles =
            Box::pin(self.rooms.bundles(&audience, &[Sight::from(&reader)], std::slice::from_ref(&found.event)))
                .await?;
        let form = Form { device_nid: self.session.device_nid, room_id: Some(&found.room.room_id) };
        Ok(present_bundled(self.rooms.store(), events, form, &bundles).await?)
    }

    async fn written(&self, room: &RoomName, events: &[Arc<Event>]) -> Result<Vec<Box<RawValue>>> {
        let form = Form { device_nid: self.session.device_nid, room_id: Some(&room.room_id) };
        Ok(present(self.rooms.store(), events, form).await?)
    }

    /// The state of every room in the results.
    async fn state(&self) -> Result<BTreeMap<String, Vec<Box<RawValue>>>> {
        let mut seen = HashSet::new();
        let mut states = BTreeMap::new();
        for room in self.results.found.iter().map(|found| &found.room).filter(|room| seen.insert(room.nid)) {
            let state = self.rooms.state_for_search(&self.session.user_id, self.session.user_nid, room).await?;
            states.insert(room.room_id.to_string(), self.written(room, &state).await?);
        }
        Ok(states)
    }

    fn groups(&self) -> BTreeMap<&'static str, BTreeMap<String, GroupJson>> {
        let mut groups = BTreeMap::new();
        if self.criteria.is_grouped_by(GroupKey::RoomId) {
            let of = |found: &Found| (found.room.room_id.to_string(), SearchGroup::Room(found.room.nid));
            groups.insert("room_id", self.group(of));
        }
        if self.criteria.is_grouped_by(GroupKey::Sender) {
            let of = |found: &Found| (found.event.sender().to_string(), SearchGroup::Sender(found.event.sender_nid));
            groups.insert("sender", self.group(of));
        }
        groups
    }

    fn group(&self, of: impl Fn(&Found) -> (String, SearchGroup)) -> BTreeMap<String, GroupJson> {
        let mut groups: BTreeMap<String, GroupJson> = BTreeMap::new();
        for found in &self.results.found {
            let (name, group) = of(found);
            let order = groups.len() + 1;
            let next_batch = || self.results.next.map(|next| next.within(group).to_string());
            let entry = groups.entry(name).or_insert_with(|| GroupJson {
                order,
                next_batch: next_batch(),
                results: Vec::new(),
            });
            entry.results.push(found.event.event_id.to_string());
        }
        groups
    }
}
