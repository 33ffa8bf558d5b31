//! Filters that clients keep here.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#filtering>

mod create;
mod read;

use axum::Router;
use myelin_http::Endpoints as _;

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(create::create).endpoint(read::read)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    /// A filter comes back; a malformed one, another user's, and one that is not there are refused.
    #[tokio::test]
    async fn filters_are_kept() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let path = "/_matrix/client/v3/user/@alice:example.org/filter";
            let filter = json!({ "room": { "timeline": { "limit": 3 } } });
            let made = server.post(path, Some(&token), &filter).await.json(StatusCode::OK);
            let id = made["filter_id"].as_str().unwrap();
            assert_eq!(server.get(&format!("{path}/{id}"), Some(&token)).await.json(StatusCode::OK), filter);
            let unknown = server.get(&format!("{path}/99"), Some(&token)).await;
            assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            let bad = server.post(path, Some(&token), &json!({ "room": { "timeline": { "limit": "x" } } })).await;
            assert_eq!(bad.errcode(StatusCode::BAD_REQUEST), "M_BAD_JSON");
            let bob = server.user("bob").await;
            assert_eq!(server.post(path, Some(&bob), &filter).await.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            let read = server.get(&format!("{path}/{id}"), Some(&bob)).await;
            assert_eq!(read.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        })
        .await;
    }
}
