//! What rooms tell of themselves to those who may join them.

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use myelin_store::{Event, RoomName, StateKey};
use ruma::{
    OwnedMxcUri, OwnedRoomAliasId, OwnedRoomId, RoomVersionId, room::JoinRuleSummary,
    room_version_rules::AuthorizationRules,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{Result, Rooms, writer::rules_of};

/// Rooms whose state is read at the same time, when it is not in memory.
const READERS: usize = 4;
/// The longest name or topic that is told, in bytes; none that people write is as long.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Rooms whose members may join a restricted one, as far as they are looked at.
pub(super) const ALLOWED_MAX: usize = 100;

/// The types of the state that a summary is made from, with an empty state key.
const TYPES: [&str; 9] = [
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.avatar",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
];

/// A room as the specification's `RoomSummary` has it.
#[derive(Clone, Debug, Serialize)]
pub struct RoomSummary {
    /// The identifier.
    pub room_id: OwnedRoomId,
    /// Users who have joined.
    pub num_joined_members: i64,
    /// What its state tells.
    #[serde(flatten)]
    pub(super) told: Told,
}

/// What the state of a room tells.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Told {
    #[serde(skip)]
    pub(super) root: i64,
    #[serde(skip)]
    pub(super) is_federated: bool,
    #[serde(skip)]
    pub(super) is_space: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canonical_alias: Option<OwnedRoomAliasId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<OwnedMxcUri>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_type: Option<String>,
    pub(super) join_rule: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) allowed_room_ids: Vec<OwnedRoomId>,
    pub(super) world_readable: bool,
    guest_can_join: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<String>,
    /// Empty where another server does not say it.
    #[serde(skip_serializing_if = "String::is_empty")]
    room_version: String,
}

impl RoomSummary {
    /// A room as another server describes it.
    pub(super) fn of_other(summary: ruma::room::RoomSummary) -> Self {
        let short = |text: Option<String>| text.filter(|text| text.len() <= TEXT_BYTES_MAX);
        let mut allowed_room_ids = match &summary.join_rule {
            JoinRuleSummary::Restricted(rule) | JoinRuleSummary::KnockRestricted(rule) => rule.allowed_room_ids.clone(),
            _ => Vec::new(),
        };
        allowed_room_ids.truncate(ALLOWED_MAX);
        let room_type = summary.room_type.map(|room_type| room_type.to_string());
        let told = Told {
            root: 0,
            is_federated: true,
            is_space: room_type.as_deref() == Some("m.space"),
            name: short(summary.name),
            topic: short(summary.topic),
            canonical_alias: summary.canonical_alias,
            avatar_url: summary.avatar_url.filter(|url| url.as_str().len() <= TEXT_BYTES_MAX),
            room_type: short(room_type),
            join_rule: short(Some(summary.join_rule.as_str().to_owned())).unwrap_or_default(),
            allowed_room_ids,
            world_readable: summary.world_readable,
            guest_can_join: summary.guest_can_join,
            encryption: short(summary.encryption.map(|algorithm| algorithm.to_string())),
            room_version: summary.room_version.map(|version| version.to_string()).unwrap_or_default(),
        };
        let num_joined_members = i64::try_from(u64::from(summary.num_joined_members)).unwrap_or(i64::MAX);
        Self { room_id: summary.room_id, num_joined_members, told }
    }

    /// About the bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let told = &self.told;
        let texts = [&told.name, &told.topic, &told.room_type, &told.encryption];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        let url = told.avatar_url.as_ref().map_or(0, |url| url.as_str().len());
        let allowed: usize = told.allowed_room_ids.iter().map(|room_id| room_id.as_str().len() + 24).sum();
        512 + texts + url + allowed
    }

    /// Who may come into a room that another server describes. Into one of a version that we do not know, we cannot.
    pub(super) fn entrance(&self) -> Entrance {
        let version = match self.told.room_version.as_str() {
            "" => Some(RoomVersionId::V11),
            version => RoomVersionId::try_from(version).ok(),
        };
        match version.and_then(|version| version.rules()) {
            Some(rules) => self.told.entrance(&rules.authorization),
            None => Entrance::Closed,
        }
    }
}

/// Who may come in without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entrance {
    /// Everyone, or everyone may ask to.
    Open,
    /// Members of other rooms.
    Restricted,
    /// Nobody.
    Closed,
}

impl Told {
    /// Reads the state events that say it; a field of the wrong shape counts as absent.
    fn new(root: i64, room: &RoomName, events: &[Arc<Event>]) -> Self {
        let mut told = Self {
            root,
            is_federated: true,
            join_rule: "invite".to_owned(),
            room_version: room.version.to_string(),
            ..Self::default()
        };
        for event in events {
            let content: Map<String, Value> = serde_json::from_str(event.content()).unwrap_or_default();
            match event.event_type() {
                "m.room.create" => {
                    told.is_federated = field(&content, "m.federate").unwrap_or(true);
                    told.room_type = text(&content, "type");
                    told.is_space = told.room_type.as_deref() == Some("m.space");
                }
                "m.room.name" => told.name = text(&content, "name"),
                "m.room.topic" => told.topic = text(&content, "topic"),
                "m.room.canonical_alias" => told.canonical_alias = field(&content, "alias"),
                "m.room.avatar" => told.avatar_url = field(&content, "url"),
                "m.room.join_rules" => told.read_join_rules(&content),
                "m.room.history_visibility" => {
                    told.world_readable = text(&content, "history_visibility").as_deref() == Some("world_readable");
                }
                "m.room.guest_access" => {
                    told.guest_can_join = text(&content, "guest_access").as_deref() == Some("can_join");
                }
                "m.room.encryption" => told.encryption = text(&content, "algorithm"),
                _ => {}
            }
        }
        told
    }

    fn read_join_rules(&mut self, content: &Map<String, Value>) {
        #[derive(Deserialize)]
        struct Allow {
            #[serde(rename = "type")]
            kind: String,
            room_id: OwnedRoomId,
        }
        if let Some(rule) = text(content, "join_rule") {
            self.join_rule = rule;
        }
        if matches!(self.join_rule.as_str(), "restricted" | "knock_restricted") {
            let allow = content.get("allow").and_then(Value::as_array).into_iter().flatten();
            let allow = allow.filter_map(|entry| Allow::deserialize(entry).ok());
            let rooms = allow.filter(|allow| allow.kind == "m.room_membership").map(|allow| allow.room_id);
            self.allowed_room_ids = rooms.take(ALLOWED_MAX).collect();
        }
    }

    /// Who may come in, by the join rules as the room's version knows them.
    pub(super) fn entrance(&self, rules: &AuthorizationRules) -> Entrance {
        match self.join_rule.as_str() {
            "public" => Entrance::Open,
            "knock" if rules.knocking => Entrance::Open,
            "knock_restricted" if rules.knock_restricted_join_rule => Entrance::Open,
            "restricted" if rules.restricted_join_rule => Entrance::Restricted,
            _ => Entrance::Closed,
        }
    }
}

fn field<T: DeserializeOwned>(content: &Map<String, Value>, name: &str) -> Option<T> {
    T::deserialize(content.get(name)?).ok()
}

fn text(content: &Map<String, Value>, name: &str) -> Option<String> {
    content.get(name)?.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX).map(str::to_owned)
}

impl Rooms {
    /// What some rooms tell of themselves now, in the order asked.
    pub(super) async fn told_by(&self, rooms: &[Arc<RoomName>]) -> Result<Vec<Arc<Told>>> {
        let nids: Vec<i64> = rooms.iter().map(|room| room.nid).collect();
        let roots: HashMap<i64, i64> =
            self.store.heads(&nids).await?.into_iter().map(|(nid, head)| (nid, head.state_root)).collect();
        let keys = TYPES.map(|event_type| StateKey::new(event_type, ""));
        let keys = &keys;
        let rooms = rooms.iter().map(|room| (room.clone(), roots.get(&room.nid).copied().unwrap_or_default()));
        stream::iter(rooms.collect::<Vec<_>>())
            .map(|(room, root)| async move {
                Ok(Arc::new(Told::new(root, &room, &self.state_events_at(root, keys).await?)))
            })
            .buffered(READERS)
            .try_collect()
            .await
    }

    /// The summaries of rooms whose state has been read.
    pub(super) async fn summarise(&self, rooms: &[(Arc<RoomName>, Arc<Told>)]) -> Result<Vec<RoomSummary>> {
        let nids: Vec<i64> = rooms.iter().map(|(room, _)| room.nid).collect();
        let joined = self.store.joined_counts(&nids).await?;
        let summary = |(room, told): &(Arc<RoomName>, Arc<Told>)| RoomSummary {
            room_id: room.room_id.clone(),
            num_joined_members: joined.get(&room.nid).copied().unwrap_or_default(),
            told: Told::clone(told),
        };
        Ok(rooms.iter().map(summary).collect())
    }

    /// Who may come into a room without being asked.
    pub(super) fn entrance(&self, room: &RoomName, told: &Told) -> Result<Entrance> {
        Ok(told.entrance(&rules_of(&room.version)?.authorization))
    }
}
