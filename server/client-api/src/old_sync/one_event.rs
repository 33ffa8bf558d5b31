//! GET /_matrix/client/v3/events/{eventId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3eventseventid>

use axum::extract::{Path, State, rejection::PathRejection};
use myelin_http::{ApiError, Authenticated, RawJson};
use myelin_rooms::present::{Form, present_one};
use ruma::OwnedEventId;

use crate::{
    Services,
    errors::{Result, of_rooms},
};

/// "The event was not found or you do not have permission to read this event."
fn not_found() -> ApiError {
    ApiError::not_found("There is no such event, or you may not see it")
}

pub(super) async fn one_event(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    event_id: Result<Path<OwnedEventId>, PathRejection>,
) -> Result<RawJson> {
    session.require_full_account()?;
    let Path(event_id) = event_id.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let rooms = &services.rooms;
    let event = services.store.event_by_id(&event_id).await?.ok_or_else(not_found)?;
    let room = services.store.room_by_nid(event.room_nid).await?;
    let hidden = |error| match error {
        myelin_rooms::Error::Forbidden(_) | myelin_rooms::Error::NotFound(_) => not_found(),
        error => of_rooms(error),
    };
    let reader = rooms.reader(&room.room_id, &session.user_id, session.user_nid).await.map_err(hidden)?;
    let event = rooms.readable_event(&reader, &event_id).await.map_err(hidden)?;
    let form = Form { device_nid: session.device_nid, room_id: Some(&room.room_id) };
    Ok(RawJson::from(present_one(rooms.store(), &event, form).await?.get().to_owned()))
}
