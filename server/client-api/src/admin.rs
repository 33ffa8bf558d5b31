//! Server administration: what is known of users, and what they may do.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#server-administration>

mod lock;
mod suspend;
mod whois;

use axum::Router;
use myelin_http::{ApiError, Endpoints as _, Session};
use myelin_store::Account;
use ruma::UserId;

use crate::{Services, errors::Result};

/// Adds the endpoints.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .endpoint(whois::whois)
        .endpoint(lock::is_locked)
        .endpoint(lock::lock)
        .endpoint(suspend::is_suspended)
        .endpoint(suspend::suspend)
}

/// The account that an administrator asks for. "In order to prevent user enumeration, servers MUST ensure that authorisation
/// is checked prior to trying to do account lookups."
async fn account_of(services: &Services, session: &Session, user_id: &UserId) -> Result<Account> {
    session.require_admin()?;
    if user_id.server_name() != services.rooms.server_name() {
        return Err(ApiError::invalid_param("User does not belong to the local server.").into());
    }
    let found = services.store.account(user_id).await?.filter(|account| account.deactivated_ts.is_none());
    let account = found.ok_or_else(|| ApiError::not_found("User not found."))?;
    // "… or the target user is another administrator."
    if account.is_admin && session.user_id != *user_id {
        return Err(ApiError::forbidden("The user is an administrator too").into());
    }
    Ok(account)
}

/// Likewise, to change it: "is trying to suspend their own account".
async fn other_account(services: &Services, session: &Session, user_id: &UserId) -> Result<Account> {
    let account = account_of(services, session, user_id).await?;
    if session.user_id == *user_id {
        return Err(ApiError::forbidden("This is your own account").into());
    }
    Ok(account)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use myelin_accounts::{NewDevice, NewUser};
    use serde_json::json;

    use crate::testing::{PASSWORD, Server, on_both};

    /// Users see their own devices, administrators everybody's, and nobody else does.
    #[tokio::test]
    async fn devices_are_told_to_their_owner() {
        on_both(async |server: &Server| {
            let (alice, bob) = (server.user("alice").await, server.user("bob").await);
            let accounts = &server.services.accounts;
            let new = NewUser { username: "root", password: PASSWORD, is_admin: true, display_name: None };
            accounts.create_user(new).await.unwrap();
            let root = accounts.log_in_by_password("root", PASSWORD, NewDevice::default()).await.unwrap();
            let path = |name: &str| format!("/_matrix/client/v3/admin/whois/{name}");
            for token in [&alice, &root.access_token] {
                let told = server.get(&path("@alice:example.org"), Some(token)).await.json(StatusCode::OK);
                assert_eq!(told["user_id"], "@alice:example.org");
                let devices = told["devices"].as_object().unwrap();
                assert_eq!(devices.len(), 1);
                let connection = &devices.values().next().unwrap()["sessions"][0]["connections"][0];
                assert!(connection["last_seen"].as_u64().unwrap() > 0, "{told}");
            }
            for name in ["@alice:example.org", "@nobody:example.org"] {
                assert_eq!(server.get(&path(name), Some(&bob)).await.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            }
            for name in ["@nobody:example.org", "@alice:elsewhere.example"] {
                let unknown = server.get(&path(name), Some(&root.access_token)).await;
                assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
            }
        })
        .await;
    }

    async fn administrator(server: &Server, username: &str) -> String {
        let accounts = &server.services.accounts;
        let new = NewUser { username, password: PASSWORD, is_admin: true, display_name: None };
        accounts.create_user(new).await.unwrap();
        accounts.log_in_by_password(username, PASSWORD, NewDevice::default()).await.unwrap().access_token
    }

    /// Administrators lock and suspend users, who feel it at once; not each other, not themselves, and nobody else does.
    #[tokio::test]
    async fn accounts_are_locked_and_suspended() {
        on_both(async |server: &Server| {
            let (root, alice) = (administrator(server, "root").await, server.user("alice").await);
            administrator(server, "other").await;
            let path = |act: &str, user: &str| format!("/_matrix/client/v1/admin/{act}/{user}");
            let set = async |act: &str, user: &str, token: &str, on: bool| {
                let key = if act == "lock" { "locked" } else { "suspended" };
                let body = json!({ key: on });
                server.request(http::Method::PUT, &path(act, user), Some(token), &body).await
            };
            let capabilities = "/_matrix/client/v3/capabilities";
            let of = async |token: &str| server.get(capabilities, Some(token)).await.json(StatusCode::OK);
            let moderation = &of(&root).await["capabilities"]["m.account_moderation"];
            assert_eq!(*moderation, json!({ "suspend": true, "lock": true }));
            assert!(of(&alice).await["capabilities"].get("m.account_moderation").is_none());
            let whoami = "/_matrix/client/v3/account/whoami";
            let user = "@alice:example.org";
            for (act, key) in [("lock", "locked"), ("suspend", "suspended")] {
                for on in [true, false] {
                    assert_eq!(set(act, user, &root, on).await.json(StatusCode::OK), json!({ key: on }));
                    let told = server.get(&path(act, user), Some(&root)).await;
                    assert_eq!(told.json(StatusCode::OK), json!({ key: on }));
                    let name = "/_matrix/client/v3/profile/@alice:example.org/displayname";
                    let named = json!({ "displayname": "A" });
                    let asked = server.get(whoami, Some(&alice)).await;
                    let acted = server.request(http::Method::PUT, name, Some(&alice), &named).await;
                    match (act, on) {
                        ("lock", true) => assert_eq!(asked.errcode(StatusCode::UNAUTHORIZED), "M_USER_LOCKED"),
                        (_, true) => assert_eq!(acted.errcode(StatusCode::FORBIDDEN), "M_USER_SUSPENDED"),
                        (_, false) => {
                            asked.json(StatusCode::OK);
                            acted.json(StatusCode::OK);
                        }
                    }
                }
                for (user, token, status, errcode) in [
                    (user, &alice, StatusCode::FORBIDDEN, "M_FORBIDDEN"),
                    ("@nobody:example.org", &alice, StatusCode::FORBIDDEN, "M_FORBIDDEN"),
                    ("@other:example.org", &root, StatusCode::FORBIDDEN, "M_FORBIDDEN"),
                    ("@root:example.org", &root, StatusCode::FORBIDDEN, "M_FORBIDDEN"),
                    ("@nobody:example.org", &root, StatusCode::NOT_FOUND, "M_NOT_FOUND"),
                    ("@alice:elsewhere.example", &root, StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
                ] {
                    assert_eq!(set(act, user, token, true).await.errcode(status), errcode, "{act} {user}");
                    if user != "@root:example.org" {
                        let asked = server.get(&path(act, user), Some(token)).await;
                        assert_eq!(asked.errcode(status), errcode, "{act} {user}");
                    }
                }
                let missing = server.request(http::Method::PUT, &path(act, user), Some(&root), &json!({})).await;
                assert_eq!(missing.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
            }
        })
        .await;
    }
}
