//! What clients asked for before there was /sync, and previews of rooms still do:
//! GET /_matrix/client/v3/rooms/{roomId}/initialSync, GET /_matrix/client/v3/initialSync, GET /_matrix/client/v3/events,
//! GET /_matrix/client/v3/events/{eventId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3events>

mod events;
mod initial_sync;
mod one_event;
mod room;
#[cfg(test)]
mod tests;

use axum::{Router, routing};
use myelin_http::RouteOptions;

use crate::Services;

/// Adds the endpoints. ruma has no types for some of them, nor for all of their parameters.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let polls = RouteOptions::new().long_poll();
    let mut router = router;
    for version in ["r0", "v1", "v3"] {
        let path = |rest: &str| format!("/_matrix/client/{version}{rest}");
        router = router
            .route(&path("/initialSync"), routing::get(initial_sync::initial_sync))
            .route(&path("/events/{event_id}"), routing::get(one_event::one_event))
            .route(&path("/rooms/{room_id}/initialSync"), routing::get(room::initial_sync));
    }
    myelin_http::route::<events::Path, _, _, _>(router, polls, events::events)
}
