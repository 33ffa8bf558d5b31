//! `POST /_matrix/federation/v1/get_missing_events/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#post_matrixfederationv1get_missing_eventsroomid)

use axum::extract::State;
use myelin_http::RawJson;
use myelin_rooms::serve::{MISSING_MAX, MissingEvents};
use ruma::api::federation::event::get_missing_events::v1::Request;

use crate::{Services, errors::Result, json::Object, signed::Signed};

pub(super) async fn get_missing_events(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { room_id, limit, min_depth, earliest_events, latest_events, .. } = request.body;
    let wanted = MissingEvents {
        earliest: earliest_events,
        latest: latest_events,
        limit: u64::from(limit).min(MISSING_MAX as u64) as usize,
        min_depth: min_depth.into(),
    };
    let events = services.rooms.serve_missing_events(&request.origin, &room_id, &wanted).await?;
    let bytes = events.iter().map(|event| event.json().len() + 1).sum();
    Ok(Object::with_capacity(bytes).list("events", events.iter().map(|event| event.json())).finish())
}
