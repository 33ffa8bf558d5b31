//! Joining, inviting, leaving, and the rest of memberships.

use std::sync::Arc;

use myelin_store::{Membership, RoomName};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedServerName, UserId,
    events::room::power_levels::UserPowerLevel,
};
use ruma_state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField};

use crate::{Error, Pdu, Result, RoomWriter, Rooms, Template};

/// Users named with some power who are asked for first, one by one.
const NAMED_MAX: usize = 64;
/// Members who are read at once.
const PAGE: usize = 100;

/// What a user does to a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipAction {
    /// Enter a room.
    Join,
    /// Ask to enter a room.
    Knock,
    /// Ask another user to enter.
    Invite,
    /// Leave a room, or decline an invitation.
    Leave,
    /// Make another user leave.
    Kick,
    /// Make another user leave and keep them out.
    Ban,
    /// Allow a banned user to come back.
    Unban,
}

impl MembershipAction {
    fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Knock => "knock",
            Self::Invite => "invite",
            Self::Leave | Self::Kick | Self::Unban => "leave",
            Self::Ban => "ban",
        }
    }
}

impl Rooms {
    /// Changes a membership. Doing what is done already succeeds and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the rules of the room, or its guest access, do not allow it.
    pub async fn change_membership(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        sender: &UserId,
        target: &UserId,
        action: MembershipAction,
        reason: Option<&str>,
        is_guest: bool,
    ) -> Result<()> {
        must_be_an_id(target)?;
        let content = self.member_content(target, action.word(), reason).await?;
        if action == MembershipAction::Invite && target.server_name() != self.server_name {
            return Box::pin(self.invite_through(room, sender, target, content)).await.map(drop);
        }
        if action == MembershipAction::Leave && !self.is_held_here(room).await? {
            return Box::pin(self.leave_through(room, target, reason)).await;
        }
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let template = Template::state(sender, "m.room.member", target.as_str(), content.clone());
            let built = self.draft_membership(&mut writer, target, action, template, is_guest).await;
            if attempts.finish(writer, built).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Lets a user into a room, or knock at it: here, if this server is in it, and else through a server that is, of
    /// those given, the one that has invited the user, and the one that the room's identifier names.
    ///
    /// # Errors
    ///
    /// Those of [`Self::change_membership`], and what other servers have answered.
    pub async fn enter(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        via: &[OwnedServerName],
        user_id: &UserId,
        action: MembershipAction,
        reason: Option<&str>,
        is_guest: bool,
    ) -> Result<()> {
        let room = self.store.room(room_id).await?;
        if let Some(room) = &room
            && self.is_held_here(room).await?
        {
            let entered = self.change_membership(room, user_id, user_id, action, reason, is_guest).await;
            let others = self.servers_in(room).await?;
            match entered {
                Err(Error::UnableToAuthoriseJoin | Error::UnableToGrantJoin) if others.len() > 1 => {
                    let content = self.member_content(user_id, action.word(), reason).await?;
                    return Box::pin(self.join_through(room_id, &others, user_id, &content)).await.map(drop);
                }
                outcome => return outcome,
            }
        }
        let mut via = via.to_vec();
        if let Some(room) = &room
            && let Some(place) = self.member(room, self.store.user_nid(user_id).await?).await?
        {
            let event = self.store.event(place.event_nid).await?;
            via.insert(0, event.sender().server_name().to_owned());
        }
        if self.remote().is_err() {
            return Err(Error::NotFound("there is no such room"));
        }
        if is_guest {
            return Err(Error::GuestsRefused);
        }
        let content = self.member_content(user_id, action.word(), reason).await?;
        match action {
            MembershipAction::Knock => Box::pin(self.knock_through(room_id, &via, user_id, &content)).await,
            _ => Box::pin(self.join_through(room_id, &via, user_id, &content)).await.map(drop),
        }
    }

    /// Whether we can write to a room: because this server is in it, or nobody else is any more.
    async fn is_held_here(&self, room: &RoomName) -> Result<bool> {
        let servers = self.servers_in(room).await?;
        if servers.contains(&self.server_name) {
            return Ok(true);
        }
        Ok(servers.is_empty() && self.state_root(room).await? != 0)
    }

    async fn draft_membership(
        &self,
        writer: &mut RoomWriter,
        target: &UserId,
        action: MembershipAction,
        mut template: Template,
        is_guest: bool,
    ) -> Result<()> {
        let current = membership_of(writer, target).await?;
        if is_done(action, current) {
            return Ok(());
        }
        must_make_sense(action, current)?;
        if is_guest && action == MembershipAction::Join {
            must_admit_guests(writer).await?;
        }
        if action == MembershipAction::Join && current != Some(Membership::Invite) {
            self.authorise_restricted_join(writer, target, &mut template.content).await?;
        }
        if matches!(action, MembershipAction::Leave | MembershipAction::Ban | MembershipAction::Kick) {
            self.keep_profile(writer, target, &mut template.content).await?;
        }
        writer.append(template).await?;
        if action == MembershipAction::Invite {
            self.must_want_invites(target).await?;
        }
        Ok(())
    }

    /// In a restricted room, a user who is in one of the rooms that it names may join: someone who could invite
    /// them authorises it ([specification]).
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms
    pub(crate) async fn authorise_restricted_join(
        &self,
        writer: &mut RoomWriter,
        target: &UserId,
        content: &mut CanonicalJsonObject,
    ) -> Result<()> {
        let Some(rules) = writer.state_event("m.room.join_rules", "").await? else { return Ok(()) };
        let rules: JoinRules = rules.content_as().unwrap_or_default();
        if !matches!(rules.join_rule.as_str(), "restricted" | "knock_restricted") {
            return Ok(());
        }
        let target_nid = self.store.user_nid(target).await?;
        match self.is_in_one_of(target_nid, &rules).await? {
            Some(true) => {}
            Some(false) => {
                return Err(Error::forbidden("you are in none of the rooms whose members may join this one"));
            }
            None => return Err(Error::UnableToAuthoriseJoin),
        }
        let needed = writer.level_for(RoomPowerLevelsIntField::Invite).await?;
        let inviter = self.member_of_level(writer, needed).await?.ok_or(Error::UnableToGrantJoin)?;
        content.insert("join_authorised_via_users_server".into(), CanonicalJsonValue::String(inviter));
        Ok(())
    }

    /// Whether a user is in one of the rooms that the rules name; `None` if they are in none that we know, and there are
    /// others.
    async fn is_in_one_of(&self, user_nid: i64, rules: &JoinRules) -> Result<Option<bool>> {
        let memberships = self.store.memberships(user_nid).await?;
        let mut knows_all = true;
        for allowed in rules.allow.iter().filter(|allowed| allowed.kind == "m.room_membership") {
            let Ok(room_id) = ruma::RoomId::parse(&allowed.room_id) else { continue };
            // The names of rooms are in memory.
            let Some(room) = self.store.room(&room_id).await? else {
                knows_all = false;
                continue;
            };
            let joined =
                memberships.iter().any(|member| member.room_nid == room.nid && member.membership == Membership::Join);
            if joined {
                return Ok(Some(true));
            }
            knows_all &= self.is_server_in(&room, &self.server_name).await?;
        }
        Ok(knows_all.then_some(false))
    }

    /// A member of this server with some power: first those whom the room names, then the others, if they have it.
    pub(crate) async fn member_of_level(
        &self,
        writer: &mut RoomWriter,
        needed: UserPowerLevel,
    ) -> Result<Option<String>> {
        let create = writer.state_event("m.room.create", "").await?;
        let create = create.ok_or(Error::NotFound("the room has no beginning"))?;
        let levels = writer.state_event("m.room.power_levels", "").await?.map(RoomPowerLevelsEvent::new);
        let rules = writer.rules().authorization.clone();
        let creators = RoomCreateEvent::new(create).creators(&rules).map_err(Error::Forbidden)?;
        for creator in &creators {
            if writer.level_of(creator).await? >= needed && self.is_our_member(writer, creator).await? {
                return Ok(Some(creator.to_string()));
            }
        }
        if let Some(levels) = &levels {
            let named = levels.users(&rules).map_err(Error::Forbidden)?.into_iter().flatten();
            let able = named.filter(|(_, level)| UserPowerLevel::Int(**level) >= needed);
            for (user_id, _) in able.take(NAMED_MAX) {
                if self.is_our_member(writer, user_id).await? {
                    return Ok(Some(user_id.to_string()));
                }
            }
        }
        let level = |user_id: &UserId| match &levels {
            Some(levels) => levels.user_power_level(user_id, &rules).map(UserPowerLevel::Int).map_err(Error::Forbidden),
            None => Ok(UserPowerLevel::Int(RoomPowerLevelsIntField::UsersDefault.default_value())),
        };
        let mut after = 0;
        loop {
            let page = self.store.joined_members(writer.room().nid, after, PAGE).await?;
            for (_, user_id) in &page {
                if level(user_id)? >= needed && self.is_our_member(writer, user_id).await? {
                    return Ok(Some(user_id.to_string()));
                }
            }
            after = match page.last() {
                Some((user_nid, _)) if page.len() == PAGE => *user_nid,
                _ => return Ok(None),
            };
        }
    }

    /// True for a user of this server who is in the room, drafts included.
    async fn is_our_member(&self, writer: &mut RoomWriter, user_id: &UserId) -> Result<bool> {
        Ok(user_id.server_name() == self.server_name && membership_of(writer, user_id).await? == Some(Membership::Join))
    }

    /// A member who goes keeps the name that the others knew, unless they have asked to be erased.
    async fn keep_profile(
        &self,
        writer: &mut RoomWriter,
        target: &UserId,
        content: &mut CanonicalJsonObject,
    ) -> Result<()> {
        let erased = self.erased.users(&self.store).await?;
        if !erased.is_empty()
            && self.store.known_user_nid(target).await?.is_some_and(|user_nid| erased.contains(&user_nid))
        {
            return Ok(());
        }
        let before = member_event(writer, target).await?.and_then(|pdu| pdu.content_as::<CanonicalJsonObject>());
        let mut before = before.unwrap_or_default();
        for field in ["displayname", "avatar_url"] {
            // Whatever a member once wrote there, only a text is a name.
            if let Some(CanonicalJsonValue::String(text)) = before.remove(field) {
                content.insert(field.into(), CanonicalJsonValue::String(text));
            }
        }
        Ok(())
    }
}

#[derive(Default, serde::Deserialize)]
struct JoinRules {
    join_rule: String,
    #[serde(default)]
    allow: Vec<Allow>,
}

#[derive(serde::Deserialize)]
struct Allow {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    room_id: String,
}

#[derive(serde::Deserialize)]
struct MemberContent {
    membership: String,
}

/// ruma lets longer ones pass, since such are in old rooms.
pub(crate) fn must_be_an_id(user_id: &UserId) -> Result<()> {
    const BYTES_MAX: usize = 255;
    if user_id.as_str().len() > BYTES_MAX {
        return Err(Error::InvalidParam(format!("the user id is over {BYTES_MAX} bytes long")));
    }
    Ok(())
}

async fn member_event(writer: &mut RoomWriter, user_id: &UserId) -> Result<Option<Arc<Pdu>>> {
    writer.state_event("m.room.member", user_id.as_str()).await
}

pub(crate) async fn membership_of(writer: &mut RoomWriter, user_id: &UserId) -> Result<Option<Membership>> {
    let content = member_event(writer, user_id).await?.and_then(|pdu| pdu.content_as::<MemberContent>());
    Ok(content.and_then(|content| Membership::from_word(&content.membership)))
}

fn is_done(action: MembershipAction, current: Option<Membership>) -> bool {
    matches!(
        (action, current),
        (MembershipAction::Join, Some(Membership::Join)) | (MembershipAction::Leave, Some(Membership::Leave))
    )
}

/// What the endpoints promise beyond the authorisation rules.
fn must_make_sense(action: MembershipAction, current: Option<Membership>) -> Result<()> {
    use Membership::{Ban, Invite, Join, Knock};
    match (action, current) {
        (MembershipAction::Kick, Some(Join | Invite | Knock)) | (MembershipAction::Unban, Some(Ban)) => Ok(()),
        (MembershipAction::Kick, _) => Err(Error::forbidden("the user is not in the room")),
        (MembershipAction::Unban, _) => Err(Error::forbidden("the user is not banned from the room")),
        (MembershipAction::Leave, None) => Err(Error::forbidden("you are not in the room")),
        (MembershipAction::Invite, Some(Join)) => Err(Error::forbidden("the user is in the room already")),
        _ => Ok(()),
    }
}

pub(crate) async fn must_admit_guests(writer: &mut RoomWriter) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct GuestAccess {
        guest_access: String,
    }
    let event = writer.state_event("m.room.guest_access", "").await?;
    let access = event.and_then(|pdu| pdu.content_as::<GuestAccess>());
    if access.is_some_and(|access| access.guest_access == "can_join") {
        return Ok(());
    }
    Err(Error::GuestsRefused)
}
