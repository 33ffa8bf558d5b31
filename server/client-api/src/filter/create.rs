//! POST /_matrix/client/v3/user/{userId}/filter
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3useruseridfilter>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::client::filter::create_filter::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn create(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    if request.body.user_id != session.user_id {
        return Err(ApiError::forbidden("Filters are made for oneself").into());
    }
    let filter_id = services.accounts.create_filter(session.user_nid, &request.body.filter).await?;
    Ok(Reply(Response::new(filter_id)))
}
