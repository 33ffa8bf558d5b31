//! `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy)

use std::str::FromStr;

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson};
use myelin_rooms::serve::{HierarchyRequest, SpaceRoom};
use ruma::{UInt, api::client::space::get_hierarchy::v1::Request};
use serde::Serialize;

use crate::{Services, errors::Result};

/// Rooms of a page where the client does not say how many.
const LIMIT: u64 = 50;
/// Rooms of a page at the most.
const LIMIT_MAX: u64 = 100;
/// How far down the tree goes at the most, and where the client does not say.
const DEPTH_MAX: u64 = 50;

#[derive(Serialize)]
struct Answer {
    rooms: Vec<SpaceRoom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

pub(super) async fn hierarchy(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, from, limit, max_depth, suggested_only, .. } = &request.body;
    if limit.is_some_and(|limit| limit == UInt::MIN) {
        return Err(ApiError::invalid_param("limit must be greater than zero").into());
    }
    let first = Place {
        skip: 0,
        max_depth: max_depth.map_or(DEPTH_MAX, u64::from).min(DEPTH_MAX),
        suggested_only: *suggested_only,
    };
    let place = match from.as_deref().filter(|from| !from.is_empty()) {
        Some(from) => from.parse::<Place>()?.after(&first, max_depth.is_some())?,
        None => first,
    };
    let wanted = HierarchyRequest {
        suggested_only: place.suggested_only,
        max_depth: place.max_depth as usize,
        skip: place.skip,
        limit: limit.map_or(LIMIT, u64::from).min(LIMIT_MAX) as usize,
    };
    let page = services.rooms.hierarchy(room_id, session.user_nid, &wanted).await?;
    let next = Place { skip: place.skip.saturating_add(page.rooms.len()), ..place };
    let answer = Answer { next_batch: (!page.is_last).then(|| next.to_string()), rooms: page.rooms };
    Ok(RawJson::from(serde_json::to_string(&answer).map_err(ApiError::unknown)?))
}

/// A place in a walk through a space: what a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// The rooms before it.
    skip: usize,
    max_depth: u64,
    suggested_only: bool,
}

impl Place {
    /// "If specified, max_depth and suggested_only cannot be changed from the first request."
    fn after(self, asked: &Self, asks_for_depth: bool) -> Result<Self, ApiError> {
        if asks_for_depth && self.max_depth != asked.max_depth || self.suggested_only != asked.suggested_only {
            return Err(ApiError::invalid_param("suggested_only and max_depth cannot change on paginated requests"));
        }
        Ok(self)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "h{}_{}_{}", self.skip, self.max_depth, u8::from(self.suggested_only))
    }
}

impl FromStr for Place {
    type Err = ApiError;

    fn from_str(token: &str) -> Result<Self, ApiError> {
        let read = || {
            let mut parts = token.strip_prefix('h')?.split('_');
            let skip = parts.next()?.parse().ok()?;
            let max_depth = parts.next()?.parse().ok().filter(|depth| *depth <= DEPTH_MAX)?;
            let suggested_only = match parts.next()? {
                "0" => false,
                "1" => true,
                _ => return None,
            };
            parts.next().is_none().then_some(Self { skip, max_depth, suggested_only })
        };
        read().ok_or_else(|| ApiError::invalid_param("from is not a token of this server"))
    }
}
