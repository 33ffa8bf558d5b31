//! What users say about themselves.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#profiles>

mod read;
mod write;

use axum::Router;
use myelin_http::{Endpoints as _, LimitKind, RouteOptions};

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    // Which anyone may ask for, also of users whose servers we have to ask; the specification does not say that they are
    // rate-limited.
    let reads = RouteOptions::new().rate_limit(LimitKind::Other);
    router
        .endpoint_with(reads, read::whole)
        .endpoint_with(reads, read::field)
        .endpoint(write::set)
        .endpoint(write::delete)
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::json;

    use crate::{
        account::tests::guest,
        testing::{Server, on_both},
    };

    const PROFILE: &str = "/_matrix/client/v3/profile/@alice:example.org";

    /// Fields are set, read one by one and together, by anybody, and removed.
    #[tokio::test]
    async fn fields_are_set_and_read() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let put = async |field: &str, body| {
                server.request(Method::PUT, &format!("{PROFILE}/{field}"), Some(&token), &body).await
            };
            assert_eq!(server.get(PROFILE, None).await.json(StatusCode::OK), json!({}));
            assert_eq!(put("displayname", json!({ "displayname": "Älice" })).await.json(StatusCode::OK), json!({}));
            put("avatar_url", json!({ "avatar_url": "mxc://example.org/a" })).await.json(StatusCode::OK);
            put("org.example.age", json!({ "org.example.age": [1, null] })).await.json(StatusCode::OK);
            let whole = server.get(PROFILE, None).await.json(StatusCode::OK);
            let expected =
                json!({ "displayname": "Älice", "avatar_url": "mxc://example.org/a", "org.example.age": [1, null] });
            assert_eq!(whole, expected);
            let path = format!("{PROFILE}/displayname");
            assert_eq!(server.get(&path, None).await.json(StatusCode::OK), json!({ "displayname": "Älice" }));
            let path = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/@alice:example.org/org.example.age";
            assert_eq!(server.get(path, None).await.json(StatusCode::OK), json!({ "org.example.age": [1, null] }));
            let path = format!("{PROFILE}/org.example.age");
            server.request(Method::DELETE, &path, Some(&token), &json!({})).await.json(StatusCode::OK);
            assert_eq!(server.get(&path, None).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            put("displayname", json!({ "displayname": null })).await.json(StatusCode::OK);
            let whole = server.get(PROFILE, None).await.json(StatusCode::OK);
            assert_eq!(whole, json!({ "avatar_url": "mxc://example.org/a" }));
        })
        .await;
    }

    /// A guest may change the own display name, and nothing else.
    #[tokio::test]
    async fn guests_have_only_a_name() {
        on_both(async |server: &Server| {
            let guest = guest(server).await;
            let profile = format!("/_matrix/client/v3/profile/{}", guest.user_id);
            for (field, value) in [("avatar_url", "mxc://example.org/a"), ("m.tz", "UTC"), ("org.example.x", "x")] {
                let path = format!("{profile}/{field}");
                for method in [Method::PUT, Method::DELETE] {
                    let refused =
                        server.request(method, &path, Some(&guest.access_token), &json!({ field: value })).await;
                    assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_GUEST_ACCESS_FORBIDDEN", "{field}");
                }
            }
            let path = format!("{profile}/displayname");
            for (method, expected) in [(Method::PUT, json!({ "displayname": "Visitor" })), (Method::DELETE, json!({}))]
            {
                let body = json!({ "displayname": "Visitor" });
                server.request(method, &path, Some(&guest.access_token), &body).await.json(StatusCode::OK);
                assert_eq!(server.get(&profile, None).await.json(StatusCode::OK), expected);
            }
        })
        .await;
    }

    /// Another user's profile, a wrong field and too much are refused as the specification says.
    #[tokio::test]
    async fn bad_fields_are_refused() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let put = async |path: String, body| server.request(Method::PUT, &path, Some(&token), &body).await;
            let other = put(PROFILE.replace("alice", "bob") + "/displayname", json!({ "displayname": "x" })).await;
            assert_eq!(other.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            let missing = put(format!("{PROFILE}/displayname"), json!({ "other": "x" })).await;
            assert_eq!(missing.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
            let wrong = put(format!("{PROFILE}/displayname"), json!({ "displayname": 1 })).await;
            assert_eq!(wrong.errcode(StatusCode::BAD_REQUEST), "M_BAD_JSON");
            let name = "a".repeat(256);
            let long = put(format!("{PROFILE}/{name}"), json!({ name: 1 })).await;
            assert_eq!(long.errcode(StatusCode::BAD_REQUEST), "M_KEY_TOO_LARGE");
            let invalid = put(format!("{PROFILE}/UPPER"), json!({ "UPPER": 1 })).await;
            assert_eq!(invalid.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
            let large = put(format!("{PROFILE}/org.example.x"), json!({ "org.example.x": "x".repeat(70_000) })).await;
            assert_eq!(large.errcode(StatusCode::BAD_REQUEST), "M_PROFILE_TOO_LARGE");
            let nobody = server.get(&PROFILE.replace("alice", "nobody"), None).await;
            assert_eq!(nobody.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            let strange = server.get("/_matrix/client/v3/profile/@a%00b:example.org", None).await;
            assert!(strange.status().is_client_error());
        })
        .await;
    }
}
