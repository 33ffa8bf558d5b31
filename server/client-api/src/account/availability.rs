//! GET /_matrix/client/v3/register/available
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3registeravailable>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::account::get_username_availability::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn is_available(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<Request>,
) -> Result<Reply<Response>> {
    services.accounts.registration_flows()?;
    services.accounts.check_username(&body.username).await?;
    Ok(Reply(Response::new(true)))
}
