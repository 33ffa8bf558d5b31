//! GET /_matrix/client/v3/account/whoami
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3accountwhoami>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::account::whoami::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn who_am_i(_: State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    let mut response = Response::new(session.user_id.clone(), session.is_guest);
    response.device_id = Some(session.device_id.clone());
    Ok(Reply(response))
}
