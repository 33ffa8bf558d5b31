//! Files.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#content-repository>

mod config;
mod download;
mod errors;
mod upload;

use std::time::Duration;

use axum::Router;
use myelin_http::{Endpoints as _, RouteOptions, route};
use ruma::api::client::{
    authenticated_media,
    media::{create_content, get_content, get_content_as_filename},
};

use crate::Services;

/// The largest file over a slow line.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(15 * 60);

#[expect(deprecated, reason = "clients in use still speak them")]
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let plain = RouteOptions::new();
    let upload = RouteOptions::new().raw_body().deadline(UPLOAD_DEADLINE);
    let router = route::<create_content::v3::Request, _, _, _>(router, upload, upload::upload);
    let router =
        route::<authenticated_media::get_content::v1::Request, _, _, _>(router, plain, download::authenticated);
    let router = route::<authenticated_media::get_content_as_filename::v1::Request, _, _, _>(
        router,
        plain,
        download::authenticated_with_name,
    );
    let router = route::<get_content::v3::Request, _, _, _>(router, plain, download::deprecated);
    let router = route::<get_content_as_filename::v3::Request, _, _, _>(router, plain, download::deprecated_with_name);
    router.endpoint(config::show).endpoint(config::show_deprecated)
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, header};
    use myelin_http::{RateLimit, RateLimits};
    use serde_json::json;

    use crate::testing::{Server, UPLOAD_BYTES_MAX, on_both};

    async fn upload(server: &Server, token: &str, content_type: &str, query: &str, content: &[u8]) -> String {
        let path = format!("/_matrix/media/v3/upload{query}");
        let headers = [(header::CONTENT_TYPE, content_type)];
        let made = server.send(Method::POST, &path, Some(token), &headers, content.to_vec()).await;
        let made = made.json(StatusCode::OK);
        made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
    }

    /// A file comes back with its type, and cannot do any harm.
    #[tokio::test]
    async fn files_come_back_and_are_tame() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let id = upload(server, &token, "image/png", "?filename=caf%C3%A9.png", b"picture").await;
            let path = format!("/_matrix/client/v1/media/download/{id}");
            assert_eq!(server.get(&path, None).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            let file = server.get(&path, Some(&token)).await;
            assert_eq!((file.status(), file.body()), (StatusCode::OK, &b"picture"[..]));
            assert_eq!(file.header("content-type"), "image/png");
            assert_eq!(file.header("content-length"), "7");
            assert_eq!(file.header("content-disposition"), "inline; filename*=utf-8''caf%C3%A9.png");
            assert_eq!(file.header("x-content-type-options"), "nosniff");
            assert_eq!(file.header("cross-origin-resource-policy"), "cross-origin");
            assert!(file.header("content-security-policy").starts_with("sandbox; default-src 'none';"));
            let tag = file.header("etag").to_owned();
            let again =
                server.send(Method::GET, &path, Some(&token), &[(header::IF_NONE_MATCH, &tag)], Vec::new()).await;
            assert_eq!((again.status(), again.body()), (StatusCode::NOT_MODIFIED, &b""[..]));
            let named = server.get(&format!("{path}/other.png"), Some(&token)).await;
            assert_eq!(named.header("content-disposition"), "inline; filename=other.png");
            for version in ["v3", "r0", "v1"] {
                let file = server.get(&format!("/_matrix/media/{version}/download/{id}"), None).await;
                assert_eq!((file.status(), file.body()), (StatusCode::OK, &b"picture"[..]));
            }
            let page = upload(server, &token, "text/html", "", b"<script>").await;
            let page = server.get(&format!("/_matrix/client/v1/media/download/{page}"), Some(&token)).await;
            assert_eq!(page.header("content-disposition"), "attachment");
        })
        .await;
    }

    /// Uploads and downloads count like other requests: those with a token by their user, those without by address.
    #[tokio::test]
    async fn files_have_a_rate_limit() {
        on_both(async |server: &Server| {
            let (alice, bob) = (server.user("alice").await, server.user("bob").await);
            let id = upload(server, &alice, "text/plain", "", b"x").await;
            let one = RateLimit { per_second: 0.001, burst: 1 };
            let limits =
                RateLimits { enabled: true, login: one, registration: one, joins: one, messages: one, other: one };
            let authenticated = format!("/_matrix/client/v1/media/download/{id}");
            let deprecated = format!("/_matrix/media/v3/download/{id}");
            for (path, token) in [
                (authenticated.clone(), Some(&*bob)),
                (format!("{authenticated}/name"), Some(&*bob)),
                (deprecated.clone(), None),
                (format!("{deprecated}/name"), None),
            ] {
                server.services.rate_limiter.reload(&limits).unwrap();
                assert_eq!(server.get(&path, token).await.status(), StatusCode::OK, "{path}");
                let refused = server.get(&path, token).await;
                assert_eq!(refused.errcode(StatusCode::TOO_MANY_REQUESTS), "M_LIMIT_EXCEEDED", "{path}");
                assert_eq!(server.get(&authenticated, Some(&alice)).await.status(), StatusCode::OK, "{path}");
            }
            let path = "/_matrix/media/v3/upload";
            let refused = server.send(Method::POST, path, Some(&alice), &[], b"x".to_vec()).await;
            assert_eq!(refused.errcode(StatusCode::TOO_MANY_REQUESTS), "M_LIMIT_EXCEEDED");
        })
        .await;
    }

    /// What is too large, unknown, another server's or not built yet is refused.
    #[tokio::test]
    async fn refuses_what_it_cannot_do() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let large = vec![b'x'; UPLOAD_BYTES_MAX + 1];
            let large = server.send(Method::POST, "/_matrix/media/v3/upload", Some(&token), &[], large).await;
            assert_eq!(large.errcode(StatusCode::PAYLOAD_TOO_LARGE), "M_TOO_LARGE");
            let stranger = server.send(Method::POST, "/_matrix/media/v3/upload", None, &[], b"x".to_vec()).await;
            assert_eq!(stranger.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            for id in ["example.org/nothing", "elsewhere.org/abc", "example.org/a%2Fb", "example.org/%00"] {
                let unknown = server.get(&format!("/_matrix/client/v1/media/download/{id}"), Some(&token)).await;
                assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{id}");
            }
            let thumbnail = server.get("/_matrix/client/v1/media/thumbnail/example.org/abc", Some(&token)).await;
            assert_eq!(thumbnail.errcode(StatusCode::NOT_FOUND), "M_UNRECOGNIZED");
            for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"] {
                let config = server.get(path, Some(&token)).await.json(StatusCode::OK);
                assert_eq!(config, json!({ "m.upload.size": UPLOAD_BYTES_MAX }));
            }
        })
        .await;
    }
}
