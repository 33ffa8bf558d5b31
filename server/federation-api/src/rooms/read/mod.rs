//! What other servers read of rooms: events, state, history, spaces.

mod backfill;
mod event;
mod event_auth;
mod get_missing_events;
mod hierarchy;
mod state;
mod state_ids;
#[cfg(test)]
mod tests;
mod timestamp_to_event;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::Router;
use myelin_http::{ApiError, Endpoints as _, RawJson};
use myelin_store::Event;
use ruma::ServerName;

use crate::{Services, json::Object};

/// Adds the endpoints.
pub(super) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .endpoint(event::event)
        .endpoint(state::state)
        .endpoint(state_ids::state_ids)
        .endpoint(event_auth::event_auth)
        .endpoint(backfill::backfill)
        .endpoint(get_missing_events::get_missing_events)
        .endpoint(timestamp_to_event::timestamp_to_event)
        .endpoint(hierarchy::hierarchy)
}

/// Events in the form of a transaction of ours.
fn transaction(us: &ServerName, events: &[Arc<Event>]) -> Result<RawJson, ApiError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64);
    let bytes = events.iter().map(|event| event.json().len() + 1).sum::<usize>() + 256;
    let object = Object::with_capacity(bytes).value("origin", &us).map_err(ApiError::unknown)?;
    let object = object.value("origin_server_ts", &now).map_err(ApiError::unknown)?;
    Ok(object.list("pdus", events.iter().map(|event| event.json())).finish())
}
