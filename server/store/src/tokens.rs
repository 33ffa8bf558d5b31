//! Tokens: by their hashes, never as they are.

use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Result, Store,
    accounts::LOCK_ACTIVE_ACCOUNT,
    database::Transaction,
    sql::{Sql, execute, optional, row},
};

/// Who an access token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSession {
    /// The user's number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device's number.
    pub device_nid: i64,
    /// The device.
    pub device_id: String,
    /// When the token ends, in milliseconds since 1970.
    pub expires_ts: Option<i64>,
    /// True for a guest.
    pub is_guest: bool,
    /// True for an operator.
    pub is_admin: bool,
    /// True while the account may do nothing.
    pub locked: bool,
    /// True while the account may only read.
    pub suspended: bool,
    /// True when the token came by a refresh and has not been used since: see [`Store::confirm_refresh`].
    pub unconfirmed: bool,
}

type SessionRow = (i64, String, i64, String, Option<i64>, bool, bool, bool, bool, bool);

/// A device that is to be logged in.
#[derive(Clone, Copy, Debug)]
pub struct LogIn<'a> {
    /// The user.
    pub user_nid: i64,
    /// The device; made now if there is none.
    pub device_id: &'a str,
    /// What a new device is called.
    pub initial_display_name: Option<&'a str>,
    /// The hash of the access token.
    pub access_token_hash: &'a [u8],
    /// When the access token ends, in milliseconds since 1970.
    pub expires_ts: Option<i64>,
    /// The hash of the refresh token.
    pub refresh_token_hash: Option<&'a [u8]>,
    /// The time in milliseconds since 1970.
    pub now_ms: i64,
}

/// The tokens that a refresh token is traded for.
#[derive(Clone, Copy, Debug)]
pub struct Refresh<'a> {
    /// The hash of the refresh token that is traded in.
    pub token_hash: &'a [u8],
    /// The hash of the new access token.
    pub access_token_hash: &'a [u8],
    /// When the new access token ends, in milliseconds since 1970.
    pub expires_ts: Option<i64>,
    /// The hash of the new refresh token.
    pub refresh_token_hash: &'a [u8],
    /// The time in milliseconds since 1970.
    pub now_ms: i64,
}

const LOCK_REFRESH_TOKEN: Sql = Sql {
    sqlite: "SELECT r.device_nid, r.next_token_hash, a.locked FROM refresh_tokens r
             JOIN devices d ON d.device_nid = r.device_nid JOIN accounts a ON a.user_nid = d.user_nid
             WHERE r.token_hash = $1",
    postgres: "SELECT r.device_nid, r.next_token_hash, a.locked FROM refresh_tokens r
               JOIN devices d ON d.device_nid = r.device_nid JOIN accounts a ON a.user_nid = d.user_nid
               WHERE r.token_hash = $1 FOR UPDATE OF r",
};

/// What came of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// The new tokens are valid.
    Refreshed,
    /// There is no such refresh token.
    Unknown,
    /// The account is locked; the token stays as it was.
    Locked,
}

/// The number about the installation that grows with [`Store::doubt_sessions`].
const SESSION_DOUBTS: &str = "session_doubts";

impl Store {
    /// Grows whenever [`Store::doubt_sessions`] is called, by whatever process.
    pub async fn session_doubts(&self) -> Result<i64> {
        self.database.count_of(SESSION_DOUBTS).await
    }

    /// Tells every process on this database, also those that no notification reaches, to ask anew for every session.
    pub async fn doubt_sessions(&self) -> Result<()> {
        self.database.bump(SESSION_DOUBTS).await
    }

    /// Logs a device in. The tokens that it had before end. `None` if the account is not active.
    pub async fn log_in(&self, login: LogIn<'_>) -> Result<Option<i64>> {
        let device_nid = self.take_nids(1).await?.start;
        let mut transaction = self.database.begin().await?;
        let active: Option<(i64,)> = optional!(transaction, LOCK_ACTIVE_ACCOUNT, login.user_nid)?;
        if active.is_none() {
            return Ok(None);
        }
        let (device_nid,): (i64,) = row!(
            transaction,
            "INSERT INTO devices (device_nid, user_nid, device_id, display_name, created_ts, last_seen_ts)
             VALUES ($1, $2, $3, $4, $5, $5)
             ON CONFLICT (user_nid, device_id) DO UPDATE SET last_seen_ts = excluded.last_seen_ts
             RETURNING device_nid",
            device_nid,
            login.user_nid,
            login.device_id,
            login.initial_display_name,
            login.now_ms
        )?;
        execute!(transaction, "DELETE FROM access_tokens WHERE device_nid = $1", device_nid)?;
        execute!(transaction, "DELETE FROM refresh_tokens WHERE device_nid = $1", device_nid)?;
        insert_tokens(
            &mut transaction,
            device_nid,
            login.access_token_hash,
            login.expires_ts,
            login.refresh_token_hash,
            login.now_ms,
        )
        .await?;
        transaction.commit().await?;
        Ok(Some(device_nid))
    }

    /// Who an access token stands for; also when it has expired.
    pub async fn session(&self, access_token_hash: &[u8]) -> Result<Option<StoredSession>> {
        let mut reader = self.database.reader().await?;
        let found: Option<SessionRow> = optional!(
            reader,
            "SELECT d.user_nid, u.user_id, d.device_nid, d.device_id, t.expires_ts,
                    a.is_guest, a.is_admin, a.locked, a.suspended,
                    EXISTS (SELECT 1 FROM refresh_tokens r JOIN refresh_tokens p ON p.next_token_hash = r.token_hash
                            WHERE r.access_token_hash = t.token_hash)
             FROM access_tokens t
             JOIN devices d ON d.device_nid = t.device_nid
             JOIN users u ON u.user_nid = d.user_nid
             JOIN accounts a ON a.user_nid = d.user_nid
             WHERE t.token_hash = $1 AND a.deactivated_ts IS NULL",
            access_token_hash
        )?;
        let Some(row) = found else { return Ok(None) };
        let (user_nid, user_id, device_nid, device_id, expires_ts, is_guest, is_admin, locked, suspended, unconfirmed) =
            row;
        let user_id = UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" })?;
        Ok(Some(StoredSession {
            user_nid,
            user_id,
            device_nid,
            device_id,
            expires_ts,
            is_guest,
            is_admin,
            locked,
            suspended,
            unconfirmed,
        }))
    }

    /// The client has its new tokens: the refresh token that it traded in, and the access token of that, end.
    pub async fn confirm_refresh(&self, access_token_hash: &[u8]) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let refresh: Option<(Vec<u8>,)> = optional!(
            transaction,
            "SELECT token_hash FROM refresh_tokens WHERE access_token_hash = $1",
            access_token_hash
        )?;
        if let Some((token_hash,)) = refresh {
            end_predecessors(&mut transaction, &token_hash).await?;
        }
        transaction.commit().await
    }

    /// Trades a refresh token for new tokens. It stays valid until one of those is used, so that a client that did
    /// not get the answer may ask again; what it was given then ends now.
    pub async fn refresh(&self, refresh: Refresh<'_>) -> Result<RefreshOutcome> {
        let mut transaction = self.database.begin().await?;
        let found: Option<(i64, Option<Vec<u8>>, bool)> =
            optional!(transaction, LOCK_REFRESH_TOKEN, refresh.token_hash)?;
        let Some((device_nid, next, locked)) = found else { return Ok(RefreshOutcome::Unknown) };
        if locked {
            return Ok(RefreshOutcome::Locked);
        }
        if let Some(next) = next {
            execute!(
                transaction,
                "DELETE FROM access_tokens
                 WHERE token_hash IN (SELECT access_token_hash FROM refresh_tokens WHERE token_hash = $1)",
                next.as_slice()
            )?;
            execute!(transaction, "DELETE FROM refresh_tokens WHERE token_hash = $1", next.as_slice())?;
        }
        end_predecessors(&mut transaction, refresh.token_hash).await?;
        insert_tokens(
            &mut transaction,
            device_nid,
            refresh.access_token_hash,
            refresh.expires_ts,
            Some(refresh.refresh_token_hash),
            refresh.now_ms,
        )
        .await?;
        execute!(
            transaction,
            "UPDATE refresh_tokens SET next_token_hash = $2 WHERE token_hash = $1",
            refresh.token_hash,
            refresh.refresh_token_hash
        )?;
        transaction.commit().await?;
        Ok(RefreshOutcome::Refreshed)
    }

    /// Keeps a login token. Those that have ended go.
    pub async fn create_login_token(
        &self,
        user_nid: i64,
        token_hash: &[u8],
        expires_ts: i64,
        now_ms: i64,
    ) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM login_tokens WHERE expires_ts <= $1", now_ms)?;
        execute!(
            transaction,
            "INSERT INTO login_tokens (token_hash, user_nid, expires_ts) VALUES ($1, $2, $3)",
            token_hash,
            user_nid,
            expires_ts
        )?;
        transaction.commit().await
    }

    /// Uses a login token up: the user that it stands for, if it is valid.
    pub async fn take_login_token(&self, token_hash: &[u8], now_ms: i64) -> Result<Option<OwnedUserId>> {
        let mut transaction = self.database.begin().await?;
        let taken: Option<(i64, i64)> = optional!(
            transaction,
            "DELETE FROM login_tokens WHERE token_hash = $1 RETURNING user_nid, expires_ts",
            token_hash
        )?;
        transaction.commit().await?;
        match taken {
            Some((user_nid, expires_ts)) if expires_ts > now_ms => Ok(Some(self.user_id(user_nid).await?)),
            _ => Ok(None),
        }
    }
}

async fn insert_tokens(
    transaction: &mut Transaction,
    device_nid: i64,
    access_token_hash: &[u8],
    expires_ts: Option<i64>,
    refresh_token_hash: Option<&[u8]>,
    now_ms: i64,
) -> Result<()> {
    execute!(
        transaction,
        "INSERT INTO access_tokens (token_hash, device_nid, created_ts, expires_ts) VALUES ($1, $2, $3, $4)",
        access_token_hash,
        device_nid,
        now_ms,
        expires_ts
    )?;
    if let Some(refresh_token_hash) = refresh_token_hash {
        execute!(
            transaction,
            "INSERT INTO refresh_tokens (token_hash, device_nid, access_token_hash, created_ts)
             VALUES ($1, $2, $3, $4)",
            refresh_token_hash,
            device_nid,
            access_token_hash,
            now_ms
        )?;
    }
    Ok(())
}

/// Ends the refresh token that was traded for this one, and its access token.
async fn end_predecessors(transaction: &mut Transaction, token_hash: &[u8]) -> Result<()> {
    execute!(
        transaction,
        "DELETE FROM access_tokens
         WHERE token_hash IN (SELECT access_token_hash FROM refresh_tokens WHERE next_token_hash = $1)",
        token_hash
    )?;
    execute!(transaction, "DELETE FROM refresh_tokens WHERE next_token_hash = $1", token_hash)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::{LogIn, Refresh, RefreshOutcome};
    use crate::{
        AccountCreation, KeepDevices, NewAccount, Sighting, Store,
        testing::{Fresh, on_both},
    };

    async fn alice(store: &Store) -> i64 {
        let new = NewAccount {
            user_id: user_id!("@alice:example.org"),
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

    async fn log_in(store: &Store, user_nid: i64, device_id: &str, access: &[u8], refresh: Option<&[u8]>) -> i64 {
        store
            .log_in(LogIn {
                user_nid,
                device_id,
                initial_display_name: Some("Phone"),
                access_token_hash: access,
                expires_ts: refresh.map(|_| 10),
                refresh_token_hash: refresh,
                now_ms: 1,
            })
            .await
            .unwrap()
            .unwrap()
    }

    async fn refresh(store: &Store, old: &[u8], access: &[u8], new: &[u8]) -> RefreshOutcome {
        let refresh = Refresh {
            token_hash: old,
            access_token_hash: access,
            expires_ts: Some(20),
            refresh_token_hash: new,
            now_ms: 2,
        };
        store.refresh(refresh).await.unwrap()
    }

    /// A refresh token may be traded again while nothing of what it was traded for has been used, and not after.
    #[tokio::test]
    async fn refresh_tokens_rotate() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let nid = alice(&store).await;
            log_in(&store, nid, "A", b"a1", Some(b"r1")).await;
            assert_eq!(refresh(&store, b"none", b"x", b"y").await, RefreshOutcome::Unknown);
            assert_eq!(refresh(&store, b"r1", b"a2", b"r2").await, RefreshOutcome::Refreshed);
            assert!(store.session(b"a1").await.unwrap().is_some(), "the answer may have been lost");
            // Lost: traded once more, and what was given first ends.
            assert_eq!(refresh(&store, b"r1", b"a3", b"r3").await, RefreshOutcome::Refreshed);
            assert!(store.session(b"a2").await.unwrap().is_none());
            assert_eq!(refresh(&store, b"r2", b"x", b"y").await, RefreshOutcome::Unknown);
            // The new access token is used.
            assert!(store.session(b"a3").await.unwrap().unwrap().unconfirmed);
            store.confirm_refresh(b"a3").await.unwrap();
            let session = store.session(b"a3").await.unwrap().unwrap();
            assert_eq!((session.unconfirmed, session.expires_ts), (false, Some(20)));
            assert!(store.session(b"a1").await.unwrap().is_none());
            assert_eq!(refresh(&store, b"r1", b"x", b"y").await, RefreshOutcome::Unknown);
            // The new refresh token is used before its access token.
            assert_eq!(refresh(&store, b"r3", b"a4", b"r4").await, RefreshOutcome::Refreshed);
            assert_eq!(refresh(&store, b"r4", b"a5", b"r5").await, RefreshOutcome::Refreshed);
            assert!(store.session(b"a3").await.unwrap().is_none());
            assert_eq!(refresh(&store, b"r3", b"x", b"y").await, RefreshOutcome::Unknown);
            // A locked account keeps its tokens and gets no new ones.
            assert!(store.set_account_locked(nid, true).await.unwrap());
            assert_eq!(refresh(&store, b"r5", b"x", b"y").await, RefreshOutcome::Locked);
            assert!(store.set_account_locked(nid, false).await.unwrap());
            assert_eq!(refresh(&store, b"r5", b"a6", b"r6").await, RefreshOutcome::Refreshed);
            store.close().await;
        })
        .await;
    }

    /// Of two clients that trade the same token at once, one ends with tokens that work, and no more.
    #[tokio::test]
    async fn refreshes_at_once_leave_one_pair() {
        on_both(async |fresh: &Fresh| {
            let (one, two) = (fresh.open().await, fresh.open().await);
            let nid = alice(&one).await;
            log_in(&one, nid, "A", b"a1", Some(b"r1")).await;
            futures_util::join!(refresh(&one, b"r1", b"a2", b"r2"), refresh(&two, b"r1", b"a3", b"r3"));
            let valid = [one.session(b"a2").await.unwrap(), one.session(b"a3").await.unwrap()];
            assert_eq!(valid.iter().flatten().count(), 1);
            one.close().await;
            two.close().await;
        })
        .await;
    }

    /// Logging in on a known device keeps the device and ends its tokens; removing it ends its tokens.
    #[tokio::test]
    async fn tokens_end_with_their_device() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let nid = alice(&store).await;
            let phone = log_in(&store, nid, "A", b"a1", Some(b"r1")).await;
            assert!(store.rename_device(nid, "A", Some("Mine")).await.unwrap());
            assert!(!store.rename_device(nid, "?", None).await.unwrap());
            assert_eq!(log_in(&store, nid, "A", b"a2", None).await, phone);
            assert!(store.session(b"a1").await.unwrap().is_none());
            assert_eq!(refresh(&store, b"r1", b"x", b"y").await, RefreshOutcome::Unknown);
            assert_eq!(store.device(nid, "A").await.unwrap().unwrap().display_name.as_deref(), Some("Mine"));
            log_in(&store, nid, "B", b"b1", None).await;
            log_in(&store, nid, "C", b"c1", None).await;
            assert_eq!(store.delete_devices(nid, &["B", "?"]).await.unwrap(), ["B"]);
            assert!(store.session(b"b1").await.unwrap().is_none());
            assert!(store.delete_devices(nid + 1000, &["A"]).await.unwrap().is_empty(), "another user's device");
            let seen = |ts, ip: Option<&str>| Sighting { device_nid: phone, ts, ip: ip.map(str::to_owned) };
            store.note_sightings(&[seen(50, Some("192.0.2.1"))]).await.unwrap();
            store.note_sightings(&[seen(40, Some("192.0.2.9")), seen(60, None)]).await.unwrap();
            let device = store.device(nid, "A").await.unwrap().unwrap();
            assert_eq!((device.last_seen_ts, device.last_seen_ip.as_deref()), (60, Some("192.0.2.1")));
            store.set_password(nid, "new", KeepDevices::Only(phone)).await.unwrap();
            let left: Vec<_> = store.devices(nid).await.unwrap().into_iter().map(|device| device.device_id).collect();
            assert_eq!(left, ["A"]);
            assert!(store.session(b"c1").await.unwrap().is_none());
            assert_eq!(store.delete_all_devices(nid).await.unwrap(), ["A"]);
            assert!(store.session(b"a2").await.unwrap().is_none());
            store.close().await;
        })
        .await;
    }

    /// A login token works once, in its time, and not after the password was changed.
    #[tokio::test]
    async fn login_tokens_work_once() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let nid = alice(&store).await;
            store.create_login_token(nid, b"t1", 100, 0).await.unwrap();
            assert_eq!(store.take_login_token(b"t1", 99).await.unwrap().unwrap(), "@alice:example.org");
            assert!(store.take_login_token(b"t1", 99).await.unwrap().is_none());
            store.create_login_token(nid, b"t2", 100, 0).await.unwrap();
            assert!(store.take_login_token(b"t2", 100).await.unwrap().is_none());
            store.create_login_token(nid, b"t3", 100, 0).await.unwrap();
            store.set_password(nid, "new", KeepDevices::All).await.unwrap();
            assert!(store.take_login_token(b"t3", 1).await.unwrap().is_none());
            store.close().await;
        })
        .await;
    }
}
