//! Taking an event's content away.

use std::sync::Arc;

use myelin_store::{Event, RoomName};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, UserId, canonical_json::redact_in_place,
    room_version_rules::RoomVersionRules,
};
use ruma_state_res::events::RoomPowerLevelsIntField;

use crate::{Error, Result, RoomWriter, Rooms, Template, Transaction, writer::rules_of};

impl Rooms {
    /// Redacts an event ([specification]). The content may give a `reason`; what it names as the redacted event does
    /// not count.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when the room has no such event; [`Error::Forbidden`] when the sender may redact neither
    /// their own events nor, for another's, those of others.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#redactions
    pub async fn redact(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        sender: &UserId,
        event_id: &EventId,
        content: CanonicalJsonObject,
        transaction: Option<&Transaction>,
    ) -> Result<OwnedEventId> {
        let Some(transaction) = transaction else {
            return self.append_redaction(room, sender, event_id, content, None).await;
        };
        let key = transaction.key();
        let done = || self.store.event_by_transaction(transaction.device_nid, &key);
        if let Some(event_id) = done().await? {
            return Ok(event_id);
        }
        match self.append_redaction(room, sender, event_id, content, Some(transaction)).await {
            Ok(event_id) => Ok(event_id),
            // The database takes a transaction once. If it has this one now, the request was sent twice at a time.
            Err(error) => done().await?.ok_or(error),
        }
    }

    async fn append_redaction(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        sender: &UserId,
        event_id: &EventId,
        mut content: CanonicalJsonObject,
        transaction: Option<&Transaction>,
    ) -> Result<OwnedEventId> {
        let target = self.store.event_by_id(event_id).await?.filter(|event| event.room_nid == room.nid);
        let target = target.ok_or(Error::NotFound("there is no such event in this room"))?;
        let rules = rules_of(&room.version)?;
        let redacted = redacted_json(&target, &rules)?;
        content.remove("redacts");
        let mut template = Template::message(sender, "m.room.redaction", content);
        if rules.redaction.content_field_redacts {
            template.content.insert("redacts".into(), CanonicalJsonValue::String(event_id.to_string()));
        } else {
            template.redacts = Some(event_id.to_owned());
        }
        template.transaction = transaction.map(|transaction| (transaction.device_nid, transaction.key()));
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let built = async {
                if target.sender() != sender && !may_redact(&mut writer, sender).await? {
                    return Err(Error::forbidden("you may not redact the events of others in this room"));
                }
                let appended = writer.append(template.clone()).await?;
                // An event is redacted once; a further redaction is kept as an event.
                if target.redacted_by.is_none() {
                    writer.redact(target.clone(), &appended.event_id, redacted.clone());
                }
                Ok(appended.event_id)
            };
            let built = built.await;
            if let Some(event_id) = attempts.finish(writer, built).await? {
                return Ok(event_id);
            }
        }
    }
}

async fn may_redact(writer: &mut RoomWriter, sender: &UserId) -> Result<bool> {
    Ok(writer.level_of(sender).await? >= writer.level_for(RoomPowerLevelsIntField::Redact).await?)
}

/// The JSON of an event once it is redacted, by the algorithm of the room's version.
pub(crate) fn redacted_json(event: &Event, rules: &RoomVersionRules) -> Result<Box<str>> {
    let mut object: CanonicalJsonObject = serde_json::from_str(event.json()).map_err(Error::Corrupt)?;
    redact_in_place(&mut object, &rules.redaction, None)
        .map_err(|error| Error::BadJson(format!("the event cannot be redacted: {error}")))?;
    object.remove("unsigned");
    Ok(serde_json::to_string(&object).map_err(Error::Corrupt)?.into_boxed_str())
}
