//! GET /_matrix/static/client/login/
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#login-fallback>
//!
//! A page for clients that cannot log in by themselves: they open it in a browser of their own, and the page tells them
//! `window.matrixLogin.onLogin` when it is done.

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{
    HeaderName,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
};

use crate::Services;

const PAGE: &str = include_str!("login_fallback/page.html");
const SCRIPT: &str = include_str!("login_fallback/login.js");
const STYLE: &str = include_str!("login_fallback/login.css");
/// Our own script and style sheet, which asks this server alone; nobody else's page around it, which could take clicks.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// Adds the page, and what belongs to it.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .route("/_matrix/static/client/login/", get(async || part("text/html; charset=utf-8", PAGE)))
        .route("/_matrix/static/client/login/login.js", get(async || part("text/javascript; charset=utf-8", SCRIPT)))
        .route("/_matrix/static/client/login/login.css", get(async || part("text/css; charset=utf-8", STYLE)))
}

fn part(media_type: &'static str, body: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use crate::testing::{Server, on_both};

    /// The page, and each part that it names, with a policy that lets nothing else in.
    #[tokio::test]
    async fn page_is_whole() {
        on_both(async |server: &Server| {
            let folder = "/_matrix/static/client/login/";
            let page = server.get(folder, None).await;
            assert_eq!(page.status(), StatusCode::OK);
            assert!(page.header("content-type").starts_with("text/html"));
            assert!(page.header("content-security-policy").contains("frame-ancestors 'none'"));
            let page = String::from_utf8(page.body().to_vec()).unwrap();
            for (part, media_type) in [("login.js", "text/javascript"), ("login.css", "text/css")] {
                assert!(page.contains(&format!("\"{part}\"")), "{part}");
                let part = server.get(&format!("{folder}{part}"), None).await;
                assert_eq!(part.status(), StatusCode::OK);
                assert!(part.header("content-type").starts_with(media_type));
            }
            assert_eq!(server.get(&format!("{folder}other"), None).await.status(), StatusCode::NOT_FOUND);
            // The script asks where logins are answered, seen from the page's folder.
            let script = server.get(&format!("{folder}login.js"), None).await;
            let script = String::from_utf8(script.body().to_vec()).unwrap();
            assert!(script.contains("\"../../../client/v3/login\"") && script.contains("matrixLogin"));
        })
        .await;
    }
}
