//! POST /_matrix/client/v3/account/password
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountpassword>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::client::account::change_password::v3::{Request, Response};

use crate::{Services, errors::Result, services::own, uiaa};

pub(crate) async fn change_password(
    State(services): State<Services>,
    Matrix { body, caller, .. }: Matrix<Request>,
) -> Result<Reply<Response>> {
    // Without a token there would have to be another proof, such as an e-mail address, and we have none.
    let session = caller.ok_or_else(ApiError::missing_token)?;
    session.require_full_account()?;
    let subject = [body.new_password.as_str(), if body.logout_devices { "others" } else { "none" }];
    uiaa::confirm(&services, &session, "account/password", &subject, body.auth.as_ref()).await?;
    services.accounts.change_password(&own(&session), &body.new_password, body.logout_devices).await?;
    Ok(Reply(Response::new()))
}
