//! DELETE /_matrix/client/v3/devices/{deviceId} and POST /_matrix/client/v3/delete_devices
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3devicesdeviceid>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::device::{delete_device, delete_devices};

use crate::{Services, errors::Result, uiaa};

pub(crate) async fn delete(
    State(services): State<Services>,
    request: Matrix<delete_device::v3::Request>,
) -> Result<Reply<delete_device::v3::Response>> {
    let session = request.session();
    let body = &request.body;
    uiaa::confirm(&services, session, "devices", &[body.device_id.as_str()], body.auth.as_ref()).await?;
    let gone = std::slice::from_ref(&body.device_id);
    services.accounts.delete_devices(session.user_nid, &session.user_id, gone).await?;
    Ok(Reply(delete_device::v3::Response::new()))
}

pub(crate) async fn delete_many(
    State(services): State<Services>,
    request: Matrix<delete_devices::v3::Request>,
) -> Result<Reply<delete_devices::v3::Response>> {
    let session = request.session();
    let body = &request.body;
    let mut subject: Vec<&str> = body.devices.iter().map(|device_id| device_id.as_str()).collect();
    subject.sort_unstable();
    uiaa::confirm(&services, session, "delete_devices", &subject, body.auth.as_ref()).await?;
    services.accounts.delete_devices(session.user_nid, &session.user_id, &body.devices).await?;
    Ok(Reply(delete_devices::v3::Response::new()))
}
