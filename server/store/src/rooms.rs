//! Rooms: their heads, members, aliases and the directory.

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

use crate::{
    Error, Head, Membership, Result, Store,
    sql::{Ids, execute, listed, optional, row, rows},
};

/// A user's place in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The room.
    pub room_nid: i64,
    /// The user.
    pub user_nid: i64,
    /// The membership.
    pub membership: Membership,
    /// The membership's event.
    pub event_nid: i64,
    /// The position of that event.
    pub pos: i64,
    /// Whether the user has forgotten the room.
    pub forgotten: bool,
}

pub(crate) type MemberRow = (i64, i64, i64, i64, i64, bool);

impl TryFrom<MemberRow> for Member {
    type Error = Error;

    fn try_from((room_nid, user_nid, membership, event_nid, pos, forgotten): MemberRow) -> Result<Self> {
        let membership = Membership::from_number(membership)?;
        Ok(Self { room_nid, user_nid, membership, event_nid, pos, forgotten })
    }
}

/// A room in the directory.
#[derive(Clone, Debug)]
pub struct PublicRoom {
    /// The internal number.
    pub room_nid: i64,
    /// The identifier.
    pub room_id: OwnedRoomId,
    /// Members who have joined.
    pub joined: i64,
    /// The snapshot of the current state.
    pub state_root: i64,
}

impl Store {
    /// The head of a room.
    pub async fn head(&self, room_nid: i64) -> Result<Head> {
        self.heads(&[room_nid]).await?.pop().map(|(_, head)| head).ok_or(Error::Missing { what: "room" })
    }

    /// The heads of some rooms, with their numbers, in no order.
    pub async fn heads(&self, room_nids: &[i64]) -> Result<Vec<(i64, Head)>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64, i64, i64, String, i64)> = rows!(
            reader,
            listed!(
                "SELECT room_nid, version, last_pos, depth, extremities, state_root FROM rooms WHERE room_nid ",
                "$1",
                ""
            ),
            Ids(room_nids)
        )?;
        found
            .into_iter()
            .map(|(room_nid, version, last_pos, depth, extremities, state_root)| {
                let extremities =
                    serde_json::from_str(&extremities).map_err(|_| Error::Corrupt { what: "list of extremities" })?;
                Ok((room_nid, Head { version, last_pos, depth, extremities, state_root }))
            })
            .collect()
    }

    /// The rooms that a user has or had a place in.
    pub async fn memberships(&self, user_nid: i64) -> Result<Vec<Member>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<MemberRow> = rows!(
            reader,
            "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten FROM memberships WHERE user_nid = $1",
            user_nid
        )?;
        found.into_iter().map(Member::try_from).collect()
    }

    /// The users who have or had a place in a room.
    pub async fn members(&self, room_nid: i64) -> Result<Vec<Member>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<MemberRow> = rows!(
            reader,
            "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten FROM memberships WHERE room_nid = $1",
            room_nid
        )?;
        found.into_iter().map(Member::try_from).collect()
    }

    /// The users who have or had a place in some rooms: one query.
    pub async fn members_of(&self, room_nids: &[i64]) -> Result<Vec<Member>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<MemberRow> = rows!(
            reader,
            listed!(
                "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten FROM memberships WHERE room_nid ",
                "$1",
                ""
            ),
            Ids(room_nids)
        )?;
        found.into_iter().map(Member::try_from).collect()
    }

    /// A user's place in a room.
    pub async fn member(&self, room_nid: i64, user_nid: i64) -> Result<Option<Member>> {
        let mut reader = self.database.reader().await?;
        let found: Option<MemberRow> = optional!(
            reader,
            "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten FROM memberships
             WHERE room_nid = $1 AND user_nid = $2",
            room_nid,
            user_nid
        )?;
        found.map(Member::try_from).transpose()
    }

    /// The guests among those who have joined a room.
    pub async fn joined_guests(&self, room_nid: i64) -> Result<Vec<OwnedUserId>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String,)> = rows!(
            reader,
            "SELECT u.user_id FROM memberships AS m JOIN accounts AS a USING (user_nid) JOIN users AS u USING (user_nid)
             WHERE m.room_nid = $1 AND m.membership = 1 AND a.is_guest",
            room_nid
        )?;
        found
            .into_iter()
            .map(|(user_id,)| UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" }))
            .collect()
    }

    /// Those who have joined a room, with their numbers, in the order of these: at most `limit` after a number.
    pub async fn joined_members(
        &self,
        room_nid: i64,
        after_user_nid: i64,
        limit: usize,
    ) -> Result<Vec<(i64, OwnedUserId)>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String)> = rows!(
            reader,
            "SELECT m.user_nid, u.user_id FROM memberships AS m JOIN users AS u ON u.user_nid = m.user_nid
             WHERE m.room_nid = $1 AND m.membership = 1 AND m.user_nid > $2 ORDER BY m.user_nid LIMIT $3",
            room_nid,
            after_user_nid,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        found
            .into_iter()
            .map(|(user_nid, user_id)| {
                let user_id = UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" })?;
                Ok((user_nid, user_id))
            })
            .collect()
    }

    /// The users of ended accounts who have asked that what they wrote be erased.
    pub async fn erased_users(&self) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(reader, "SELECT user_nid FROM accounts WHERE erased")?;
        Ok(found.into_iter().map(|(user_nid,)| user_nid).collect())
    }

    /// What of a user's profile goes into memberships: `displayname` and `avatar_url`, where set.
    pub async fn member_profile(&self, user_id: &UserId) -> Result<Vec<(&'static str, String)>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, String)> = rows!(
            reader,
            "SELECT p.field, p.value FROM profile_fields AS p JOIN users AS u USING (user_nid)
             WHERE u.user_id = $1 AND p.field IN ('avatar_url', 'displayname')",
            user_id.as_str()
        )?;
        found
            .into_iter()
            .map(|(field, value)| {
                let value = serde_json::from_str(&value).map_err(|_| Error::Corrupt { what: "profile field" })?;
                Ok((if field == "displayname" { "displayname" } else { "avatar_url" }, value))
            })
            .collect()
    }

    /// Marks a room as forgotten by a user who has left it.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] when the user has no place in the room that could be forgotten.
    pub async fn forget_room(&self, room_nid: i64, user_nid: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(
            transaction,
            "UPDATE memberships SET forgotten = TRUE WHERE room_nid = $1 AND user_nid = $2 AND membership IN (4, 5)",
            room_nid,
            user_nid
        )?;
        if hit != 1 {
            return Err(Error::Missing { what: "room to forget" });
        }
        transaction.commit().await
    }

    /// The room that an alias points to, and the alias's creator.
    pub async fn alias(&self, alias: &str) -> Result<Option<(OwnedRoomId, i64)>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String, i64)> = optional!(
            reader,
            "SELECT r.room_id, a.creator_nid FROM aliases AS a JOIN rooms AS r USING (room_nid) WHERE a.alias = $1",
            alias
        )?;
        found
            .map(|(room_id, creator)| {
                let room_id = RoomId::parse(room_id).map_err(|_| Error::Corrupt { what: "room id" })?;
                Ok((room_id, creator))
            })
            .transpose()
    }

    /// Makes an alias; false if it exists already.
    pub async fn create_alias(&self, alias: &str, room_nid: i64, creator_nid: i64, now_ms: i64) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(
            transaction,
            "INSERT INTO aliases (alias, room_nid, creator_nid, created_ts) VALUES ($1, $2, $3, $4)
             ON CONFLICT (alias) DO NOTHING",
            alias,
            room_nid,
            creator_nid,
            now_ms
        )?;
        transaction.commit().await?;
        Ok(hit == 1)
    }

    /// Removes an alias; false if there was none.
    pub async fn delete_alias(&self, alias: &str) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(transaction, "DELETE FROM aliases WHERE alias = $1", alias)?;
        transaction.commit().await?;
        Ok(hit == 1)
    }

    /// The aliases of a room, in alphabetical order.
    pub async fn aliases(&self, room_nid: i64) -> Result<Vec<String>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String,)> =
            rows!(reader, "SELECT alias FROM aliases WHERE room_nid = $1 ORDER BY alias", room_nid)?;
        Ok(found.into_iter().map(|(alias,)| alias).collect())
    }

    /// Points all aliases of a room to another one.
    pub async fn move_aliases(&self, from_room_nid: i64, to_room_nid: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "UPDATE aliases SET room_nid = $2 WHERE room_nid = $1", from_room_nid, to_room_nid)?;
        transaction.commit().await
    }

    /// Whether a room is listed in the directory.
    pub async fn is_public(&self, room_nid: i64) -> Result<bool> {
        let mut reader = self.database.reader().await?;
        let (public,): (bool,) = row!(reader, "SELECT is_public FROM rooms WHERE room_nid = $1", room_nid)?;
        Ok(public)
    }

    /// Lists a room in the directory, or takes it out.
    pub async fn set_public(&self, room_nid: i64, public: bool) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(transaction, "UPDATE rooms SET is_public = $2 WHERE room_nid = $1", room_nid, public)?;
        if hit != 1 {
            return Err(Error::Missing { what: "room" });
        }
        transaction.commit().await
    }

    /// All rooms of the directory, the fullest first.
    pub async fn public_rooms(&self) -> Result<Vec<PublicRoom>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String, i64, i64)> = rows!(
            reader,
            "SELECT r.room_nid, r.room_id, COUNT(m.user_nid) AS joined, r.state_root FROM rooms AS r
             LEFT JOIN memberships AS m ON m.room_nid = r.room_nid AND m.membership = 1
             WHERE r.is_public GROUP BY r.room_nid, r.room_id, r.state_root ORDER BY joined DESC, r.room_nid"
        )?;
        found
            .into_iter()
            .map(|(room_nid, room_id, joined, state_root)| {
                let room_id = RoomId::parse(room_id).map_err(|_| Error::Corrupt { what: "room id" })?;
                Ok(PublicRoom { room_nid, room_id, joined, state_root })
            })
            .collect()
    }

    /// The last position of the stream in the database, which may be ahead of [`Store::position`].
    pub async fn committed_position(&self) -> Result<i64> {
        Self::stored_position(&self.database).await
    }
}
