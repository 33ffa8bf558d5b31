//! One way to write a query for both engines.
//!
//! A statement is written once, with `$1`, `$2`, … as parameters, and runs on either engine through
//! [`rows!`], [`row!`], [`optional!`] or [`execute!`]. Where the dialects differ, a [`Sql`] holds the two
//! strings side by side.

use sqlx::{
    Encode, Postgres, Sqlite, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgTypeInfo},
    sqlite::{SqliteArgumentsBuffer, SqliteTypeInfo},
};

/// A statement in both dialects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self { sqlite: text, postgres: text }
    }
}

/// A statement with one list parameter: `listed!("SELECT … WHERE room_nid ", "$1", " ORDER BY …")`.
///
/// The list is bound as [`Ids`] or [`Texts`].
macro_rules! listed {
    ($before:literal, $parameter:literal, $after:literal) => {
        $crate::sql::Sql {
            sqlite: concat!($before, "IN (SELECT value FROM json_each(", $parameter, "))", $after),
            postgres: concat!($before, "= ANY(", $parameter, ")", $after),
        }
    };
}

macro_rules! run {
    ($on:expr, $fetch:ident, $query:expr, ($($arg:expr),*)) => {{
        let sql = $crate::sql::Sql::from($query);
        match $on.engine() {
            $crate::database::Engine::Sqlite(connection) => {
                sqlx::query_as(sql.sqlite)$(.bind($arg))*.$fetch(connection).await
            }
            $crate::database::Engine::Postgres(connection) => {
                sqlx::query_as(sql.postgres)$(.bind($arg))*.$fetch(connection).await
            }
        }
    }};
}

/// All rows, as a `Vec` of tuples.
macro_rules! rows {
    ($on:expr, $query:expr $(, $arg:expr)* $(,)?) => { $crate::sql::run!($on, fetch_all, $query, ($($arg),*)) };
}

/// Exactly one row.
macro_rules! row {
    ($on:expr, $query:expr $(, $arg:expr)* $(,)?) => { $crate::sql::run!($on, fetch_one, $query, ($($arg),*)) };
}

/// One row, or none.
macro_rules! optional {
    ($on:expr, $query:expr $(, $arg:expr)* $(,)?) => { $crate::sql::run!($on, fetch_optional, $query, ($($arg),*)) };
}

/// The number of rows that a statement changed.
macro_rules! execute {
    ($on:expr, $query:expr $(, $arg:expr)* $(,)?) => {{
        let sql = $crate::sql::Sql::from($query);
        match $on.engine() {
            $crate::database::Engine::Sqlite(connection) => {
                sqlx::query(sql.sqlite)$(.bind($arg))*.execute(connection).await.map(|done| done.rows_affected())
            }
            $crate::database::Engine::Postgres(connection) => {
                sqlx::query(sql.postgres)$(.bind($arg))*.execute(connection).await.map(|done| done.rows_affected())
            }
        }
    }};
}

pub(crate) use {execute, listed, optional, row, rows, run};

/// Rows for SQLite as one parameter: `json_each($1) AS w`, `w.value->>0`, `w.value->>1`, … Joining several lists by
/// their keys would cost the product of their lengths.
pub(crate) fn json_rows<R: serde::Serialize>(rows: &[R]) -> String {
    serde_json::to_string(rows).expect("tuples of numbers and texts are JSON")
}

/// A list of numbers as one parameter: an array in PostgreSQL, JSON text in SQLite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids<'a>(pub(crate) &'a [i64]);

impl Type<Sqlite> for Ids<'_> {
    fn type_info() -> SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }
}

impl<'q> Encode<'q, Sqlite> for Ids<'_> {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        let mut text = String::with_capacity(2 + self.0.len() * 8);
        text.push('[');
        for (place, id) in self.0.iter().enumerate() {
            if place > 0 {
                text.push(',');
            }
            text.push_str(&id.to_string());
        }
        text.push(']');
        <String as Encode<'q, Sqlite>>::encode(text, buffer)
    }
}

impl Type<Postgres> for Ids<'_> {
    fn type_info() -> PgTypeInfo {
        <[i64] as Type<Postgres>>::type_info()
    }
}

impl<'q> Encode<'q, Postgres> for Ids<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <&[i64] as Encode<'_, Postgres>>::encode_by_ref(&self.0, buffer)
    }
}

/// A list of texts as one parameter: an array in PostgreSQL, JSON text in SQLite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Texts<'a>(pub(crate) &'a [&'a str]);

impl Type<Sqlite> for Texts<'_> {
    fn type_info() -> SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }
}

impl<'q> Encode<'q, Sqlite> for Texts<'_> {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        <String as Encode<'q, Sqlite>>::encode(serde_json::to_string(self.0)?, buffer)
    }
}

impl Type<Postgres> for Texts<'_> {
    fn type_info() -> PgTypeInfo {
        <[&str] as Type<Postgres>>::type_info()
    }
}

impl<'q> Encode<'q, Postgres> for Texts<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <&[&str] as Encode<'_, Postgres>>::encode_by_ref(&self.0, buffer)
    }
}
