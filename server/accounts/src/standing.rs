//! What administrators allow an account.

use crate::{Accounts, Result, sessions::Ended};

impl Accounts {
    /// Locks an account, or opens it again, on all replicas. False if there is none.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#account-locking>
    pub async fn set_locked(&self, user_nid: i64, locked: bool) -> Result<bool> {
        let changed = self.store.set_account_locked(user_nid, locked).await?;
        self.forget_sessions(&Ended::User(user_nid));
        Ok(changed)
    }

    /// Suspends an account, or lets it act again, on all replicas. False if there is none.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#account-suspension>
    pub async fn set_suspended(&self, user_nid: i64, suspended: bool) -> Result<bool> {
        let changed = self.store.set_account_suspended(user_nid, suspended).await?;
        self.forget_sessions(&Ended::User(user_nid));
        Ok(changed)
    }
}
