//! GET /.well-known/matrix/client, GET /.well-known/matrix/server, GET /.well-known/matrix/support

use axum::{Router, body::Body, routing::get};
use myelin_process::config::Config;
use myelin_proxy::well_known::{self, Contact, WellKnown};
use serde_json::json;

/// What the configuration has to tell.
pub(crate) fn routes(config: &Config) -> Router {
    documents(config).documents().into_iter().fold(Router::new(), |router, (path, document)| {
        router.route(path, get(async move || well_known::response::<Body>(&document)))
    })
}

fn documents(config: &Config) -> WellKnown {
    let settings = &config.well_known;
    let contact = |contact: &myelin_process::config::Contact| Contact {
        role: contact.role.clone(),
        matrix_id: contact.matrix_id.as_ref().map(ToString::to_string),
        email_address: contact.email_address.clone(),
    };
    // TOML's tables are JSON's objects, but for dates, which become texts.
    let more = serde_json::to_value(&settings.client).ok();
    let mut client_more = more.and_then(|more| more.as_object().cloned()).unwrap_or_default();
    if let Some(url) = &config.rtc.livekit_service_url {
        // What the operator wrote there goes before.
        client_more
            .entry("org.matrix.msc4143.rtc_foci")
            .or_insert_with(|| json!([{ "type": "livekit", "livekit_service_url": url }]));
    }
    WellKnown {
        client: Some(config.client_baseurl().as_str().trim_end_matches('/').to_owned()),
        client_more,
        server: settings.server.as_ref().map(ToString::to_string),
        contacts: settings.contacts.iter().map(contact).collect(),
        support_page: settings.support_page.as_ref().map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt as _;
    use myelin_process::config::{Config, Contact};
    use serde_json::json;
    use tower::ServiceExt as _;

    async fn ask(config: &Config, path: &str) -> Option<String> {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = super::routes(config).oneshot(request).await.unwrap();
        if response.status() == StatusCode::NOT_FOUND {
            return None;
        }
        // Web clients read them from other origins, before they know the server.
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Some(String::from_utf8(body.to_vec()).unwrap())
    }

    /// Clients learn the base URL; servers and people in need of help learn what the operator wrote, and only that.
    #[tokio::test]
    async fn tells_what_is_configured() {
        let mut config = Config::embedded_default();
        config.public_baseurl = Some("https://matrix.example.org/".parse().unwrap());
        let client = ask(&config, "/.well-known/matrix/client").await.unwrap();
        assert_eq!(client, r#"{"m.homeserver":{"base_url":"https://matrix.example.org"}}"#);
        assert!(ask(&config, "/.well-known/matrix/server").await.is_none());
        assert!(ask(&config, "/.well-known/matrix/support").await.is_none());
        config.well_known.server = Some("matrix.example.org:443".try_into().unwrap());
        config.well_known.client = toml::toml! { "org.example.call" = { url = "https://call.example.org" } };
        config.rtc.livekit_service_url = Some("https://livekit.example.org/x".parse().unwrap());
        config.well_known.contacts.push(Contact {
            role: "m.role.security".to_owned(),
            matrix_id: None,
            email_address: Some("security@example.org".to_owned()),
        });
        let client = ask(&config, "/.well-known/matrix/client").await.unwrap();
        assert!(client.contains(r#""org.example.call":{"url":"https://call.example.org"}"#), "{client}");
        let parsed: serde_json::Value = serde_json::from_str(&client).unwrap();
        let livekit = json!({ "type": "livekit", "livekit_service_url": "https://livekit.example.org/x" });
        assert_eq!(parsed["org.matrix.msc4143.rtc_foci"], json!([livekit]));
        let server = ask(&config, "/.well-known/matrix/server").await.unwrap();
        assert_eq!(server, r#"{"m.server":"matrix.example.org:443"}"#);
        let support = ask(&config, "/.well-known/matrix/support").await.unwrap();
        assert!(support.contains("security@example.org"), "{support}");
    }
}
