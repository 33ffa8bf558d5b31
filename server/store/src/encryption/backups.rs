//! Key backups.

use crate::{
    Result, Store,
    database::Transaction,
    sql::{Sql, execute, json_rows, optional, row, rows},
};

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its number.
    pub version: i64,
    /// How its keys are encrypted.
    pub algorithm: String,
    /// What that needs to know: a JSON object.
    pub auth_data: String,
    /// Changes with the keys in it.
    pub etag: i64,
    /// How many keys are in it.
    pub count: i64,
}

/// The key of a session, encrypted, in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSession {
    /// The session's room.
    pub room_id: String,
    /// The session.
    pub session_id: String,
    /// The first message that the key decrypts.
    pub first_message_index: i64,
    /// How often it was passed on.
    pub forwarded_count: i64,
    /// Whether the device that backed it up had verified where it comes from.
    pub is_verified: bool,
    /// The key: a JSON object.
    pub session_data: String,
}

/// Which keys of a backup.
#[derive(Clone, Copy, Debug)]
pub enum BackupPart<'a> {
    /// All of them.
    Whole,
    /// Those of a room.
    Room(&'a str),
    /// That of a session in a room.
    Session(&'a str, &'a str),
}

impl BackupPart<'_> {
    fn room(&self) -> Option<&str> {
        match self {
            Self::Whole => None,
            Self::Room(room) | Self::Session(room, _) => Some(room),
        }
    }

    fn session(&self) -> Option<&str> {
        match self {
            Self::Session(_, session) => Some(session),
            Self::Whole | Self::Room(_) => None,
        }
    }
}

/// What came of keys for a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupWrite {
    /// They are there, as far as they are better than those before.
    Written(Backup),
    /// The backup is not the newest one, whose number this is.
    NotCurrent(i64),
    /// There is no such backup.
    Missing,
}

type BackupRow = (i64, String, String, i64, i64);

impl From<BackupRow> for Backup {
    fn from((version, algorithm, auth_data, etag, count): BackupRow) -> Self {
        Self { version, algorithm, auth_data, etag, count }
    }
}

/// Locks the newest backup for the rest of the transaction; an embedded database has one writer anyway.
const LOCK_CURRENT: Sql = Sql {
    sqlite: "SELECT version, algorithm, auth_data, etag, count FROM backups
             WHERE user_nid = $1 AND NOT deleted ORDER BY version DESC LIMIT 1",
    postgres: "SELECT version, algorithm, auth_data, etag, count FROM backups
               WHERE user_nid = $1 AND NOT deleted ORDER BY version DESC LIMIT 1 FOR UPDATE",
};

const LOCK_VERSION: Sql = Sql {
    sqlite: "SELECT version, algorithm, auth_data, etag, count FROM backups
             WHERE user_nid = $1 AND version = $2 AND NOT deleted",
    postgres: "SELECT version, algorithm, auth_data, etag, count FROM backups
               WHERE user_nid = $1 AND version = $2 AND NOT deleted FOR UPDATE",
};

/// Counts those of some sessions that are there: user, version, rows of room and session.
const COUNT_KNOWN: Sql = Sql {
    sqlite: "SELECT COUNT(*) FROM json_each($3) AS w JOIN backup_sessions AS s
               ON s.user_nid = $1 AND s.version = $2 AND s.room_id = w.value->>0 AND s.session_id = w.value->>1",
    postgres: "SELECT COUNT(*) FROM json_array_elements($3::json) AS w(value) JOIN backup_sessions AS s
                 ON s.user_nid = $1 AND s.version = $2 AND s.room_id = w.value->>0 AND s.session_id = w.value->>1",
};

/// "if the keys have different values for is_verified, then it will keep the key that has is_verified set to true; if
/// they have the same values for is_verified, then it will keep the key with a lower first_message_index; and finally,
/// if is_verified and first_message_index are equal, then it will keep the key with a lower forwarded_count."
const PUT_SESSIONS: Sql = Sql {
    sqlite: "INSERT INTO backup_sessions (user_nid, version, room_id, session_id, first_message_index, forwarded_count,
                                          is_verified, session_data)
             SELECT $1, $2, w.value->>0, w.value->>1, w.value->>2, w.value->>3, w.value->>4, w.value->>5
             FROM json_each($3) AS w WHERE TRUE
             ON CONFLICT (user_nid, version, room_id, session_id) DO UPDATE SET
                 first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
                 is_verified = excluded.is_verified, session_data = excluded.session_data
             WHERE (excluded.is_verified AND NOT backup_sessions.is_verified)
                OR (excluded.is_verified = backup_sessions.is_verified
                    AND (excluded.first_message_index < backup_sessions.first_message_index
                         OR (excluded.first_message_index = backup_sessions.first_message_index
                             AND excluded.forwarded_count < backup_sessions.forwarded_count)))",
    postgres: "INSERT INTO backup_sessions (user_nid, version, room_id, session_id, first_message_index,
                                            forwarded_count, is_verified, session_data)
               SELECT $1, $2, w.value->>0, w.value->>1, (w.value->>2)::bigint, (w.value->>3)::bigint,
                      (w.value->>4)::boolean, w.value->>5
               FROM json_array_elements($3::json) AS w(value)
               ON CONFLICT (user_nid, version, room_id, session_id) DO UPDATE SET
                   first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
                   is_verified = excluded.is_verified, session_data = excluded.session_data
               WHERE (excluded.is_verified AND NOT backup_sessions.is_verified)
                  OR (excluded.is_verified = backup_sessions.is_verified
                      AND (excluded.first_message_index < backup_sessions.first_message_index
                           OR (excluded.first_message_index = backup_sessions.first_message_index
                               AND excluded.forwarded_count < backup_sessions.forwarded_count)))",
};

impl Store {
    /// Makes a backup, the newest one from now on; answers its number.
    pub async fn create_backup(&self, user_nid: i64, algorithm: &str, auth_data: &str) -> Result<i64> {
        let lock = Sql {
            sqlite: "SELECT user_nid FROM users WHERE user_nid = $1",
            postgres: "SELECT user_nid FROM users WHERE user_nid = $1 FOR NO KEY UPDATE",
        };
        let mut transaction = self.database.begin().await?;
        let _: (i64,) = row!(transaction, lock, user_nid)?;
        let (version,): (i64,) = row!(
            transaction,
            "INSERT INTO backups (user_nid, version, algorithm, auth_data)
             SELECT $1, COALESCE(MAX(version), 0) + 1, $2, $3 FROM backups WHERE user_nid = $1 RETURNING version",
            user_nid,
            algorithm,
            auth_data
        )?;
        transaction.commit().await?;
        Ok(version)
    }

    /// A backup, or the newest one.
    pub async fn backup(&self, user_nid: i64, version: Option<i64>) -> Result<Option<Backup>> {
        let mut reader = self.database.reader().await?;
        let found: Option<BackupRow> = optional!(
            reader,
            "SELECT version, algorithm, auth_data, etag, count FROM backups
             WHERE user_nid = $1 AND ($2 IS NULL OR version = $2) AND NOT deleted ORDER BY version DESC LIMIT 1",
            user_nid,
            version
        )?;
        Ok(found.map(Backup::from))
    }

    /// Replaces what a backup's algorithm needs to know. False if there is no such backup.
    pub async fn set_backup_auth_data(&self, user_nid: i64, version: i64, auth_data: &str) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let changed = execute!(
            transaction,
            "UPDATE backups SET auth_data = $3 WHERE user_nid = $1 AND version = $2 AND NOT deleted",
            user_nid,
            version,
            auth_data
        )?;
        transaction.commit().await?;
        Ok(changed == 1)
    }

    /// Removes a backup with its keys. Its number is not given out again. False if there is no such backup.
    pub async fn delete_backup(&self, user_nid: i64, version: i64) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let changed = execute!(
            transaction,
            "UPDATE backups SET deleted = TRUE, count = 0, auth_data = '{}'
             WHERE user_nid = $1 AND version = $2 AND NOT deleted",
            user_nid,
            version
        )?;
        execute!(transaction, "DELETE FROM backup_sessions WHERE user_nid = $1 AND version = $2", user_nid, version)?;
        transaction.commit().await?;
        Ok(changed == 1)
    }

    /// Adds keys to the newest backup, as far as they are better than those that are there.
    pub async fn put_backup_sessions(
        &self,
        user_nid: i64,
        version: i64,
        sessions: &[BackupSession],
    ) -> Result<BackupWrite> {
        let mut transaction = self.database.begin().await?;
        let current: Option<BackupRow> = optional!(transaction, LOCK_CURRENT, user_nid)?;
        let Some(mut backup) = current.map(Backup::from) else { return Ok(BackupWrite::Missing) };
        if backup.version != version {
            return Ok(BackupWrite::NotCurrent(backup.version));
        }
        let names: Vec<(&str, &str)> =
            sessions.iter().map(|session| (&*session.room_id, &*session.session_id)).collect();
        let (known,): (i64,) = row!(transaction, COUNT_KNOWN, user_nid, version, json_rows(&names))?;
        let rows: Vec<(&str, &str, i64, i64, bool, &str)> = sessions
            .iter()
            .map(|session| {
                let BackupSession { room_id, session_id, first_message_index, forwarded_count, .. } = session;
                let (index, count) = (*first_message_index, *forwarded_count);
                (&**room_id, &**session_id, index, count, session.is_verified, &*session.session_data)
            })
            .collect();
        let changed = execute!(transaction, PUT_SESSIONS, user_nid, version, json_rows(&rows))?;
        if changed > 0 {
            backup.count += sessions.len() as i64 - known;
            backup.etag += 1;
            update_counts(&mut transaction, user_nid, &backup).await?;
        }
        transaction.commit().await?;
        Ok(BackupWrite::Written(backup))
    }

    /// The keys in a backup, in the order of rooms and sessions.
    pub async fn backup_sessions(
        &self,
        user_nid: i64,
        version: i64,
        part: BackupPart<'_>,
    ) -> Result<Vec<BackupSession>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(String, String, i64, i64, bool, String)> = rows!(
            reader,
            "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
             FROM backup_sessions
             WHERE user_nid = $1 AND version = $2 AND ($3 IS NULL OR room_id = $3) AND ($4 IS NULL OR session_id = $4)
             ORDER BY room_id, session_id",
            user_nid,
            version,
            part.room(),
            part.session()
        )?;
        Ok(found
            .into_iter()
            .map(|(room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)| {
                BackupSession { room_id, session_id, first_message_index, forwarded_count, is_verified, session_data }
            })
            .collect())
    }

    /// Removes keys from a backup. `None` if there is no such backup.
    pub async fn delete_backup_sessions(
        &self,
        user_nid: i64,
        version: i64,
        part: BackupPart<'_>,
    ) -> Result<Option<Backup>> {
        let mut transaction = self.database.begin().await?;
        let found: Option<BackupRow> = optional!(transaction, LOCK_VERSION, user_nid, version)?;
        let Some(mut backup) = found.map(Backup::from) else { return Ok(None) };
        let gone = execute!(
            transaction,
            "DELETE FROM backup_sessions
             WHERE user_nid = $1 AND version = $2 AND ($3 IS NULL OR room_id = $3) AND ($4 IS NULL OR session_id = $4)",
            user_nid,
            version,
            part.room(),
            part.session()
        )?;
        if gone > 0 {
            backup.count -= gone as i64;
            backup.etag += 1;
            update_counts(&mut transaction, user_nid, &backup).await?;
        }
        transaction.commit().await?;
        Ok(Some(backup))
    }
}

async fn update_counts(transaction: &mut Transaction, user_nid: i64, backup: &Backup) -> Result<()> {
    execute!(
        transaction,
        "UPDATE backups SET etag = $3, count = $4 WHERE user_nid = $1 AND version = $2",
        user_nid,
        backup.version,
        backup.etag,
        backup.count
    )?;
    Ok(())
}
