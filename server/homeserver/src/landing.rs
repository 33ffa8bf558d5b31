//! GET /
//!
//! The page for who opens the server's address in a browser: what this is, how it is, and how to connect a client.

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{
    HeaderName, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};
use myelin_process::config::Config;

use crate::health::Health;

const PAGE: &str = include_str!("landing/page.html");
const STYLE: &str = include_str!("landing/style.css");
/// No scripts, nothing from elsewhere, nothing around the page; the style sheet is our own.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Landing {
    healthy: String,
    unhealthy: String,
    health: Health,
}

/// The page and its style sheet.
pub(crate) fn routes(config: &Config, health: Health) -> Router {
    let landing = Landing {
        healthy: page(config, "healthy", "This server is healthy."),
        unhealthy: page(config, "unhealthy", "This server cannot do its work at the moment. Its logs say why."),
        health,
    };
    Router::new().route("/", get(show)).route("/myelin.css", get(style)).with_state(landing)
}

async fn show(State(landing): State<Landing>) -> Response {
    let (status, page) = match landing.health.is_ready().await {
        true => (StatusCode::OK, landing.healthy),
        false => (StatusCode::SERVICE_UNAVAILABLE, landing.unhealthy),
    };
    (status, headers("text/html; charset=utf-8", "no-store"), page).into_response()
}

async fn style() -> Response {
    (headers("text/css; charset=utf-8", "public, max-age=3600"), STYLE).into_response()
}

fn headers(media_type: &'static str, caching: &'static str) -> [(HeaderName, &'static str); 6] {
    [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, caching),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ]
}

fn page(config: &Config, class: &str, health: &str) -> String {
    let registration = match (config.registration.enabled, config.registration.require_token) {
        (false, _) => "If you have no account yet, ask who runs this server.",
        (true, true) => {
            "If you have no account yet, choose to create one. You need the registration token, which the \
                         server printed when it started; ask who runs it."
        }
        (true, false) => "If you have no account yet, choose to create one.",
    };
    [
        ("{class}", class),
        ("{health}", health),
        ("{server_name}", config.server_name.as_str()),
        ("{baseurl}", config.client_baseurl().as_str().trim_end_matches('/')),
        ("{registration}", registration),
        ("{version}", env!("CARGO_PKG_VERSION")),
    ]
    .into_iter()
    .fold(PAGE.to_owned(), |page, (mark, text)| page.replace(mark, &escape(text)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, Response, StatusCode};
    use http_body_util::BodyExt as _;
    use myelin_process::{config::Config, shutdown::Shutdown};
    use tower::ServiceExt as _;

    use crate::health::Health;

    async fn get(path: &str, health: Health) -> (Response<()>, String) {
        let mut config = Config::embedded_default();
        config.public_baseurl = Some("https://matrix.example.org/?a=<b>&c".parse().unwrap());
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (head, body) = super::routes(&config, health).oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        (Response::from_parts(head, ()), String::from_utf8(body).unwrap())
    }

    /// The page names the server and the address for clients, and nothing in it can run.
    #[tokio::test]
    async fn tells_how_to_connect() {
        let (head, page) = get("/", Health::new(Shutdown::new(), Vec::new())).await;
        assert_eq!(head.status(), StatusCode::OK);
        assert!(page.contains("localhost") && page.contains("https://matrix.example.org/?a=%3Cb%3E&amp;c"), "{page}");
        assert!(page.contains("This server is healthy") && page.contains("registration token"));
        assert!(!page.contains('{') && !page.contains("<script"), "{page}");
        let policy = head.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let (head, _) = get("/myelin.css", Health::new(Shutdown::new(), Vec::new())).await;
        assert_eq!(head.headers()["content-type"], "text/css; charset=utf-8");
    }

    /// A server that is not ready does not say that it is healthy.
    #[tokio::test]
    async fn tells_that_it_is_not_healthy() {
        let shutdown = Shutdown::new();
        shutdown.drain();
        let (head, page) = get("/", Health::new(shutdown, Vec::new())).await;
        assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!page.contains("is healthy"), "{page}");
    }
}
