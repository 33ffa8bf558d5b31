//! `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use myelin_store::Direction;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::{
        self,
        client::room::get_event_by_timestamp::v1::{Request, Response},
    },
};

use crate::{Services, errors::Result};

pub(super) async fn timestamp_to_event(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    let Request { room_id, ts, dir, .. } = &request.body;
    let direction = match dir {
        api::Direction::Backward => Direction::Backward,
        api::Direction::Forward => Direction::Forward,
    };
    let reader = services.rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let event = services.rooms.event_at(&reader, ts.get().into(), direction).await?;
    let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(event.origin_server_ts()));
    Ok(Reply(Response::new(event.event_id.clone(), ts)))
}
