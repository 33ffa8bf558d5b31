//! GET /_matrix/client/v3/user/{userId}/filter/{filterId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3useruseridfilterfilterid>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::api::client::filter::get_filter::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(crate) async fn read(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    if request.body.user_id != session.user_id {
        return Err(ApiError::forbidden("This is another user's filter").into());
    }
    let filter = services.accounts.filter(session.user_nid, &request.body.filter_id).await?;
    let filter = filter.ok_or_else(|| ApiError::not_found("Unknown filter"))?;
    Ok(Reply(Response::new((*filter).clone())))
}
