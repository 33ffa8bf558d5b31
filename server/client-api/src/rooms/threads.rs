//! `GET /_matrix/client/v1/rooms/{roomId}/threads`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidthreads)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson};
use myelin_rooms::relations::ThreadsRequest;
use myelin_sync::token::Token;
use ruma::api::client::threads::get_threads::v1::{IncludeThreads, Request};

use super::{
    json::{self, Object},
    messages::token,
};
use crate::{Services, errors::Result};

/// Threads of a page, unless the client asks for another number, and at the most.
const LIMIT: u32 = 20;
const LIMIT_MAX: u64 = 100;

pub(super) async fn threads(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, from, include, limit, .. } = &request.body;
    let participated = match include {
        IncludeThreads::All => false,
        IncludeThreads::Participated => true,
        _ => return Err(ApiError::invalid_param("include must be all or participated").into()),
    };
    // "Must be an integer greater than zero."
    let limit = u64::from(limit.unwrap_or(LIMIT.into()));
    if limit == 0 {
        return Err(ApiError::invalid_param("limit must be greater than zero").into());
    }
    let wanted = ThreadsRequest { participated, from: token(from.as_deref())?, limit: limit.min(LIMIT_MAX) as usize };
    let rooms = &services.rooms;
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let page = rooms.read_threads(&reader, &wanted).await?;
    let chunk = json::bundled_events(rooms, session, &reader, &page.roots, &page.bundles).await?;

    let mut answer = Object::with_capacity(json::size(&chunk) + 64);
    answer.list("chunk", &chunk);
    if let Some(next) = page.next {
        answer.token("next_batch", Token::timeline(next));
    }
    Ok(answer.finish())
}
