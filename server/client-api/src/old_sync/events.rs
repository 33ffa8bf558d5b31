//! GET /_matrix/client/v3/events, for all rooms of the user or, with `room_id`, for one that the user may look into.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3events>,
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3events-1>

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::extract::{Query, State, rejection::QueryRejection};
use http::Method;
use myelin_http::{ApiError, Authenticated, RawJson, Session};
use myelin_rooms::{
    history::PageRequest,
    present::{Form, present},
};
use myelin_store::{Direction, Event};
use myelin_sync::token::Token;
use ruma::{
    OwnedRoomId, RoomId,
    api::{
        Metadata,
        client::{filter::RoomEventFilter, peeking::listen_to_new_events::v3::Request},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::{Services, errors::Result};

/// Events of one answer at the most.
const LIMIT: usize = 100;
/// The longest wait: shorter than the time that requests have when the server stops.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How often is looked for news at the most.
const PACE: Duration = Duration::from_millis(250);

/// ruma's paths; its request asks for a room.
pub(super) struct Path;

impl Metadata for Path {
    const METHOD: Method = <Request as Metadata>::METHOD;
    const RATE_LIMITED: bool = <Request as Metadata>::RATE_LIMITED;
    type Authentication = <Request as Metadata>::Authentication;
    type PathBuilder = <Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = <Request as Metadata>::PATH_BUILDER;
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    from: Option<String>,
    timeout: Option<u64>,
    room_id: Option<OwnedRoomId>,
}

#[derive(Serialize)]
struct Answer {
    start: String,
    end: String,
    chunk: Vec<Box<RawValue>>,
}

/// Events, and the place behind them.
type News = (Vec<Box<RawValue>>, i64);

pub(super) async fn events(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<RawJson> {
    let Query(wanted) = wanted.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    if wanted.room_id.is_none() {
        session.require_full_account()?;
    }
    let invalid = |_| ApiError::invalid_param("from is no token of this server");
    let from = wanted.from.as_deref().filter(|from| !from.is_empty());
    let start = match from.map(str::parse::<Token>).transpose().map_err(invalid)? {
        Some(token) => token.pos,
        // From now on.
        None => services.store.position(),
    };
    let until = Instant::now() + Duration::from_millis(wanted.timeout.unwrap_or(0)).min(WAIT_MAX);
    let mut positions = services.store.positions();
    let (chunk, end) = loop {
        positions.borrow_and_update();
        let (chunk, end) = match &wanted.room_id {
            Some(room_id) => Box::pin(news_of_room(&services, &session, room_id, start)).await?,
            None => Box::pin(news(&services, &session, start)).await?,
        };
        if !chunk.is_empty() || Instant::now() >= until {
            break (chunk, end);
        }
        // What comes meanwhile is told together.
        let changed = async {
            let changed = positions.changed().await;
            tokio::time::sleep(PACE).await;
            changed
        };
        if tokio::time::timeout_at(until, changed).await.is_ok_and(|changed| changed.is_err()) {
            break (chunk, end);
        }
    };
    let start = from.map_or_else(|| Token::timeline(start).to_string(), str::to_owned);
    let answer = Answer { start, end: Token::timeline(end).to_string(), chunk };
    Ok(RawJson::from(serde_json::to_vec(&answer).map_err(ApiError::unknown)?))
}

/// "This API is the same as the normal /events endpoint, but can be called by users who have not joined the room."
async fn news_of_room(services: &Services, session: &Session, room_id: &RoomId, from: i64) -> Result<News> {
    let rooms = &services.rooms;
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let filter = RoomEventFilter::default();
    let wanted =
        PageRequest { direction: Direction::Forward, from: Some(from), to: None, limit: LIMIT, filter: &filter };
    let page = rooms.read_page(&reader, &wanted).await?;
    let form = Form { device_nid: session.device_nid, room_id: Some(room_id) };
    Ok((present(rooms.store(), &page.events, form).await?, page.end))
}

/// The events of all rooms that the user is in, in the order in which they came.
async fn news(services: &Services, session: &Session, from: i64) -> Result<News> {
    let rooms = &services.rooms;
    let events = services.store.events_for_member(session.user_nid, from, LIMIT).await?;
    let Some(end) = events.last().and_then(|event| event.pos) else { return Ok((Vec::new(), from)) };
    let mut by_room: HashMap<i64, Vec<Arc<Event>>> = HashMap::new();
    for event in events {
        by_room.entry(event.room_nid).or_default().push(event);
    }
    let mut written = Vec::new();
    for (room_nid, events) in by_room {
        let room = services.store.room_by_nid(room_nid).await?;
        let viewer = rooms.viewer(&room, &session.user_id, session.user_nid).await?;
        let visible = rooms.visible(&room, &viewer, events).await?;
        let form = Form { device_nid: session.device_nid, room_id: Some(&room.room_id) };
        let json = present(rooms.store(), &visible, form).await?;
        written.extend(visible.iter().map(|event| event.pos).zip(json));
    }
    written.sort_by_key(|(pos, _)| *pos);
    Ok((written.into_iter().map(|(_, json)| json).collect(), end))
}
