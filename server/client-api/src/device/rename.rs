//! PUT /_matrix/client/v3/devices/{deviceId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3devicesdeviceid>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::device::update_device::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn rename(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let user_nid = request.session().user_nid;
    let device_id = &request.body.device_id;
    match &request.body.display_name {
        Some(name) => services.accounts.rename_device(user_nid, device_id, name).await?,
        // "If not given, the display name is unchanged." The device has to be there all the same.
        None => services.accounts.device(user_nid, device_id).await.map(drop)?,
    }
    Ok(Reply(Response::new()))
}
