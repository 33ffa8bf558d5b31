//! GET /_matrix/client/v1/register/m.login.registration_token/validity
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1registermloginregistration_tokenvalidity>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::account::check_registration_token_validity::v1::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn is_token_valid(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<Request>,
) -> Result<Reply<Response>> {
    // "The homeserver does not permit registration, so all tokens are considered invalid": 403.
    services.accounts.registration_flows()?;
    let valid = services.accounts.is_registration_token_valid(&body.token).await?;
    Ok(Reply(Response::new(valid)))
}
