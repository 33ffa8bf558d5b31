//! Key backups.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups)

use std::collections::BTreeMap;

use myelin_store::{Backup, BackupPart, BackupSession, BackupWrite};
use ruma::{OwnedRoomId, RoomId, serde::Raw};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::{Encryption, Error, Result};

/// The longest name of a session or an algorithm, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// The longest `auth_data`, in bytes.
const AUTH_DATA_BYTES_MAX: usize = 64 * 1024;
/// Numbers that JSON has as they are.
const NUMBER_MAX: u64 = 1 << 53;

/// The keys of rooms, by room and session.
pub type RoomSessions = BTreeMap<OwnedRoomId, BTreeMap<String, Box<RawValue>>>;

/// A backup as its owner knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupState {
    /// Its name.
    pub version: String,
    /// How its keys are encrypted.
    pub algorithm: String,
    /// What that needs to know: a JSON object.
    pub auth_data: String,
    /// Changes with the keys in it.
    pub etag: String,
    /// How many keys are in it.
    pub count: u64,
}

impl From<Backup> for BackupState {
    fn from(backup: Backup) -> Self {
        Self {
            version: backup.version.to_string(),
            algorithm: backup.algorithm,
            auth_data: backup.auth_data,
            etag: backup.etag.to_string(),
            count: u64::try_from(backup.count).unwrap_or_default(),
        }
    }
}

/// What a client says of a new or a known backup.
#[derive(Deserialize)]
struct Description {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

/// A key of a session, encrypted.
#[derive(Deserialize, Serialize)]
struct Session<'a> {
    first_message_index: u64,
    forwarded_count: u64,
    is_verified: bool,
    #[serde(borrow)]
    session_data: &'a RawValue,
}

impl Encryption {
    /// Makes a backup; answers its name.
    pub async fn create_backup(&self, user_nid: i64, description: &RawValue) -> Result<String> {
        let description = read(description)?;
        let version = self.store.create_backup(user_nid, &description.algorithm, description.auth_data.get()).await?;
        Ok(version.to_string())
    }

    /// A backup, or the newest one.
    pub async fn backup(&self, user_nid: i64, version: Option<&str>) -> Result<BackupState> {
        let version = version.map(number).transpose()?;
        Ok(self.store.backup(user_nid, version).await?.ok_or_else(unknown)?.into())
    }

    /// "Update information about an existing backup. Only auth_data can be modified."
    pub async fn update_backup(&self, user_nid: i64, version: &str, description: &RawValue) -> Result<()> {
        let description = read(description)?;
        let backup = self.backup(user_nid, Some(version)).await?;
        if description.version.is_some_and(|named| named != backup.version) {
            return Err(Error::InvalidParam("the body names another backup than the path".to_owned()));
        }
        if description.algorithm != backup.algorithm {
            return Err(Error::InvalidParam("the algorithm of a backup does not change".to_owned()));
        }
        let is_there = self.store.set_backup_auth_data(user_nid, number(version)?, description.auth_data.get()).await?;
        if is_there { Ok(()) } else { Err(unknown()) }
    }

    /// Removes a backup with its keys; one that was removed already is no error.
    pub async fn delete_backup(&self, user_nid: i64, version: &str) -> Result<()> {
        if self.store.delete_backup(user_nid, number(version)?).await? { Ok(()) } else { Err(unknown()) }
    }

    /// Adds keys to the newest backup.
    ///
    /// # Errors
    ///
    /// [`Error::WrongBackup`] when it is not the newest one, [`Error::NotFound`] when there is none.
    pub async fn put_backup_sessions(&self, user_nid: i64, version: &str, rooms: RoomSessions) -> Result<BackupState> {
        let mut sessions = Vec::new();
        for (room_id, of_room) in rooms {
            for (session_id, json) in of_room {
                sessions.push(session(&room_id, session_id, &json)?);
            }
        }
        // A version that cannot be any is not the newest one.
        let version = number(version).unwrap_or(0);
        match self.store.put_backup_sessions(user_nid, version, &sessions).await? {
            BackupWrite::Written(backup) => Ok(backup.into()),
            BackupWrite::NotCurrent(current) => Err(Error::WrongBackup { current: current.to_string() }),
            BackupWrite::Missing => Err(unknown()),
        }
    }

    /// The keys in a backup: all, those of a room, or that of a session. Rooms and sessions that have none are missing.
    pub async fn backup_sessions(
        &self,
        user_nid: i64,
        version: &str,
        room_id: Option<&RoomId>,
        session_id: Option<&str>,
    ) -> Result<RoomSessions> {
        let version = number(version)?;
        self.store.backup(user_nid, Some(version)).await?.ok_or_else(unknown)?;
        let mut rooms = RoomSessions::new();
        for found in self.store.backup_sessions(user_nid, version, part(room_id, session_id)).await? {
            let (room_id, session_id, json) = told(found)?;
            rooms.entry(room_id).or_default().insert(session_id, json);
        }
        Ok(rooms)
    }

    /// Removes keys from a backup.
    pub async fn delete_backup_sessions(
        &self,
        user_nid: i64,
        version: &str,
        room_id: Option<&RoomId>,
        session_id: Option<&str>,
    ) -> Result<BackupState> {
        let part = part(room_id, session_id);
        let backup = self.store.delete_backup_sessions(user_nid, number(version)?, part).await?;
        Ok(backup.ok_or_else(unknown)?.into())
    }
}

fn part<'a>(room_id: Option<&'a RoomId>, session_id: Option<&'a str>) -> BackupPart<'a> {
    match (room_id, session_id) {
        (None, _) => BackupPart::Whole,
        (Some(room_id), None) => BackupPart::Room(room_id.as_str()),
        (Some(room_id), Some(session_id)) => BackupPart::Session(room_id.as_str(), session_id),
    }
}

fn read(json: &RawValue) -> Result<Description> {
    let description: Description = Raw::<Description>::from_json(json.to_owned())
        .deserialize()
        .map_err(|error| Error::BadJson(error.to_string()))?;
    if description.algorithm.len() > NAME_BYTES_MAX || description.algorithm.contains('\0') {
        return Err(Error::InvalidParam("this cannot be an algorithm".to_owned()));
    }
    if description.auth_data.get().len() > AUTH_DATA_BYTES_MAX {
        return Err(Error::TooLarge("auth_data is too large"));
    }
    if !description.auth_data.get().starts_with('{') {
        return Err(Error::BadJson("auth_data has to be a JSON object".to_owned()));
    }
    Ok(description)
}

fn session(room_id: &RoomId, session_id: String, json: &RawValue) -> Result<BackupSession> {
    let session: Session<'_> = serde_json::from_str(json.get())
        .map_err(|error| Error::BadJson(format!("the key of session {session_id}: {error}")))?;
    if session_id.len() > NAME_BYTES_MAX || session_id.contains('\0') || room_id.as_str().len() > NAME_BYTES_MAX {
        return Err(Error::InvalidParam("this cannot be a session".to_owned()));
    }
    if !session.session_data.get().starts_with('{') {
        return Err(Error::BadJson("session_data has to be a JSON object".to_owned()));
    }
    let stored = |number: u64| {
        let fits = number <= NUMBER_MAX;
        let number = i64::try_from(number).ok().filter(|_| fits);
        number.ok_or_else(|| Error::InvalidParam("a number is larger than JSON has".to_owned()))
    };
    Ok(BackupSession {
        room_id: room_id.to_string(),
        session_id,
        first_message_index: stored(session.first_message_index)?,
        forwarded_count: stored(session.forwarded_count)?,
        is_verified: session.is_verified,
        session_data: session.session_data.get().to_owned(),
    })
}

fn told(found: BackupSession) -> Result<(OwnedRoomId, String, Box<RawValue>)> {
    let corrupt = || Error::Corrupt("key of a session");
    let session_data = RawValue::from_string(found.session_data).map_err(|_| corrupt())?;
    let session = Session {
        first_message_index: u64::try_from(found.first_message_index).map_err(|_| corrupt())?,
        forwarded_count: u64::try_from(found.forwarded_count).map_err(|_| corrupt())?,
        is_verified: found.is_verified,
        session_data: &session_data,
    };
    let room_id = RoomId::parse(found.room_id).map_err(|_| corrupt())?;
    Ok((room_id, found.session_id, to_raw_value(&session).map_err(|_| corrupt())?))
}

/// The number of a backup, in the form that we write it in.
fn number(version: &str) -> Result<i64> {
    version.parse().ok().filter(|number: &i64| number.to_string() == version).ok_or_else(unknown)
}

fn unknown() -> Error {
    Error::NotFound("there is no such backup")
}
