//! Memberships of our users in rooms that we are not in: an invitation, a knock, and their end.
//!
//! Such an event has a place in the stream, so that its user is told of it, and none in the room's graph.

use std::sync::Arc;

use myelin_store::{Event, EventParts, Membership, MembershipChange, NewRoom, RoomName, StateKey, flags};
use ruma::{OwnedRoomId, RoomVersionId, UserId};
use ruma_state_res::Event as _;
use serde_json::value::RawValue;

use crate::{Result, RoomWriter, Rooms, receive::Incoming};

/// Bytes of stripped state that are kept with one event.
const STRIPPED_BYTES_MAX: usize = 256 * 1024;

impl Rooms {
    /// A room that we have heard of, or a place for it.
    pub(crate) async fn room_or_new(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        version: &RoomVersionId,
    ) -> Result<(Arc<RoomName>, bool)> {
        if let Some(room) = self.store.room(room_id).await? {
            return Ok((room, false));
        }
        let nid = self.store.take_nids(1).await?.start;
        Ok((Arc::new(RoomName { nid, room_id: room_id.clone(), version: version.clone() }), true))
    }

    /// Keeps a membership event of one of our users in a room that we are not in.
    pub(super) async fn keep_out_of_band(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        version: &RoomVersionId,
        incoming: &Incoming,
        user_id: &UserId,
        membership: Membership,
        stripped: &[Box<RawValue>],
    ) -> Result<()> {
        loop {
            let (room, is_new) = self.room_or_new(room_id, version).await?;
            let mut attempts = self.attempts(&room);
            let mut writer = match is_new {
                true => RoomWriter::open_new(self, &room).await?,
                false => attempts.open_settled().await?,
            };
            let built = writer.add_out_of_band(incoming, user_id, membership, stripped).await;
            match attempts.finish(writer, built).await {
                Ok(Some(())) => return Ok(()),
                Ok(None) => {}
                // Another request has made the room meanwhile.
                Err(error) if is_new && self.store.room(room_id).await?.is_some() => {
                    tracing::debug!(room.id = %room_id, %error, "the room was made twice at a time");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl RoomWriter {
    async fn add_out_of_band(
        &mut self,
        incoming: &Incoming,
        user_id: &UserId,
        membership: Membership,
        stripped: &[Box<RawValue>],
    ) -> Result<()> {
        let store = self.rooms.store.clone();
        self.learn(&[&incoming.event_id]).await?;
        if self.graph.nodes.contains_key(&incoming.event_id) {
            return Ok(());
        }
        let nid = store.take_event_nids(1).await?.start;
        let key = StateKey::new("m.room.member", user_id.as_str());
        let parts = EventParts {
            nid,
            room_nid: self.room.nid,
            depth: incoming.pdu.depth,
            sender_nid: store.user_nid(incoming.pdu.sender()).await?,
            key_nid: Some(store.key_nids(&[key]).await?[0]),
            room_state: self.head.state_root,
            flags: flags::OUTLIER,
            ..EventParts::default()
        };
        let event = Event::new(parts, incoming.event_id.clone(), (*incoming.json).into())?;
        self.draft.events.push(event);
        let user_nid = store.user_nid(user_id).await?;
        self.draft.memberships.push(MembershipChange { user_nid, membership, event_nid: nid });
        if !stripped.is_empty() {
            let json = serde_json::to_string(stripped).map_err(crate::Error::Corrupt)?;
            if json.len() <= STRIPPED_BYTES_MAX {
                self.draft.stripped_state = Some((nid, json.into_boxed_str()));
            }
        }
        if self.base_version == 0 {
            self.draft.create = Some(NewRoom {
                room_id: self.room.room_id.clone(),
                version: self.room.version.clone(),
                is_public: false,
                alias: None,
            });
        }
        self.head.version = nid;
        Ok(())
    }
}
