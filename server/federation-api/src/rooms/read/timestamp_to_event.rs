//! `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1timestamp_to_eventroomid)

use axum::extract::State;
use myelin_http::Reply;
use myelin_store::Direction;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::{
        self,
        federation::event::get_event_by_timestamp::v1::{Request, Response},
    },
};

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn timestamp_to_event(
    State(services): State<Services>,
    request: Signed<Request>,
) -> Result<Reply<Response>> {
    let Request { room_id, ts, dir, .. } = &request.body;
    let direction = match dir {
        api::Direction::Backward => Direction::Backward,
        api::Direction::Forward => Direction::Forward,
    };
    let event = services.rooms.serve_event_at(&request.origin, room_id, ts.get().into(), direction).await?;
    let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(event.origin_server_ts()));
    Ok(Reply(Response::new(event.event_id.clone(), ts)))
}
