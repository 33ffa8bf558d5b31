//! A room's replacement by one of another version.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#room-upgrades)

use std::{collections::BTreeMap, sync::Arc};

use myelin_store::{RoomName, StateKey};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, Int, OwnedUserId, RoomVersionId, UserId};

use crate::{CreateRoom, Error, InitialState, Preset, Result, Rooms, see_through::see_through, writer::rules_of};

/// What is transferred, besides the power levels, which come last.
const TRANSFERRED: [&str; 8] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
];
/// The fields of the power levels that hold one level.
const LEVELS: [&str; 7] = ["ban", "events_default", "invite", "kick", "redact", "state_default", "users_default"];
/// The fields of the power levels that hold a level for each of something.
const MAPS: [&str; 3] = ["events", "notifications", "users"];

impl Rooms {
    /// Replaces a room by a new one. What was begun is done to its end, also when nobody waits for it any more.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the user may not close the room, [`Error::UnsupportedRoomVersion`], and what
    /// [`Rooms::create`] answers.
    pub async fn upgrade(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        user_id: &UserId,
        version: &RoomVersionId,
        additional_creators: &[OwnedUserId],
    ) -> Result<Arc<RoomName>> {
        let (rooms, room, user_id) = (self.clone(), room.clone(), user_id.to_owned());
        let (version, additional_creators) = (version.clone(), additional_creators.to_vec());
        see_through(async move { Box::pin(rooms.replace(&room, &user_id, &version, &additional_creators)).await }).await
    }

    async fn replace(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        user_id: &UserId,
        version: &RoomVersionId,
        additional_creators: &[OwnedUserId],
    ) -> Result<Arc<RoomName>> {
        // 1. "Checks that the user has permission to send m.room.tombstone events in the room."
        if !self.may_send_state(room, user_id, "m.room.tombstone").await? {
            return Err(Error::forbidden("you may not close this room"));
        }
        // 2. and 3. The new room, with what is transferred.
        let old = self.old_room(room).await?;
        let replacement = self.create(replacement(&old, room, user_id, version, additional_creators)?).await?;
        // 4. "Moves any local aliases to the new room", and with them the place in the directory.
        self.store.move_aliases(room.nid, replacement.nid).await?;
        if old.is_listed {
            self.store.set_public(room.nid, false).await?;
            self.listed.note_change();
        }
        if let Some(aliases) = old.state.get("m.room.canonical_alias") {
            let nothing = CanonicalJsonObject::new();
            self.try_state(&replacement, user_id, "m.room.canonical_alias", aliases.clone()).await?;
            self.try_state(room, user_id, "m.room.canonical_alias", nothing).await?;
        }
        // 5. "Sends a m.room.tombstone event to the old room."
        let tombstone = CanonicalJsonObject::from([
            ("body".to_owned(), CanonicalJsonValue::String("This room has been replaced".to_owned())),
            ("replacement_room".to_owned(), CanonicalJsonValue::String(replacement.room_id.to_string())),
        ]);
        self.set_state(room, user_id, "m.room.tombstone", "", tombstone).await?;
        // 6. "If possible, the power levels in the old room should also be modified."
        if let Some(power_levels) = old.state.get("m.room.power_levels") {
            self.try_state(room, user_id, "m.room.power_levels", closed(power_levels.clone())).await?;
        }
        Ok(replacement)
    }

    async fn old_room(&self, room: &RoomName) -> Result<OldRoom> {
        let head = self.store.head(room.nid).await?;
        let wanted = TRANSFERRED.iter().chain(&["m.room.create", "m.room.power_levels", "m.room.canonical_alias"]);
        let keys: Vec<StateKey> = wanted.map(|event_type| StateKey::new(event_type, "")).collect();
        let events = self.state_events_at(head.state_root, &keys).await?;
        let mut state = BTreeMap::new();
        let mut creator = None;
        for event in &events {
            let content: CanonicalJsonObject = serde_json::from_str(event.content()).map_err(Error::Corrupt)?;
            if event.event_type() == "m.room.create" {
                creator = Some(event.sender().clone());
            }
            state.insert(event.event_type().to_owned(), content);
        }
        let last_event = self.store.events(&head.extremities).await?.pop().map(|event| event.event_id.to_string());
        let is_listed = self.store.is_public(room.nid).await?;
        Ok(OldRoom { state, creator, last_event, is_listed })
    }

    /// Sets a piece of state if the room allows it.
    async fn try_state(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        user_id: &UserId,
        event_type: &str,
        content: CanonicalJsonObject,
    ) -> Result<()> {
        match self.set_state(room, user_id, event_type, "", content).await {
            Ok(_) => Ok(()),
            Err(Error::Forbidden(reason)) => {
                tracing::debug!(room.id = %room.room_id, "an upgrade leaves {event_type} as it is: {reason}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

struct OldRoom {
    state: BTreeMap<String, CanonicalJsonObject>,
    creator: Option<OwnedUserId>,
    last_event: Option<String>,
    is_listed: bool,
}

fn replacement(
    old: &OldRoom,
    room: &RoomName,
    user_id: &UserId,
    version: &RoomVersionId,
    additional_creators: &[OwnedUserId],
) -> Result<CreateRoom> {
    let rules = rules_of(version)?;
    let is_privileged = rules.authorization.explicitly_privilege_room_creators;
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());

    let mut predecessor = CanonicalJsonObject::from([("room_id".to_owned(), text(room.room_id.as_str()))]);
    if let Some(last_event) = &old.last_event {
        predecessor.insert("event_id".to_owned(), text(last_event));
    }
    let mut creation_content =
        CanonicalJsonObject::from([("predecessor".to_owned(), CanonicalJsonValue::Object(predecessor))]);
    let create = old.state.get("m.room.create");
    for field in ["type", "m.federate"] {
        if let Some(value) = create.and_then(|create| create.get(field)) {
            creation_content.insert(field.to_owned(), value.clone());
        }
    }
    let mut creators = vec![user_id.to_string()];
    if is_privileged && !additional_creators.is_empty() {
        let others = additional_creators.iter().map(|creator| text(creator.as_str())).collect();
        creation_content.insert("additional_creators".to_owned(), CanonicalJsonValue::Array(others));
        creators.extend(additional_creators.iter().map(ToString::to_string));
    }

    let mut initial_state: Vec<InitialState> = TRANSFERRED
        .iter()
        .filter_map(|&event_type| Some(state_of(event_type, old.state.get(event_type)?.clone())))
        .collect();
    // "If the guest_access value is missing, it is assumed to be forbidden": the preset would open the new room.
    if !old.state.contains_key("m.room.guest_access") {
        let closed = CanonicalJsonObject::from([("guest_access".to_owned(), text("forbidden"))]);
        initial_state.push(state_of("m.room.guest_access", closed));
    }
    let mut power_level_content_override = CanonicalJsonObject::new();
    if let Some(power_levels) = old.state.get("m.room.power_levels") {
        let was_privileged =
            room.version.rules().is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators);
        let levels = if is_privileged {
            for_privileged_creators(normalised(power_levels), &creators, was_privileged)
        } else {
            for_listed_creators(normalised(power_levels), &old_creators(old, was_privileged))
        };
        // Until all is in place, the upgrading user stands above every level there is; then the levels of the old
        // room are set, which may leave the user with less.
        if !is_privileged {
            let top = CanonicalJsonValue::Integer(highest(&levels).max(ruma::int!(100)));
            let users = CanonicalJsonObject::from([(user_id.to_string(), top)]);
            power_level_content_override.insert("users".to_owned(), CanonicalJsonValue::Object(users));
        }
        initial_state.push(state_of("m.room.power_levels", levels));
    }

    Ok(CreateRoom {
        creator: user_id.to_owned(),
        version: version.clone(),
        preset: Preset::PrivateChat,
        is_public: old.is_listed,
        alias: None,
        name: None,
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content,
        initial_state,
        power_level_content_override,
    })
}

fn state_of(event_type: &str, content: CanonicalJsonObject) -> InitialState {
    InitialState { event_type: event_type.to_owned(), state_key: String::new(), content }
}

/// The creators of a room whose version gives them power that is not written down.
fn old_creators(old: &OldRoom, was_privileged: bool) -> Vec<String> {
    if !was_privileged {
        return Vec::new();
    }
    let additional = match old.state.get("m.room.create").and_then(|create| create.get("additional_creators")) {
        Some(CanonicalJsonValue::Array(additional)) => additional.as_slice(),
        _ => &[],
    };
    let additional = additional.iter().filter_map(|creator| Some(creator.as_str()?.to_owned()));
    old.creator.iter().map(ToString::to_string).chain(additional).collect()
}

/// Power levels that every room version reads alike: whole numbers only, and the names of users only.
fn normalised(power_levels: &CanonicalJsonObject) -> CanonicalJsonObject {
    let mut content = power_levels.clone();
    for name in LEVELS {
        if let Some(level) = content.remove(name).as_ref().and_then(level) {
            content.insert(name.to_owned(), CanonicalJsonValue::Integer(level));
        }
    }
    for name in MAPS {
        let levels = match content.remove(name) {
            Some(CanonicalJsonValue::Object(levels)) => levels,
            // What is not said would be filled with the levels of a new room.
            _ if name == "notifications" => continue,
            _ => CanonicalJsonObject::new(),
        };
        let levels = levels
            .into_iter()
            .filter(|(key, _)| name != "users" || UserId::parse(key).is_ok())
            .filter_map(|(key, value)| Some((key, CanonicalJsonValue::Integer(level(&value)?))))
            .collect();
        content.insert(name.to_owned(), CanonicalJsonValue::Object(levels));
    }
    content
}

/// A level, which old room versions also write as text.
fn level(value: &CanonicalJsonValue) -> Option<Int> {
    match value {
        CanonicalJsonValue::Integer(level) => Some(*level),
        CanonicalJsonValue::String(level) => level.trim().parse().ok(),
        _ => None,
    }
}

/// "Room creators have infinitely high power level and cannot be specified in the m.room.power_levels event", and only
/// they close a room.
fn for_privileged_creators(
    mut content: CanonicalJsonObject,
    creators: &[String],
    was_privileged: bool,
) -> CanonicalJsonObject {
    if let Some(CanonicalJsonValue::Object(users)) = content.get_mut("users") {
        users.retain(|user_id, _| !creators.contains(user_id));
    }
    if !was_privileged && let Some(CanonicalJsonValue::Object(events)) = content.get_mut("events") {
        let tombstone = events.get("m.room.tombstone").and_then(level).unwrap_or_default().max(ruma::int!(150));
        events.insert("m.room.tombstone".to_owned(), CanonicalJsonValue::Integer(tombstone));
    }
    content
}

/// Where creators have no power of their own, it is written down for those who had it.
fn for_listed_creators(mut content: CanonicalJsonObject, creators: &[String]) -> CanonicalJsonObject {
    let top = highest(&content).max(ruma::int!(100));
    if let Some(CanonicalJsonValue::Object(users)) = content.get_mut("users") {
        users.extend(creators.iter().map(|creator| (creator.clone(), CanonicalJsonValue::Integer(top))));
    }
    content
}

/// The highest level that is mentioned.
fn highest(content: &CanonicalJsonObject) -> Int {
    let nested = content.values().filter_map(|value| match value {
        CanonicalJsonValue::Object(levels) => levels.values().filter_map(level).max(),
        value => level(value),
    });
    nested.max().unwrap_or_default()
}

/// "For example, setting events_default and invite to the greater of 50 and users_default + 1."
fn closed(mut power_levels: CanonicalJsonObject) -> CanonicalJsonObject {
    let users_default = power_levels.get("users_default").and_then(level).unwrap_or_default();
    let floor = users_default.saturating_add(ruma::int!(1)).max(ruma::int!(50));
    for name in ["events_default", "invite"] {
        let now = power_levels.get(name).and_then(level).unwrap_or_default();
        power_levels.insert(name.to_owned(), CanonicalJsonValue::Integer(now.max(floor)));
    }
    power_levels
}

#[cfg(test)]
mod tests {
    use ruma::int;

    use super::*;

    fn object(value: serde_json::Value) -> CanonicalJsonObject {
        match CanonicalJsonValue::try_from(value) {
            Ok(CanonicalJsonValue::Object(object)) => object,
            other => panic!("{other:?} is not an object"),
        }
    }

    /// A room that says nothing of guests is closed to them, and so is the one that takes its place; what it says of
    /// them is kept.
    #[test]
    fn guests_stay_out() {
        let version = RoomVersionId::V11;
        let (room_id, user_id) = (ruma::room_id!("!a:b").to_owned(), ruma::user_id!("@a:b"));
        let room = RoomName { nid: 1, room_id, version: version.clone() };
        let guest_access = |state: BTreeMap<String, CanonicalJsonObject>| {
            let old = OldRoom { state, creator: None, last_event: None, is_listed: false };
            let wanted = replacement(&old, &room, user_id, &version, &[]).unwrap();
            let said = wanted.initial_state.into_iter().filter(|state| state.event_type == "m.room.guest_access");
            said.map(|state| state.content).collect::<Vec<_>>()
        };
        let content = |access: &str| object(serde_json::json!({ "guest_access": access }));
        assert_eq!(guest_access(BTreeMap::new()), [content("forbidden")]);
        let open = BTreeMap::from([("m.room.guest_access".to_owned(), content("can_join"))]);
        assert_eq!(guest_access(open), [content("can_join")]);
    }

    /// Levels written as text become numbers, what is neither is dropped, and so are users that are none.
    #[test]
    fn normalises_power_levels() {
        let old = object(serde_json::json!({
            "ban": "60", "kick": null, "users": { "@a:b": "100", "nobody": 50 }, "events": { "m.room.name": 70 },
        }));
        let wanted = object(serde_json::json!({
            "ban": 60, "users": { "@a:b": 100 }, "events": { "m.room.name": 70 },
        }));
        assert_eq!(normalised(&old), wanted);
        assert_eq!(highest(&wanted), int!(100));
    }

    /// In the new room, creators are not listed, and nobody else closes it by the level that was enough before.
    #[test]
    fn creators_are_not_listed() {
        let old = object(serde_json::json!({ "users": { "@a:b": 100, "@c:d": 100 }, "events": {} }));
        let wanted = object(serde_json::json!({ "users": { "@c:d": 100 }, "events": { "m.room.tombstone": 150 } }));
        assert_eq!(for_privileged_creators(old, &["@a:b".to_owned()], false), wanted);
    }

    /// A closed room keeps levels that are higher already.
    #[test]
    fn closing_raises_levels() {
        let old = object(serde_json::json!({ "users_default": 60, "invite": 80 }));
        let wanted = object(serde_json::json!({ "users_default": 60, "invite": 80, "events_default": 61 }));
        assert_eq!(closed(old), wanted);
    }
}
