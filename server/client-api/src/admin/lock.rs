//! GET and PUT /_matrix/client/v1/admin/lock/{userId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv1adminlockuserid>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::api::client::admin::{is_user_locked, lock_user};

use super::{account_of, other_account};
use crate::{Services, errors::Result};

pub(super) async fn is_locked(
    State(services): State<Services>,
    request: Matrix<is_user_locked::v1::Request>,
) -> Result<Reply<is_user_locked::v1::Response>> {
    let account = account_of(&services, request.session(), &request.body.user_id).await?;
    Ok(Reply(is_user_locked::v1::Response::new(account.locked)))
}

pub(super) async fn lock(
    State(services): State<Services>,
    request: Matrix<lock_user::v1::Request>,
) -> Result<Reply<lock_user::v1::Response>> {
    let locked = request.body.locked;
    let account = other_account(&services, request.session(), &request.body.user_id).await?;
    services.accounts.set_locked(account.user_nid, locked).await?;
    Ok(Reply(lock_user::v1::Response::new(locked)))
}
