//! Invitations to users of other servers, and from them.

use std::sync::Arc;

use myelin_store::{Membership, RoomName};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, RoomVersionId, ServerName, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
};
use serde_json::value::RawValue;

use super::{membership_word, must_be_called, raw, text};
use crate::{
    Error, Result, Rooms, Template,
    receive::{Place, Verdict, parse, verify},
    writer::rules_of,
};

/// Stripped events that are taken with an invitation.
const STRIPPED_MAX: usize = 100;

impl Rooms {
    /// Invites a user of another server: that server signs the event before it is part of the room.
    pub(crate) async fn invite_through(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        sender: &UserId,
        target: &UserId,
        content: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let server = target.server_name();
        let template = Template::state(sender, "m.room.member", target.as_str(), content);
        let mut attempts = self.attempts(room);
        let (mut object, root) = loop {
            let mut writer = attempts.open().await?;
            let root = writer.state_root();
            let built = async {
                if crate::membership::membership_of(&mut writer, target).await? == Some(Membership::Join) {
                    return Err(Error::forbidden("the user is in the room already"));
                }
                writer.propose(&template).await
            };
            let built = built.await;
            if let Some(object) = attempts.finish(writer, built).await? {
                break (object, root);
            }
        };
        self.sign(&mut object, &room.version)?;
        let object = self.recommended_in(room, object).await?;
        let rules = rules_of(&room.version)?;
        let event_id = parse(&raw(&object)?, &room.room_id, &rules)?.event_id;
        let stripped = self.told_state_at(root).await?;
        let request = create_invite::v2::Request::new(
            room.room_id.clone(),
            event_id.clone(),
            room.version.clone(),
            raw(&object)?,
            stripped.into_iter().map(RawStrippedState::Pdu).collect(),
        );
        let answer = self.remote()?.invite(server, request).await?;
        let signed = parse(&answer.event, &room.room_id, &rules)?;
        must_be_called(&signed.event_id, &event_id)?;
        let incoming = verify(self, &rules, vec![signed]).await?.pop().ok_or(Error::Gap)??;
        let receiver = self.receivers.of(room.nid);
        let _receiving = receiver.lock().await;
        let verdicts = Box::pin(self.put_in_judged(room, server, vec![incoming], Place::Timeline)).await?;
        match verdicts.into_iter().find(|(found, _)| *found == event_id) {
            Some((_, Verdict::Accepted | Verdict::Known)) => Ok(event_id),
            Some((_, Verdict::Rejected(reason) | Verdict::SoftFailed(reason))) => Err(Error::Forbidden(reason)),
            None => Err(Error::Gap),
        }
    }

    /// `invite`: another server invites one of our users. Answers the event with our signature.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedRoomVersion`], [`Error::BadJson`], [`Error::InvalidParam`], [`Error::Forbidden`] when the user
    /// is not one of ours, [`Error::Refused`] when the event is not signed as it must be.
    pub async fn invited_by(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &OwnedRoomId,
        event_id: &EventId,
        room_version: &RoomVersionId,
        event: Box<RawValue>,
        room_state: Vec<Box<RawValue>>,
    ) -> Result<Box<RawValue>> {
        let rules = rules_of(room_version)?;
        let received = parse(&event, room_id, &rules)?;
        must_be_called(&received.event_id, event_id)?;
        let object = &received.object;
        if text(object, "type") != "m.room.member" || membership_word(object) != "invite" {
            return Err(Error::BadJson("the event is no invitation".into()));
        }
        let sender =
            UserId::parse(text(object, "sender")).map_err(|_| Error::BadJson("the sender is no user id".into()))?;
        if sender.server_name() != origin {
            return Err(Error::forbidden("the sender is not a user of the asking server"));
        }
        let target = UserId::parse(text(object, "state_key"))
            .map_err(|_| Error::InvalidParam("the state key is no user id".into()))?;
        self.must_take_invites(&target).await?;
        let known = self.store.room(room_id).await?;
        if let Some(room) = &known {
            self.check_acl_of(origin, room).await?;
        }
        let mut signed = received.object.clone();
        verify(self, &rules, vec![received]).await?.pop().ok_or(Error::Gap)??;
        self.must_want_invites(&target).await?;
        self.sign(&mut signed, room_version)?;
        let signed_event = raw(&signed)?;
        let is_in_room = match &known {
            Some(room) => self.is_server_in(room, &self.server_name).await?,
            None => false,
        };
        if !is_in_room {
            let incoming = verify(self, &rules, vec![parse(&signed_event, room_id, &rules)?]).await?;
            let incoming = incoming.into_iter().next().ok_or(Error::Gap)??;
            let stripped = checked_stripped(room_state)?;
            let invite = Membership::Invite;
            self.keep_out_of_band(room_id, room_version, &incoming, &target, invite, &stripped).await?;
        }
        Ok(signed_event)
    }

    /// `exchange_third_party_invite`: a user of another server has proven to be the one whom a user of ours has invited by
    /// address; the invitation gets their name.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`], [`Error::Forbidden`] when the inviter is not one of ours or the rules of the room do not allow it.
    pub async fn exchange_third_party_invite_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &OwnedRoomId,
        event: Box<RawValue>,
    ) -> Result<()> {
        let room = self.room(room_id).await?;
        self.check_acl_of(origin, &room).await?;
        let object: CanonicalJsonObject =
            serde_json::from_str(event.get()).map_err(|error| Error::BadJson(error.to_string()))?;
        let user = |field: &str| {
            UserId::parse(text(&object, field)).map_err(|_| Error::BadJson(format!("{field} is no user id")))
        };
        let (sender, target) = (user("sender")?, user("state_key")?);
        if sender.server_name() != self.server_name {
            return Err(Error::forbidden("the inviter is not a user of this server"));
        }
        let content = object.get("content").and_then(CanonicalJsonValue::as_object);
        let invite = content.and_then(|content| content.get("third_party_invite")).cloned();
        let (Some(invite), "invite") = (invite, membership_word(&object)) else {
            return Err(Error::BadJson("the event is no invitation by address".into()));
        };
        let mut content = self.member_content(&target, "invite", None).await?;
        content.insert("third_party_invite".into(), invite);
        if target.server_name() != self.server_name {
            return Box::pin(self.invite_through(&room, &sender, &target, content)).await.map(drop);
        }
        self.set_member_state(&room, &sender, target.as_str(), content, false).await.map(drop)
    }

    async fn must_take_invites(&self, target: &UserId) -> Result<()> {
        if target.server_name() != self.server_name {
            return Err(Error::forbidden("the user is not one of this server"));
        }
        let no_such_user = || Error::forbidden("there is no such user");
        let account = self.store.account(target).await?.ok_or_else(no_such_user)?;
        if account.deactivated_ts.is_some() {
            return Err(no_such_user());
        }
        Ok(())
    }
}

/// Stripped state as it came, as far as it is stripped state.
pub(super) fn stripped(events: &[RawStrippedState]) -> Result<Vec<Box<RawValue>>> {
    let events = events.iter().map(|event| serde_json::value::to_raw_value(event).map_err(Error::Corrupt));
    checked_stripped(events.collect::<Result<_>>()?)
}

/// Keeps of each event only what stripped state has; what is none is left out.
fn checked_stripped(events: Vec<Box<RawValue>>) -> Result<Vec<Box<RawValue>>> {
    let mut stripped = Vec::with_capacity(events.len().min(STRIPPED_MAX));
    for event in events.into_iter().take(STRIPPED_MAX) {
        let Ok(mut object) = serde_json::from_str::<CanonicalJsonObject>(event.get()) else { continue };
        object.retain(|field, _| matches!(field.as_str(), "type" | "state_key" | "sender" | "content"));
        let is_text = |field: &str| object.get(field).is_some_and(|value| value.as_str().is_some());
        let has_content = matches!(object.get("content"), Some(CanonicalJsonValue::Object(_)));
        if is_text("type") && is_text("state_key") && is_text("sender") && has_content {
            stripped.push(raw(&object)?);
        }
    }
    Ok(stripped)
}
