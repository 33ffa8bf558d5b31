//! What this server can do.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation>

mod capabilities;
mod versions;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(versions::list).endpoint(capabilities::list)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use crate::testing::{Server, on_both};

    /// Clients learn of every released version without a token, and of capabilities with one.
    #[tokio::test]
    async fn versions_and_capabilities_are_told() {
        on_both(async |server: &Server| {
            let versions = server.get("/_matrix/client/versions", None).await.json(StatusCode::OK);
            let list: Vec<_> = versions["versions"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
            for version in ["r0.0.1", "r0.6.1", "v1.1", "v1.11", "v1.19"] {
                assert!(list.contains(&version), "{version}");
            }
            assert_eq!(versions["unstable_features"]["org.matrix.msc4222"], true);
            let path = "/_matrix/client/v3/capabilities";
            assert_eq!(server.get(path, None).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            let token = server.user("alice").await;
            let told = server.get(path, Some(&token)).await.json(StatusCode::OK);
            let rooms = &told["capabilities"]["m.room_versions"];
            assert_eq!(rooms["default"], "12");
            assert_eq!(rooms["available"].as_object().unwrap().len(), 12);
            assert_eq!(told["capabilities"]["m.profile_fields"]["enabled"], true);
            assert_eq!(told["capabilities"]["m.3pid_changes"]["enabled"], false);
        })
        .await;
    }
}
