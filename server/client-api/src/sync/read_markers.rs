//! `POST /_matrix/client/v3/rooms/{roomId}/read_markers`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidread_markers)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use myelin_sync::ReceiptType;
use ruma::{
    EventId,
    api::client::read_marker::set_read_marker::v3::{Request, Response},
};

use super::room_to_act_in;
use crate::{Services, errors::Result};

/// "Providing m.read and/or m.read.private performs the same task as a request to /receipt".
pub(super) async fn read_markers(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    let Request { room_id, fully_read, read_receipt, private_read_receipt, .. } = &request.body;
    let room = room_to_act_in(&services, room_id).await?;
    let markers = [
        (ReceiptType::FullyRead, fully_read),
        (ReceiptType::Read, read_receipt),
        (ReceiptType::ReadPrivate, private_read_receipt),
    ];
    let event_ids: Vec<&EventId> = markers.iter().filter_map(|(_, event_id)| event_id.as_deref()).collect();
    services.sync.check_markable(&room, session.user_nid, &event_ids).await?;
    for (receipt_type, event_id) in markers {
        if let Some(event_id) = event_id {
            services.sync.mark_read(&room, session.user_nid, receipt_type, None, event_id).await?;
        }
    }
    Ok(Reply(Response::new()))
}
