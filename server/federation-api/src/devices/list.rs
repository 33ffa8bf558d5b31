//! `GET /_matrix/federation/v1/user/devices/{userId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1userdevicesuserid)

use axum::extract::State;
use myelin_http::{ApiError, Reply};
use ruma::api::federation::device::get_devices::v1::{Request, Response};

use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn list(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    let devices = services.encryption.local_devices(&request.body.user_id).await?;
    Ok(Reply(devices.ok_or_else(|| ApiError::not_found("There is no such user here"))?))
}
