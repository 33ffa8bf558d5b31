//! `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`, as clients ask today, and
//! `POST /_matrix/client/v4/sync`, as the proposal was merged.
//!
//! [Proposal](https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4186-simplified-sliding-sync.md)

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
};
use http::HeaderMap;
use myelin_http::{ApiError, Authenticated, RawJson, Session, json_object, read_body};
use myelin_sync::{SlidingCaller, SlidingForm, SlidingQuery, SlidingRequest};
use ruma::{
    api::{auth_scheme::AccessToken, client::sync::sync_events::v5},
    metadata,
};

use crate::{Services, errors::Result};

/// Bytes of a request at the most: lists and subscriptions are bounded, and name rooms and state by short texts.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// The path that clients ask today.
pub(super) type UnstablePath = v5::Request;

/// The path that the proposal was merged with, which ruma does not have yet.
pub(super) struct StablePath;

metadata! {
    @for StablePath,
    method: POST,
    rate_limited: false,
    authentication: AccessToken,
    history: {
        1.18 => "/_matrix/client/v4/sync",
    }
}

pub(super) async fn unstable(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    query: Result<Query<SlidingQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<RawJson> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let request = Box::pin(read(&session, SlidingForm::Unstable, query, headers, body)).await?;
    Ok(services.sync.sliding_sync(request).await?.into())
}

pub(super) async fn stable(
    State(services): State<Services>,
    Authenticated(session): Authenticated,
    headers: HeaderMap,
    body: Body,
) -> Result<RawJson> {
    let request = Box::pin(read(&session, SlidingForm::Stable, SlidingQuery::default(), headers, body)).await?;
    Ok(services.sync.sliding_sync(request).await?.into())
}

/// In a box of its own: what is only needed to read the request must not be held while the client waits.
async fn read(
    session: &Session,
    form: SlidingForm,
    query: SlidingQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<SlidingRequest> {
    let body = json_object(read_body(&headers, body, BODY_BYTES_MAX).await?)?;
    let caller =
        SlidingCaller { user_nid: session.user_nid, user_id: session.user_id.clone(), device_nid: session.device_nid };
    Ok(SlidingRequest::parse(caller, form, query, &body)?)
}
