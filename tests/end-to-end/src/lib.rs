//! What the promises to the user are tested with: a private PostgreSQL cluster, the release binary as a child process,
//! and a small client that shows statuses and error codes as they were sent.
//!
//! A test is written once and runs on both databases:
//!
//! ```no_run
//! use myelin_end_to_end::{Engine, Homeserver, on_both_engines};
//!
//! on_both_engines!(whoami);
//!
//! /// A person who registered is who they say.
//! async fn whoami(engine: Engine) {
//!     let server = Homeserver::start(engine).await;
//!     let alice = server.register("alice").await;
//!     let answer = alice.get("account/whoami").await.ok();
//!     assert_eq!(answer["user_id"], alice.user_id());
//! }
//! # fn main() {}
//! ```

mod api;
mod demo;
mod federation;
mod homeserver;
mod postgres;
mod process;
mod synapse;

use std::{future::Future, time::Duration};

pub use api::{Answer, Api, Person, encode, http};
pub use demo::Demo;
pub use federation::{Authority, Gate, Peer};
pub use homeserver::{Exit, Homeserver, SERVER_NAME, SHARED_SECRET, Setup, binary};
pub use postgres::Postgres;
pub use process::{Program, free_port};
pub use reqwest::Method;
pub use synapse::Synapse;

/// The database that a homeserver runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The embedded database.
    Sqlite,
    /// A database of its own in the cluster that the tests of a binary share.
    Postgres,
}

/// How long a whole test may take before it is called hung.
const TEST_TIMEOUT: Duration = Duration::from_secs(240);

/// Runs one test on a runtime of its own, and fails it when it hangs.
pub fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("start a runtime");
    runtime.block_on(async {
        tokio::time::timeout(TEST_TIMEOUT, test)
            .await
            .unwrap_or_else(|_| panic!("the test is not done after {TEST_TIMEOUT:?}"));
    });
}

/// Asks `probe` until it gives a value, and fails after `deadline`, naming `what` was waited for.
pub async fn eventually<T, F>(what: &str, deadline: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let wait = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(deadline, wait).await.unwrap_or_else(|_| panic!("{what}: not so after {deadline:?}"))
}

/// Makes two tests, `NAME::sqlite` and `NAME::postgres`, of each named `async fn NAME(engine: Engine)`.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                $crate::run(super::$name($crate::Engine::Sqlite));
            }

            #[test]
            fn postgres() {
                $crate::run(super::$name($crate::Engine::Postgres));
            }
        }
    )+};
}
