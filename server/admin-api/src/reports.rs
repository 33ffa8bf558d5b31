//! GET /_myelin/admin/v1/reports and DELETE /_myelin/admin/v1/reports/{id}: what users have reported.
//!
//! An administrator's access token opens them. The newest come first; `from` goes on where `next_from` says, and `limit` is
//! how many are wanted, 100 at the most.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
};
use myelin_http::{ApiError, Authenticated, LimitKind};
use myelin_store::Report;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::AdminServices;

const LIMIT: usize = 50;
const LIMIT_MAX: usize = 100;

#[derive(Deserialize)]
pub(crate) struct Page {
    from: Option<i64>,
    limit: Option<usize>,
}

pub(crate) async fn list(
    State(services): State<AdminServices>,
    Authenticated(session): Authenticated,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    session.require_admin()?;
    services.rate_limiter.check_caller(LimitKind::Other, Some(&session), std::net::Ipv4Addr::UNSPECIFIED.into())?;
    let Query(page) = page.map_err(|rejection| ApiError::invalid_param(rejection.body_text()))?;
    let limit = page.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    let mut reports = services.store.reports(page.from.unwrap_or(i64::MAX), limit + 1).await.map_err(refusal)?;
    let has_more = reports.len() > limit;
    reports.truncate(limit);
    let mut answer = json!({ "reports": reports.iter().map(shown).collect::<Vec<_>>() });
    if has_more && let Some(last) = reports.last() {
        answer["next_from"] = last.nid.into();
    }
    Ok(Json(answer))
}

pub(crate) async fn delete(
    State(services): State<AdminServices>,
    Authenticated(session): Authenticated,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    session.require_admin()?;
    let not_found = || ApiError::not_found("There is no such report");
    let Path(id) = id.map_err(|_| not_found())?;
    if !services.store.delete_report(id).await.map_err(refusal)? {
        return Err(not_found());
    }
    Ok(Json(json!({})))
}

fn shown(report: &Report) -> Value {
    let mut shown = json!({
        "id": report.nid,
        "reporter": report.reporter,
        "reason": report.reason,
        "received_ts": report.received_ts,
    });
    let reported = &report.reported;
    for (name, value) in
        [("room_id", &reported.room_id), ("event_id", &reported.event_id), ("user_id", &reported.user_id)]
    {
        if let Some(value) = value {
            shown[name] = value.as_str().into();
        }
    }
    shown
}

fn refusal(error: myelin_store::Error) -> ApiError {
    if error.is_unavailable() { ApiError::unavailable(error) } else { ApiError::unknown(error) }
}
