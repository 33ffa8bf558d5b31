//! What clients are told and what they say about themselves: sync, receipts, typing, presence, account data, tags.

mod account_data;
mod poll;
mod presence;
mod push_rules;
mod read_markers;
mod receipt;
mod sliding;
#[cfg(test)]
mod sliding_tests;
mod tags;
#[cfg(test)]
mod tests;
mod typing;

use std::sync::Arc;

use axum::Router;
use http::StatusCode;
use myelin_http::{ApiError, Endpoints as _, RouteOptions, Session, route};
use myelin_store::RoomName;
use myelin_sync::Error;
use ruma::{RoomId, UserId, api::error::ErrorCode};

use crate::{
    Services,
    errors::{Refusal, Result, of_rooms, of_store},
};

/// Adds the endpoints of this module.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let polls = RouteOptions::new().long_poll();
    let router = route::<sliding::UnstablePath, _, _, _>(router, polls, sliding::unstable);
    route::<sliding::StablePath, _, _, _>(router, polls, sliding::stable)
        .endpoint_with(polls, poll::poll)
        .endpoint(typing::typing)
        .endpoint(receipt::receipt)
        .endpoint(read_markers::read_markers)
        .endpoint(presence::presence)
        .endpoint(presence::set_presence)
        .endpoint(account_data::global)
        .endpoint(account_data::set_global)
        .endpoint(account_data::of_room)
        .endpoint(account_data::set_of_room)
        .endpoint(push_rules::all)
        .endpoint(push_rules::of_scope)
        .endpoint(push_rules::one)
        .endpoint(push_rules::set)
        .endpoint(push_rules::remove)
        .endpoint(push_rules::is_enabled)
        .endpoint(push_rules::enable)
        .endpoint(push_rules::actions)
        .endpoint(push_rules::set_actions)
        .endpoint(tags::tags)
        .endpoint(tags::set_tag)
        .endpoint(tags::remove_tag)
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(of_sync(error))
    }
}

fn of_sync(error: Error) -> ApiError {
    match error {
        Error::Store(error) => of_store(error),
        Error::Rooms(error) => of_rooms(error),
        error @ Error::Write(_) => ApiError::unknown(error),
        Error::Forbidden(reason) => ApiError::forbidden(reason),
        Error::NotFound(reason) => ApiError::not_found(reason),
        Error::InvalidParam(reason) => ApiError::invalid_param(reason),
        Error::BadJson(reason) => ApiError::bad_json(reason),
        Error::UnknownRule(reason) => ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, reason),
        Error::TooLarge(reason) => ApiError::too_large(reason),
        error @ Error::UnknownPos => ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::UnknownPos, error.to_string()),
        // "This type of account data is controlled by the server; it cannot be modified by clients."
        error @ Error::ServerManaged(_) => {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::BadJson, error.to_string())
        }
    }
}

/// Refuses whoever may not use what is kept with the account of this user: anyone else, and
/// [guests](https://spec.matrix.org/v1.19/client-server-api/#guest-access), on whose list it is not.
fn must_keep_data(session: &Session, user_id: &UserId) -> Result<(), ApiError> {
    must_be_self(session, user_id)?;
    session.require_full_account()
}

/// Refuses to act for anyone but the caller.
fn must_be_self(session: &Session, user_id: &UserId) -> Result<(), ApiError> {
    if session.user_id == user_id { Ok(()) } else { Err(ApiError::forbidden("This is another user's")) }
}

/// A room to which something of the caller's is attached. One that the caller never had a place in is refused like one
/// that does not exist.
async fn known_room(services: &Services, session: &Session, room_id: &RoomId) -> Result<Arc<RoomName>> {
    let unknown = || ApiError::not_found("There is no such room");
    let room = services.store.room(room_id).await?.ok_or_else(unknown)?;
    services.store.member(room.nid, session.user_nid).await?.ok_or_else(unknown)?;
    Ok(room)
}

/// A room that the caller acts in. One that does not exist is refused like one that the caller is not in.
async fn room_to_act_in(services: &Services, room_id: &RoomId) -> Result<Arc<RoomName>> {
    Ok(services.store.room(room_id).await?.ok_or_else(|| ApiError::forbidden("you are not in this room"))?)
}
