//! PUT, GET and DELETE /_matrix/client/v3/room_keys/keys, /_matrix/client/v3/room_keys/keys/{roomId} and
//! /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3room_keyskeys>

use std::collections::BTreeMap;

use axum::extract::State;
use myelin_encryption::{BackupState, RoomSessions};
use myelin_http::{ApiError, Matrix, RawJson, Reply, Session};
use ruma::{
    OwnedRoomId, RoomId, UInt,
    api::client::backup::{
        KeyBackupData, RoomKeyBackup, add_backup_keys, add_backup_keys_for_room, add_backup_keys_for_session,
        delete_backup_keys, delete_backup_keys_for_room, delete_backup_keys_for_session, get_backup_keys,
        get_backup_keys_for_room, get_backup_keys_for_session,
    },
    serde::Raw,
};

use crate::{Services, errors::Result};

type Sessions = BTreeMap<String, Raw<KeyBackupData>>;

pub(super) async fn put(
    State(services): State<Services>,
    request: Matrix<add_backup_keys::v3::Request>,
) -> Result<Reply<add_backup_keys::v3::Response>> {
    let session = request.caller.clone();
    let body = request.body;
    let rooms = body.rooms.into_iter().map(|(room_id, keys)| (room_id, keys.sessions));
    let (etag, count) = put_all(&services, &session, &body.version, rooms).await?;
    Ok(Reply(add_backup_keys::v3::Response::new(etag, count)))
}

pub(super) async fn put_room(
    State(services): State<Services>,
    request: Matrix<add_backup_keys_for_room::v3::Request>,
) -> Result<Reply<add_backup_keys_for_room::v3::Response>> {
    let session = request.caller.clone();
    let body = request.body;
    let (etag, count) = put_all(&services, &session, &body.version, [(body.room_id, body.sessions)]).await?;
    Ok(Reply(add_backup_keys_for_room::v3::Response::new(etag, count)))
}

pub(super) async fn put_session(
    State(services): State<Services>,
    request: Matrix<add_backup_keys_for_session::v3::Request>,
) -> Result<Reply<add_backup_keys_for_session::v3::Response>> {
    let session = request.caller.clone();
    let body = request.body;
    let sessions = Sessions::from([(body.session_id, body.session_data)]);
    let (etag, count) = put_all(&services, &session, &body.version, [(body.room_id, sessions)]).await?;
    Ok(Reply(add_backup_keys_for_session::v3::Response::new(etag, count)))
}

pub(super) async fn all(
    State(services): State<Services>,
    request: Matrix<get_backup_keys::v3::Request>,
) -> Result<Reply<get_backup_keys::v3::Response>> {
    let rooms = found(&services, request.session(), &request.body.version, None, None).await?;
    let rooms = rooms.into_iter().map(|(room_id, sessions)| (room_id, RoomKeyBackup::new(raw(sessions))));
    Ok(Reply(get_backup_keys::v3::Response::new(rooms.collect())))
}

pub(super) async fn of_room(
    State(services): State<Services>,
    request: Matrix<get_backup_keys_for_room::v3::Request>,
) -> Result<Reply<get_backup_keys_for_room::v3::Response>> {
    let body = &request.body;
    let mut rooms = found(&services, request.session(), &body.version, Some(&body.room_id), None).await?;
    // "If no keys are found, then an object with an empty sessions property will be returned".
    let sessions = rooms.remove(&body.room_id).unwrap_or_default();
    Ok(Reply(get_backup_keys_for_room::v3::Response::new(raw(sessions))))
}

pub(super) async fn of_session(
    State(services): State<Services>,
    request: Matrix<get_backup_keys_for_session::v3::Request>,
) -> Result<RawJson> {
    let body = &request.body;
    let (room_id, session_id) = (&body.room_id, body.session_id.as_str());
    let mut rooms = found(&services, request.session(), &body.version, Some(room_id), Some(session_id)).await?;
    let key = rooms.remove(room_id).and_then(|mut sessions| sessions.remove(session_id));
    let key = key.ok_or_else(|| ApiError::not_found("There is no key of this session"))?;
    Ok(RawJson(String::from(Box::<str>::from(key)).into()))
}

pub(super) async fn delete(
    State(services): State<Services>,
    request: Matrix<delete_backup_keys::v3::Request>,
) -> Result<Reply<delete_backup_keys::v3::Response>> {
    let (etag, count) = remove(&services, request.session(), &request.body.version, None, None).await?;
    Ok(Reply(delete_backup_keys::v3::Response::new(etag, count)))
}

pub(super) async fn delete_room(
    State(services): State<Services>,
    request: Matrix<delete_backup_keys_for_room::v3::Request>,
) -> Result<Reply<delete_backup_keys_for_room::v3::Response>> {
    let body = &request.body;
    let (etag, count) = remove(&services, request.session(), &body.version, Some(&body.room_id), None).await?;
    Ok(Reply(delete_backup_keys_for_room::v3::Response::new(etag, count)))
}

pub(super) async fn delete_session(
    State(services): State<Services>,
    request: Matrix<delete_backup_keys_for_session::v3::Request>,
) -> Result<Reply<delete_backup_keys_for_session::v3::Response>> {
    let body = &request.body;
    let (room_id, session_id) = (Some(&*body.room_id), Some(body.session_id.as_str()));
    let (etag, count) = remove(&services, request.session(), &body.version, room_id, session_id).await?;
    Ok(Reply(delete_backup_keys_for_session::v3::Response::new(etag, count)))
}

async fn put_all(
    services: &Services,
    session: &Session,
    version: &str,
    rooms: impl IntoIterator<Item = (OwnedRoomId, Sessions)>,
) -> Result<(String, UInt)> {
    let plain = |sessions: Sessions| sessions.into_iter().map(|(id, key)| (id, key.into_json())).collect();
    let rooms: RoomSessions = rooms.into_iter().map(|(room_id, sessions)| (room_id, plain(sessions))).collect();
    Ok(state(services.encryption.put_backup_sessions(session.user_nid, version, rooms).await?))
}

async fn found(
    services: &Services,
    session: &Session,
    version: &str,
    room_id: Option<&RoomId>,
    session_id: Option<&str>,
) -> Result<RoomSessions> {
    Ok(services.encryption.backup_sessions(session.user_nid, version, room_id, session_id).await?)
}

async fn remove(
    services: &Services,
    session: &Session,
    version: &str,
    room_id: Option<&RoomId>,
    session_id: Option<&str>,
) -> Result<(String, UInt)> {
    Ok(state(services.encryption.delete_backup_sessions(session.user_nid, version, room_id, session_id).await?))
}

fn state(backup: BackupState) -> (String, UInt) {
    (backup.etag, UInt::new_saturating(backup.count))
}

fn raw(sessions: BTreeMap<String, Box<serde_json::value::RawValue>>) -> Sessions {
    sessions.into_iter().map(|(session_id, key)| (session_id, Raw::from_json(key))).collect()
}
