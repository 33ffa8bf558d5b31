//! POST /_matrix/client/v3/logout and POST /_matrix/client/v3/logout/all
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3logout>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::session::{logout, logout_all};

use crate::{Services, errors::Result, services::own};

pub(crate) async fn log_out(
    State(services): State<Services>,
    request: Matrix<logout::v3::Request>,
) -> Result<Reply<logout::v3::Response>> {
    services.accounts.log_out(&own(request.session())).await?;
    Ok(Reply(logout::v3::Response::new()))
}

pub(crate) async fn log_out_everywhere(
    State(services): State<Services>,
    request: Matrix<logout_all::v3::Request>,
) -> Result<Reply<logout_all::v3::Response>> {
    let session = request.session();
    services.accounts.log_out_everywhere(session.user_nid, &session.user_id).await?;
    Ok(Reply(logout_all::v3::Response::new()))
}
