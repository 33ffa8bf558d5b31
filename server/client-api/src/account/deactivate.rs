//! POST /_matrix/client/v3/account/deactivate
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountdeactivate>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::client::account::{
    ThirdPartyIdRemovalStatus,
    deactivate::v3::{Request, Response},
};

use crate::{Services, errors::Result, uiaa};

pub(crate) async fn deactivate(
    State(services): State<Services>,
    Matrix { body, caller, .. }: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = caller.ok_or_else(ApiError::missing_token)?;
    session.require_full_account()?;
    let subject = [if body.erase { "erase" } else { "keep" }];
    uiaa::confirm(&services, &session, "account/deactivate", &subject, body.auth.as_ref()).await?;
    services.accounts.deactivate(session.user_nid, &session.user_id, body.erase).await?;
    // "This must be success if the homeserver has no identifiers to unbind for the user." There are none here.
    Ok(Reply(Response::new(ThirdPartyIdRemovalStatus::Success)))
}
