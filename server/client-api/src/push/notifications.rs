//! `GET /_matrix/client/v3/notifications`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3notifications)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::present::{Form, present};
use myelin_sync::{NotificationQuery, Only};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::push::get_notifications::v3::{Notification, Request, Response},
    serde::Raw,
};

use crate::{Services, errors::Result};

/// Notifications of a page that does not say how many.
const LIMIT: u64 = 20;
/// Notifications of a page at the most.
const LIMIT_MAX: u64 = 100;
/// What tokens begin with, so that those of other endpoints are not taken for one.
const TOKEN: &str = "n";

pub(super) async fn notifications(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    let Request { from, limit, only, .. } = &request.body;
    let limit = limit.map_or(LIMIT, u64::from).clamp(1, LIMIT_MAX);
    let query = NotificationQuery {
        user_nid: session.user_nid,
        user_id: &session.user_id,
        before: position(from.as_deref())?,
        after: 0,
        limit: usize::try_from(limit).unwrap_or(1),
        only: if only.as_deref() == Some("highlight") { Only::Highlights } else { Only::All },
    };
    let page = Box::pin(services.sync.notifications(&query)).await?;
    let events: Vec<_> = page.notifications.iter().map(|found| found.event.clone()).collect();
    let form = Form { device_nid: session.device_nid, room_id: None };
    let shown = present(&services.store, &events, form).await?;
    let notifications = page.notifications.into_iter().zip(shown).map(|(found, event)| {
        let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(found.event.origin_server_ts()));
        Notification::new(found.actions, Raw::from_json(event), found.is_read, found.room.room_id.clone(), ts)
    });
    let mut response = Response::new(notifications.collect());
    response.next_token = page.next.map(|pos| format!("{TOKEN}{pos}"));
    Ok(Reply(response))
}

/// The position that a token stands for. It says nothing of what is there: whoever has it is shown their own.
fn position(token: Option<&str>) -> Result<Option<i64>, ApiError> {
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    let position = token.strip_prefix(TOKEN).and_then(|position| position.parse().ok()).filter(|pos| *pos >= 0);
    match position {
        Some(position) => Ok(Some(position)),
        None => Err(ApiError::invalid_param("from is not a token of this endpoint")),
    }
}
