//! The devices of whoever asks.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#device-management>

mod delete;
mod read;
mod rename;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .endpoint(read::list)
        .endpoint(read::show)
        .endpoint(rename::rename)
        .endpoint(delete::delete)
        .endpoint(delete::delete_many)
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::json;

    use crate::testing::{Server, on_both};

    /// A user sees, renames and, with the password, removes devices.
    #[tokio::test]
    async fn devices_are_managed_by_their_user() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let mut body = server.password_auth("alice");
            for device in ["PHONE", "TABLET"] {
                body["device_id"] = device.into();
                body["initial_device_display_name"] = "Mine".into();
                server.post("/_matrix/client/v3/login", None, &body).await.json(StatusCode::OK);
            }
            let path = "/_matrix/client/v3/devices/PHONE";
            let device = server.get(path, Some(&token)).await.json(StatusCode::OK);
            assert_eq!((&device["device_id"], &device["display_name"]), (&json!("PHONE"), &json!("Mine")));
            assert!(device["last_seen_ts"].is_number());
            let renamed = server.request(Method::PUT, path, Some(&token), &json!({ "display_name": "Old" })).await;
            assert_eq!(renamed.json(StatusCode::OK), json!({}));
            assert_eq!(server.get(path, Some(&token)).await.json(StatusCode::OK)["display_name"], "Old");
            let unknown = server.request(Method::PUT, "/_matrix/client/v3/devices/X", Some(&token), &json!({})).await;
            assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            let challenge = server.request(Method::DELETE, path, Some(&token), &json!({})).await;
            let session = challenge.json(StatusCode::UNAUTHORIZED)["session"].clone();
            let mut auth = server.password_auth("alice");
            auth["session"] = session;
            let other = server
                .post(
                    "/_matrix/client/v3/delete_devices",
                    Some(&token),
                    &json!({ "devices": ["TABLET"], "auth": auth }),
                )
                .await;
            assert_eq!(other.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            let done = server.request(Method::DELETE, path, Some(&token), &json!({ "auth": auth })).await;
            assert_eq!(done.json(StatusCode::OK), json!({}));
            let auth = server.password_auth("alice");
            let body = json!({ "devices": ["TABLET", "NONE"], "auth": auth });
            server.post("/_matrix/client/v3/delete_devices", Some(&token), &body).await.json(StatusCode::OK);
            let left = server.get("/_matrix/client/v3/devices", Some(&token)).await.json(StatusCode::OK);
            assert_eq!(left["devices"].as_array().unwrap().len(), 1);
        })
        .await;
    }
}
