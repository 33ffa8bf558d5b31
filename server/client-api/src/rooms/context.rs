//! `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidcontexteventid)

use axum::extract::State;
use myelin_http::{Matrix, RawJson};
use myelin_sync::token::Token;
use ruma::api::client::context::get_context::v3::Request;

use super::{
    json::{self, Object},
    messages::LIMIT_MAX,
};
use crate::{Services, errors::Result};

pub(super) async fn context(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, event_id, limit, filter, .. } = &request.body;
    let rooms = &services.rooms;
    let limit = u64::from(*limit).min(LIMIT_MAX as u64) as usize;
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let mut context = rooms.read_context(&reader, event_id, limit, filter).await?;
    context.state = rooms.without_erased(&reader.room, &reader.viewer, context.state).await?;

    // One call for all, so that what they refer to is read at once.
    let parts = [&context.before, &context.after, &context.state];
    let all: Vec<_> = parts.iter().flat_map(|part| part.iter()).chain([&context.event]).cloned().collect();
    let written = json::related_events(rooms, session, &reader, &all).await?;
    let (before, rest) = written.split_at(context.before.len());
    let (after, rest) = rest.split_at(context.after.len());
    let (state, event) = rest.split_at(context.state.len());

    let mut answer = Object::with_capacity(json::size(&written) + 256);
    answer.token("start", Token::timeline(context.start));
    answer.token("end", Token::timeline(context.end));
    answer.list("events_before", before);
    if let [event] = event {
        answer.json("event", event);
    }
    answer.list("events_after", after);
    answer.list("state", state);
    Ok(answer.finish())
}
