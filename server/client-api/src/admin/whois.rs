//! GET /_matrix/client/v3/admin/whois/{userId}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3adminwhoisuserid>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson};
use ruma::api::client::admin::get_user_info::v3::Request;
use serde_json::{Map, Value, json};

use crate::{Services, errors::Result};

/// "This API may be restricted to only be called by the user being looked up, or by a server admin."
pub(super) async fn whois(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let user_id = &request.body.user_id;
    if session.user_id != *user_id {
        session.require_admin()?;
    }
    session.require_full_account()?;
    let account = services.store.account(user_id).await?.filter(|account| account.deactivated_ts.is_none());
    let account = account.ok_or_else(|| ApiError::not_found("There is no such user"))?;
    let mut devices = Map::new();
    for device in services.store.devices(account.user_nid).await? {
        // One access token, and where it was seen last.
        let mut connection = Map::new();
        connection.insert("last_seen".to_owned(), device.last_seen_ts.into());
        if let Some(ip) = device.last_seen_ip {
            connection.insert("ip".to_owned(), ip.into());
        }
        devices.insert(device.device_id, json!({ "sessions": [{ "connections": [Value::Object(connection)] }] }));
    }
    Ok(RawJson::from(json!({ "user_id": user_id, "devices": devices }).to_string()))
}
