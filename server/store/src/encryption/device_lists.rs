//! Where in the stream users' devices and cross-signing keys changed, and who has to know of it.

use std::sync::Arc;

use super::StreamWrite;
use crate::{
    Change, Result, Store,
    sql::{Ids, Sql, Texts, execute, listed, optional, rows},
};

/// A user's devices or cross-signing keys have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceListChange {
    /// The place in the stream.
    pub pos: i64,
    /// Whose they are.
    pub user_nid: i64,
    /// The rooms that the user is joined to: those who are there have to know.
    pub rooms: Arc<[i64]>,
    /// The only user who has to know, where it is not everyone: who has signed another user's key.
    pub only_for: Option<i64>,
}

/// Who has to know of a change of a user's devices.
#[derive(Clone, Debug)]
pub(crate) struct Audience {
    /// The rooms that the user was joined to.
    rooms: Vec<i64>,
    /// The other servers in them.
    servers: Vec<String>,
    /// Our own server, if the user is ours: others have to be told.
    own: Option<Box<str>>,
}

/// The server of a user's identifier.
const SERVERS_IN_ROOMS: Sql = Sql {
    sqlite: "SELECT DISTINCT substr(u.user_id, instr(u.user_id, ':') + 1) AS server
             FROM memberships AS m JOIN users AS u USING (user_nid)
             WHERE m.room_nid IN (SELECT value FROM json_each($1)) AND m.membership = 1
               AND substr(u.user_id, instr(u.user_id, ':') + 1) <> $2",
    postgres: "SELECT DISTINCT substr(u.user_id, strpos(u.user_id, ':') + 1) AS server
               FROM memberships AS m JOIN users AS u USING (user_nid)
               WHERE m.room_nid = ANY($1) AND m.membership = 1
                 AND substr(u.user_id, strpos(u.user_id, ':') + 1) <> $2",
};

const JOINED_ROOMS: &str = "SELECT room_nid FROM memberships WHERE user_nid = $1 AND membership = 1 ORDER BY room_nid";

/// A user's change, for other servers. One that was not sent yet gives way.
const ADD_EDUS: Sql = Sql {
    sqlite: "INSERT INTO device_list_edus (destination, user_nid, device_id, pos, prev_pos)
             SELECT value, $2, $3, $4, $5 FROM json_each($1) WHERE TRUE
             ON CONFLICT (destination, user_nid, device_id) DO UPDATE SET pos = excluded.pos, prev_pos = excluded.prev_pos",
    postgres: "INSERT INTO device_list_edus (destination, user_nid, device_id, pos, prev_pos)
               SELECT destination, $2, $3, $4, $5 FROM unnest($1::text[]) AS destination
               ON CONFLICT (destination, user_nid, device_id)
               DO UPDATE SET pos = excluded.pos, prev_pos = excluded.prev_pos",
};

impl StreamWrite {
    /// Announces that a device has changed or is gone; all cross-signing keys if it is empty.
    pub(crate) async fn announce_device(&mut self, user_nid: i64, device_id: &str, audience: &Audience) -> Result<i64> {
        let pos = self.position().await?;
        let before: Option<(Option<i64>,)> =
            optional!(self.transaction, "SELECT device_pos FROM device_lists WHERE user_nid = $1", user_nid)?;
        let before = before.and_then(|(device_pos,)| device_pos);
        let device_pos = if device_id.is_empty() { before } else { Some(pos) };
        execute!(
            self.transaction,
            "INSERT INTO device_lists (user_nid, pos, device_pos) VALUES ($1, $2, $3)
             ON CONFLICT (user_nid) DO UPDATE SET pos = excluded.pos, device_pos = excluded.device_pos",
            user_nid,
            pos,
            device_pos
        )?;
        // The user may have come into a room since the audience was looked up.
        let rooms: Vec<(i64,)> = rows!(self.transaction, JOINED_ROOMS, user_nid)?;
        let rooms: Vec<i64> = rooms.into_iter().map(|(room_nid,)| room_nid).collect();
        let late: Vec<(String,)> = match &audience.own {
            Some(own) if rooms != audience.rooms => rows!(self.transaction, SERVERS_IN_ROOMS, Ids(&rooms), &**own)?,
            _ => Vec::new(),
        };
        let mut servers: Vec<&str> = audience.servers.iter().map(String::as_str).collect();
        servers.extend(late.iter().map(|(server,)| server.as_str()));
        servers.sort_unstable();
        servers.dedup();
        if !servers.is_empty() {
            execute!(self.transaction, ADD_EDUS, Texts(&servers), user_nid, device_id, pos, before)?;
        }
        let rooms = rooms.into();
        self.tell(Change::DeviceList(Arc::new(DeviceListChange { pos, user_nid, rooms, only_for: None })));
        Ok(pos)
    }
}

impl Store {
    /// Who has to know when one of our users' devices changes. Asked for before the stream is held.
    pub(crate) async fn own_audience(&self, user_nid: i64) -> Result<Audience> {
        let rooms = self.joined_rooms_of(user_nid).await?;
        let own = Some(self.server_name.clone());
        if rooms.is_empty() {
            return Ok(Audience { rooms, servers: Vec::new(), own });
        }
        let mut reader = self.database.reader().await?;
        let servers: Vec<(String,)> = rows!(reader, SERVERS_IN_ROOMS, Ids(&rooms), &*self.server_name)?;
        Ok(Audience { rooms, servers: servers.into_iter().map(|(server,)| server).collect(), own })
    }

    /// Who here has to know when the devices of another server's user change.
    pub(crate) fn audience_here() -> Audience {
        Audience { rooms: Vec::new(), servers: Vec::new(), own: None }
    }

    /// The rooms that a user is joined to.
    pub async fn joined_rooms_of(&self, user_nid: i64) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let rooms: Vec<(i64,)> = rows!(reader, JOINED_ROOMS, user_nid)?;
        Ok(rooms.into_iter().map(|(room_nid,)| room_nid).collect())
    }

    /// Where the devices of one of our users changed last; 0 if they never did.
    pub async fn device_stream_id(&self, user_nid: i64) -> Result<i64> {
        let mut reader = self.database.reader().await?;
        let pos: Option<(Option<i64>,)> =
            optional!(reader, "SELECT device_pos FROM device_lists WHERE user_nid = $1", user_nid)?;
        Ok(pos.and_then(|(pos,)| pos).unwrap_or(0))
    }

    /// The users whose keys changed in `(after, to]` as far as a user has to know: those in the same rooms, the user, and
    /// those whose keys the user has signed.
    pub async fn device_lists_changed(&self, user_nid: i64, after: i64, to: i64) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(
            reader,
            "SELECT d.user_nid FROM device_lists AS d
             WHERE d.pos > $2 AND d.pos <= $3 AND (d.user_nid = $1 OR EXISTS (
                 SELECT 1 FROM memberships AS theirs JOIN memberships AS own ON own.room_nid = theirs.room_nid
                 WHERE theirs.user_nid = d.user_nid AND theirs.membership = 1
                   AND own.user_nid = $1 AND own.membership = 1))
             UNION
             SELECT target_nid FROM key_signatures
             WHERE signer_nid = $1 AND target_nid <> $1 AND pos > $2 AND pos <= $3",
            user_nid,
            after,
            to
        )?;
        Ok(found.into_iter().map(|(user_nid,)| user_nid).collect())
    }

    /// Those whose membership in one of some rooms was set after a position: room, user, whether joined.
    pub async fn members_moved(&self, room_nids: &[i64], after: i64) -> Result<Vec<(i64, i64, bool)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            listed!(
                "SELECT room_nid, user_nid, membership = 1 FROM memberships WHERE room_nid ",
                "$1",
                " AND pos > $2"
            ),
            Ids(room_nids),
            after
        )?)
    }

    /// Those of some rooms where a state event of a key came after a position.
    pub async fn rooms_with_state_after(&self, room_nids: &[i64], key_nid: i64, after: i64) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> = rows!(
            reader,
            listed!("SELECT DISTINCT room_nid FROM events WHERE room_nid ", "$1", " AND key_nid = $2 AND pos > $3"),
            Ids(room_nids),
            key_nid,
            after
        )?;
        Ok(found.into_iter().map(|(room_nid,)| room_nid).collect())
    }

    /// Those who are joined to some rooms: room, user.
    pub async fn joined_to(&self, room_nids: &[i64]) -> Result<Vec<(i64, i64)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            listed!("SELECT room_nid, user_nid FROM memberships WHERE room_nid ", "$1", " AND membership = 1"),
            Ids(room_nids)
        )?)
    }

    /// Which of some users are joined to which of some rooms: room, user.
    pub async fn joined_among(&self, user_nids: &[i64], room_nids: &[i64]) -> Result<Vec<(i64, i64)>> {
        let sql = Sql {
            sqlite: "SELECT room_nid, user_nid FROM memberships
                     WHERE user_nid IN (SELECT value FROM json_each($1))
                       AND room_nid IN (SELECT value FROM json_each($2)) AND membership = 1",
            postgres: "SELECT room_nid, user_nid FROM memberships
                       WHERE user_nid = ANY($1) AND room_nid = ANY($2) AND membership = 1",
        };
        let mut reader = self.database.reader().await?;
        Ok(rows!(reader, sql, Ids(user_nids), Ids(room_nids))?)
    }
}

/// The changes of device lists in `(from, to]`, for those who follow the stream.
pub(crate) async fn read_changes(reader: &mut crate::database::Reader, from: i64, to: i64) -> Result<Vec<Change>> {
    let found: Vec<(i64, i64, Option<i64>)> = rows!(
        reader,
        "SELECT d.pos, d.user_nid, m.room_nid FROM device_lists AS d
         LEFT JOIN memberships AS m ON m.user_nid = d.user_nid AND m.membership = 1
         WHERE d.pos > $1 AND d.pos <= $2 ORDER BY d.pos",
        from,
        to
    )?;
    let mut changes = Vec::new();
    for list in found.chunk_by(|one, next| one.0 == next.0) {
        let (pos, user_nid, _) = list[0];
        let rooms = list.iter().filter_map(|row| row.2).collect();
        changes.push(Change::DeviceList(Arc::new(DeviceListChange { pos, user_nid, rooms, only_for: None })));
    }
    let signed: Vec<(i64, i64, i64)> = rows!(
        reader,
        "SELECT DISTINCT pos, target_nid, signer_nid FROM key_signatures
         WHERE pos > $1 AND pos <= $2 AND signer_nid <> target_nid",
        from,
        to
    )?;
    changes.extend(signed.into_iter().map(|(pos, user_nid, signer)| {
        let change = DeviceListChange { pos, user_nid, rooms: Arc::default(), only_for: Some(signer) };
        Change::DeviceList(Arc::new(change))
    }));
    Ok(changes)
}
