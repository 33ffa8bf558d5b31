//! GET /_matrix/client/v3/devices and GET /_matrix/client/v3/devices/{deviceId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3devices>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::device::{Device, get_device, get_devices},
};

use crate::{Services, errors::Result};

pub(crate) async fn list(
    State(services): State<Services>,
    request: Matrix<get_devices::v3::Request>,
) -> Result<Reply<get_devices::v3::Response>> {
    let devices = services.accounts.devices(request.session().user_nid).await?;
    Ok(Reply(get_devices::v3::Response::new(devices.into_iter().map(shown).collect())))
}

pub(crate) async fn show(
    State(services): State<Services>,
    request: Matrix<get_device::v3::Request>,
) -> Result<Reply<get_device::v3::Response>> {
    let device = services.accounts.device(request.session().user_nid, &request.body.device_id).await?;
    Ok(Reply(get_device::v3::Response::new(shown(device))))
}

fn shown(device: myelin_store::Device) -> Device {
    let mut shown = Device::new(device.device_id.into());
    shown.display_name = device.display_name;
    shown.last_seen_ip = device.last_seen_ip;
    shown.last_seen_ts = UInt::try_from(device.last_seen_ts).ok().map(MilliSecondsSinceUnixEpoch);
    shown
}
