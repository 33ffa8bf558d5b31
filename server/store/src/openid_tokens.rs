//! Tokens by which users prove to other services who they are: by their hashes, never as they are.

use ruma::{OwnedUserId, UserId};

use crate::{
    Error, Result, Store,
    accounts::LOCK_ACTIVE_ACCOUNT,
    sql::{execute, optional},
};

/// Tokens of one user that are valid at a time; of more, those that end first go.
pub const OPENID_TOKENS_MAX: i64 = 100;

impl Store {
    /// Keeps a token of a user; those that have ended go. `false` if the account is not active.
    pub async fn create_openid_token(
        &self,
        user_nid: i64,
        token_hash: &[u8],
        expires_ts: i64,
        now_ms: i64,
    ) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let active: Option<(i64,)> = optional!(transaction, LOCK_ACTIVE_ACCOUNT, user_nid)?;
        if active.is_none() {
            return Ok(false);
        }
        execute!(transaction, "DELETE FROM openid_tokens WHERE expires_ts <= $1", now_ms)?;
        execute!(
            transaction,
            "DELETE FROM openid_tokens WHERE user_nid = $1 AND token_hash NOT IN
             (SELECT token_hash FROM openid_tokens WHERE user_nid = $1 ORDER BY expires_ts DESC, token_hash LIMIT $2)",
            user_nid,
            OPENID_TOKENS_MAX - 1
        )?;
        execute!(
            transaction,
            "INSERT INTO openid_tokens (token_hash, user_nid, expires_ts) VALUES ($1, $2, $3)",
            token_hash,
            user_nid,
            expires_ts
        )?;
        transaction.commit().await?;
        Ok(true)
    }

    /// The user that a token stands for, while it is valid and the account is one that may do something.
    pub async fn openid_user(&self, token_hash: &[u8], now_ms: i64) -> Result<Option<OwnedUserId>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> = optional!(
            reader,
            "SELECT u.user_id FROM openid_tokens t
             JOIN users u ON u.user_nid = t.user_nid
             JOIN accounts a ON a.user_nid = t.user_nid
             WHERE t.token_hash = $1 AND t.expires_ts > $2 AND a.deactivated_ts IS NULL AND NOT a.locked",
            token_hash,
            now_ms
        )?;
        let user = found.map(|(user_id,)| UserId::parse(user_id).map_err(|_| Error::Corrupt { what: "user id" }));
        user.transpose()
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::OPENID_TOKENS_MAX;
    use crate::{
        AccountCreation, NewAccount, Store,
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

    /// A token stands for its user until it ends, or the account does; there are only so many.
    #[tokio::test]
    async fn tokens_stand_for_users() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let nid = alice(&store).await;
            let user = async |hash: &[u8], now| store.openid_user(hash, now).await.unwrap();
            assert!(store.create_openid_token(nid, b"a", 10, 1).await.unwrap());
            assert_eq!(user(b"a", 9).await.unwrap(), user_id!("@alice:example.org"));
            assert_eq!((user(b"a", 10).await, user(b"b", 1).await), (None, None));
            assert!(store.set_account_locked(nid, true).await.unwrap());
            assert_eq!(user(b"a", 9).await, None);
            assert!(store.set_account_locked(nid, false).await.unwrap());
            for number in 0..OPENID_TOKENS_MAX {
                assert!(store.create_openid_token(nid, &[1, number as u8], 100 + number, 1).await.unwrap());
            }
            assert_eq!(user(b"a", 9).await, None, "it was the oldest of too many");
            assert!(user(&[1, 0], 9).await.is_some() && user(&[1, 99], 9).await.is_some());
            assert!(!store.create_openid_token(nid + 1000, b"x", 10, 1).await.unwrap(), "there is no such account");
            store.close().await;
        })
        .await;
    }
}
