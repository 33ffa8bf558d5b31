//! POST /_matrix/client/v1/login/get_token
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv1loginget_token>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::session::get_login_token::v1::{Request, Response};

use crate::{Services, errors::Result, services::own, uiaa};

pub(crate) async fn create(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    uiaa::confirm(&services, session, "login/get_token", &[], request.body.auth.as_ref()).await?;
    let made = services.accounts.create_login_token(&own(session)).await?;
    Ok(Reply(Response::new(made.expires_in, made.token)))
}
