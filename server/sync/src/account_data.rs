//! What clients keep with their account.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#client-config)

use std::{collections::HashSet, sync::Arc};

use myelin_rooms::{INVITE_PERMISSION, blocks_invites};
use myelin_store::{AccountData, Operation, RoomName};
use ruma::{
    EventId, UserId,
    events::{ignored_user_list::IgnoredUserListEventContent, push_rules::PushRulesEventContent},
    push::Ruleset,
};
use serde_json::{Map, Value, value::RawValue};

use crate::{Error, Result, Sync, index::Settings, push_rules::rules_of};

/// Bytes of a type at the most, as for events.
const TYPE_BYTES_MAX: usize = 255;

/// The room of global account data.
const GLOBAL: i64 = 0;

/// "Servers MUST reject setting account data for event types that the server manages."
#[must_use]
pub fn is_server_managed(data_type: &str) -> bool {
    matches!(data_type, "m.fully_read" | "m.push_rules")
}

impl Sync {
    /// Sets account data, global or (with a room's number) of a room.
    ///
    /// # Errors
    ///
    /// [`Error::ServerManaged`] for types that only the server sets, [`Error::InvalidParam`] when the type is too
    /// long, [`Error::BadJson`] when the content is no object.
    pub async fn set_account_data(
        &self,
        user_nid: i64,
        room_nid: Option<i64>,
        data_type: &str,
        content: &RawValue,
    ) -> Result<()> {
        if is_server_managed(data_type) {
            return Err(Error::ServerManaged(data_type.to_owned()));
        }
        if data_type.len() > TYPE_BYTES_MAX {
            return Err(Error::InvalidParam(format!("a type has at most {TYPE_BYTES_MAX} bytes")));
        }
        if !content.get().trim_start().starts_with('{') {
            return Err(Error::BadJson("the content must be a JSON object".into()));
        }
        self.put(user_nid, room_nid, data_type, content.get().to_owned()).await
    }

    /// The content of account data, global or of a room. Push rules are there before they were ever set.
    pub async fn account_data(
        &self,
        user_nid: i64,
        user_id: &UserId,
        room_nid: Option<i64>,
        data_type: &str,
    ) -> Result<Option<Box<RawValue>>> {
        let found = self.store.account_data(user_nid, room_nid.unwrap_or(GLOBAL), data_type).await?;
        match found {
            Some(data) => Ok(Some(RawValue::from_string(data.content.into()).map_err(Error::Write)?)),
            None if room_nid.is_none() && data_type == "m.push_rules" => Ok(Some(default_push_rules(user_id)?)),
            None => Ok(None),
        }
    }

    /// The tags of a room, by name.
    pub async fn tags(&self, user_nid: i64, room_nid: i64) -> Result<Map<String, Value>> {
        let Some(data) = self.store.account_data(user_nid, room_nid, "m.tag").await? else { return Ok(Map::new()) };
        Ok(tags_of(&data.content))
    }

    /// Adds a tag to a room, or takes it (`None`) away.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the name is too long.
    pub async fn set_tag(&self, user_nid: i64, room_nid: i64, tag: &str, info: Option<Value>) -> Result<()> {
        if tag.len() > TYPE_BYTES_MAX {
            return Err(Error::InvalidParam(format!("the name of a tag has at most {TYPE_BYTES_MAX} bytes")));
        }
        let tag = tag.to_owned();
        let change = move |content: Option<&str>| {
            let mut tags = content.map_or_else(Map::new, tags_of);
            let changed = match info {
                Some(info) => tags.insert(tag, info.clone()) != Some(info),
                None => tags.remove(&tag).is_some(),
            };
            changed.then(|| serde_json::json!({ "tags": tags }).to_string())
        };
        Ok(self.store.change_account_data(user_nid, room_nid, "m.tag", change).await?)
    }

    /// Refuses events that [`Sync::mark_read`] would refuse, before any of several is marked.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the user is not in the room, [`Error::NotFound`] when an event is not one of the room.
    pub async fn check_markable(&self, room: &RoomName, user_nid: i64, event_ids: &[&EventId]) -> Result<()> {
        self.require_joined(room.nid, user_nid).await?;
        for event_id in event_ids {
            let event = self.store.event_by_id(event_id).await?;
            if !event.is_some_and(|event| event.room_nid == room.nid && event.is_shown()) {
                return Err(Error::NotFound("there is no such event in this room"));
            }
        }
        Ok(())
    }

    async fn put(&self, user_nid: i64, room_nid: Option<i64>, data_type: &str, content: String) -> Result<()> {
        let data = AccountData {
            user_nid,
            room_nid: room_nid.unwrap_or(GLOBAL),
            data_type: data_type.into(),
            content: content.into(),
            pos: 0,
        };
        self.store.commit(Operation::AccountData(data)).await?;
        Ok(())
    }

    /// Whom a user ignores, and the user's push rules.
    pub(crate) async fn settings(&self, user_nid: i64, user_id: &UserId) -> Result<Arc<Settings>> {
        let (known, data_pos) = self.index.settings(user_nid);
        if let Some(settings) = known {
            return Ok(settings);
        }
        let list = self.store.account_data(user_nid, GLOBAL, "m.ignored_user_list").await?;
        let list = list.and_then(|data| serde_json::from_str::<IgnoredUserListEventContent>(&data.content).ok());
        let rules = self.store.account_data(user_nid, GLOBAL, "m.push_rules").await?;
        let mut ignored: HashSet<_> = list.map_or_else(HashSet::new, |list| list.ignored_users.into_keys().collect());
        // Nobody can ignore themselves.
        ignored.remove(user_id);
        let permission = self.store.account_data(user_nid, GLOBAL, INVITE_PERMISSION).await?;
        let settings = Arc::new(Settings {
            ignored,
            blocks_invites: permission.is_some_and(|data| blocks_invites(&data.content)),
            rules: rules_of(rules.as_ref().map(|data| &*data.content), user_id),
        });
        self.index.set_settings(user_nid, data_pos, settings.clone());
        Ok(settings)
    }
}

/// The tags in the content of `m.tag`.
fn tags_of(content: &str) -> Map<String, Value> {
    let content: Value = serde_json::from_str(content).unwrap_or_default();
    content.get("tags").and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The content of `m.push_rules` of a user who has changed none.
pub(crate) fn default_push_rules(user_id: &UserId) -> Result<Box<RawValue>> {
    let content = PushRulesEventContent::new(Ruleset::server_default(user_id));
    serde_json::value::to_raw_value(&content).map_err(Error::Write)
}

#[cfg(test)]
mod tests {
    use myelin_rooms::Rooms;
    use myelin_store::testing::{Fresh, on_both};
    use ruma::{owned_server_name, signatures::Ed25519KeyPair, user_id};
    use serde_json::json;

    use crate::{Sync, SyncOptions};

    /// Tags that are set and removed at once do not undo each other.
    #[tokio::test]
    async fn tags_set_at_once_are_all_kept() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let (version, document) = store.signing_key().await.unwrap();
            let key = Ed25519KeyPair::from_der(&document, version).unwrap();
            let rooms = Rooms::new(store.clone(), owned_server_name!("example.org"), key);
            let sync = Sync::new(store.clone(), rooms, SyncOptions::default());
            let nid = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
            sync.set_tag(nid, 7, "u.old", Some(json!({}))).await.unwrap();
            let adding = (0..20).map(|number| {
                let sync = sync.clone();
                tokio::spawn(async move {
                    sync.set_tag(nid, 7, &format!("u.{number:02}"), Some(json!({ "order": 0.5 }))).await
                })
            });
            let mut tasks: Vec<_> = adding.collect();
            let removing = sync.clone();
            tasks.push(tokio::spawn(async move { removing.set_tag(nid, 7, "u.old", None).await }));
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            let tags = sync.tags(nid, 7).await.unwrap();
            assert_eq!(tags.len(), 20, "{tags:?}");
            assert!(!tags.contains_key("u.old"));
            store.close().await;
        })
        .await;
    }
}
