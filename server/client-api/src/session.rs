//! Logging in and out.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#legacy-login>

mod create_login_token;
mod login;
mod login_flows;
mod logout;
mod refresh;

use axum::Router;
use myelin_http::{Endpoints as _, LimitKind, RouteOptions};

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let login = RouteOptions::new().rate_limit(LimitKind::Login);
    router
        .endpoint(login_flows::list)
        .endpoint_with(login, login::log_in)
        .endpoint(create_login_token::create)
        .endpoint(refresh::refresh)
        .endpoint(logout::log_out)
        .endpoint(logout::log_out_everywhere)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{body::Body, extract::ConnectInfo};
    use http::{Request, StatusCode};
    use myelin_http::{RateLimit, RateLimits, layers};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use crate::testing::{PASSWORD, Server, on_both};

    const LOGIN: &str = "/_matrix/client/v3/login";
    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

    /// A password logs in, by all the ways to name its user.
    #[tokio::test]
    async fn logs_in_by_password() {
        on_both(async |server: &Server| {
            server.user("alice").await;
            let flows = server.get(LOGIN, None).await.json(StatusCode::OK);
            let expected =
                json!([{ "type": "m.login.password" }, { "type": "m.login.token", "get_login_token": true }]);
            assert_eq!(flows["flows"], expected);
            let by_id = json!({ "identifier": { "type": "m.id.user", "user": "@alice:example.org" } });
            for named in
                [by_id, json!({ "user": "alice" }), json!({ "identifier": { "type": "m.id.user", "user": "alice" } })]
            {
                let mut body = json!({ "type": "m.login.password", "password": PASSWORD, "device_id": "D" });
                body.as_object_mut().unwrap().extend(named.as_object().unwrap().clone());
                let done = server.post(LOGIN, None, &body).await.json(StatusCode::OK);
                assert_eq!((&done["user_id"], &done["device_id"]), (&json!("@alice:example.org"), &json!("D")));
                server.get(WHOAMI, done["access_token"].as_str()).await.json(StatusCode::OK);
                // A client may send the token that it had.
                body["password"] = "wrong".into();
                let wrong = server.post(LOGIN, done["access_token"].as_str(), &body).await;
                assert_eq!(wrong.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            }
        })
        .await;
    }

    /// Each malformed login gets the errcode for what is wrong with it.
    #[tokio::test]
    async fn refuses_malformed_logins() {
        on_both(async |server: &Server| {
            let user = json!({ "type": "m.id.user", "user": "alice" });
            let email = json!({ "type": "m.id.thirdparty", "medium": "email", "address": "a@example.org" });
            let cases: [(Value, StatusCode, &str); 6] = [
                (json!({}), StatusCode::BAD_REQUEST, "M_MISSING_PARAM"),
                (json!({ "type": "org.example.strange" }), StatusCode::BAD_REQUEST, "M_UNKNOWN"),
                (json!({ "type": "m.login.password", "password": "x" }), StatusCode::BAD_REQUEST, "M_MISSING_PARAM"),
                (json!({ "type": "m.login.password", "identifier": user }), StatusCode::BAD_REQUEST, "M_MISSING_PARAM"),
                (
                    json!({ "type": "m.login.password", "identifier": email, "password": "x" }),
                    StatusCode::FORBIDDEN,
                    "M_FORBIDDEN",
                ),
                (json!({ "type": "m.login.token", "token": "x" }), StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            ];
            for (body, status, errcode) in cases {
                assert_eq!(server.post(LOGIN, None, &body).await.errcode(status), errcode, "{body}");
            }
        })
        .await;
    }

    /// Guesses at one account count together, from whatever address, however its name is spelt.
    #[tokio::test]
    async fn spellings_share_a_rate_limit() {
        on_both(async |server: &Server| {
            server.user("alice").await;
            let one = RateLimit { per_second: 0.001, burst: 2 };
            let limits =
                RateLimits { enabled: true, login: one, registration: one, joins: one, messages: one, other: one };
            server.services.rate_limiter.reload(&limits).unwrap();
            let router = layers(crate::router(server.services.clone()));
            let attempt = async |number: u8, name: &str| {
                let user = json!({ "type": "m.id.user", "user": name });
                let body = json!({ "type": "m.login.password", "identifier": user, "password": "wrong" });
                let address = SocketAddr::from(([192, 0, 2, number], 1));
                let request = Request::post(LOGIN).extension(ConnectInfo(address));
                let request = request.body(Body::from(body.to_string())).unwrap();
                router.clone().oneshot(request).await.unwrap().status()
            };
            let (wrong, too_often) = (StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS);
            let names = ["alice", "@alice:example.org", "ALICE", "@Alice:example.org", "aLICE", "bob"];
            let expected = [wrong, wrong, too_often, too_often, too_often, wrong];
            for (number, (name, status)) in (1..).zip(names.into_iter().zip(expected)) {
                assert_eq!(attempt(number, name).await, status, "{name}");
            }
        })
        .await;
    }

    /// A session is handed on by a login token, refreshed, and ended.
    #[tokio::test]
    async fn sessions_are_handed_on_refreshed_and_ended() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let path = "/_matrix/client/v1/login/get_token";
            server.post(path, Some(&token), &json!({})).await.json(StatusCode::UNAUTHORIZED);
            let body = json!({ "auth": server.password_auth("alice") });
            let made = server.post(path, Some(&token), &body).await.json(StatusCode::OK);
            let body = json!({ "type": "m.login.token", "token": made["login_token"], "refresh_token": true });
            let login = server.post(LOGIN, None, &body).await.json(StatusCode::OK);
            assert!(login["expires_in_ms"].is_number());
            let body = json!({ "refresh_token": login["refresh_token"] });
            let fresh = server.post("/_matrix/client/v3/refresh", None, &body).await.json(StatusCode::OK);
            server.get(WHOAMI, fresh["access_token"].as_str()).await.json(StatusCode::OK);
            let old = server.get(WHOAMI, login["access_token"].as_str()).await;
            assert_eq!(old.json(StatusCode::UNAUTHORIZED)["soft_logout"], false);
            let used = server.post("/_matrix/client/v3/refresh", None, &body).await;
            assert_eq!(used.errcode(StatusCode::UNAUTHORIZED), "M_UNKNOWN_TOKEN");
            let out = server.post("/_matrix/client/v3/logout", fresh["access_token"].as_str(), &json!({})).await;
            assert_eq!(out.json(StatusCode::OK), json!({}));
            let gone = server.get(WHOAMI, fresh["access_token"].as_str()).await;
            assert_eq!(gone.errcode(StatusCode::UNAUTHORIZED), "M_UNKNOWN_TOKEN");
            server.get(WHOAMI, Some(&token)).await.json(StatusCode::OK);
            server.post("/_matrix/client/v3/logout/all", Some(&token), &json!({})).await.json(StatusCode::OK);
            let gone = server.get(WHOAMI, Some(&token)).await;
            assert_eq!(gone.errcode(StatusCode::UNAUTHORIZED), "M_UNKNOWN_TOKEN");
        })
        .await;
    }
}
