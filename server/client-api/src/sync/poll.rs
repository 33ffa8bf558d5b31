//! `GET /_matrix/client/v3/sync`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync)

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use myelin_http::{ApiError, Matrix, RawJson};
use myelin_sync::{Filter, Request as SyncRequest, StateForm};
use ruma::api::client::sync::sync_events::v3::{self, Request};

use crate::{Services, errors::Result};

/// The parameter's name before the specification had it.
const UNSTABLE_STATE_AFTER: &str = "org.matrix.msc4222.use_state_after";

pub(super) async fn poll(
    State(services): State<Services>,
    RawQuery(query): RawQuery,
    request: Matrix<Request>,
) -> Result<RawJson> {
    // In a box of its own: what is only needed to read the request must not be held while the client waits.
    let request = Box::pin(read(&services, query, request)).await?;
    Ok(services.sync.sync(request).await?.into())
}

async fn read(services: &Services, query: Option<String>, request: Matrix<Request>) -> Result<SyncRequest> {
    let session = request.caller;
    let Request { filter, since, full_state, set_presence, timeout, use_state_after, .. } = request.body;
    let filter = filter_of(services, session.user_nid, filter).await?;
    let since = match since.filter(|since| !since.is_empty()) {
        Some(since) => Some(since.parse().map_err(|_| ApiError::invalid_param("since is no token of this server"))?),
        None => None,
    };
    let state_form = match (use_state_after, query.is_some_and(|query| asks_for_unstable_state_after(&query))) {
        (true, _) => StateForm::After,
        (false, true) => StateForm::AfterUnstable,
        (false, false) => StateForm::Before,
    };
    Ok(SyncRequest {
        user_nid: session.user_nid,
        user_id: session.user_id.clone(),
        device_nid: session.device_nid,
        since,
        filter,
        full_state,
        timeout: timeout.unwrap_or_default(),
        set_presence,
        state_form,
    })
}

/// "The server will detect whether it is an ID or a JSON object by whether the first character is a { open brace."
async fn filter_of(services: &Services, user_nid: i64, filter: Option<v3::Filter>) -> Result<Arc<Filter>> {
    Ok(match filter {
        None => Arc::default(),
        Some(v3::Filter::FilterDefinition(definition)) => Arc::new(Filter::new(definition)),
        Some(v3::Filter::FilterId(json)) if json.starts_with('{') => Arc::new(Filter::parse(&json)?),
        Some(v3::Filter::FilterId(id)) => {
            let unknown = || ApiError::invalid_param("There is no such filter");
            let id = id.parse().map_err(|_| unknown())?;
            match services.sync.stored_filter(user_nid, id).await {
                Err(myelin_sync::Error::NotFound(_)) => Err(unknown())?,
                found => found?,
            }
        }
        Some(_) => Err(ApiError::invalid_param("filter must be an ID or a JSON object"))?,
    })
}

fn asks_for_unstable_state_after(query: &str) -> bool {
    query.split('&').any(|pair| pair.split_once('=') == Some((UNSTABLE_STATE_AFTER, "true")))
}
