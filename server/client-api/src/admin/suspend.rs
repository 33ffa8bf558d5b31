//! GET and PUT /_matrix/client/v1/admin/suspend/{userId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv1adminsuspenduserid>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::admin::{is_user_suspended, suspend_user};

use super::{account_of, other_account};
use crate::{Services, errors::Result};

pub(super) async fn is_suspended(
    State(services): State<Services>,
    request: Matrix<is_user_suspended::v1::Request>,
) -> Result<Reply<is_user_suspended::v1::Response>> {
    let account = account_of(&services, request.session(), &request.body.user_id).await?;
    Ok(Reply(is_user_suspended::v1::Response::new(account.suspended)))
}

pub(super) async fn suspend(
    State(services): State<Services>,
    request: Matrix<suspend_user::v1::Request>,
) -> Result<Reply<suspend_user::v1::Response>> {
    let suspended = request.body.suspended;
    let account = other_account(&services, request.session(), &request.body.user_id).await?;
    services.accounts.set_suspended(account.user_nid, suspended).await?;
    Ok(Reply(suspend_user::v1::Response::new(suspended)))
}
