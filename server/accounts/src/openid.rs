//! Tokens by which users prove to other services who they are.

use std::time::Duration;

use ruma::OwnedUserId;

use crate::{Accounts, Error, Result, Session, tokens, tokens::Token};

/// How long such a token lives: it is used at once.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A token that proves who its user is, and nothing else.
#[derive(Clone, Debug)]
pub struct OpenIdToken {
    /// The token.
    pub token: String,
    /// How long it lives.
    pub expires_in: Duration,
}

impl Accounts {
    /// Makes a token that other services trade for the user's name.
    ///
    /// # Errors
    ///
    /// [`Error::Deactivated`], [`Error::Store`].
    pub async fn create_openid_token(&self, session: &Session) -> Result<OpenIdToken> {
        let token = Token::openid();
        let now_ms = self.now_ms();
        let expires_ts = now_ms + LIFETIME.as_millis() as i64;
        if !self.store.create_openid_token(session.user_nid, &token.hash, expires_ts, now_ms).await? {
            return Err(Error::Deactivated);
        }
        Ok(OpenIdToken { token: token.text, expires_in: LIFETIME })
    }

    /// The user that such a token stands for, while it is valid.
    pub async fn openid_user(&self, token: &str) -> Result<Option<OwnedUserId>> {
        Ok(self.store.openid_user(&tokens::hash(token), self.now_ms()).await?)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Server, on_both};

    /// A token tells who made it, and opens nothing.
    #[tokio::test]
    async fn tokens_tell_who_made_them() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let session = accounts.session(&alice.access_token, None).await.unwrap();
            let made = accounts.create_openid_token(&session).await.unwrap();
            assert_eq!(accounts.openid_user(&made.token).await.unwrap(), Some(session.user_id.clone()));
            assert!(accounts.session(&made.token, None).await.is_err());
            assert_eq!(accounts.openid_user(&alice.access_token).await.unwrap(), None);
        })
        .await;
    }
}
