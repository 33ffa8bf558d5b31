//! POST /_matrix/client/v3/rooms/{roomId}/report, …/report/{eventId}, and POST /_matrix/client/v3/users/{userId}/report
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#reporting-content>
//!
//! Administrators read them by the operators' API.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{Router, extract::State};
use myelin_http::{ApiError, Endpoints as _, LimitKind, Matrix, Reply, RouteOptions, Session};
use myelin_store::Reported;
use ruma::api::client::{
    reporting::report_user::v3 as report_user,
    room::{report_content::v3 as report_event, report_room::v3 as report_room},
};

use crate::{Services, errors::Result};

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 8 * 1024;

/// Adds the endpoints.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    // As often as one may send messages.
    let options = RouteOptions::new().rate_limit(LimitKind::Messages);
    router.endpoint_with(options, room).endpoint_with(options, event).endpoint_with(options, user)
}

/// "servers MUST NOT restrict room reports based on whether or not the reporting user is joined to the room"; and
/// "servers MAY prevent room ID enumeration by using the 200 response regardless of the existence of the reported room".
async fn room(
    State(services): State<Services>,
    request: Matrix<report_room::Request>,
) -> Result<Reply<report_room::Response>> {
    let report_room::Request { room_id, reason, .. } = &request.body;
    let is_known = services.store.room(room_id).await?.is_some();
    let reported = Reported { room_id: Some(room_id.to_string()), ..Reported::default() };
    keep(&services, request.session(), reported, reason, is_known).await?;
    Ok(Reply(report_room::Response::new()))
}

/// "The event was not found or you are not joined to the room where the event resides."
async fn event(
    State(services): State<Services>,
    request: Matrix<report_event::Request>,
) -> Result<Reply<report_event::Response>> {
    let session = request.session();
    let report_event::Request { room_id, event_id, reason, .. } = &request.body;
    let not_found = || ApiError::not_found("The event was not found or you are not joined to the room.");
    let rooms = &services.rooms;
    let room = services.store.room(room_id).await?.ok_or_else(not_found)?;
    if !rooms.is_joined(&room, session.user_nid).await? {
        return Err(not_found().into());
    }
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let event = rooms.readable_event(&reader, event_id).await.map_err(|error| match error {
        myelin_rooms::Error::NotFound(_) => not_found(),
        error => crate::errors::of_rooms(error),
    })?;
    let reported = Reported {
        room_id: Some(room_id.to_string()),
        event_id: Some(event_id.to_string()),
        user_id: Some(event.sender().to_string()),
    };
    keep(&services, session, reported, reason.as_deref().unwrap_or_default(), true).await?;
    Ok(Reply(report_event::Response::new()))
}

/// Likewise whether or not the user is known here.
async fn user(
    State(services): State<Services>,
    request: Matrix<report_user::Request>,
) -> Result<Reply<report_user::Response>> {
    let report_user::Request { user_id, reason, .. } = &request.body;
    let is_known = services.store.known_user_nid(user_id).await?.is_some();
    let reported = Reported { user_id: Some(user_id.to_string()), ..Reported::default() };
    keep(&services, request.session(), reported, reason, is_known).await?;
    Ok(Reply(report_user::Response::new()))
}

async fn keep(services: &Services, session: &Session, reported: Reported, reason: &str, is_known: bool) -> Result<()> {
    session.require_full_account()?;
    if reason.len() > REASON_BYTES_MAX || reason.contains('\0') {
        return Err(ApiError::invalid_param("The reason is too long, or has a NUL character").into());
    }
    if is_known {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64);
        services.store.keep_report(session.user_nid, &reported, reason, now).await?;
        // Somebody may have to act soon.
        tracing::warn!(
            reporter = %session.user_id,
            room.id = reported.room_id,
            event.id = reported.event_id,
            user.id = reported.user_id,
            "{} has reported something to the administrators",
            session.user_id
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    const V3: &str = "/_matrix/client/v3";

    /// What is known here is kept with its reporter and reason; nobody learns what is known here, or of events in rooms
    /// that they are not in.
    #[tokio::test]
    async fn reports_reach_the_administrators() {
        on_both(async |server: &Server| {
            let (alice, bob) = (server.user("alice").await, server.user("bob").await);
            let room = server.post(&format!("{V3}/createRoom"), Some(&alice), &json!({})).await.json(StatusCode::OK);
            let room = room["room_id"].as_str().unwrap();
            let said = server
                .request(
                    http::Method::PUT,
                    &format!("{V3}/rooms/{room}/send/m.room.message/1"),
                    Some(&alice),
                    &json!({ "msgtype": "m.text", "body": "buy" }),
                )
                .await
                .json(StatusCode::OK);
            let event = said["event_id"].as_str().unwrap();
            let reason = json!({ "reason": "spam" });
            let ask = async |path: String, token: &str| server.post(&format!("{V3}{path}"), Some(token), &reason).await;

            // Of an event: who is in the room, and only they.
            ask(format!("/rooms/{room}/report/{event}"), &alice).await.json(StatusCode::OK);
            for (path, token) in [
                (format!("/rooms/{room}/report/{event}"), &bob),
                (format!("/rooms/{room}/report/$other"), &alice),
                (format!("/rooms/!other:example.org/report/{event}"), &alice),
            ] {
                assert_eq!(ask(path, token).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            }
            // Of a room or a user: everyone, and they learn nothing.
            for path in [
                format!("/rooms/{room}/report"),
                "/rooms/!other:example.org/report".to_owned(),
                "/users/@alice:example.org/report".to_owned(),
                "/users/@nobody:example.org/report".to_owned(),
            ] {
                assert_eq!(ask(path, &bob).await.json(StatusCode::OK), json!({}));
            }
            let path = format!("{V3}/users/@alice:example.org/report");
            assert_eq!(server.post(&path, None, &reason).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            let missing = server.post(&path, Some(&bob), &json!({})).await;
            assert_eq!(missing.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
            let long = server.post(&path, Some(&bob), &json!({ "reason": "x".repeat(9000) })).await;
            assert_eq!(long.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");

            let kept = server.services.store.reports(i64::MAX, 10).await.unwrap();
            let kept: Vec<_> = kept
                .iter()
                .map(|report| {
                    let of = &report.reported;
                    (report.reporter.as_str(), of.room_id.as_deref(), of.event_id.as_deref(), of.user_id.as_deref())
                })
                .collect();
            let alice = Some("@alice:example.org");
            assert_eq!(
                kept,
                [
                    ("@bob:example.org", None, None, alice),
                    ("@bob:example.org", Some(room), None, None),
                    ("@alice:example.org", Some(room), Some(event), alice),
                ]
            );
        })
        .await;
    }
}
