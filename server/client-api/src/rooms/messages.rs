//! `GET /_matrix/client/v3/rooms/{roomId}/messages`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson};
use myelin_rooms::history::{Page, PageRequest};
use myelin_store::Direction;
use myelin_sync::token::Token;
use ruma::api::{self, client::message::get_message_events::v3::Request};

use super::json::{self, Object};
use crate::{Services, errors::Result};

/// Events of a page at the most.
pub(super) const LIMIT_MAX: usize = 1000;

pub(super) async fn messages(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, from, to, dir, limit, filter, .. } = &request.body;
    let rooms = &services.rooms;
    let limit = u64::from(filter.limit.map_or(*limit, |other| other.min(*limit)));
    let wanted = PageRequest {
        direction: match dir {
            api::Direction::Backward => Direction::Backward,
            api::Direction::Forward => Direction::Forward,
        },
        from: token(from.as_deref())?,
        to: token(to.as_deref())?,
        limit: limit.clamp(1, LIMIT_MAX as u64) as usize,
        filter,
    };
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let page = rooms.read_page(&reader, &wanted).await?;
    let members = match filter.lazy_load_options.is_disabled() {
        true => Vec::new(),
        false => rooms.members_of_senders(&page.events).await?,
    };
    let members = rooms.without_erased(&reader.room, &reader.viewer, members).await?;
    let chunk = json::related_events(rooms, session, &reader, &page.events).await?;
    let state = json::events(rooms, session, room_id, &members).await?;

    let mut answer = Object::with_capacity(json::size(&chunk) + json::size(&state) + 128);
    match from.as_deref().filter(|from| !from.is_empty()) {
        // "This will be the same as the value given in from." It is one of ours: it was read.
        Some(from) => answer.token("start", from),
        None => answer.token("start", start(&page, wanted.direction)),
    }
    if !page.is_last {
        answer.token("end", Token::timeline(page.end));
    }
    answer.list("chunk", &chunk);
    if !state.is_empty() {
        answer.list("state", &state);
    }
    Ok(answer.finish())
}

/// The place that a page starts at which was asked for without one.
fn start(page: &Page, direction: Direction) -> Token {
    let first = page.events.first().and_then(|event| event.pos);
    match (direction, first) {
        (Direction::Forward, Some(first)) => Token::before(first),
        (Direction::Forward, None) => Token::timeline(0),
        (Direction::Backward, _) => Token::timeline(page.start),
    }
}

/// Reads a token: of `/sync`, of a timeline, or of a page.
pub(super) fn token(text: Option<&str>) -> Result<Option<i64>, ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse::<Token>() {
        Ok(token) => Ok(Some(token.pos)),
        Err(error) => Err(ApiError::invalid_param(error.to_string())),
    }
}
