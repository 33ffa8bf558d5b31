//! The two engines behind one door: connecting, transactions, migrations.

use std::{
    str::FromStr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tracing::info;

use crate::{
    Error, Result,
    sql::{execute, optional, row},
};

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The number by which replicas agree that one of them migrates (`pg_try_advisory_lock`).
const MIGRATION_LOCK: i64 = 0x6d79_656c_696e;
/// How long a replica waits for another one's migration.
const MIGRATION_WAIT: Duration = Duration::from_secs(600);

/// How to reach the database.
#[derive(Clone, Debug)]
pub struct DatabaseOptions {
    /// `sqlite:///path/to/file.db` or `postgres://user:password@host/name`.
    pub url: String,
    /// The upper bound of open connections.
    pub max_connections: u32,
    /// How long a caller waits for a free connection.
    pub acquire_timeout: Duration,
}

impl DatabaseOptions {
    /// Options with the default bounds: 16 connections, 10 seconds.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), max_connections: 16, acquire_timeout: Duration::from_secs(10) }
    }
}

/// A database of either engine.
#[derive(Clone, Debug)]
pub enum Database {
    /// Embedded: many readers, one writer.
    Sqlite {
        /// Connections that only read.
        readers: SqlitePool,
        /// The one connection that writes.
        writer: SqlitePool,
    },
    /// A PostgreSQL server, version 15 or newer.
    Postgres {
        /// The connections.
        pool: PgPool,
        /// Connections made before this moment, in milliseconds from the first one, are not used any more.
        distrusted: Arc<AtomicU64>,
    },
}

/// One connection, of either engine.
pub(crate) enum Engine<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

/// A connection borrowed from the pool, for reading.
pub(crate) enum Reader {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

impl Reader {
    pub(crate) fn engine(&mut self) -> Engine<'_> {
        match self {
            Self::Sqlite(connection) => Engine::Sqlite(&mut *connection),
            Self::Postgres(connection) => Engine::Postgres(&mut *connection),
        }
    }
}

/// A transaction that writes. Dropped without [`Transaction::commit`], it is rolled back.
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    pub(crate) fn engine(&mut self) -> Engine<'_> {
        match self {
            Self::Sqlite(transaction) => Engine::Sqlite(&mut *transaction),
            Self::Postgres(transaction) => Engine::Postgres(&mut *transaction),
        }
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await?,
            Self::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }
}

/// Milliseconds since this was first asked.
fn uptime_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

impl Database {
    /// Connects. An embedded database is created where there is none, with its folder.
    pub async fn connect(options: &DatabaseOptions) -> Result<Self> {
        if options.url.starts_with("sqlite:") {
            Self::connect_sqlite(options).await
        } else if options.url.starts_with("postgres:") || options.url.starts_with("postgresql:") {
            Self::connect_postgres(options).await
        } else {
            Err(Error::UnknownEngine)
        }
    }

    async fn connect_sqlite(options: &DatabaseOptions) -> Result<Self> {
        let connect = SqliteConnectOptions::from_str(&options.url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged write survives a power cut, not only the end of the process.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10))
            .pragma("temp_store", "memory")
            .pragma("cache_size", "-4096")
            .pragma("wal_autocheckpoint", "4000")
            .pragma("journal_size_limit", "67108864")
            .optimize_on_close(true, None);
        if let Some(folder) = connect.get_filename().parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|source| Error::CreateFolder { folder: folder.to_owned(), source })?;
        }
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .acquire_timeout(options.acquire_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(connect.clone())
            .await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(options.max_connections.clamp(1, 8))
            .acquire_timeout(options.acquire_timeout)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(connect.pragma("query_only", "true"))
            .await?;
        Ok(Self::Sqlite { readers, writer })
    }

    async fn connect_postgres(options: &DatabaseOptions) -> Result<Self> {
        let connect =
            PgConnectOptions::from_str(&options.url)?.application_name("myelin").statement_cache_capacity(256);
        let distrusted = Arc::new(AtomicU64::new(uptime_ms()));
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections.max(2))
            .acquire_timeout(options.acquire_timeout)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(Duration::from_secs(3600))
            // A dead connection is noticed by its first query; asking first would double the round trips.
            .test_before_acquire(false)
            .before_acquire({
                let distrusted = distrusted.clone();
                move |_, metadata| {
                    let made = uptime_ms().saturating_sub(metadata.age.as_millis() as u64);
                    let is_trusted = made >= distrusted.load(Ordering::Acquire);
                    Box::pin(async move { Ok(is_trusted) })
                }
            })
            .connect_with(connect)
            .await?;
        Ok(Self::Postgres { pool, distrusted })
    }

    pub(crate) async fn reader(&self) -> Result<Reader> {
        Ok(match self {
            Self::Sqlite { readers, .. } => Reader::Sqlite(readers.acquire().await?),
            Self::Postgres { pool, .. } => Reader::Postgres(pool.acquire().await?),
        })
    }

    pub(crate) async fn begin(&self) -> Result<Transaction> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Transaction::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres { pool, .. } => Transaction::Postgres(pool.begin().await?),
        })
    }

    /// Uses none of the connections any more that there are now: the server may have vanished without a word.
    pub(crate) fn distrust_connections(&self) {
        if let Self::Postgres { distrusted, .. } = self {
            distrusted.store(uptime_ms(), Ordering::Release);
        }
    }

    /// True when a trivial query is answered.
    pub async fn is_reachable(&self) -> bool {
        let Ok(mut reader) = self.reader().await else { return false };
        let answer: Result<(i64,), sqlx::Error> = row!(reader, "SELECT pos FROM stream WHERE id = 1");
        answer.is_ok()
    }

    /// Open connections, and how many of them are idle.
    pub fn connections(&self) -> (u32, usize) {
        match self {
            Self::Sqlite { readers, writer } => {
                (readers.size() + writer.size(), readers.num_idle() + writer.num_idle())
            }
            Self::Postgres { pool, .. } => (pool.size(), pool.num_idle()),
        }
    }

    /// `sqlite` or `postgres`.
    pub fn engine_name(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
        }
    }

    /// Brings the schema up to this binary's, or refuses a database that is newer.
    ///
    /// Several replicas may call this at once. sqlx's own lock waits inside a query, whose snapshot a
    /// `CREATE INDEX CONCURRENTLY` of another replica would wait for in turn; hence a lock that is polled.
    pub(crate) async fn migrate(&self) -> Result<()> {
        let outcome = match self {
            Self::Sqlite { writer, .. } => SQLITE_MIGRATIONS.run(writer).await,
            Self::Postgres { pool, .. } => {
                let mut connection = pool.acquire().await?.detach();
                let deadline = tokio::time::Instant::now() + MIGRATION_WAIT;
                loop {
                    let (locked,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_lock($1)")
                        .bind(MIGRATION_LOCK)
                        .fetch_one(&mut connection)
                        .await?;
                    if locked {
                        break;
                    }
                    if tokio::time::Instant::now() > deadline {
                        return Err(Error::MigrationLock);
                    }
                    info!("another replica migrates the database; waiting for it");
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                let mut migrations = Migrator::with_migrations(POSTGRES_MIGRATIONS.migrations.to_vec());
                migrations.set_locking(false);
                // The lock goes with the connection.
                migrations.run(&mut connection).await
            }
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(MigrateError::VersionMissing(version)) => Err(Error::NewerDatabase { version }),
            Err(source) => Err(Error::Migrate(source)),
        }
    }

    /// Remembers a fact about the installation at its first start; answers what is remembered.
    pub(crate) async fn pin(&self, key: &str, value: &str) -> Result<String> {
        let mut transaction = self.begin().await?;
        execute!(
            transaction,
            "INSERT INTO instance (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
            key,
            value
        )?;
        let (pinned,): (String,) = row!(transaction, "SELECT value FROM instance WHERE key = $1", key)?;
        transaction.commit().await?;
        Ok(pinned)
    }

    /// A fact about the installation, if it was ever set.
    pub async fn instance(&self, key: &str) -> Result<Option<String>> {
        let mut reader = self.reader().await?;
        let value: Option<(String,)> = optional!(reader, "SELECT value FROM instance WHERE key = $1", key)?;
        Ok(value.map(|(value,)| value))
    }

    /// How often [`Database::bump`] was called.
    pub(crate) async fn count_of(&self, key: &str) -> Result<i64> {
        let count = self.instance(key).await?;
        Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    /// Adds one to a number about the installation.
    pub(crate) async fn bump(&self, key: &str) -> Result<()> {
        let mut transaction = self.begin().await?;
        execute!(
            transaction,
            "INSERT INTO instance (key, value) VALUES ($1, '1')
             ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(instance.value AS BIGINT) + 1 AS TEXT)",
            key
        )?;
        transaction.commit().await
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { readers, writer } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres { pool, .. } => pool.close().await,
        }
    }
}
