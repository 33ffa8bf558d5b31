//! `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`, also with `/{relType}` and `/{relType}/{eventType}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#relationships-api)

use axum::extract::{RawPathParams, State};
use myelin_http::{ApiError, Matrix, RawJson, Session};
use myelin_rooms::{Error, relations::RelationsRequest};
use myelin_store::{Direction, RELATION_DEPTH_MAX};
use myelin_sync::token::Token;
use ruma::{
    OwnedEventId, RoomId, UInt,
    api::{
        self,
        client::relations::{
            get_relating_events::v1::Request, get_relating_events_with_rel_type::v1::Request as OfTypeRequest,
            get_relating_events_with_rel_type_and_event_type::v1::Request as OfTypesRequest,
        },
    },
};

use super::{
    json::{self, Object},
    messages::{LIMIT_MAX, token},
};
use crate::{Services, errors::Result};

/// Events of a page, unless the client asks for another number.
const LIMIT: u32 = 20;

/// What the three forms have in common.
struct Query<'a> {
    room_id: &'a RoomId,
    event_id: &'a OwnedEventId,
    from: Option<&'a str>,
    to: Option<&'a str>,
    dir: api::Direction,
    limit: Option<UInt>,
    recurse: bool,
}

/// The common part of a request.
macro_rules! query {
    ($request:expr) => {{
        let request = $request;
        Query {
            room_id: &request.room_id,
            event_id: &request.event_id,
            from: request.from.as_deref(),
            to: request.to.as_deref(),
            dir: request.dir,
            limit: request.limit,
            recurse: request.recurse,
        }
    }};
}

pub(super) async fn relations(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    answer(&services, request.session(), &query!(&request.body), None, None).await
}

pub(super) async fn relations_of_type(
    State(services): State<Services>,
    path: RawPathParams,
    request: Matrix<OfTypeRequest>,
) -> Result<RawJson> {
    let rel_type = parameter(&path, "rel_type")?;
    answer(&services, request.session(), &query!(&request.body), Some(rel_type), None).await
}

pub(super) async fn relations_of_types(
    State(services): State<Services>,
    path: RawPathParams,
    request: Matrix<OfTypesRequest>,
) -> Result<RawJson> {
    let (rel_type, event_type) = (parameter(&path, "rel_type")?, parameter(&path, "event_type")?);
    answer(&services, request.session(), &query!(&request.body), Some(rel_type), Some(event_type)).await
}

/// A part of the path as it is written there: ruma's types would put the specification's name in the place of some
/// others.
fn parameter<'a>(path: &'a RawPathParams, name: &str) -> Result<&'a str, ApiError> {
    let found = path.iter().find(|(other, _)| *other == name).map(|(_, value)| value);
    found.ok_or_else(|| ApiError::missing_param(format!("the path has no {name}")))
}

async fn answer(
    services: &Services,
    session: &Session,
    query: &Query<'_>,
    rel_type: Option<&str>,
    event_type: Option<&str>,
) -> Result<RawJson> {
    let rooms = &services.rooms;
    let limit = query.limit.unwrap_or(LIMIT.into());
    let wanted = RelationsRequest {
        parent_id: query.event_id,
        rel_type,
        event_type,
        recurse: query.recurse,
        direction: match query.dir {
            api::Direction::Backward => Direction::Backward,
            api::Direction::Forward => Direction::Forward,
        },
        from: token(query.from)?,
        to: token(query.to)?,
        limit: u64::from(limit).clamp(1, LIMIT_MAX as u64) as usize,
    };
    // "404: The parent event was not found or the user does not have permission to read this event".
    let reader =
        rooms.reader(query.room_id, &session.user_id, session.user_nid).await.map_err(|error| match error {
            Error::Forbidden(_) => Error::NotFound("there is no such event, or you may not see it"),
            other => other,
        })?;
    let page = rooms.read_relations(&reader, &wanted).await?;
    let chunk = json::related_events(rooms, session, &reader, &page.events).await?;

    let mut answer = Object::with_capacity(json::size(&chunk) + 128);
    answer.list("chunk", &chunk);
    if let Some(next) = page.next {
        answer.token("next_batch", Token::timeline(next));
    }
    // It is one of ours: it was read.
    if let Some(from) = query.from.filter(|from| !from.is_empty()) {
        answer.token("prev_batch", from);
    }
    if query.recurse {
        answer.number("recursion_depth", RELATION_DEPTH_MAX);
    }
    Ok(answer.finish())
}
