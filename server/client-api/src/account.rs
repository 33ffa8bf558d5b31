//! Accounts: made, used, ended.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#legacy-account-registration>

mod availability;
mod change_password;
mod deactivate;
mod errors;
mod register;
mod request_openid_token;
mod third_party_ids;
mod token_validity;
mod whoami;

use axum::Router;
use myelin_http::{Endpoints as _, LimitKind, RouteOptions};

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let registration = RouteOptions::new().rate_limit(LimitKind::Registration);
    router
        .endpoint_with(registration, register::register)
        .endpoint_with(registration, availability::is_available)
        .endpoint_with(registration, token_validity::is_token_valid)
        .endpoint(whoami::who_am_i)
        .endpoint(change_password::change_password)
        .endpoint(deactivate::deactivate)
        .endpoint(request_openid_token::request_openid_token)
        .endpoint(third_party_ids::list)
}

#[cfg(test)]
pub(crate) mod tests {
    use http::StatusCode;
    use myelin_accounts::{Accounts, AccountsOptions, LoggedIn};
    use serde_json::json;

    use crate::testing::{PASSWORD, Server, on_both};

    /// A guest, made by a replica that lets guests in.
    pub(crate) async fn guest(server: &Server) -> LoggedIn {
        let server_name = server.services.accounts.server_name().to_owned();
        let options = AccountsOptions { guest_access: true, ..AccountsOptions::new(server_name) };
        let replica = Accounts::open(server.services.store.clone(), options).await.unwrap();
        replica.register_guest(None).await.unwrap()
    }

    /// Who knows the registration token becomes a user, in the two steps of the specification.
    #[tokio::test]
    async fn registers_by_token() {
        on_both(async |server: &Server| {
            let available = server.get("/_matrix/client/v3/register/available?username=alice", None).await;
            assert_eq!(available.json(StatusCode::OK), json!({ "available": true }));
            let body = json!({ "username": "alice", "password": PASSWORD, "device_id": "PHONE" });
            let challenge = server.post("/_matrix/client/v3/register", None, &body).await;
            let challenge = challenge.json(StatusCode::UNAUTHORIZED);
            assert_eq!(challenge["flows"], json!([{ "stages": ["m.login.registration_token"] }]));
            assert!(challenge.get("errcode").is_none());
            let session = &challenge["session"];
            let wrong = json!({ "type": "m.login.registration_token", "token": "wrong", "session": session });
            let refused = server.post("/_matrix/client/r0/register", None, &with_auth(&body, &wrong)).await;
            let refused = refused.json(StatusCode::UNAUTHORIZED);
            assert_eq!((&refused["errcode"], &refused["session"]), (&json!("M_FORBIDDEN"), session));
            let right =
                json!({ "type": "m.login.registration_token", "token": server.registration_token(), "session": session });
            let done = server.post("/_matrix/client/v3/register", None, &with_auth(&body, &right)).await;
            let done = done.json(StatusCode::OK);
            assert_eq!((&done["user_id"], &done["device_id"]), (&json!("@alice:example.org"), &json!("PHONE")));
            let who = server.get("/_matrix/client/v3/account/whoami", done["access_token"].as_str()).await;
            assert_eq!(who.json(StatusCode::OK), json!({ "user_id": "@alice:example.org", "device_id": "PHONE" }));
            let taken = server.post("/_matrix/client/v3/register", None, &body).await;
            assert_eq!(taken.errcode(StatusCode::BAD_REQUEST), "M_USER_IN_USE");
            let taken = server.get("/_matrix/client/v3/register/available?username=alice", None).await;
            assert_eq!(taken.errcode(StatusCode::BAD_REQUEST), "M_USER_IN_USE");
            let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
            let valid = server.get(&format!("{path}{}", server.registration_token()), None).await;
            assert_eq!(valid.json(StatusCode::OK), json!({ "valid": true }));
            assert_eq!(server.get(&format!("{path}no"), None).await.json(StatusCode::OK), json!({ "valid": false }));
        })
        .await;
    }

    /// Names that are none, guests, and a missing password are refused.
    #[tokio::test]
    async fn refuses_bad_registrations() {
        on_both(async |server: &Server| {
            let body = json!({ "username": "al ice", "password": PASSWORD });
            let invalid = server.post("/_matrix/client/v3/register", None, &body).await;
            assert_eq!(invalid.errcode(StatusCode::BAD_REQUEST), "M_INVALID_USERNAME");
            let invalid = server.get("/_matrix/client/v3/register/available?username=%C3%A9", None).await;
            assert_eq!(invalid.errcode(StatusCode::BAD_REQUEST), "M_INVALID_USERNAME");
            let guest = server.post("/_matrix/client/v3/register?kind=guest", None, &json!({})).await;
            assert_eq!(guest.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            let auth = json!({ "type": "m.login.registration_token", "token": server.registration_token() });
            let silent = server.post("/_matrix/client/v3/register", None, &json!({ "auth": auth })).await;
            assert_eq!(silent.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        })
        .await;
    }

    /// What cannot become an account is refused before anything has to be shown, and again after it, and changes
    /// nothing.
    #[tokio::test]
    async fn refused_registrations_change_nothing() {
        on_both(async |server: &Server| {
            let path = "/_matrix/client/v3/register";
            server.services.store.create_registration_token("once", Some(1), None).await.unwrap();
            let auth = json!({ "type": "m.login.registration_token", "token": "once" });
            let long = "x".repeat(256);
            for (field, value) in [("device_id", ""), ("device_id", &*long), ("initial_device_display_name", &*long)] {
                let mut body = json!({ "username": "alice", "password": PASSWORD });
                body[field] = value.into();
                for body in [&body, &with_auth(&body, &auth)] {
                    let refused = server.post(path, None, body).await;
                    assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM", "{field}");
                }
            }
            let upgrade = json!({ "username": "alice", "password": PASSWORD, "guest_access_token": "x", "auth": auth });
            let refused = server.post(path, None, &upgrade).await.json(StatusCode::BAD_REQUEST);
            assert_eq!(refused["errcode"], "M_UNKNOWN");
            assert!(refused["error"].as_str().unwrap().contains("guest_access_token"));
            let body = json!({ "username": "alice", "password": PASSWORD, "auth": auth });
            let strange = server.post(&format!("{path}?kind=admin"), None, &body).await;
            assert_eq!(strange.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
            server.post(&format!("{path}?kind=user"), None, &body).await.json(StatusCode::OK);
        })
        .await;
    }

    /// Whoever does not want to be logged in hears of no device and no token.
    #[tokio::test]
    async fn registers_without_logging_in() {
        on_both(async |server: &Server| {
            let auth = json!({ "type": "m.login.registration_token", "token": server.registration_token() });
            let body = json!({ "username": "alice", "password": PASSWORD, "inhibit_login": true, "auth": auth });
            let done = server.post("/_matrix/client/v3/register", None, &body).await;
            assert_eq!(done.json(StatusCode::OK), json!({ "user_id": "@alice:example.org" }));
            let body = json!({ "password": PASSWORD, "refresh_token": true, "auth": auth });
            let done = server.post("/_matrix/client/v3/register", None, &body).await.json(StatusCode::OK);
            assert!(done["refresh_token"].is_string() && done["expires_in_ms"].is_u64(), "{done}");
        })
        .await;
    }

    /// A password that is shown for an e-mail address or a phone number is refused, as at /login.
    #[tokio::test]
    async fn third_party_identifiers_authorize_nothing() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            for identifier in [
                json!({ "type": "m.id.thirdparty", "medium": "email", "address": "alice@example.org" }),
                json!({ "type": "m.id.phone", "country": "GB", "phone": "1234" }),
            ] {
                let auth = json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD });
                let body = json!({ "new_password": "second", "auth": auth });
                let refused = server.post("/_matrix/client/v3/account/password", Some(&token), &body).await;
                assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            }
        })
        .await;
    }

    /// A new password needs the old one, and an ended account is not to be entered again.
    #[tokio::test]
    async fn passwords_and_accounts_end() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let auth = server.password_auth("alice");
            let body = json!({ "new_password": "second" });
            let missing = server.post("/_matrix/client/v3/account/password", None, &body).await;
            assert_eq!(missing.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            let challenge = server.post("/_matrix/client/v3/account/password", Some(&token), &body).await;
            assert_eq!(challenge.json(StatusCode::UNAUTHORIZED)["flows"], json!([{ "stages": ["m.login.password"] }]));
            let changed = with_auth(&body, &auth);
            let changed = server.post("/_matrix/client/v3/account/password", Some(&token), &changed).await;
            assert_eq!(changed.json(StatusCode::OK), json!({}));
            let body = json!({ "erase": true });
            let old =
                server.post("/_matrix/client/v3/account/deactivate", Some(&token), &with_auth(&body, &auth)).await;
            assert_eq!(old.errcode(StatusCode::UNAUTHORIZED), "M_FORBIDDEN");
            let mut auth = auth;
            auth["password"] = "second".into();
            let ended = with_auth(&body, &auth);
            let ended = server.post("/_matrix/client/v3/account/deactivate", Some(&token), &ended).await;
            assert_eq!(ended.json(StatusCode::OK), json!({ "id_server_unbind_result": "success" }));
            let who = server.get("/_matrix/client/v3/account/whoami", Some(&token)).await;
            assert_eq!(who.errcode(StatusCode::UNAUTHORIZED), "M_UNKNOWN_TOKEN");
            let login = server.post("/_matrix/client/v3/login", None, &auth).await;
            assert_eq!(login.errcode(StatusCode::FORBIDDEN), "M_USER_DEACTIVATED");
        })
        .await;
    }

    fn with_auth(body: &serde_json::Value, auth: &serde_json::Value) -> serde_json::Value {
        let mut body = body.clone();
        body["auth"] = auth.clone();
        body
    }
}
