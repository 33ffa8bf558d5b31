//! GET /_matrix/client/v3/initialSync
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3initialsync>
//!
//! The first answer of /sync, in the form of those days.

use std::time::Duration;

use axum::extract::{Query, State, rejection::QueryRejection};
use myelin_http::{ApiError, Authenticated, RawJson, Session};
use myelin_rooms::present::{Form, present_one};
use myelin_sync::{Filter, Request, StateForm};
use ruma::{OwnedRoomId, RoomId, presence::PresenceState};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Services, errors::Result};

/// Messages of a room, where the client does not say how many.
const LIMIT: u64 = 10;

#[derive(Deserialize)]
pub(super) struct Wanted {
    limit: Option<u64>,
    #[serde(default)]
    archived: bool,
}

pub(super) async fn initial_sync(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<RawJson> {
    session.require_full_account()?;
    let Query(wanted) = wanted.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let limit = wanted.limit.unwrap_or(LIMIT);
    let filter = json!({ "room": { "include_leave": wanted.archived, "timeline": { "limit": limit } } });
    let request = Request {
        user_nid: session.user_nid,
        user_id: session.user_id.clone(),
        device_nid: session.device_nid,
        since: None,
        filter: std::sync::Arc::new(Filter::parse(&filter.to_string())?),
        full_state: false,
        timeout: Duration::ZERO,
        set_presence: PresenceState::Online,
        state_form: StateForm::After,
    };
    let answer = services.sync.sync(request).await?;
    let mut answer: Value = serde_json::from_slice(&answer).map_err(ApiError::unknown)?;
    let end = answer["next_batch"].take();
    let mut rooms = Vec::new();
    for kind in ["join", "invite", "leave"] {
        let Value::Object(of_kind) = answer["rooms"][kind].take() else { continue };
        for (room_id, room) in of_kind {
            let room_id = RoomId::parse(&room_id).map_err(ApiError::unknown)?;
            rooms.push(Box::pin(room_info(&services, &session, room_id, room, &end)).await?);
        }
    }
    let list = |mut part: Value| match part["events"].take() {
        Value::Null => json!([]),
        events => events,
    };
    let account_data = list(answer["account_data"].take());
    let presence = list(answer["presence"].take());
    let answer = json!({ "end": end, "rooms": rooms, "presence": presence, "account_data": account_data });
    Ok(RawJson::from(answer.to_string()))
}

async fn room_info(
    services: &Services,
    session: &Session,
    room_id: OwnedRoomId,
    mut room: Value,
    end: &Value,
) -> Result<Value> {
    let known = services.rooms.room(&room_id).await?;
    let member = services.store.member(known.nid, session.user_nid).await?;
    let mut info = Map::new();
    info.insert("room_id".to_owned(), room_id.as_str().into());
    info.insert("membership".to_owned(), member.map_or("leave", |member| member.membership.word()).into());
    let is_public = services.store.is_public(known.nid).await?;
    info.insert("visibility".to_owned(), if is_public { "public" } else { "private" }.into());
    if room.get("invite_state").is_some() {
        // "The invite event if membership is invite."
        if let Some(member) = member {
            let event = services.store.event(member.event_nid).await?;
            let form = Form { device_nid: session.device_nid, room_id: Some(&room_id) };
            let event = present_one(&services.store, &event, form).await?;
            info.insert("invite".to_owned(), serde_json::from_str(event.get()).map_err(ApiError::unknown)?);
        }
        return Ok(Value::Object(info));
    }
    let mut messages = Map::new();
    if let start @ Value::String(_) = room["timeline"]["prev_batch"].take() {
        messages.insert("start".to_owned(), start);
    }
    messages.insert("end".to_owned(), end.clone());
    messages.insert("chunk".to_owned(), named(room["timeline"]["events"].take(), &room_id));
    info.insert("messages".to_owned(), Value::Object(messages));
    info.insert("state".to_owned(), named(room["state_after"]["events"].take(), &room_id));
    if let data @ Value::Array(_) = room["account_data"]["events"].take() {
        info.insert("account_data".to_owned(), data);
    }
    Ok(Value::Object(info))
}

/// Events with the room that they are in, which /sync leaves out.
fn named(events: Value, room_id: &RoomId) -> Value {
    let Value::Array(mut events) = events else { return json!([]) };
    for event in &mut events {
        event["room_id"] = room_id.as_str().into();
    }
    Value::Array(events)
}
