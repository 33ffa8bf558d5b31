//! POST /_matrix/media/v1/create
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav1create>

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::media::create_mxc_uri::v1::{Request, Response},
};

use crate::{Services, errors::Result};

pub(crate) async fn create(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let pending = services.media.create_pending(session.user_nid).await?;
    let mut response = Response::new(pending.uri);
    response.unused_expires_at = UInt::try_from(pending.expires_ts).ok().map(MilliSecondsSinceUnixEpoch);
    Ok(Reply(response))
}
