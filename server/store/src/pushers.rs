//! Pushers: where people's devices want to be told of events, and how far each of them was told.

use std::sync::Arc;

use ruma::{OwnedUserId, UserId};

use crate::{
    Change, Error, Event, Lease, Member, Result, Store,
    database::{Engine, Transaction},
    events::{EventRow, select_events},
    receipts::ReceiptRow,
    rooms::MemberRow,
    sql::{Ids, execute, json_rows, listed, optional, row, rows},
};

/// The duty of telling pushers, and the name of its position.
pub const PUSHERS: &str = "pushers";

/// Pushers of one user at the most.
pub const PUSHERS_MAX: i64 = 100;

/// Rows that one statement writes at the most.
const ROWS: usize = 500;

/// What a client says of a pusher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PusherSettings {
    /// The application.
    pub app_id: String,
    /// What the gateway knows the device by.
    pub pushkey: String,
    /// How it is told: `http`.
    pub kind: String,
    /// The application's name for people.
    pub app_display_name: String,
    /// The device's name for people.
    pub device_display_name: String,
    /// Which of the device's rules count.
    pub profile_tag: Option<String>,
    /// The language of what people read.
    pub lang: String,
    /// What its kind needs, a JSON object.
    pub data: String,
}

/// How far a pusher was told, where that is not as far as the duty's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PusherStanding {
    /// The position of the first event that it was not told of.
    pub pending_from: Option<i64>,
    /// When the first of these tries in a row failed, in milliseconds since 1970.
    pub failing_since: Option<i64>,
    /// Tries in a row that failed.
    pub failures: i64,
    /// When it is tried again, in milliseconds since 1970.
    pub retry_at: i64,
}

/// A pusher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pusher {
    /// The number.
    pub pusher_nid: i64,
    /// Whose it is, by number.
    pub user_nid: i64,
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// What the client said.
    pub settings: PusherSettings,
    /// When it was last set, in milliseconds since 1970.
    pub pushkey_ts: i64,
    /// What came up to this position is not for it.
    pub since_pos: i64,
    /// How far it was told.
    pub standing: PusherStanding,
}

/// A pusher to be made or changed.
#[derive(Clone, Debug)]
pub struct NewPusher {
    /// The user.
    pub user_nid: i64,
    /// The device that it goes with.
    pub device_nid: i64,
    /// What the client said.
    pub settings: PusherSettings,
    /// Whether other users may have one of the same application and key.
    pub append: bool,
    /// The present, in milliseconds since 1970.
    pub now_ms: i64,
}

/// What came of setting a pusher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PusherSet {
    /// It is set. The other users who had one of the same application and key have it no more.
    Done {
        /// These.
        removed_from: Vec<i64>,
    },
    /// The device is not there any more.
    NoDevice,
    /// The user has as many as one may have.
    TooMany,
}

/// Someone in a room who has a pusher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushMember {
    /// The room.
    pub room_nid: i64,
    /// The user.
    pub user_nid: i64,
    /// The user's membership event.
    pub member_nid: i64,
    /// Its position.
    pub member_pos: i64,
}

type PusherRow = (
    (i64, i64, String),
    (String, String, String, String, String, Option<String>, String, String),
    (i64, i64, Option<i64>, Option<i64>, i64, i64),
);

/// A pusher as the database gives it; wider than a tuple may be.
struct RawPusher(PusherRow);

impl<'r, R> sqlx::FromRow<'r, R> for RawPusher
where
    R: sqlx::Row,
    usize: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let whose = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let settings = (
            row.try_get(3)?,
            row.try_get(4)?,
            row.try_get(5)?,
            row.try_get(6)?,
            row.try_get(7)?,
            row.try_get(8)?,
            row.try_get(9)?,
            row.try_get(10)?,
        );
        let standing = (
            row.try_get(11)?,
            row.try_get(12)?,
            row.try_get(13)?,
            row.try_get(14)?,
            row.try_get(15)?,
            row.try_get(16)?,
        );
        Ok(Self((whose, settings, standing)))
    }
}

impl TryFrom<RawPusher> for Pusher {
    type Error = Error;

    fn try_from(RawPusher((whose, settings, standing)): RawPusher) -> Result<Self> {
        let (pusher_nid, user_nid, user_id) = whose;
        let (app_id, pushkey, kind, app_display_name, device_display_name, profile_tag, lang, data) = settings;
        let (pushkey_ts, since_pos, pending_from, failing_since, failures, retry_at) = standing;
        Ok(Self {
            pusher_nid,
            user_nid,
            user_id: UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" })?,
            settings: PusherSettings {
                app_id,
                pushkey,
                kind,
                app_display_name,
                device_display_name,
                profile_tag,
                lang,
                data,
            },
            pushkey_ts,
            since_pos,
            standing: PusherStanding { pending_from, failing_since, failures, retry_at },
        })
    }
}

/// Reads the pushers of accounts that are in use: the columns of [`RawPusher`].
macro_rules! select_pushers {
    () => {
        "SELECT p.pusher_nid, p.user_nid, u.user_id, p.app_id, p.pushkey, p.kind, p.app_display_name,
                p.device_display_name, p.profile_tag, p.lang, p.data, p.pushkey_ts, p.since_pos, p.pending_from,
                p.failing_since, p.failures, p.retry_at
         FROM pushers AS p JOIN users AS u ON u.user_nid = p.user_nid JOIN accounts AS a ON a.user_nid = p.user_nid
         WHERE NOT a.locked AND a.deactivated_ts IS NULL AND "
    };
}

/// [`select_pushers`] by a list of users. The macro that makes lists takes literals alone.
const PUSHERS_OF: crate::sql::Sql = crate::sql::Sql {
    sqlite: concat!(select_pushers!(), "p.user_nid IN (SELECT value FROM json_each($1)) ORDER BY p.pusher_nid"),
    postgres: concat!(select_pushers!(), "p.user_nid = ANY($1) ORDER BY p.pusher_nid"),
};

impl Store {
    /// The pushers of some users, the oldest first. An account that is locked has none meanwhile.
    pub async fn pushers_of(&self, user_nids: &[i64]) -> Result<Vec<Pusher>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<RawPusher> = rows!(reader, PUSHERS_OF, Ids(user_nids))?;
        found.into_iter().map(Pusher::try_from).collect()
    }

    /// Makes a pusher, or changes the user's one of the same application and key.
    pub async fn set_pusher(&self, new: &NewPusher) -> Result<PusherSet> {
        let pusher_nid = self.take_nids(1).await?.start;
        let since_pos = self.committed_position().await?;
        let mut transaction = self.database.begin().await?;
        let (app_id, pushkey) = (new.settings.app_id.as_str(), new.settings.pushkey.as_str());
        let (others,): (i64,) = row!(
            transaction,
            "SELECT count(*) FROM pushers WHERE user_nid = $1 AND NOT (app_id = $2 AND pushkey = $3)",
            new.user_nid,
            app_id,
            pushkey
        )?;
        if others >= PUSHERS_MAX {
            return Ok(PusherSet::TooMany);
        }
        let mut removed_from = Vec::new();
        if !new.append {
            // "Otherwise, the homeserver must remove any other pushers with the same App ID and pushkey for different
            // users."
            let gone: Vec<(i64,)> = rows!(
                transaction,
                "DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_nid <> $3 RETURNING user_nid",
                app_id,
                pushkey,
                new.user_nid
            )?;
            removed_from.extend(gone.into_iter().map(|(user_nid,)| user_nid));
        }
        let settings = &new.settings;
        let hit = execute!(
            transaction,
            "INSERT INTO pushers (pusher_nid, user_nid, device_nid, app_id, pushkey, kind, app_display_name,
                                  device_display_name, profile_tag, lang, data, pushkey_ts, since_pos)
             SELECT $1, user_nid, device_nid, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 FROM devices
             WHERE device_nid = $3 AND user_nid = $2
             ON CONFLICT (user_nid, app_id, pushkey) DO UPDATE SET device_nid = excluded.device_nid,
                 kind = excluded.kind, app_display_name = excluded.app_display_name,
                 device_display_name = excluded.device_display_name, profile_tag = excluded.profile_tag,
                 lang = excluded.lang, data = excluded.data, pushkey_ts = excluded.pushkey_ts,
                 failing_since = NULL, failures = 0, retry_at = 0",
            pusher_nid,
            new.user_nid,
            new.device_nid,
            app_id,
            pushkey,
            settings.kind.as_str(),
            settings.app_display_name.as_str(),
            settings.device_display_name.as_str(),
            settings.profile_tag.as_deref(),
            settings.lang.as_str(),
            settings.data.as_str(),
            new.now_ms,
            since_pos
        )?;
        if hit != 1 {
            return Ok(PusherSet::NoDevice);
        }
        transaction.commit().await?;
        Ok(PusherSet::Done { removed_from })
    }

    /// Removes a pusher; false if the user has none of this application and key.
    pub async fn delete_pusher(&self, user_nid: i64, app_id: &str, pushkey: &str) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let hit = execute!(
            transaction,
            "DELETE FROM pushers WHERE user_nid = $1 AND app_id = $2 AND pushkey = $3",
            user_nid,
            app_id,
            pushkey
        )?;
        transaction.commit().await?;
        Ok(hit == 1)
    }

    /// Removes a pusher whose key was rejected, unless it was set anew meanwhile. For the holder of the lease alone.
    pub async fn delete_rejected_pusher(&self, lease: &Lease, pusher: &Pusher) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(false);
        }
        let hit = execute!(
            transaction,
            "DELETE FROM pushers WHERE pusher_nid = $1 AND pushkey_ts = $2",
            pusher.pusher_nid,
            pusher.pushkey_ts
        )?;
        transaction.commit().await?;
        Ok(hit == 1)
    }

    /// How many pushers there are, by kind.
    pub async fn count_pushers(&self) -> Result<Vec<(String, i64)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(reader, "SELECT kind, count(*) FROM pushers GROUP BY kind")?)
    }

    /// The pushers that could not be told of something, by number, after one.
    pub async fn troubled_pushers(&self, after_nid: i64, limit: usize) -> Result<Vec<Pusher>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<RawPusher> = rows!(
            reader,
            concat!(
                select_pushers!(),
                "p.pending_from IS NOT NULL AND p.pusher_nid > $1 ORDER BY p.pusher_nid LIMIT $2"
            ),
            after_nid,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        found.into_iter().map(Pusher::try_from).collect()
    }

    /// Those who have joined some rooms and have a pusher: one query.
    pub async fn push_members(&self, room_nids: &[i64]) -> Result<Vec<PushMember>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, i64, i64, i64)> = rows!(
            reader,
            listed!(
                "SELECT m.room_nid, m.user_nid, m.event_nid, m.pos FROM memberships AS m WHERE m.room_nid ",
                "$1",
                " AND m.membership = 1 AND EXISTS (SELECT 1 FROM pushers AS p WHERE p.user_nid = m.user_nid)"
            ),
            Ids(room_nids)
        )?;
        let member =
            |(room_nid, user_nid, member_nid, member_pos)| PushMember { room_nid, user_nid, member_nid, member_pos };
        Ok(found.into_iter().map(member).collect())
    }

    /// Those among some users who have a pusher, in no order.
    pub async fn users_with_pushers(&self, user_nids: &[i64]) -> Result<Vec<i64>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64,)> =
            rows!(reader, listed!("SELECT DISTINCT user_nid FROM pushers WHERE user_nid ", "$1", ""), Ids(user_nids))?;
        Ok(found.into_iter().map(|(user_nid,)| user_nid).collect())
    }

    /// Whether there is any pusher.
    pub async fn has_pushers(&self) -> Result<bool> {
        let mut reader = self.database.reader().await?;
        let found: Option<(i64,)> = optional!(reader, "SELECT pusher_nid FROM pushers LIMIT 1")?;
        Ok(found.is_some())
    }

    /// What happened at the positions `(from, to]` that pushers may have to be told of: events, memberships, and
    /// receipts of those who have one. In the stream's order.
    pub async fn push_changes(&self, from: i64, to: i64) -> Result<Vec<Change>> {
        let mut reader = self.database.reader().await?;
        let events: Vec<EventRow> =
            rows!(reader, select_events!("WHERE pos > $1 AND pos <= $2 AND flags & 3 = 0"), from, to)?;
        let members: Vec<MemberRow> = rows!(
            reader,
            "SELECT room_nid, user_nid, membership, event_nid, pos, forgotten FROM memberships
             WHERE pos > $1 AND pos <= $2",
            from,
            to
        )?;
        let receipts: Vec<ReceiptRow> = rows!(
            reader,
            "SELECT r.room_nid, r.user_nid, r.type, r.thread, r.event_nid, r.event_pos, r.ts, r.pos FROM receipts AS r
             WHERE r.pos > $1 AND r.pos <= $2 AND EXISTS (SELECT 1 FROM pushers AS p WHERE p.user_nid = r.user_nid)",
            from,
            to
        )?;
        let mut changes = Vec::with_capacity(events.len() + members.len() + receipts.len());
        for event in events {
            changes.push(Change::Event(Arc::new(Event::try_from(event)?)));
        }
        for member in members {
            changes.push(Change::Membership { member: Member::try_from(member)?, was: None });
        }
        changes.extend(receipts.into_iter().map(|row| Change::Receipt(Arc::new(row.into()))));
        changes.sort_by_key(Change::pos);
        Ok(changes)
    }

    /// Writes up to where pushers were told, and how those stand for which that is not so. False when the lease is held
    /// no more: nothing is written then.
    pub async fn save_pushing(&self, lease: &Lease, pos: i64, changed: &[(i64, PusherStanding)]) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO duty_positions (name, pos) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET pos = excluded.pos",
            PUSHERS,
            pos
        )?;
        for standings in changed.chunks(ROWS) {
            update_standings(&mut transaction, standings).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// The account data of some users that decides what they are notified of: `m.push_rules`, `m.ignored_user_list` and
    /// `m.invite_permission_config`, as the user, the type and the content.
    pub async fn push_settings(&self, user_nids: &[i64]) -> Result<Vec<(i64, String, String)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            listed!(
                "SELECT user_nid, type, content FROM account_data WHERE user_nid ",
                "$1",
                " AND room_nid = 0 AND type IN ('m.push_rules', 'm.ignored_user_list', 'm.invite_permission_config')"
            ),
            Ids(user_nids)
        )?)
    }
}

async fn update_standings(transaction: &mut Transaction, standings: &[(i64, PusherStanding)]) -> Result<()> {
    let row = |(nid, standing): &(i64, PusherStanding)| {
        (*nid, standing.pending_from, standing.failing_since, standing.failures, standing.retry_at)
    };
    let rows: Vec<_> = standings.iter().map(row).collect();
    match transaction.engine() {
        Engine::Sqlite(connection) => {
            sqlx::query(
                "UPDATE pushers SET pending_from = s.value->>1, failing_since = s.value->>2, failures = s.value->>3,
                                    retry_at = s.value->>4
                 FROM json_each($1) AS s WHERE pusher_nid = s.value->>0",
            )
            .bind(json_rows(&rows))
            .execute(connection)
            .await?;
        }
        Engine::Postgres(connection) => {
            sqlx::query(
                "UPDATE pushers AS p SET pending_from = s.pending_from, failing_since = s.failing_since,
                                         failures = s.failures, retry_at = s.retry_at
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
                      AS s(pusher_nid, pending_from, failing_since, failures, retry_at)
                 WHERE p.pusher_nid = s.pusher_nid",
            )
            .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.3).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.4).collect::<Vec<_>>())
            .execute(connection)
            .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ruma::{UserId, user_id};

    use super::{NewPusher, PUSHERS, PUSHERS_MAX, PusherSet, PusherSettings, PusherStanding};
    use crate::{
        AccountCreation, Candidate, NewAccount, Store,
        testing::{Fresh, on_both},
    };

    async fn user(store: &Store, user_id: &UserId) -> i64 {
        let new = NewAccount {
            user_id,
            password_hash: None,
            is_admin: false,
            is_guest: false,
            registration_token: None,
            now_ms: 0,
        };
        match store.create_account(new).await.unwrap() {
            AccountCreation::Created(nid) => nid,
            other => panic!("{other:?}"),
        }
    }

    async fn device(store: &Store, user_nid: i64, device_id: &str) -> i64 {
        let mut transaction = store.database.begin().await.unwrap();
        let device_nid = store.take_nids(1).await.unwrap().start;
        crate::sql::execute!(
            transaction,
            "INSERT INTO devices (device_nid, user_nid, device_id, created_ts, last_seen_ts) VALUES ($1, $2, $3, 0, 0)",
            device_nid,
            user_nid,
            device_id
        )
        .unwrap();
        transaction.commit().await.unwrap();
        device_nid
    }

    fn new(user_nid: i64, device_nid: i64, pushkey: &str, append: bool) -> NewPusher {
        let settings = PusherSettings {
            app_id: "org.example.app".to_owned(),
            pushkey: pushkey.to_owned(),
            kind: "http".to_owned(),
            app_display_name: "App".to_owned(),
            device_display_name: "Phone".to_owned(),
            profile_tag: None,
            lang: "en".to_owned(),
            data: "{\"url\":\"https://push.example/_matrix/push/v1/notify\"}".to_owned(),
        };
        NewPusher { user_nid, device_nid, settings, append, now_ms: 7 }
    }

    /// A pusher is set, changed in its place, taken over by another user or shared with one, and goes with its device.
    #[tokio::test]
    async fn pushers_come_and_go() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let alice = user(&store, user_id!("@alice:example.org")).await;
            let bob = user(&store, user_id!("@bob:example.org")).await;
            let (phone, tablet) = (device(&store, alice, "PHONE").await, device(&store, alice, "TABLET").await);
            let other = device(&store, bob, "OTHER").await;
            let keys = async |user_nid: i64| {
                let found = store.pushers_of(&[user_nid]).await.unwrap();
                found.into_iter().map(|pusher| pusher.settings.pushkey).collect::<Vec<_>>()
            };
            let done = |removed_from: &[i64]| PusherSet::Done { removed_from: removed_from.to_vec() };
            assert!(!store.has_pushers().await.unwrap());
            assert_eq!(store.set_pusher(&new(alice, phone, "a", false)).await.unwrap(), done(&[]));
            assert_eq!(store.set_pusher(&new(alice, phone, "b", false)).await.unwrap(), done(&[]));
            let mut changed = new(alice, tablet, "b", false);
            changed.settings.lang = "de".to_owned();
            changed.now_ms = 9;
            assert_eq!(store.set_pusher(&changed).await.unwrap(), done(&[]));
            let found = store.pushers_of(&[alice, bob]).await.unwrap();
            assert_eq!((found[1].settings.lang.as_str(), found[1].pushkey_ts, found.len()), ("de", 9, 2));
            assert_eq!(found[0].user_id, "@alice:example.org");

            assert_eq!(store.set_pusher(&new(bob, other, "a", true)).await.unwrap(), done(&[]));
            assert_eq!((keys(alice).await.len(), keys(bob).await.len()), (2, 1));
            assert_eq!(store.set_pusher(&new(bob, other, "a", false)).await.unwrap(), done(&[alice]));
            assert_eq!(keys(alice).await, ["b"]);
            assert_eq!(store.users_with_pushers(&[alice, bob, 99]).await.unwrap().len(), 2);
            assert_eq!(store.count_pushers().await.unwrap(), [("http".to_owned(), 2)]);

            // Somebody else's device, and one that is gone.
            assert_eq!(store.set_pusher(&new(alice, other, "c", true)).await.unwrap(), PusherSet::NoDevice);
            store.delete_devices(alice, &["TABLET"]).await.unwrap();
            assert!(keys(alice).await.is_empty());
            assert_eq!(store.set_pusher(&new(alice, tablet, "c", true)).await.unwrap(), PusherSet::NoDevice);
            assert!(store.delete_pusher(bob, "org.example.app", "a").await.unwrap());
            assert!(!store.delete_pusher(bob, "org.example.app", "a").await.unwrap());
            for number in 0..PUSHERS_MAX {
                store.set_pusher(&new(alice, phone, &number.to_string(), true)).await.unwrap();
            }
            assert_eq!(store.set_pusher(&new(alice, phone, "x", true)).await.unwrap(), PusherSet::TooMany);
            assert_eq!(store.set_pusher(&new(alice, phone, "0", true)).await.unwrap(), done(&[]));
            assert!(store.set_account_locked(alice, true).await.unwrap());
            assert!(keys(alice).await.is_empty(), "a locked account is told nothing");
            store.close().await;
        })
        .await;
    }

    /// How far pushers were told is written by the holder of the lease alone, and found again.
    #[tokio::test]
    async fn standings_are_fenced() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let alice = user(&store, user_id!("@alice:example.org")).await;
            let phone = device(&store, alice, "PHONE").await;
            for key in ["a", "b"] {
                store.set_pusher(&new(alice, phone, key, false)).await.unwrap();
            }
            let pushers = store.pushers_of(&[alice]).await.unwrap();
            let candidate = |holder: &str, ttl| Candidate { name: PUSHERS, holder: holder.to_owned(), ttl };
            let lease = store.take_lease(&candidate("a", Duration::ZERO)).await.unwrap().unwrap();
            let standing =
                PusherStanding { pending_from: Some(4), failing_since: Some(100), failures: 2, retry_at: 300 };
            assert!(store.save_pushing(&lease, 12, &[(pushers[1].pusher_nid, standing)]).await.unwrap());
            assert_eq!(store.duty_position(PUSHERS).await.unwrap(), 12);
            let troubled = store.troubled_pushers(0, 10).await.unwrap();
            assert_eq!((troubled.len(), troubled[0].standing), (1, standing));
            assert!(store.troubled_pushers(troubled[0].pusher_nid, 10).await.unwrap().is_empty());
            // Set anew, it is tried at once, and is still told of what it lacks.
            store.set_pusher(&new(alice, phone, "b", false)).await.unwrap();
            let again = store.troubled_pushers(0, 10).await.unwrap();
            assert_eq!(again[0].standing, PusherStanding { pending_from: Some(4), ..PusherStanding::default() });

            let next = store.take_lease(&candidate("b", Duration::from_secs(600))).await.unwrap().unwrap();
            assert!(!store.save_pushing(&lease, 99, &[]).await.unwrap());
            assert!(!store.delete_rejected_pusher(&lease, &pushers[0]).await.unwrap());
            assert_eq!(store.duty_position(PUSHERS).await.unwrap(), 12);
            let mut older = pushers[0].clone();
            older.pushkey_ts -= 1;
            assert!(!store.delete_rejected_pusher(&next, &older).await.unwrap(), "it was set anew since");
            assert!(store.delete_rejected_pusher(&next, &pushers[0]).await.unwrap());
            assert_eq!(store.pushers_of(&[alice]).await.unwrap().len(), 1);
            store.close().await;
        })
        .await;
    }
}
