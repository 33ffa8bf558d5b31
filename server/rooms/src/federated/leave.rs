//! Our users who decline, or take back a knock, in rooms that we are not in.

use std::sync::Arc;

use myelin_store::{Membership, RoomName};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, RoomId, UserId,
    api::federation::membership::{create_leave_event, prepare_leave_event},
};

use super::raw;
use crate::{Error, Result, Rooms, now_ms, receive::Incoming, writer::rules_of};

impl Rooms {
    /// Declines an invitation to a room of other servers, or takes back a knock there.
    ///
    /// The user is rid of it also when no server of the room can be reached.
    pub(crate) async fn leave_through(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        user_id: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let user_nid = self.store.user_nid(user_id).await?;
        let place = self.store.member(room.nid, user_nid).await?;
        let place = place.filter(|place| matches!(place.membership, Membership::Invite | Membership::Knock));
        let Some(place) = place else { return Err(Error::forbidden("you are not in the room")) };
        let invite = self.store.event(place.event_nid).await?;
        let servers = self.servers_to_ask(&room.room_id, &[invite.sender().server_name().to_owned()]);
        let mut left = None;
        for server in servers {
            match self.leave_by(&server, room, user_id, reason).await {
                Ok(incoming) => {
                    left = Some(incoming);
                    break;
                }
                Err(error) => {
                    tracing::info!(room.id = %room.room_id, %error, "{server} did not take the leave: {error}");
                }
            }
        }
        let incoming = match left {
            Some(incoming) => incoming,
            None => self.leave_alone(room, user_id, &invite.event_id, reason)?,
        };
        self.keep_out_of_band(&room.room_id, &room.version, &incoming, user_id, Membership::Leave, &[]).await
    }

    async fn leave_by(
        &self,
        server: &OwnedServerName,
        room: &RoomName,
        user_id: &UserId,
        reason: Option<&str>,
    ) -> Result<Incoming> {
        let request = prepare_leave_event::v1::Request::new(room.room_id.clone(), user_id.to_owned());
        let template = self.remote()?.make_leave(server, request).await?;
        if template.room_version.as_ref().is_some_and(|version| *version != room.version) {
            return Err(Error::BadJson("the server says that the room has another version".into()));
        }
        let mut content = CanonicalJsonObject::new();
        content.insert("membership".into(), CanonicalJsonValue::String("leave".into()));
        if let Some(reason) = reason {
            content.insert("reason".into(), CanonicalJsonValue::String(reason.to_owned()));
        }
        let incoming = self.completed(&template.event, &room.room_id, &room.version, user_id, content)?;
        let pdu = super::enter::raw_json(&incoming.json)?;
        let request = create_leave_event::v2::Request::new(room.room_id.clone(), incoming.event_id.clone(), pdu);
        self.remote()?.send_leave(server, request).await?;
        Ok(incoming)
    }

    /// A leave that no other server knows of.
    fn leave_alone(
        &self,
        room: &RoomName,
        user_id: &UserId,
        invite_id: &ruma::EventId,
        reason: Option<&str>,
    ) -> Result<Incoming> {
        let text = |value: &str| CanonicalJsonValue::String(value.to_owned());
        let mut content = CanonicalJsonObject::new();
        content.insert("membership".into(), text("leave"));
        if let Some(reason) = reason {
            content.insert("reason".into(), text(reason));
        }
        let rules = rules_of(&room.version)?;
        let reference = match rules.events_reference_format {
            ruma::room_version_rules::EventsReferenceFormatVersion::V1 => CanonicalJsonValue::Array(vec![
                text(invite_id.as_str()),
                CanonicalJsonValue::Object(Default::default()),
            ]),
            _ => text(invite_id.as_str()),
        };
        let template = CanonicalJsonObject::from([
            ("depth".to_owned(), CanonicalJsonValue::Integer(ruma::int!(1))),
            ("prev_events".to_owned(), CanonicalJsonValue::Array(vec![reference.clone()])),
            ("auth_events".to_owned(), CanonicalJsonValue::Array(vec![reference])),
        ]);
        self.completed(&raw(&template)?, &room.room_id, &room.version, user_id, content)
    }

    /// The servers that may know a room: those given, and the one in its identifier; not this one.
    pub(super) fn servers_to_ask(&self, room_id: &RoomId, via: &[OwnedServerName]) -> Vec<OwnedServerName> {
        let mut servers: Vec<OwnedServerName> = Vec::new();
        let of_room = room_id.server_name().map(ToOwned::to_owned);
        for server in via.iter().cloned().chain(of_room) {
            if server != self.server_name && !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers.truncate(super::enter::SERVERS_MAX);
        servers
    }

    /// The time for an event that is signed now.
    pub(super) fn timestamp(&self) -> CanonicalJsonValue {
        let now = i64::try_from(now_ms()).ok().and_then(|now| now.try_into().ok());
        CanonicalJsonValue::Integer(now.unwrap_or_default())
    }
}
