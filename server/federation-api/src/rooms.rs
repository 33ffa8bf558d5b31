//! Rooms: read by other servers, and joined, left, knocked on and invited to by their users.

mod exchange_third_party_invite;
mod invite;
mod make_join;
mod make_knock;
mod make_leave;
mod read;
mod send_join;
mod send_knock;
mod send_leave;
#[cfg(test)]
mod tests;

use axum::Router;
use myelin_http::{ApiError, Endpoints as _, RouteOptions};
use ruma::{ServerName, UserId};

use crate::Services;

/// Bytes of an invite at the most: the event and the few that tell what the room is.
const INVITE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Adds the endpoints of rooms.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let invites = RouteOptions::new().body_bytes_max(INVITE_BYTES_MAX);
    read::routes(router)
        .endpoint(make_join::make_join)
        .endpoint(send_join::send_join)
        .endpoint(send_join::send_join_v1)
        .endpoint(make_leave::make_leave)
        .endpoint(send_leave::send_leave)
        .endpoint(send_leave::send_leave_v1)
        .endpoint(make_knock::make_knock)
        .endpoint(send_knock::send_knock)
        .endpoint_with(invites, invite::invite)
        .endpoint_with(invites, invite::invite_v1)
        .endpoint(exchange_third_party_invite::exchange_third_party_invite)
}

/// "This MUST be a user ID on the origin server."
fn must_be_of(origin: &ServerName, user_id: &UserId) -> Result<(), ApiError> {
    if user_id.server_name() == origin {
        Ok(())
    } else {
        Err(ApiError::forbidden("The user is not one of your server"))
    }
}
