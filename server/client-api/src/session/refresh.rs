//! POST /_matrix/client/v3/refresh
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3refresh>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::session::refresh_token::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn refresh(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<Request>,
) -> Result<Reply<Response>> {
    let (access_token, refresh_token, expires_in) = services.accounts.refresh(&body.refresh_token).await?;
    let mut response = Response::new(access_token);
    response.refresh_token = Some(refresh_token);
    response.expires_in_ms = Some(expires_in);
    Ok(Reply(response))
}
