//! Memberships that a client writes as state.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use myelin_store::{Membership, RoomName};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, UserId};

use crate::{
    Appended, Error, MembershipAction, Result, RoomWriter, Rooms, Template,
    membership::{membership_of, must_admit_guests},
    see_through::see_through,
};

/// Rooms that one user's change is written to at the same time.
const WRITERS: usize = 16;

impl Rooms {
    /// Sets an `m.room.member` event with a content of the client's own, under the conditions that hold for the
    /// endpoints of memberships.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the rules of the room, or its guest access, do not allow it; [`Error::BadJson`] when
    /// the content has no membership that the specification knows; [`Error::InvalidParam`] when the state key is no
    /// user id.
    pub async fn set_member_state(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        sender: &UserId,
        state_key: &str,
        mut content: CanonicalJsonObject,
        is_guest: bool,
    ) -> Result<OwnedEventId> {
        let target = UserId::parse(state_key)
            .map_err(|_| Error::InvalidParam("the state key of a membership must be a user id".into()))?;
        let membership = content
            .get("membership")
            .and_then(CanonicalJsonValue::as_str)
            .and_then(Membership::from_word)
            .ok_or_else(|| Error::BadJson("membership must be one that the specification knows".into()))?;
        if membership == Membership::Invite && target.server_name() != self.server_name {
            return Box::pin(self.invite_through(room, sender, &target, content)).await;
        }
        // Only we say who has authorised a join.
        content.remove("join_authorised_via_users_server");
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let template = Template::state(sender, "m.room.member", target.as_str(), content.clone());
            let built = self.draft_member_state(&mut writer, &target, membership, template, is_guest).await;
            if let Some(appended) = attempts.finish(writer, built).await? {
                return Ok(appended.event_id);
            }
        }
    }

    async fn draft_member_state(
        &self,
        writer: &mut RoomWriter,
        target: &UserId,
        membership: Membership,
        mut template: Template,
        is_guest: bool,
    ) -> Result<Appended> {
        let current = membership_of(writer, target).await?;
        if membership == Membership::Join && current != Some(Membership::Join) {
            if is_guest {
                must_admit_guests(writer).await?;
            }
            if current != Some(Membership::Invite) {
                self.authorise_restricted_join(writer, target, &mut template.content).await?;
            }
        }
        if membership == Membership::Invite && current == Some(Membership::Join) {
            return Err(Error::forbidden("the user is in the room already"));
        }
        let appended = writer.append(template).await?;
        if membership == Membership::Invite {
            self.must_want_invites(target).await?;
        }
        Ok(appended)
    }

    /// Tells the rooms that a user is in what the user's profile says now.
    ///
    /// One room that cannot be written to does not keep the others from it; the first error is answered.
    pub async fn update_profile(self: &Arc<Self>, user_id: &UserId) -> Result<()> {
        let Some(user_nid) = self.store.known_user_nid(user_id).await? else { return Ok(()) };
        let rooms = self.rooms_with(user_nid, &[Membership::Join]).await?;
        let mut updates = stream::iter(rooms)
            .map(|room| async move { self.update_member(&room, user_id).await })
            .buffer_unordered(WRITERS);
        let mut outcome = Ok(());
        while let Some(updated) = updates.next().await {
            outcome = outcome.and(updated);
        }
        outcome
    }

    /// Takes a user out of all rooms, and refuses all invitations.
    ///
    /// One room that cannot be written to does not keep the others from it; the first error is answered.
    pub async fn leave_all(self: &Arc<Self>, user_id: &UserId) -> Result<()> {
        let Some(user_nid) = self.store.known_user_nid(user_id).await? else { return Ok(()) };
        let rooms = self.rooms_with(user_nid, &[Membership::Join, Membership::Invite, Membership::Knock]).await?;
        let mut leaving = stream::iter(rooms)
            .map(|room| async move {
                self.change_membership(&room, user_id, user_id, MembershipAction::Leave, None, false).await
            })
            .buffer_unordered(WRITERS);
        let mut outcome = Ok(());
        while let Some(left) = leaving.next().await {
            outcome = outcome.and(left);
        }
        outcome
    }

    /// Sets whether guests may join a room, and takes them out if they may not: "If the m.room.guest_access event is
    /// changed to stop this from being the case, the server MUST set those users' m.room.member state to leave."
    ///
    /// What was begun is done to its end, also when nobody waits for it any more.
    pub async fn set_guest_access(self: &Arc<Self>, room: &Arc<RoomName>, template: Template) -> Result<OwnedEventId> {
        let access = template.content.get("guest_access").and_then(CanonicalJsonValue::as_str);
        let is_closed = access != Some("can_join");
        let (rooms, room) = (self.clone(), room.clone());
        let act = async move {
            let event_id = rooms.send(&room, template, None).await?;
            if is_closed {
                rooms.remove_guests(&room).await?;
            }
            Ok(event_id)
        };
        see_through(Box::pin(act)).await
    }

    async fn remove_guests(self: &Arc<Self>, room: &Arc<RoomName>) -> Result<()> {
        let mut outcome = Ok(());
        for guest in self.store.joined_guests(room.nid).await? {
            let left = self.change_membership(room, &guest, &guest, MembershipAction::Leave, None, true).await;
            outcome = outcome.and(left);
        }
        outcome
    }

    async fn rooms_with(&self, user_nid: i64, memberships: &[Membership]) -> Result<Vec<Arc<RoomName>>> {
        let places = self.store.memberships(user_nid).await?;
        let places = places.iter().filter(|member| memberships.contains(&member.membership));
        let room_nids: Vec<i64> = places.map(|member| member.room_nid).collect();
        Ok(self.store.rooms(&room_nids).await?)
    }

    async fn update_member(self: &Arc<Self>, room: &Arc<RoomName>, user_id: &UserId) -> Result<()> {
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let built = self.draft_profile(&mut writer, user_id).await;
            if attempts.finish(writer, built).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn draft_profile(&self, writer: &mut RoomWriter, user_id: &UserId) -> Result<()> {
        // The user may have left meanwhile.
        if membership_of(writer, user_id).await? != Some(Membership::Join) {
            return Ok(());
        }
        // Read by whoever holds the room, so that the last of several changes at a time is the one that stays.
        let content = self.member_content(user_id, "join", None).await?;
        writer.append(Template::state(user_id, "m.room.member", user_id.as_str(), content)).await?;
        Ok(())
    }
}
