//! Accounts on a fresh store, for the tests of this crate.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use myelin_store::{Store, testing::Fresh};

use crate::{Accounts, AccountsOptions, Clock, LoggedIn, NewDevice, NewUser, PasswordCost};

pub(crate) const PASSWORD: &str = "correct horse battery staple";
/// So cheap that a test does not wait for it.
pub(crate) const CHEAP: PasswordCost = PasswordCost { memory_kib: 16, passes: 1 };

/// A server's database and clock; each [`Server::accounts`] is a replica.
pub(crate) struct Server {
    store: Arc<Store>,
    now_ms: Arc<AtomicI64>,
}

impl Server {
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn set_time(&self, now_ms: i64) {
        self.now_ms.store(now_ms, Ordering::SeqCst);
    }

    pub(crate) fn time(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    pub(crate) async fn accounts(&self) -> Arc<Accounts> {
        self.accounts_with(|_| {}).await
    }

    pub(crate) async fn accounts_with(&self, change: impl FnOnce(&mut AccountsOptions)) -> Arc<Accounts> {
        let now_ms = self.now_ms.clone();
        let mut options = AccountsOptions {
            password_cost: CHEAP,
            clock: Clock::new(move || now_ms.load(Ordering::SeqCst)),
            ..AccountsOptions::new(ruma::owned_server_name!("example.org"))
        };
        change(&mut options);
        Accounts::open(self.store.clone(), options).await.unwrap()
    }

    /// A user with [`PASSWORD`], logged in.
    pub(crate) async fn user(&self, accounts: &Accounts, username: &str) -> LoggedIn {
        let new = NewUser { username, password: PASSWORD, is_admin: false, display_name: None };
        accounts.create_user(new).await.unwrap();
        accounts.log_in_by_password(username, PASSWORD, NewDevice::default()).await.unwrap()
    }
}

/// Runs a test on each engine that is there.
pub(crate) async fn on_both(test: impl AsyncFn(&Server)) {
    for fresh in Fresh::each().await {
        let server = Server { store: fresh.open().await, now_ms: Arc::new(AtomicI64::new(1_000)) };
        Box::pin(test(&server)).await;
        server.store.close().await;
    }
}
