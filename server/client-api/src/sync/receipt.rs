//! `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidreceiptreceipttypeeventid)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_sync::ReceiptType as Marked;
use ruma::api::client::receipt::create_receipt::v3::{ReceiptType, Request, Response};

use super::room_to_act_in;
use crate::{Services, errors::Result};

pub(super) async fn receipt(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    let Request { room_id, receipt_type, event_id, thread, .. } = &request.body;
    let marked = match receipt_type {
        ReceiptType::Read => Marked::Read,
        ReceiptType::ReadPrivate => Marked::ReadPrivate,
        ReceiptType::FullyRead => Marked::FullyRead,
        _ => Err(ApiError::invalid_param("Receipts are m.read, m.read.private or m.fully_read"))?,
    };
    let room = room_to_act_in(&services, room_id).await?;
    services.sync.mark_read(&room, session.user_nid, marked, thread.as_str(), event_id).await?;
    Ok(Reply(Response::new()))
}
