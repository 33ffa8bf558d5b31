//! Our own users.

use std::sync::Arc;

use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Result, Store,
    sql::{Sql, execute, optional, row},
};

/// One of our own users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The password, hashed, in the PHC format. Without one, nobody logs in by password.
    pub password_hash: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ts: i64,
    /// True for an operator.
    pub is_admin: bool,
    /// True for a guest.
    pub is_guest: bool,
    /// When it was deactivated, in milliseconds since 1970. There is no way back.
    pub deactivated_ts: Option<i64>,
    /// True while it may do nothing.
    pub locked: bool,
    /// True while it may only read.
    pub suspended: bool,
    /// True when its owner asked for its events to be shown redacted to those who join later.
    pub erased: bool,
}

type AccountRow = (i64, Option<String>, i64, bool, bool, Option<i64>, bool, bool, bool);

/// An account that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewAccount<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The password, hashed, in the PHC format.
    pub password_hash: Option<&'a str>,
    /// True for an operator.
    pub is_admin: bool,
    /// True for a guest.
    pub is_guest: bool,
    /// A token that is used up by this: one of [`Store::create_registration_token`].
    pub registration_token: Option<&'a str>,
    /// The time in milliseconds since 1970.
    pub now_ms: i64,
}

/// What came of a new account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountCreation {
    /// It is there: the user's number.
    Created(i64),
    /// The name was taken, now or by an account that is deactivated.
    NameTaken,
    /// The registration token is unknown, used up or expired.
    TokenRefused,
}

impl Store {
    /// Makes an account.
    pub async fn create_account(&self, new: NewAccount<'_>) -> Result<AccountCreation> {
        let user_nid = self.user_nid(new.user_id).await?;
        let mut transaction = self.database.begin().await?;
        if let Some(token) = new.registration_token {
            let used = execute!(
                transaction,
                "UPDATE registration_tokens SET completed = completed + 1
                 WHERE token = $1 AND (uses_allowed IS NULL OR completed < uses_allowed)
                   AND (expires_ts IS NULL OR expires_ts > $2)",
                token,
                new.now_ms
            )?;
            if used != 1 {
                return Ok(AccountCreation::TokenRefused);
            }
        }
        let created = execute!(
            transaction,
            "INSERT INTO accounts (user_nid, password_hash, created_ts, is_admin, is_guest)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_nid) DO NOTHING",
            user_nid,
            new.password_hash,
            new.now_ms,
            new.is_admin,
            new.is_guest
        )?;
        if created != 1 {
            return Ok(AccountCreation::NameTaken);
        }
        transaction.commit().await?;
        Ok(AccountCreation::Created(user_nid))
    }

    /// One of our own users, deactivated or not.
    pub async fn account(&self, user_id: &UserId) -> Result<Option<Account>> {
        let Some(user_nid) = self.known_user_nid(user_id).await? else { return Ok(None) };
        let mut reader = self.database.reader().await?;
        let found: Option<AccountRow> = optional!(
            reader,
            "SELECT user_nid, password_hash, created_ts, is_admin, is_guest, deactivated_ts, locked, suspended, erased
             FROM accounts WHERE user_nid = $1",
            user_nid
        )?;
        Ok(found.map(|row| {
            let (user_nid, password_hash, created_ts, is_admin, is_guest, deactivated_ts, locked, suspended, erased) =
                row;
            Account {
                user_nid,
                user_id: user_id.to_owned(),
                password_hash,
                created_ts,
                is_admin,
                is_guest,
                deactivated_ts,
                locked,
                suspended,
                erased,
            }
        }))
    }

    /// Sets a password, and removes all devices but those that are kept.
    pub async fn set_password(self: &Arc<Self>, user_nid: i64, password_hash: &str, keep: KeepDevices) -> Result<()> {
        let audience = self.own_audience(user_nid).await?;
        let password_hash = password_hash.to_owned();
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let changed = execute!(
                    write.transaction,
                    "UPDATE accounts SET password_hash = $2 WHERE user_nid = $1 AND deactivated_ts IS NULL",
                    user_nid,
                    &*password_hash
                )?;
                if changed != 1 {
                    return Err(Error::Missing { what: "active account" });
                }
                // Whoever got a login token by the old password must not come in by it.
                execute!(write.transaction, "DELETE FROM login_tokens WHERE user_nid = $1", user_nid)?;
                let kept = match keep {
                    KeepDevices::All => return Ok(()),
                    KeepDevices::Only(device_nid) => Some(device_nid),
                    KeepDevices::None => None,
                };
                write.delete_devices_but(user_nid, kept, &audience).await.map(drop)
            })
        })
        .await
    }

    /// Ends an account for good: no password, no devices, no tokens, no keys; with `erase`, no profile and no account
    /// data either.
    ///
    /// False if there is no such account or it has ended before.
    pub async fn deactivate_account(self: &Arc<Self>, user_nid: i64, erase: bool, now_ms: i64) -> Result<bool> {
        let audience = self.own_audience(user_nid).await?;
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let changed = execute!(
                    write.transaction,
                    "UPDATE accounts SET password_hash = NULL, deactivated_ts = $2, erased = $3
                     WHERE user_nid = $1 AND deactivated_ts IS NULL",
                    user_nid,
                    now_ms,
                    erase
                )?;
                if changed != 1 {
                    return Ok(false);
                }
                write.delete_devices_but(user_nid, None, &audience).await?;
                write.delete_own_keys(user_nid).await?;
                execute!(write.transaction, "DELETE FROM login_tokens WHERE user_nid = $1", user_nid)?;
                execute!(write.transaction, "DELETE FROM filters WHERE user_nid = $1", user_nid)?;
                if erase {
                    execute!(write.transaction, "DELETE FROM profile_fields WHERE user_nid = $1", user_nid)?;
                    execute!(write.transaction, "DELETE FROM account_data WHERE user_nid = $1", user_nid)?;
                }
                Ok(true)
            })
        })
        .await
    }

    /// Locks an account or opens it again. False if there is none.
    pub async fn set_account_locked(&self, user_nid: i64, locked: bool) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let changed = execute!(transaction, "UPDATE accounts SET locked = $2 WHERE user_nid = $1", user_nid, locked)?;
        transaction.commit().await?;
        Ok(changed == 1)
    }

    /// Suspends an account or lets it go on. False if there is none.
    pub async fn set_account_suspended(&self, user_nid: i64, suspended: bool) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let changed =
            execute!(transaction, "UPDATE accounts SET suspended = $2 WHERE user_nid = $1", user_nid, suspended)?;
        transaction.commit().await?;
        Ok(changed == 1)
    }

    /// The registration token made at the first start: `candidate` then, and the same one ever after.
    pub async fn default_registration_token(&self, candidate: &str) -> Result<String> {
        self.database.pin("registration_token", candidate).await
    }

    /// Adds a registration token. False if there is one of that name.
    pub async fn create_registration_token(
        &self,
        token: &str,
        uses_allowed: Option<i64>,
        expires_ts: Option<i64>,
    ) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let created = execute!(
            transaction,
            "INSERT INTO registration_tokens (token, uses_allowed, expires_ts) VALUES ($1, $2, $3)
             ON CONFLICT (token) DO NOTHING",
            token,
            uses_allowed,
            expires_ts
        )?;
        transaction.commit().await?;
        Ok(created == 1)
    }

    /// True when a token of [`Store::create_registration_token`] could be used now.
    pub async fn is_registration_token_valid(&self, token: &str, now_ms: i64) -> Result<bool> {
        let mut reader = self.database.reader().await?;
        let (count,): (i64,) = row!(
            reader,
            "SELECT COUNT(*) FROM registration_tokens
             WHERE token = $1 AND (uses_allowed IS NULL OR completed < uses_allowed)
               AND (expires_ts IS NULL OR expires_ts > $2)",
            token,
            now_ms
        )?;
        Ok(count == 1)
    }
}

/// Which devices stay logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepDevices {
    /// Every one.
    All,
    /// One, by its number.
    Only(i64),
    /// None.
    None,
}

/// Locks a row for the rest of the transaction; an embedded database has one writer anyway.
pub(crate) const LOCK_ACTIVE_ACCOUNT: Sql = Sql {
    sqlite: "SELECT user_nid FROM accounts WHERE user_nid = $1 AND deactivated_ts IS NULL",
    postgres: "SELECT user_nid FROM accounts WHERE user_nid = $1 AND deactivated_ts IS NULL FOR UPDATE",
};

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::{AccountCreation, KeepDevices, NewAccount};
    use crate::{
        LogIn,
        testing::{Fresh, on_both},
    };

    fn new<'a>(user_id: &'a ruma::UserId, registration_token: Option<&'a str>) -> NewAccount<'a> {
        NewAccount {
            user_id,
            password_hash: Some("hash"),
            is_admin: false,
            is_guest: false,
            registration_token,
            now_ms: 1000,
        }
    }

    /// A name is given out once, and a refused account uses up no registration token.
    #[tokio::test]
    async fn names_and_tokens_are_given_out_once() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let (alice, bob, carol) =
                (user_id!("@alice:example.org"), user_id!("@bob:example.org"), user_id!("@carol:example.org"));
            assert!(store.create_registration_token("twice", Some(2), None).await.unwrap());
            assert!(!store.create_registration_token("twice", Some(9), None).await.unwrap());
            assert!(store.create_registration_token("old", None, Some(1000)).await.unwrap());
            let AccountCreation::Created(nid) = store.create_account(new(alice, Some("twice"))).await.unwrap() else {
                panic!("the name is free");
            };
            assert_eq!(store.account(alice).await.unwrap().unwrap().user_nid, nid);
            assert_eq!(store.create_account(new(alice, Some("twice"))).await.unwrap(), AccountCreation::NameTaken);
            assert!(store.is_registration_token_valid("twice", 1000).await.unwrap(), "one use is left");
            for refused in ["old", "unknown"] {
                let outcome = store.create_account(new(bob, Some(refused))).await.unwrap();
                assert_eq!(outcome, AccountCreation::TokenRefused);
                assert!(!store.is_registration_token_valid(refused, 1000).await.unwrap());
            }
            assert!(matches!(
                store.create_account(new(bob, Some("twice"))).await.unwrap(),
                AccountCreation::Created(_)
            ));
            assert_eq!(store.create_account(new(carol, Some("twice"))).await.unwrap(), AccountCreation::TokenRefused);
            assert!(store.account(carol).await.unwrap().is_none());
            store.close().await;
        })
        .await;
    }

    /// The end of an account takes its devices and tokens with it, keeps its name taken, and happens once.
    #[tokio::test]
    async fn deactivation_is_final() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let alice = user_id!("@alice:example.org");
            let AccountCreation::Created(nid) = store.create_account(new(alice, None)).await.unwrap() else {
                panic!("the name is free");
            };
            let login = |hash: &'static [u8]| LogIn {
                user_nid: nid,
                device_id: "A",
                initial_display_name: None,
                access_token_hash: hash,
                expires_ts: None,
                refresh_token_hash: None,
                now_ms: 1,
            };
            store.log_in(login(b"one")).await.unwrap().unwrap();
            assert!(store.set_profile_field(nid, "displayname", "\"Alice\"", 1000).await.unwrap());
            for room_nid in [0, 7] {
                let keep = |_: Option<&str>| Some("{}".to_owned());
                store.change_account_data(nid, room_nid, "org.example", keep).await.unwrap();
            }
            assert!(store.deactivate_account(nid, true, 5).await.unwrap());
            assert!(store.account_data_since(nid, 0, i64::MAX).await.unwrap().is_empty());
            assert!(!store.deactivate_account(nid, false, 6).await.unwrap());
            let account = store.account(alice).await.unwrap().unwrap();
            assert_eq!((account.deactivated_ts, account.erased, account.password_hash), (Some(5), true, None));
            assert!(store.session(b"one").await.unwrap().is_none());
            assert!(store.devices(nid).await.unwrap().is_empty());
            assert!(store.profile(nid).await.unwrap().is_empty());
            assert!(store.log_in(login(b"two")).await.unwrap().is_none(), "nobody logs in any more");
            assert!(store.set_password(nid, "x", KeepDevices::All).await.is_err());
            assert_eq!(store.create_account(new(alice, None)).await.unwrap(), AccountCreation::NameTaken);
            store.close().await;
        })
        .await;
    }

    /// The token of the first start stays.
    #[tokio::test]
    async fn default_registration_token_is_kept() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            assert_eq!(store.default_registration_token("first").await.unwrap(), "first");
            assert_eq!(store.default_registration_token("second").await.unwrap(), "first");
            store.close().await;
        })
        .await;
    }
}
