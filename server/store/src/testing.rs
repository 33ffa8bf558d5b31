//! Fresh stores for tests, on each engine.
//!
//! SQLite always; PostgreSQL where `MYELIN_TEST_POSTGRES_URL` names a server on which databases may be made.
//! Other crates have this with the feature `testing`.

use std::{str::FromStr, sync::Arc};

use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

use crate::{DatabaseOptions, Store, StoreOptions};

/// The server name of the stores.
pub const SERVER_NAME: &str = "example.org";
/// The variable that names a PostgreSQL server to test on.
pub const POSTGRES_URL: &str = "MYELIN_TEST_POSTGRES_URL";

/// A database that nobody has used yet. Dropped, it is gone.
#[derive(Debug)]
pub struct Fresh {
    url: String,
    _folder: Option<TempDir>,
    postgres: Option<(PgConnectOptions, String)>,
}

impl Fresh {
    /// An embedded database in a folder of its own.
    ///
    /// # Panics
    ///
    /// If there is no folder for temporary files.
    #[must_use]
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files can be made");
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        Self { url, _folder: Some(folder), postgres: None }
    }

    /// A database of its own on the PostgreSQL server for tests, if there is one.
    ///
    /// # Panics
    ///
    /// If the server is named and does not make the database.
    pub async fn postgres() -> Option<Self> {
        let server = std::env::var(POSTGRES_URL).ok()?;
        let options = PgConnectOptions::from_str(&server).expect("the URL of the PostgreSQL server for tests is one");
        let name = format!("myelin_test_{:016x}", rand::random::<u64>());
        let mut connection = PgConnection::connect_with(&options).await.expect("the PostgreSQL server answers");
        run(
            &mut connection,
            format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"),
        )
        .await
        .expect("the PostgreSQL server makes a database");
        let _ = connection.close().await;
        let mut url = url_of(&server);
        url.set_path(&name);
        Some(Self { url: url.into(), _folder: None, postgres: Some((options, name)) })
    }

    /// A fresh database on each engine that is there.
    pub async fn each() -> Vec<Self> {
        let mut all = vec![Self::sqlite()];
        all.extend(Self::postgres().await);
        all
    }

    /// The database's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Opens the store; once more for each replica or restart.
    ///
    /// # Panics
    ///
    /// If the store cannot be opened.
    pub async fn open(&self) -> Arc<Store> {
        let options = StoreOptions {
            database: DatabaseOptions { max_connections: 6, ..DatabaseOptions::new(self.url.clone()) },
            server_name: SERVER_NAME.to_owned(),
            cache_bytes: 8 * 1024 * 1024,
        };
        Store::open(&options).await.expect("a fresh database can be opened")
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let Some((options, name)) = self.postgres.take() else { return };
        // Dropping cannot wait; a thread with its own runtime can.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect_with(&options).await.map_err(std::io::Error::other)?;
                run(&mut connection, format!("DROP DATABASE {name} WITH (FORCE)")).await.map_err(std::io::Error::other)
            })
        });
        if !matches!(dropping.join(), Ok(Ok(()))) {
            tracing::warn!("a test's database was left behind");
        }
    }
}

/// Runs a test on each engine that is there.
pub async fn on_both(test: impl AsyncFn(&Fresh)) {
    for fresh in Fresh::each().await {
        Box::pin(test(&fresh)).await;
    }
}

async fn run(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    // The name in the statement is made here, of hexadecimal digits.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

fn url_of(server: &str) -> url::Url {
    url::Url::parse(server).expect("the URL of the PostgreSQL server for tests is one")
}
