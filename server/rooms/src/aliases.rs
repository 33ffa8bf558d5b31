//! Names for rooms.

use std::sync::Arc;

use myelin_store::RoomName;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, UserId,
    api::federation::query::get_room_information,
};

use crate::{Error, Result, Rooms, now_ms, remote::RemoteError};

/// Servers that are named with an alias.
const ALIAS_SERVERS: usize = 50;

impl Rooms {
    /// The room that an alias of ours points to.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such alias; those of other servers we do not know.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<OwnedRoomId> {
        match self.store.alias(alias.as_str()).await? {
            Some((room_id, _)) if alias.server_name() == self.server_name => Ok(room_id),
            _ => Err(Error::NotFound("there is no such room alias")),
        }
    }

    /// The room that an alias of any server points to, and servers that are in the room.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Remote`] when the alias's server gave no answer.
    pub async fn find_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        if alias.server_name() == self.server_name {
            let room_id = self.resolve_alias(alias).await?;
            let room = self.room(&room_id).await?;
            let mut servers = self.servers_in(&room).await?;
            servers.truncate(ALIAS_SERVERS);
            if !servers.contains(&self.server_name) {
                servers.insert(0, self.server_name.clone());
            }
            return Ok((room_id, servers));
        }
        let Ok(remote) = self.remote() else { return Err(Error::NotFound("there is no such room alias")) };
        let request = get_room_information::v1::Request::new(alias.to_owned());
        match remote.room_by_alias(alias.server_name(), request).await {
            Ok(answer) => {
                let mut servers = answer.servers;
                servers.truncate(ALIAS_SERVERS);
                Ok((answer.room_id, servers))
            }
            Err(RemoteError::Refused { status: 404, .. }) => Err(Error::NotFound("there is no such room alias")),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an alias for a room that its maker is in.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when it is not an alias of this server, [`Error::Forbidden`] when the user is not in
    /// the room, [`Error::AliasTaken`].
    pub async fn create_alias(&self, alias: &RoomAliasId, room_id: &OwnedRoomId, creator_nid: i64) -> Result<()> {
        if alias.server_name() != self.server_name {
            return Err(Error::InvalidParam(format!("the alias must be one of {}", self.server_name)));
        }
        let room = self.store.room(room_id).await?.ok_or_else(Error::outsider)?;
        if !self.is_joined(&room, creator_nid).await? {
            return Err(Error::outsider());
        }
        let is_new = self.store.create_alias(alias.as_str(), room.nid, creator_nid, now_ms() as i64).await?;
        if is_new { Ok(()) } else { Err(Error::AliasTaken) }
    }

    /// Removes an alias. Its creator may do so, whoever may say which alias is the room's main one, and the
    /// administrators of the server.
    ///
    /// Where the room names it as one of its aliases and the user may change that, it does so no longer.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Forbidden`].
    pub async fn delete_alias(
        self: &Arc<Self>,
        alias: &RoomAliasId,
        user_id: &UserId,
        user_nid: i64,
        is_admin: bool,
    ) -> Result<()> {
        let not_found = Error::NotFound("there is no such room alias");
        let Some((room_id, creator_nid)) = self.store.alias(alias.as_str()).await? else { return Err(not_found) };
        let room = self.room(&room_id).await?;
        let may_name = self.may_send_state(&room, user_id, "m.room.canonical_alias").await?;
        if creator_nid != user_nid && !is_admin && !may_name {
            return Err(Error::forbidden("you may not delete this alias"));
        }
        if !self.store.delete_alias(alias.as_str()).await? {
            return Err(not_found);
        }
        if may_name && let Err(error) = self.drop_canonical_alias(&room, alias, user_id).await {
            // The alias is gone, which is what was asked for.
            tracing::warn!(room.id = %room.room_id, error = %error, "could not remove a deleted alias from its room");
        }
        Ok(())
    }

    async fn drop_canonical_alias(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        alias: &RoomAliasId,
        user_id: &UserId,
    ) -> Result<()> {
        let Some(event) = self.state_event(room, "m.room.canonical_alias", "").await? else { return Ok(()) };
        let before: CanonicalJsonObject = serde_json::from_str(event.content()).map_err(Error::Corrupt)?;
        let mut content = before.clone();
        let is_it = |value: &CanonicalJsonValue| value.as_str() == Some(alias.as_str());
        if content.get("alias").is_some_and(is_it) {
            content.remove("alias");
        }
        if let Some(CanonicalJsonValue::Array(others)) = content.get_mut("alt_aliases") {
            others.retain(|other| !is_it(other));
        }
        if content != before {
            self.set_state(room, user_id, "m.room.canonical_alias", "", content).await?;
        }
        Ok(())
    }

    /// Checks what an `m.room.canonical_alias` event is to say: "servers SHOULD ensure that any new aliases being
    /// listed in the event are valid per their grammar/syntax and that they point to the room ID where the state
    /// event is to be sent. Servers do not validate aliases which are being removed or are already present".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for what is no alias, [`Error::BadAlias`] for one that points elsewhere.
    pub async fn check_canonical_alias(&self, room: &RoomName, content: &CanonicalJsonObject) -> Result<()> {
        let named = named_aliases(content)?;
        if named.is_empty() {
            return Ok(());
        }
        let present = match self.state_event(room, "m.room.canonical_alias", "").await? {
            Some(event) => {
                let present: CanonicalJsonObject = serde_json::from_str(event.content()).map_err(Error::Corrupt)?;
                named_aliases(&present).unwrap_or_default()
            }
            None => Vec::new(),
        };
        let ours = self.store.aliases(room.nid).await?;
        for alias in named {
            if present.contains(&alias) {
                continue;
            }
            let parsed = OwnedRoomAliasId::try_from(alias.as_str())
                .map_err(|_| Error::InvalidParam(format!("{alias:?} is not a room alias")))?;
            if !ours.iter().any(|ours| *ours == parsed.as_str()) {
                return Err(Error::BadAlias(format!("the alias {alias} does not point to this room")));
            }
        }
        Ok(())
    }

    /// Lists a room in the directory, or takes it out: whoever may say which alias is the room's main one may do so,
    /// and the administrators of the server.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Forbidden`].
    pub async fn set_listed(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        user_id: &UserId,
        is_admin: bool,
        is_listed: bool,
    ) -> Result<()> {
        let room = self.room(room_id).await?;
        if !is_admin && !self.may_send_state(&room, user_id, "m.room.canonical_alias").await? {
            return Err(Error::forbidden("you may not change how this room is listed"));
        }
        self.store.set_public(room.nid, is_listed).await?;
        self.listed.note_change();
        Ok(())
    }
}

/// The aliases that an `m.room.canonical_alias` event names.
fn named_aliases(content: &CanonicalJsonObject) -> Result<Vec<String>> {
    let mut named = Vec::new();
    match content.get("alias") {
        None | Some(CanonicalJsonValue::Null) => {}
        Some(CanonicalJsonValue::String(alias)) if alias.is_empty() => {}
        Some(CanonicalJsonValue::String(alias)) => named.push(alias.clone()),
        Some(_) => return Err(Error::InvalidParam("alias must be a string".into())),
    }
    match content.get("alt_aliases") {
        None | Some(CanonicalJsonValue::Null) => {}
        Some(CanonicalJsonValue::Array(aliases)) => {
            for alias in aliases {
                let alias = alias.as_str().ok_or_else(|| Error::InvalidParam("alt_aliases must be strings".into()))?;
                named.push(alias.to_owned());
            }
        }
        Some(_) => return Err(Error::InvalidParam("alt_aliases must be an array".into())),
    }
    Ok(named)
}
