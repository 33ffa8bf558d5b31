//! New rooms.

use std::{collections::BTreeSet, sync::Arc};

use myelin_store::RoomName;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedUserId, RoomVersionId, UserId};
use serde_json::json;

use crate::{
    Error, Result, RoomWriter, Rooms, TRIES, Template, membership::must_be_an_id, now_ms, receive::Policy,
    writer::rules_of,
};

/// The settings that a client names at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// By invitation.
    PrivateChat,
    /// By invitation, and who is invited may do what the creator may.
    TrustedPrivateChat,
    /// For everyone.
    PublicChat,
}

/// A piece of state for a new room.
#[derive(Clone, Debug)]
pub struct InitialState {
    /// The type.
    pub event_type: String,
    /// The state key.
    pub state_key: String,
    /// The content.
    pub content: CanonicalJsonObject,
}

/// A new room, as asked for ([specification]).
///
/// [specification]: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom
#[derive(Clone, Debug)]
pub struct CreateRoom {
    /// Who makes it.
    pub creator: OwnedUserId,
    /// The version of its rules.
    pub version: RoomVersionId,
    /// The settings.
    pub preset: Preset,
    /// Whether it is listed in the directory.
    pub is_public: bool,
    /// Its alias.
    pub alias: Option<OwnedRoomAliasId>,
    /// Its name.
    pub name: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Who is invited.
    pub invite: Vec<OwnedUserId>,
    /// Whether the invitations are to a direct chat.
    pub is_direct: bool,
    /// Further fields of the create event.
    pub creation_content: CanonicalJsonObject,
    /// Further state.
    pub initial_state: Vec<InitialState>,
    /// Fields that take the place of those of the default power levels.
    pub power_level_content_override: CanonicalJsonObject,
}

fn object(value: serde_json::Value) -> CanonicalJsonObject {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => object,
        _ => CanonicalJsonObject::new(),
    }
}

impl Rooms {
    /// Makes a room: all its first events are one commit.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedRoomVersion`], [`Error::AliasTaken`], [`Error::InvalidRoomState`] when the settings
    /// contradict each other, [`Error::TooLarge`], [`Error::BadJson`].
    pub async fn create(self: &Arc<Self>, wanted: CreateRoom) -> Result<Arc<RoomName>> {
        for _ in 0..TRIES {
            if let Some(room) = Box::pin(self.try_to_create(&wanted)).await? {
                Box::pin(self.invite_others(&room, &wanted)).await;
                return Ok(room);
            }
        }
        Err(Error::Busy)
    }

    /// Makes a room; none if another replica was faster to make one with the same create event, which gives a room its
    /// identifier: by the same user, with the same settings, in the same millisecond.
    async fn try_to_create(self: &Arc<Self>, wanted: &CreateRoom) -> Result<Option<Arc<RoomName>>> {
        let rules = rules_of(&wanted.version)?;
        if let Some(alias) = &wanted.alias
            && self.store.alias(alias.as_str()).await?.is_some()
        {
            return Err(Error::AliasTaken);
        }
        for invited in &wanted.invite {
            must_be_an_id(invited)?;
            if invited.server_name() != self.server_name {
                self.remote()?;
            }
            self.must_want_invites(invited).await?;
        }
        self.must_not_be_guarded(wanted)?;
        let trusted = wanted.preset == Preset::TrustedPrivateChat;
        let privileged = rules.authorization.explicitly_privilege_room_creators;

        // 1. The m.room.create event itself.
        let mut content = wanted.creation_content.clone();
        content.insert("room_version".into(), CanonicalJsonValue::String(wanted.version.to_string()));
        content.remove("creator");
        if !rules.authorization.use_room_create_sender {
            content.insert("creator".into(), CanonicalJsonValue::String(wanted.creator.to_string()));
        }
        if privileged && trusted {
            add_creators(&mut content, wanted)?;
        }
        let creator_nid = self.store.user_nid(&wanted.creator).await?;
        let alias = wanted.alias.as_ref().map(|alias| (alias.to_string(), creator_nid, now_ms() as i64));
        let mut writer = RoomWriter::found(self, &wanted.version, &wanted.creator, content, wanted.is_public, alias)
            .await
            .map_err(invalid)?;

        // 2. The creator joins.
        let member = self.member_content(&wanted.creator, "join", None).await?;
        self.draft(&mut writer, wanted, "m.room.member", wanted.creator.as_str(), member).await?;
        // 3. The power levels.
        let power_levels = power_levels(wanted, privileged);
        self.draft(&mut writer, wanted, "m.room.power_levels", "", power_levels).await?;
        // 4. The alias.
        if let Some(alias) = &wanted.alias {
            let content = object(json!({ "alias": alias }));
            self.draft(&mut writer, wanted, "m.room.canonical_alias", "", content).await?;
        }
        // 5. The preset, where the initial state does not say otherwise.
        let given: BTreeSet<&str> = wanted
            .initial_state
            .iter()
            .filter(|state| state.state_key.is_empty())
            .map(|state| state.event_type.as_str())
            .collect();
        for (event_type, content) in preset_state(wanted.preset) {
            if !given.contains(event_type) {
                self.draft(&mut writer, wanted, event_type, "", object(content)).await?;
            }
        }
        // 6. The initial state, save what the name and the topic take the place of.
        for state in &wanted.initial_state {
            let replaced = (state.event_type == "m.room.name" && wanted.name.is_some())
                || (state.event_type == "m.room.topic" && wanted.topic.is_some());
            if !replaced {
                self.draft(&mut writer, wanted, &state.event_type, &state.state_key, state.content.clone()).await?;
            }
        }
        // 7. Name and topic.
        if let Some(name) = &wanted.name {
            self.draft(&mut writer, wanted, "m.room.name", "", object(json!({ "name": name }))).await?;
        }
        if let Some(topic) = &wanted.topic {
            let content = object(json!({ "topic": topic, "m.topic": { "m.text": [{ "body": topic }] } }));
            self.draft(&mut writer, wanted, "m.room.topic", "", content).await?;
        }
        // 8. The invitations.
        for invited in wanted.invite.iter().filter(|invited| invited.server_name() == self.server_name) {
            let member = self.invitation(invited, wanted).await?;
            self.draft(&mut writer, wanted, "m.room.member", invited.as_str(), member).await?;
        }

        let room = writer.room().clone();
        match writer.submit().await {
            Ok(_) => {
                if wanted.is_public {
                    self.listed.note_change();
                }
                Ok(Some(room))
            }
            Err(error) => match &wanted.alias {
                // Someone else may have taken the alias since we looked.
                Some(alias) if self.store.alias(alias.as_str()).await?.is_some() => Err(Error::AliasTaken),
                _ if self.store.room(&room.room_id).await?.is_some() => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// A policy counts once "the server name denoted by the m.room.policy state event's via has at least one joined
    /// user": in a room that is being made, that is the creator's server alone. It is no policy server, so that nobody
    /// could sign the events that follow.
    fn must_not_be_guarded(&self, wanted: &CreateRoom) -> Result<()> {
        let is_policy = |state: &&InitialState| state.event_type == "m.room.policy" && state.state_key.is_empty();
        for state in wanted.initial_state.iter().filter(is_policy) {
            let content = serde_json::to_string(&state.content).map_err(|error| Error::BadJson(error.to_string()))?;
            if Policy::new(0, &content).is_some_and(|policy| *policy.server() == self.server_name) {
                return Err(Error::InvalidRoomState("this server cannot be the policy server of a room".into()));
            }
        }
        Ok(())
    }

    async fn draft(
        &self,
        writer: &mut RoomWriter,
        wanted: &CreateRoom,
        event_type: &str,
        state_key: &str,
        content: CanonicalJsonObject,
    ) -> Result<()> {
        let template = Template::state(&wanted.creator, event_type, state_key, content);
        writer.append(template).await.map(drop).map_err(invalid)
    }

    /// The content of a membership, with the user's profile if it is one of ours.
    pub(crate) async fn member_content(
        &self,
        user_id: &UserId,
        membership: &str,
        reason: Option<&str>,
    ) -> Result<CanonicalJsonObject> {
        let mut content = CanonicalJsonObject::new();
        content.insert("membership".into(), CanonicalJsonValue::String(membership.to_owned()));
        if let Some(reason) = reason {
            content.insert("reason".into(), CanonicalJsonValue::String(reason.to_owned()));
        }
        if matches!(membership, "join" | "invite" | "knock") {
            for (field, value) in self.store.member_profile(user_id).await? {
                content.insert(field.to_owned(), CanonicalJsonValue::String(value));
            }
        }
        Ok(content)
    }

    async fn invitation(&self, invited: &UserId, wanted: &CreateRoom) -> Result<CanonicalJsonObject> {
        let mut member = self.member_content(invited, "invite", None).await?;
        if wanted.is_direct {
            member.insert("is_direct".into(), CanonicalJsonValue::Bool(true));
        }
        Ok(member)
    }

    /// Invites the users of other servers. The room stands by now: one who cannot be invited does not undo it.
    async fn invite_others(self: &Arc<Self>, room: &Arc<RoomName>, wanted: &CreateRoom) {
        for invited in wanted.invite.iter().filter(|invited| invited.server_name() != self.server_name) {
            let sent = match self.invitation(invited, wanted).await {
                Ok(member) => Box::pin(self.invite_through(room, &wanted.creator, invited, member)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::warn!(room.id = %room.room_id, %error, "{invited} could not be invited to a new room: {error}");
            }
        }
    }
}

fn invalid(error: Error) -> Error {
    match error {
        Error::Forbidden(reason) => Error::InvalidRoomState(reason),
        other => other,
    }
}

fn add_creators(content: &mut CanonicalJsonObject, wanted: &CreateRoom) -> Result<()> {
    let mut creators: BTreeSet<String> = match content.get("additional_creators") {
        None => BTreeSet::new(),
        Some(CanonicalJsonValue::Array(given)) => {
            given.iter().filter_map(CanonicalJsonValue::as_str).map(str::to_owned).collect()
        }
        Some(_) => return Err(Error::BadJson("additional_creators must be an array of user ids".into())),
    };
    creators.extend(wanted.invite.iter().map(ToString::to_string));
    creators.remove(wanted.creator.as_str());
    if !creators.is_empty() {
        let creators = creators.into_iter().map(CanonicalJsonValue::String).collect();
        content.insert("additional_creators".into(), CanonicalJsonValue::Array(creators));
    }
    Ok(())
}

fn power_levels(wanted: &CreateRoom, privileged: bool) -> CanonicalJsonObject {
    let mut users = serde_json::Map::new();
    if !privileged {
        users.insert(wanted.creator.to_string(), json!(100));
        if wanted.preset == Preset::TrustedPrivateChat {
            users.extend(wanted.invite.iter().map(|invited| (invited.to_string(), json!(100))));
        }
    }
    // In the versions where creators stand above all levels, only they may close a room.
    let tombstone = if privileged { 150 } else { 100 };
    let mut content = object(json!({
        "ban": 50,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": tombstone,
        },
        "events_default": 0,
        "invite": if wanted.preset == Preset::PublicChat { 50 } else { 0 },
        "kick": 50,
        "notifications": { "room": 50 },
        "redact": 50,
        "state_default": 50,
        "users": users,
        "users_default": 0,
    }));
    content.extend(wanted.power_level_content_override.clone());
    content
}

fn preset_state(preset: Preset) -> [(&'static str, serde_json::Value); 3] {
    let (join_rule, guest_access) = match preset {
        Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
        Preset::PublicChat => ("public", "forbidden"),
    };
    [
        ("m.room.join_rules", json!({ "join_rule": join_rule })),
        ("m.room.history_visibility", json!({ "history_visibility": "shared" })),
        ("m.room.guest_access", json!({ "guest_access": guest_access })),
    ]
}
