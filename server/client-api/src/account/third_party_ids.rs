//! GET /_matrix/client/v3/account/3pid
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3account3pid>

use axum::extract::State;
use bytes::Bytes;
use myelin_http::{Matrix, RawJson};
use ruma::api::client::account::get_3pids::v3::Request;

use crate::{Services, errors::Result};

/// Nobody can add one (`m.3pid_changes` is off), so nobody has one.
pub(crate) async fn list(_: State<Services>, _: Matrix<Request>) -> Result<RawJson> {
    Ok(RawJson(Bytes::from_static(br#"{"threepids":[]}"#)))
}
