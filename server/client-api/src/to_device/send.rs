//! PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3sendtodeviceeventtypetxnid>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::to_device::send_event_to_device::v3::{Request, Response};

use crate::{Services, errors::Result, keys::owner};

pub(super) async fn send(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let owner = owner(request.session());
    let Request { event_type, txn_id, messages, .. } = request.body;
    services.encryption.send_to_device(&owner, &event_type.to_string(), txn_id.as_str(), messages).await?;
    Ok(Reply(Response::new()))
}
