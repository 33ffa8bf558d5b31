//! `GET` and `PUT /_matrix/client/v3/presence/{userId}/status`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3presenceuseridstatus)

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson, Reply};
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};
use serde_json::json;

use super::must_be_self;
use crate::{Services, errors::Result};

pub(super) async fn presence(
    State(services): State<Services>,
    request: Matrix<get_presence::v3::Request>,
) -> Result<RawJson> {
    let session = request.session();
    let user_id = &request.body.user_id;
    let Some(user_nid) = services.store.known_user_nid(user_id).await? else {
        return Err(ApiError::not_found("This user has no presence").into());
    };
    let presence = services.sync.presence(session.user_nid, user_nid).await?;
    let mut body = json!({ "presence": presence.state });
    if let Some(status_msg) = presence.status_msg {
        body["status_msg"] = status_msg.into();
    }
    if presence.last_active_ms > 0 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64);
        body["last_active_ago"] = now.saturating_sub(presence.last_active_ms).into();
        body["currently_active"] = (presence.state == PresenceState::Online).into();
    }
    Ok(body.to_string().into())
}

pub(super) async fn set_presence(
    State(services): State<Services>,
    request: Matrix<set_presence::v3::Request>,
) -> Result<Reply<set_presence::v3::Response>> {
    let session = request.caller;
    must_be_self(&session, &request.body.user_id)?;
    let state = request.body.presence;
    if !matches!(state, PresenceState::Online | PresenceState::Offline | PresenceState::Unavailable) {
        return Err(ApiError::invalid_param("presence must be online, offline or unavailable").into());
    }
    services.sync.set_presence(session.user_nid, state, request.body.status_msg).await?;
    Ok(Reply(set_presence::v3::Response::new()))
}
