//! `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstateeventtypestatekey)

use axum::extract::{RawPathParams, State};
use myelin_http::{ApiError, Matrix, RawJson};
use myelin_rooms::present::{Form, present_one};
use ruma::api::client::state::get_state_event_for_key::v3::{Request, StateEventFormat};

use super::event_type;
use crate::{Services, errors::Result};

pub(super) async fn state_event(
    State(services): State<Services>,
    path: RawPathParams,
    request: Matrix<Request>,
) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, state_key, format, .. } = &request.body;
    let rooms = &services.rooms;
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let root = rooms.readable_root(&reader).await?;
    let event = rooms.state_event_at(root, event_type(&path)?, state_key).await?;
    let event = rooms.without_erased(&reader.room, &reader.viewer, event.into_iter().collect()).await?.pop();
    let event = event.ok_or_else(|| ApiError::not_found("The room has no such state"))?;
    match format {
        StateEventFormat::Content => Ok(RawJson::from(event.content().to_owned())),
        StateEventFormat::Event => {
            let form = Form { device_nid: session.device_nid, room_id: Some(room_id) };
            let event = present_one(rooms.store(), &event, form).await?;
            Ok(RawJson::from(event.get().to_owned()))
        }
        other => Err(ApiError::invalid_param(format!("There is no format {:?}", other.as_str())))?,
    }
}
