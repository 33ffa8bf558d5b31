//! Rooms: made, joined, written to, read, named, listed and replaced.

mod aliases;
mod ban;
mod context;
mod create;
mod create_alias;
mod delete_alias;
mod event;
mod forget;
mod hierarchy;
mod invite;
mod join;
mod joined_members;
mod joined_rooms;
mod json;
mod kick;
mod knock;
mod leave;
mod listing;
mod members;
mod messages;
mod profiles;
mod public_rooms;
mod redact;
mod relations;
mod resolve_alias;
mod send;
mod set_state;
mod state;
mod state_event;
mod summary;
#[cfg(test)]
mod tests;
mod threads;
mod timestamp_to_event;
mod unban;
mod upgrade;

use std::sync::Arc;

use axum::{Router, extract::RawPathParams};
use myelin_http::{ApiError, Endpoints as _, LimitKind, RouteOptions, Session};
use myelin_rooms::{Error, Rooms, Transaction};
use myelin_store::RoomName;
use ruma::{OwnedRoomId, OwnedServerName, RoomId, RoomOrAliasId, TransactionId};

use crate::{
    Services,
    errors::{Refusal, Result, of_rooms},
};

pub use self::profiles::RoomProfiles;

/// Adds the endpoints of rooms.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let joins = RouteOptions::new().rate_limit(LimitKind::Joins);
    let messages = RouteOptions::new().rate_limit(LimitKind::Messages);
    // Which anyone may ask for, and of which the specification does not say that they are rate-limited.
    let lists = RouteOptions::new().rate_limit(LimitKind::Other);
    router
        .endpoint_with(messages, create::create)
        .endpoint_with(messages, upgrade::upgrade)
        .endpoint_with(joins, join::join)
        .endpoint_with(joins, join::join_by_id)
        .endpoint_with(joins, knock::knock)
        .endpoint(leave::leave)
        .endpoint(forget::forget)
        .endpoint_with(messages, invite::invite)
        .endpoint_with(messages, kick::kick)
        .endpoint_with(messages, ban::ban)
        .endpoint_with(messages, unban::unban)
        .endpoint_with(messages, send::send)
        .endpoint_with(messages, redact::redact)
        .endpoint_with(messages, set_state::set_state)
        .endpoint(state_event::state_event)
        .endpoint(state::state)
        .endpoint(event::event)
        .endpoint(context::context)
        .endpoint(timestamp_to_event::timestamp_to_event)
        .endpoint(hierarchy::hierarchy)
        .endpoint_with(lists, summary::summary)
        .endpoint(messages::messages)
        .endpoint(relations::relations)
        .endpoint(relations::relations_of_type)
        .endpoint(relations::relations_of_types)
        .endpoint_with(lists, threads::threads)
        .endpoint(members::members)
        .endpoint(joined_members::joined_members)
        .endpoint(joined_rooms::joined_rooms)
        .endpoint(aliases::aliases)
        .endpoint(create_alias::create_alias)
        .endpoint(resolve_alias::resolve_alias)
        .endpoint(delete_alias::delete_alias)
        .endpoint_with(lists, public_rooms::public_rooms)
        .endpoint_with(lists, public_rooms::search_public_rooms)
        .endpoint(listing::listing)
        .endpoint(listing::set_listing)
}

/// A room that a caller wants to act in. One that does not exist is refused like one that the caller is not in.
async fn room_to_act_in(rooms: &Rooms, room_id: &RoomId) -> Result<Arc<RoomName>> {
    Ok(rooms.store().room(room_id).await?.ok_or_else(outsider)?)
}

/// What a caller is told when an act in a room has failed: nothing about the room, for those who are not in it.
async fn refuse(rooms: &Rooms, room: &RoomName, session: &Session, error: Error) -> Refusal {
    let tells_of_the_room = matches!(error, Error::Forbidden(_) | Error::NotFound(_) | Error::BadAlias(_));
    if tells_of_the_room {
        match rooms.is_joined(room, session.user_nid).await {
            Ok(true) => {}
            Ok(false) => return Refusal(outsider()),
            Err(error) => return error.into(),
        }
    }
    Refusal(of_rooms(error))
}

fn outsider() -> ApiError {
    ApiError::forbidden("you are not in this room")
}

/// The room of an identifier or of an alias.
async fn resolve(rooms: &Rooms, room: &RoomOrAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
    match <&ruma::RoomAliasId>::try_from(room) {
        Ok(alias) => Ok(rooms.find_alias(alias).await?),
        Err(room_id) => Ok((room_id.to_owned(), Vec::new())),
    }
}

/// A client's transaction at one endpoint; what the path says besides belongs to the scope.
fn transaction(session: &Session, scope: &[&str], txn_id: &TransactionId) -> Transaction {
    let scope = scope.iter().map(|part| part.replace('%', "%25").replace('/', "%2F").replace(' ', "%20"));
    let scope = scope.collect::<Vec<_>>().join("/");
    Transaction { device_nid: session.device_nid, scope, id: txn_id.to_string() }
}

/// The type of an event as the path has it: ruma's types would put the specification's name in the place of some others.
fn event_type(path: &RawPathParams) -> Result<&str> {
    let found = path.iter().find(|(name, _)| *name == "event_type").map(|(_, value)| value);
    found.ok_or_else(|| ApiError::missing_param("the path has no event type").into())
}
