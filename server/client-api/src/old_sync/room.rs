//! GET /_matrix/client/v3/rooms/{roomId}/initialSync
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidinitialsync>

use axum::extract::{
    Path, Query, State,
    rejection::{PathRejection, QueryRejection},
};
use myelin_http::{ApiError, Authenticated, RawJson, Session};
use myelin_rooms::{
    history::PageRequest,
    present::{Form, present},
};
use myelin_store::Direction;
use myelin_sync::token::Token;
use ruma::{OwnedRoomId, RoomId, api::client::filter::RoomEventFilter};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Services, errors::Result};

/// Messages of a room, where the client does not say how many.
const LIMIT: usize = 10;
/// Messages of a room at the most.
const LIMIT_MAX: usize = 100;

#[derive(Deserialize)]
pub(super) struct Limit {
    limit: Option<usize>,
}

#[derive(Serialize)]
struct RoomInfo<'a> {
    room_id: &'a RoomId,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
    messages: Messages,
    state: Vec<Box<RawValue>>,
    visibility: &'static str,
    account_data: Vec<AccountData>,
}

#[derive(Serialize)]
struct Messages {
    start: String,
    end: String,
    chunk: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct AccountData {
    #[serde(rename = "type")]
    data_type: String,
    content: Box<RawValue>,
}

pub(super) async fn initial_sync(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    room_id: Result<Path<OwnedRoomId>, PathRejection>,
    limit: Result<Query<Limit>, QueryRejection>,
) -> Result<RawJson> {
    let Path(room_id) = room_id.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let Query(limit) = limit.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let limit = limit.limit.unwrap_or(LIMIT).min(LIMIT_MAX);
    let info = Box::pin(room_info(&services, &session, &room_id, limit)).await?;
    Ok(RawJson::from(serde_json::to_vec(&info).map_err(ApiError::unknown)?))
}

/// "You aren't a member of the room and weren't previously a member of the room": then 403, unless everyone may read it.
async fn room_info<'a>(
    services: &Services,
    session: &Session,
    room_id: &'a RoomId,
    limit: usize,
) -> Result<RoomInfo<'a>> {
    let rooms = &services.rooms;
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let filter = RoomEventFilter::default();
    let wanted = PageRequest { direction: Direction::Backward, from: None, to: None, limit, filter: &filter };
    let mut page = rooms.read_page(&reader, &wanted).await?;
    page.events.reverse();
    let root = rooms.readable_root(&reader).await?;
    let state = services.store.all_state_events(root).await?;
    let state = rooms.without_erased(&reader.room, &reader.viewer, state).await?;
    let form = Form { device_nid: session.device_nid, room_id: Some(room_id) };
    let mut account_data = Vec::new();
    for data in services.store.account_data_in(session.user_nid, &[reader.room.nid]).await? {
        let content = RawValue::from_string(data.content.to_string()).map_err(ApiError::unknown)?;
        account_data.push(AccountData { data_type: data.data_type.to_string(), content });
    }
    Ok(RoomInfo {
        room_id,
        membership: reader.viewer.member.map(|member| member.membership.word()),
        messages: Messages {
            start: Token::timeline(page.end).to_string(),
            end: Token::timeline(page.start).to_string(),
            chunk: present(rooms.store(), &page.events, form).await?,
        },
        state: present(rooms.store(), &state, form).await?,
        visibility: if services.store.is_public(reader.room.nid).await? { "public" } else { "private" },
        account_data,
    })
}
