//! POST /_matrix/client/v3/search
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#server-side-search>

mod answer;
mod request;
#[cfg(test)]
mod tests;

use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
};
use myelin_http::{ApiError, Endpoints as _, Matrix, RawJson};
use myelin_rooms::search::SearchRequest;
use ruma::api::client::search::search_events::v3::Request;
use serde::Deserialize;

use self::{answer::Answering, request::Body};
use crate::{Services, errors::Result, own::Own};

/// Results of one answer, where the client does not say.
const LIMIT: usize = 10;
/// Results of one answer at the most.
const LIMIT_MAX: usize = 100;

/// Adds the endpoint.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(search)
}

#[derive(Deserialize)]
struct Place {
    next_batch: Option<String>,
}

async fn search(
    State(services): State<Services>,
    place: Result<Query<Place>, QueryRejection>,
    request: Matrix<Own<Request, (), Body>>,
) -> Result<RawJson> {
    let session = request.session();
    session.require_full_account()?;
    let Query(place) = place.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let Some(criteria) = &request.body.body.search_categories.room_events else {
        return Ok(RawJson::from("{\"search_categories\":{}}"));
    };
    let limit = criteria.filter.limit.map_or(LIMIT, |limit| usize::try_from(u64::from(limit)).unwrap_or(usize::MAX));
    let search = SearchRequest {
        user_id: &session.user_id,
        user_nid: session.user_nid,
        term: &criteria.search_term,
        fields: &criteria.fields(),
        filter: &criteria.filter,
        is_recent: criteria.is_recent(),
        from: place.next_batch.as_deref().map(str::parse).transpose()?,
        limit: limit.clamp(1, LIMIT_MAX),
    };
    let results = Box::pin(services.rooms.search(&search)).await?;
    let answering = Answering { rooms: &services.rooms, session, criteria, results };
    Box::pin(answering.json()).await
}
