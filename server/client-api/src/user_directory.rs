//! POST /_matrix/client/v3/user_directory/search
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#user-directory>

use axum::{Router, extract::State};
use myelin_http::{ApiError, Endpoints as _, Matrix, RawJson};
use ruma::{OwnedUserId, api::client::user_directory::search_users::v3::Request};
use serde::Serialize;

use crate::{Services, errors::Result};

/// Users of one answer at the most.
const LIMIT_MAX: usize = 100;

/// Adds the endpoint.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(search)
}

#[derive(Serialize)]
struct Answer {
    results: Vec<User>,
    limited: bool,
}

#[derive(Serialize)]
struct User {
    user_id: OwnedUserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
}

async fn search(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    session.require_full_account()?;
    let limit = usize::try_from(u64::from(request.body.limit)).unwrap_or(usize::MAX).min(LIMIT_MAX);
    let (found, limited) = services.rooms.search_users(session.user_nid, &request.body.search_term, limit).await?;
    let results = found
        .into_iter()
        .map(|user| User { user_id: user.user_id, display_name: user.display_name, avatar_url: user.avatar_url })
        .collect();
    Ok(RawJson::from(serde_json::to_vec(&Answer { results, limited }).map_err(ApiError::unknown)?))
}
