//! Users of other servers who come into our rooms, and leave them.

use std::sync::Arc;

use myelin_store::{Event, Membership, RoomName};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::value::RawValue;

use super::{JoinedRoom, MembershipTemplate, membership_word, must_be_called, raw, text};
use crate::{
    Error, Result, Rooms, Template,
    membership::membership_of,
    receive::{Incoming, Place, Verdict, parse},
    resolve::auth_chain,
    writer::rules_of,
};

impl Rooms {
    /// `make_join`: the join that a user of another server may sign.
    ///
    /// # Errors
    ///
    /// [`Error::IncompatibleRoomVersion`], [`Error::Forbidden`], [`Error::UnableToAuthoriseJoin`],
    /// [`Error::UnableToGrantJoin`], [`Error::NotFound`] when we are not in the room.
    pub async fn make_join_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<MembershipTemplate> {
        self.make_for(origin, room_id, user_id, Membership::Join, Some(versions)).await
    }

    /// `make_leave`: the leave that a user of another server may sign.
    pub async fn make_leave_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<MembershipTemplate> {
        self.make_for(origin, room_id, user_id, Membership::Leave, None).await
    }

    /// `make_knock`: the knock that a user of another server may sign.
    pub async fn make_knock_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
        versions: &[RoomVersionId],
    ) -> Result<MembershipTemplate> {
        self.make_for(origin, room_id, user_id, Membership::Knock, Some(versions)).await
    }

    async fn make_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        user_id: &UserId,
        membership: Membership,
        versions: Option<&[RoomVersionId]>,
    ) -> Result<MembershipTemplate> {
        let room = self.shared_room(origin, room_id).await?;
        if user_id.server_name() != origin {
            return Err(Error::forbidden("the user is not one of the asking server"));
        }
        if versions.is_some_and(|versions| !versions.contains(&room.version)) {
            return Err(Error::IncompatibleRoomVersion(room.version.clone()));
        }
        let mut content = CanonicalJsonObject::new();
        content.insert("membership".into(), CanonicalJsonValue::String(membership.word().into()));
        let mut attempts = self.attempts(&room);
        loop {
            let mut writer = attempts.open().await?;
            let built = async {
                let mut template = Template::state(user_id, "m.room.member", user_id.as_str(), content.clone());
                let current = membership_of(&mut writer, user_id).await?;
                if membership == Membership::Join && !matches!(current, Some(Membership::Invite | Membership::Join)) {
                    self.authorise_restricted_join(&mut writer, user_id, &mut template.content).await?;
                }
                writer.propose(&template).await
            };
            let built = built.await;
            if let Some(object) = attempts.finish(writer, built).await? {
                return Ok(MembershipTemplate { room_version: room.version.clone(), event: raw(&object)? });
            }
        }
    }

    /// A room that this server is in, and the asking server may have to do with.
    async fn shared_room(&self, origin: &ServerName, room_id: &RoomId) -> Result<Arc<RoomName>> {
        let room = self.room(room_id).await?;
        if !self.is_server_in(&room, &self.server_name).await? {
            return Err(Error::NotFound("this server is not in the room"));
        }
        self.check_acl_of(origin, &room).await?;
        Ok(room)
    }

    /// `send_join`: lets a user of another server in; answers what that server needs to take part.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the rules of the room do not allow it, [`Error::BadJson`], [`Error::InvalidParam`] when
    /// it is no join of a user of that server, [`Error::Refused`] when it is not signed as it must be.
    pub async fn send_join_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        pdu: Box<RawValue>,
        omit_members: bool,
    ) -> Result<JoinedRoom> {
        let room = self.shared_room(origin, room_id).await?;
        let incoming = self.membership_from(origin, &room, event_id, &pdu, Membership::Join).await?;
        let event = self.admit(&room, origin, incoming).await?;
        let mut state = self.store.all_state_events(event.state_before).await?;
        let servers_in_room = match omit_members {
            true => Some(self.servers_at(&room, event.state_before).await?),
            false => None,
        };
        if omit_members {
            let heroes = heroes(&state);
            state.retain(|event| event.event_type() != "m.room.member" || heroes.contains(&event.nid));
        }
        let mut nids: Vec<i64> = state.iter().map(|event| event.nid).collect();
        nids.push(event.nid);
        let mut chain = auth_chain(self, &nids).await?;
        if omit_members {
            // "[…] redundant events are omitted from auth_chain": what is in the state already.
            nids.sort_unstable();
            chain.retain(|nid| nids.binary_search(nid).is_err());
        }
        let auth_chain = self.store.events(&chain).await?;
        Ok(JoinedRoom { event, state, auth_chain, members_omitted: omit_members, servers_in_room })
    }

    /// `send_leave`: a user of another server declines, or leaves.
    pub async fn send_leave_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        pdu: Box<RawValue>,
    ) -> Result<()> {
        let room = self.shared_room(origin, room_id).await?;
        let incoming = self.membership_from(origin, &room, event_id, &pdu, Membership::Leave).await?;
        self.admit(&room, origin, incoming).await?;
        Ok(())
    }

    /// `send_knock`: a user of another server knocks; answers what they may know of the room.
    pub async fn send_knock_for(
        self: &Arc<Self>,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        pdu: Box<RawValue>,
    ) -> Result<Vec<Box<RawValue>>> {
        let room = self.shared_room(origin, room_id).await?;
        let incoming = self.membership_from(origin, &room, event_id, &pdu, Membership::Knock).await?;
        let event = self.admit(&room, origin, incoming).await?;
        self.told_state_at(event.state_before).await
    }

    /// The state that one who is not in a room may know of it, as other servers get it: "stripped state events are
    /// required to be sent over federation as full PDUs".
    pub(super) async fn told_state_at(&self, root: i64) -> Result<Vec<Box<RawValue>>> {
        let keys: Vec<myelin_store::StateKey> =
            STRIPPED.iter().map(|event_type| myelin_store::StateKey::new(event_type, "")).collect();
        let key_nids: Vec<i64> = self.store.known_key_nids(&keys).await?.into_iter().flatten().collect();
        let events = self.store.state_events(root, &key_nids).await?;
        let raw = |event: Arc<Event>| RawValue::from_string(event.json().to_owned()).map_err(Error::Corrupt);
        events.into_iter().flatten().map(raw).collect()
    }

    /// Reads a membership that another server has completed and signed, and signs it too where that is our part.
    async fn membership_from(
        self: &Arc<Self>,
        origin: &ServerName,
        room: &Arc<RoomName>,
        event_id: &EventId,
        pdu: &RawValue,
        membership: Membership,
    ) -> Result<Incoming> {
        let rules = rules_of(&room.version)?;
        let received = parse(pdu, &room.room_id, &rules)?;
        must_be_called(&received.event_id, event_id)?;
        let object = &received.object;
        let sender =
            UserId::parse(text(object, "sender")).map_err(|_| Error::BadJson("the sender is no user id".into()))?;
        if text(object, "type") != "m.room.member" || membership_word(object) != membership.word() {
            return Err(Error::BadJson(format!("the event is no {} of a user", membership.word())));
        }
        if text(object, "state_key") != sender.as_str() {
            return Err(Error::BadJson("the event changes the membership of another user".into()));
        }
        if sender.server_name() != origin {
            return Err(Error::forbidden("the user is not one of the asking server"));
        }
        if membership != Membership::Join || !received.signers.contains(&self.server_name) {
            return self.verified(pdu, room).await;
        }
        // "If the event is for a restricted room, the resident server must sign it", once it has seen that the user may.
        let mut allowed = CanonicalJsonObject::new();
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let checked = match membership_of(&mut writer, &sender).await {
                Ok(Some(Membership::Invite | Membership::Join)) => Ok(()),
                Ok(_) => self.authorise_restricted_join(&mut writer, &sender, &mut allowed).await,
                Err(error) => Err(error),
            };
            if attempts.finish(writer, checked).await?.is_some() {
                break;
            }
        }
        let mut signed = received.object.clone();
        self.sign(&mut signed, &room.version)?;
        self.verified(&raw(&signed)?, room).await
    }

    /// Puts a membership into the room, to be sent to its other servers too.
    async fn admit(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        origin: &ServerName,
        incoming: Incoming,
    ) -> Result<Arc<Event>> {
        let event_id = incoming.event_id.clone();
        let receiver = self.receivers.of(room.nid);
        let _receiving = receiver.lock().await;
        let verdicts = Box::pin(self.put_in_judged(room, origin, vec![incoming], Place::TimelineAndOn)).await?;
        match verdicts.into_iter().find(|(found, _)| *found == event_id) {
            Some((_, Verdict::Accepted | Verdict::Known)) => self.received(&event_id).await,
            Some((_, Verdict::Rejected(reason) | Verdict::SoftFailed(reason))) => Err(Error::Forbidden(reason)),
            None => Err(Error::Gap),
        }
    }

    async fn received(&self, event_id: &OwnedEventId) -> Result<Arc<Event>> {
        let event = self.store.event_by_id(event_id).await?;
        let event = event.filter(|event| event.is_shown() && !event.is_outlier());
        event.ok_or_else(|| Error::forbidden("the event was refused before"))
    }
}

/// The state that is told to those who are not in a room ([specification]).
///
/// [specification]: https://spec.matrix.org/v1.19/client-server-api/#stripped-state
const STRIPPED: [&str; 8] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.history_visibility",
];

/// The members whose names stand for the room's, where it has none.
fn heroes(state: &[Arc<Event>]) -> Vec<i64> {
    const HEROES: usize = 5;
    let is_named = |event: &Arc<Event>| matches!(event.event_type(), "m.room.name" | "m.room.canonical_alias");
    if state.iter().any(is_named) {
        return Vec::new();
    }
    let mut members: Vec<&Arc<Event>> = state
        .iter()
        .filter(|event| event.event_type() == "m.room.member")
        .filter(|event| matches!(crate::visibility::membership_in(event), Some(Membership::Join | Membership::Invite)))
        .collect();
    members.sort_unstable_by_key(|event| event.nid);
    members.into_iter().take(HEROES).map(|event| event.nid).collect()
}
