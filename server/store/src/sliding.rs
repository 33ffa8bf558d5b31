//! Connections of simplified sliding sync: what was told of which room, so that an answer is only what is new.
//!
//! Each answer that changes this writes the rooms that it told of, under its number. The answer before stays valid until
//! the client has shown, by its next token, that it has the newer one: what a lost answer wrote is taken back.

use crate::{
    Result, Store,
    database::Engine,
    sql::{Ids, execute, listed, optional, rows},
};

/// What was told of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingRoom {
    /// The room.
    pub room_nid: i64,
    /// How it was told, as its reader has packed it.
    pub told: i64,
    /// What came after this position was not told, if there is any.
    pub behind: Option<i64>,
}

/// An answer on a connection: its number, and the number that nobody can guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlidingPoint {
    /// One more than the answer before.
    pub seq: i64,
    /// A number by chance.
    pub token: i64,
}

/// A connection after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingConnection {
    /// How rooms were asked for: JSON.
    pub configs: String,
    /// What was told, in no order.
    pub rooms: Vec<SlidingRoom>,
}

/// A step from one answer to the next.
#[derive(Clone, Copy, Debug)]
pub struct SlidingStep<'a> {
    /// The device.
    pub device_nid: i64,
    /// The answer that the client has.
    pub from: SlidingPoint,
    /// The token of the next one.
    pub token: i64,
    /// How rooms were asked for: JSON.
    pub configs: &'a str,
    /// What the next one tells.
    pub rooms: &'a [SlidingRoom],
    /// The present, in milliseconds since 1970.
    pub now_ms: i64,
}

/// A connection that begins.
#[derive(Clone, Copy, Debug)]
pub struct NewSlidingConnection<'a> {
    /// The device.
    pub device_nid: i64,
    /// The client's name for it; an older connection of this name ends.
    pub conn_id: &'a str,
    /// The first answer.
    pub first: SlidingPoint,
    /// How rooms were asked for: JSON.
    pub configs: &'a str,
    /// What the first answer tells.
    pub rooms: &'a [SlidingRoom],
    /// Connections of the device at the most: those used longest ago end.
    pub count_max: i64,
    /// The present, in milliseconds since 1970.
    pub now_ms: i64,
}

impl Store {
    /// Begins a connection; answers its number, and those of the connections that end by it, or `None` if there is no
    /// such device any more.
    pub async fn open_sliding_connection(&self, new: NewSlidingConnection<'_>) -> Result<Option<(i64, Vec<i64>)>> {
        let nid = self.take_nids(1).await?.start;
        let mut transaction = self.database.begin().await?;
        // One at a time for a device: the bound holds, and the name is free.
        let locked: Option<(i64,)> = optional!(
            transaction,
            "UPDATE devices SET device_nid = device_nid WHERE device_nid = $1 RETURNING device_nid",
            new.device_nid
        )?;
        if locked.is_none() {
            return Ok(None);
        }
        let ended: Vec<(i64,)> = rows!(
            transaction,
            "DELETE FROM sliding_connections WHERE device_nid = $1 AND (conn_id = $2 OR connection_nid NOT IN
             (SELECT connection_nid FROM sliding_connections WHERE device_nid = $1 AND conn_id <> $2
              ORDER BY used_ts DESC, connection_nid DESC LIMIT $3)) RETURNING connection_nid",
            new.device_nid,
            new.conn_id,
            new.count_max - 1
        )?;
        execute!(
            transaction,
            "INSERT INTO sliding_connections
                 (connection_nid, device_nid, conn_id, seq, token, former, configs, used_ts)
             VALUES ($1, $2, $3, $4, $5, -1, $6, $7)",
            nid,
            new.device_nid,
            new.conn_id,
            new.first.seq,
            new.first.token,
            new.configs,
            new.now_ms
        )?;
        insert_rooms(&mut transaction, nid, new.first.seq, new.rooms).await?;
        transaction.commit().await?;
        Ok(Some((nid, ended.into_iter().map(|(nid,)| nid).collect())))
    }

    /// A device's connection as it was after an answer, if that is the last one or the one before it.
    pub async fn sliding_connection(
        &self,
        connection_nid: i64,
        device_nid: i64,
        at: SlidingPoint,
    ) -> Result<Option<SlidingConnection>> {
        let mut reader = self.database.reader().await?;
        let Some(configs) = configs_at(&mut reader, connection_nid, device_nid, at).await? else { return Ok(None) };
        let mut told: Vec<(i64, i64, i64, Option<i64>)> = rows!(
            reader,
            "SELECT room_nid, seq, told, behind FROM sliding_rooms WHERE connection_nid = $1 AND seq <= $2",
            connection_nid,
            at.seq
        )?;
        // Another request may have moved the connection on in between, and removed what was before.
        if configs_at(&mut reader, connection_nid, device_nid, at).await?.is_none() {
            return Ok(None);
        }
        told.sort_unstable_by_key(|&(room_nid, seq, ..)| (room_nid, std::cmp::Reverse(seq)));
        told.dedup_by_key(|(room_nid, ..)| *room_nid);
        let rooms = told.into_iter().map(|(room_nid, _, told, behind)| SlidingRoom { room_nid, told, behind });
        Ok(Some(SlidingConnection { configs, rooms: rooms.collect() }))
    }

    /// Moves a connection on from an answer that the client has; what other answers beyond it wrote is taken back.
    /// `false` if the answer is neither the last one nor the one before it.
    pub async fn advance_sliding_connection(&self, connection_nid: i64, step: SlidingStep<'_>) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let moved = execute!(
            transaction,
            "UPDATE sliding_connections SET seq = $3 + 1, token = $5, former = $4, configs = $6, used_ts = $7
             WHERE connection_nid = $1 AND device_nid = $2
             AND ((seq = $3 AND token = $4) OR (seq = $3 + 1 AND former = $4))",
            connection_nid,
            step.device_nid,
            step.from.seq,
            step.from.token,
            step.token,
            step.configs,
            step.now_ms
        )?;
        if moved != 1 {
            return Ok(false);
        }
        execute!(
            transaction,
            "DELETE FROM sliding_rooms WHERE connection_nid = $1 AND seq > $2",
            connection_nid,
            step.from.seq
        )?;
        let nids: Vec<i64> = step.rooms.iter().map(|room| room.room_nid).collect();
        // Of the rooms written now, the client has the newest that is there; what was before that is of no use.
        execute!(
            transaction,
            listed!(
                "DELETE FROM sliding_rooms WHERE connection_nid = $1 AND room_nid ",
                "$2",
                " AND seq < (SELECT MAX(n.seq) FROM sliding_rooms AS n
                  WHERE n.connection_nid = sliding_rooms.connection_nid AND n.room_nid = sliding_rooms.room_nid)"
            ),
            connection_nid,
            Ids(&nids)
        )?;
        insert_rooms(&mut transaction, connection_nid, step.from.seq + 1, step.rooms).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// A user's data of one type of all rooms: by room, the content.
    pub async fn room_account_data_of_type(&self, user_nid: i64, data_type: &str) -> Result<Vec<(i64, String)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            "SELECT room_nid, content FROM account_data WHERE user_nid = $1 AND type = $2 AND room_nid <> 0",
            user_nid,
            data_type
        )?)
    }
}

/// The configurations of a connection, if an answer is its last one or the one before.
async fn configs_at(
    reader: &mut crate::database::Reader,
    connection_nid: i64,
    device_nid: i64,
    at: SlidingPoint,
) -> Result<Option<String>> {
    let found: Option<(String,)> = optional!(
        reader,
        "SELECT configs FROM sliding_connections WHERE connection_nid = $1 AND device_nid = $2
         AND ((seq = $3 AND token = $4) OR (seq = $3 + 1 AND former = $4))",
        connection_nid,
        device_nid,
        at.seq,
        at.token
    )?;
    Ok(found.map(|(configs,)| configs))
}

async fn insert_rooms(
    transaction: &mut crate::database::Transaction,
    connection_nid: i64,
    seq: i64,
    told: &[SlidingRoom],
) -> Result<()> {
    if told.is_empty() {
        return Ok(());
    }
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            let list: Vec<(i64, i64, Option<i64>)> =
                told.iter().map(|room| (room.room_nid, room.told, room.behind)).collect();
            sqlx::query(
                "INSERT INTO sliding_rooms (connection_nid, room_nid, seq, told, behind)
                 SELECT $1, w.value->>0, $2, w.value->>1, w.value->>2 FROM json_each($3) AS w",
            )
            .bind(connection_nid)
            .bind(seq)
            .bind(crate::sql::json_rows(&list))
            .execute(connection)
            .await?;
        }
        Engine::Postgres(connection) => {
            sqlx::query(
                "INSERT INTO sliding_rooms (connection_nid, room_nid, seq, told, behind)
                 SELECT $1, w.room_nid, $2, w.told, w.behind
                 FROM unnest($3::bigint[], $4::bigint[], $5::bigint[]) AS w(room_nid, told, behind)",
            )
            .bind(connection_nid)
            .bind(seq)
            .bind(told.iter().map(|room| room.room_nid).collect::<Vec<_>>())
            .bind(told.iter().map(|room| room.told).collect::<Vec<_>>())
            .bind(told.iter().map(|room| room.behind).collect::<Vec<_>>())
            .execute(connection)
            .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::{NewSlidingConnection, SlidingPoint, SlidingRoom, SlidingStep};
    use crate::{
        AccountCreation, LogIn, NewAccount, Store,
        testing::{Fresh, on_both},
    };

    async fn device(store: &Store) -> i64 {
        let new = NewAccount {
            user_id: user_id!("@alice:example.org"),
            password_hash: None,
            is_admin: false,
            is_guest: false,
            registration_token: None,
            now_ms: 1,
        };
        let AccountCreation::Created(user_nid) = store.create_account(new).await.unwrap() else { panic!() };
        let login = LogIn {
            user_nid,
            device_id: "D",
            initial_display_name: None,
            access_token_hash: b"a",
            expires_ts: None,
            refresh_token_hash: None,
            now_ms: 1,
        };
        store.log_in(login).await.unwrap().unwrap()
    }

    fn room(room_nid: i64, told: i64, behind: Option<i64>) -> SlidingRoom {
        SlidingRoom { room_nid, told, behind }
    }

    fn point(seq: i64, token: i64) -> SlidingPoint {
        SlidingPoint { seq, token }
    }

    /// The last answer and the one before it can be asked for again; a lost one leaves nothing behind.
    #[tokio::test]
    async fn a_lost_answer_is_taken_back() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let device_nid = device(&store).await;
            let step = |from, token, rooms| SlidingStep { device_nid, from, token, configs: "[]", rooms, now_ms: 5 };
            let rooms_at = async |nid, at| {
                let found = store.sliding_connection(nid, device_nid, at).await.unwrap();
                found.map(|mut found| {
                    found.rooms.sort_by_key(|room| room.room_nid);
                    found.rooms
                })
            };
            let new = NewSlidingConnection {
                device_nid,
                conn_id: "main",
                first: point(1, 10),
                configs: "[]",
                rooms: &[room(1, 7, None), room(2, 7, Some(4))],
                count_max: 2,
                now_ms: 1,
            };
            let (nid, ended) = store.open_sliding_connection(new).await.unwrap().unwrap();
            assert!(ended.is_empty());
            let first = vec![room(1, 7, None), room(2, 7, Some(4))];
            assert_eq!(rooms_at(nid, point(1, 10)).await, Some(first.clone()));
            assert_eq!(rooms_at(nid, point(1, 11)).await, None, "nobody can guess it");
            assert_eq!(store.sliding_connection(nid, device_nid + 1, point(1, 10)).await.unwrap(), None);

            let lost = [room(2, 8, None), room(3, 8, None)];
            assert!(store.advance_sliding_connection(nid, step(point(1, 10), 20, &lost)).await.unwrap());
            assert_eq!(rooms_at(nid, point(2, 20)).await.unwrap().len(), 3);
            assert_eq!(rooms_at(nid, point(1, 10)).await, Some(first), "the client may not have the newer answer");
            let (other, last) = ([room(1, 9, None)], [room(1, 5, None)]);
            assert!(store.advance_sliding_connection(nid, step(point(1, 10), 21, &other)).await.unwrap());
            assert_eq!(rooms_at(nid, point(2, 20)).await, None, "the lost answer is no more");
            let now = vec![room(1, 9, None), room(2, 7, Some(4))];
            assert_eq!(rooms_at(nid, point(2, 21)).await, Some(now));
            assert!(store.advance_sliding_connection(nid, step(point(2, 21), 22, &last)).await.unwrap());
            assert_eq!(rooms_at(nid, point(1, 10)).await, None, "only two are kept");
            assert!(!store.advance_sliding_connection(nid, step(point(1, 10), 23, &[])).await.unwrap());

            // Connections are bounded, and one of the same name replaces the other.
            let other = |conn_id, now_ms| NewSlidingConnection { conn_id, now_ms, rooms: &[], ..new };
            let (second, _) = store.open_sliding_connection(other("b", 6)).await.unwrap().unwrap();
            let (third, ended) = store.open_sliding_connection(other("c", 7)).await.unwrap().unwrap();
            assert_eq!(ended, [nid]);
            assert_eq!(rooms_at(nid, point(3, 22)).await, None, "the oldest went");
            assert_eq!(rooms_at(second, point(1, 10)).await, Some(vec![]));
            let (again, _) = store.open_sliding_connection(other("c", 8)).await.unwrap().unwrap();
            assert_eq!(rooms_at(third, point(1, 10)).await, None);
            assert_eq!(rooms_at(again, point(1, 10)).await, Some(vec![]));
            assert_eq!(rooms_at(second, point(1, 10)).await, Some(vec![]));
            let nobody = NewSlidingConnection { device_nid: 999, ..new };
            assert_eq!(store.open_sliding_connection(nobody).await.unwrap(), None);
            store.close().await;
        })
        .await;
    }
}
