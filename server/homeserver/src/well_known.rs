//! GET /.well-known/matrix/client
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixclient>

use axum::{Router, response::IntoResponse, routing::get};
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE};
use myelin_process::config::Config;
use serde_json::json;

/// Tells clients that know only the server's name where to find it.
pub(crate) fn routes(config: &Config) -> Router {
    let baseurl = config.client_baseurl();
    let body = json!({ "m.homeserver": { "base_url": baseurl.as_str().trim_end_matches('/') } }).to_string();
    // Web clients read this from other origins, before they know the server.
    let headers = [(ACCESS_CONTROL_ALLOW_ORIGIN, "*"), (CONTENT_TYPE, "application/json")];
    let answer = move || async move { (headers, body).into_response() };
    Router::new().route("/.well-known/matrix/client", get(answer))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt as _;
    use myelin_process::config::Config;
    use tower::ServiceExt as _;

    /// A web client on another origin learns the base URL.
    #[tokio::test]
    async fn names_the_base_url() {
        let mut config = Config::embedded_default();
        config.public_baseurl = Some("https://matrix.example.org/".parse().unwrap());
        let request = Request::get("/.well-known/matrix/client").body(Body::empty()).unwrap();
        let response = super::routes(&config).oneshot(request).await.unwrap();
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], br#"{"m.homeserver":{"base_url":"https://matrix.example.org"}}"#);
    }
}
