use std::{fmt::Write as _, sync::Arc};

use axum::{Router, body::Body};
use hmac::{Hmac, Mac as _};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use myelin_accounts::{Accounts, AccountsOptions, NewDevice, NewUser, PasswordCost};
use myelin_http::{RateLimiter, RateLimits, layers};
use myelin_store::{Reported, testing::Fresh};
use ruma::{owned_server_name, user_id};
use serde_json::{Value, json};
use sha1::Sha1;
use tower::ServiceExt as _;

use crate::{AdminServices, router};

const PATH: &str = "/_synapse/admin/v1/register";
const SECRET: &str = "shared secret";

async fn on_both(secret: Option<&str>, test: impl AsyncFn(&Router, &Accounts)) {
    for fresh in Fresh::each().await {
        let store = fresh.open().await;
        let options = AccountsOptions {
            shared_secret: secret.map(str::to_owned),
            password_cost: PasswordCost { memory_kib: 16, passes: 1 },
            ..AccountsOptions::new(owned_server_name!("example.org"))
        };
        let accounts = Accounts::open(store.clone(), options).await.unwrap();
        let services = AdminServices {
            accounts: accounts.clone(),
            store: store.clone(),
            rate_limiter: Arc::new(RateLimiter::new(&RateLimits::OFF).unwrap()),
        };
        test(&layers(router(services)), &accounts).await;
        store.close().await;
    }
}

async fn ask(router: &Router, method: &str, body: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(PATH).body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn registration(nonce: &str, secret: &str) -> Value {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{nonce}\0root\0password\0admin").as_bytes());
    let mac = mac.finalize().into_bytes().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    json!({ "nonce": nonce, "username": "root", "password": "password", "admin": true, "mac": mac })
}

/// A tool that knows the secret makes an operator, who is logged in at once; a nonce is good for one attempt.
#[tokio::test]
async fn makes_users() {
    on_both(Some(SECRET), async |router: &Router, accounts: &Accounts| {
        let (status, answer) = ask(router, "GET", "").await;
        assert_eq!(status, StatusCode::OK);
        let body = registration(answer["nonce"].as_str().unwrap(), SECRET).to_string();
        let (status, login) = ask(router, "POST", &body).await;
        assert_eq!((status, &login["user_id"]), (StatusCode::OK, &json!("@root:example.org")), "{login}");
        assert_eq!(login["home_server"], "example.org");
        let session = accounts.session(login["access_token"].as_str().unwrap(), None).await.unwrap();
        assert!(session.is_admin && session.device_id.as_str() == login["device_id"]);
        assert_eq!(ask(router, "POST", &body).await.0, StatusCode::BAD_REQUEST);
        let (_, answer) = ask(router, "GET", "").await;
        let body = registration(answer["nonce"].as_str().unwrap(), SECRET).to_string();
        let (status, taken) = ask(router, "POST", &body).await;
        assert_eq!((status, &taken["errcode"]), (StatusCode::BAD_REQUEST, &json!("M_USER_IN_USE")));
    })
    .await;
}

/// Who guesses, or sends something else, makes nobody; without a secret nobody does.
#[tokio::test]
async fn refuses_strangers() {
    on_both(Some(SECRET), async |router: &Router, accounts: &Accounts| {
        let (_, answer) = ask(router, "GET", "").await;
        let (status, wrong) =
            ask(router, "POST", &registration(answer["nonce"].as_str().unwrap(), "guess").to_string()).await;
        assert_eq!((status, &wrong["errcode"]), (StatusCode::FORBIDDEN, &json!("M_UNKNOWN")));
        for (body, errcode) in [("{", "M_NOT_JSON"), ("{}", "M_MISSING_PARAM"), ("[]", "M_BAD_JSON")] {
            let (status, refused) = ask(router, "POST", body).await;
            assert_eq!((status, &refused["errcode"]), (StatusCode::BAD_REQUEST, &json!(errcode)), "{body}");
        }
        let (status, refused) = ask(router, "DELETE", "").await;
        assert_eq!((status, &refused["errcode"]), (StatusCode::METHOD_NOT_ALLOWED, &json!("M_UNRECOGNIZED")));
        accounts.check_username("root").await.unwrap();
    })
    .await;
    on_both(None, async |router: &Router, _: &Accounts| {
        assert_eq!(ask(router, "GET", "").await.0, StatusCode::FORBIDDEN);
        assert_eq!(ask(router, "POST", &registration("x", "").to_string()).await.0, StatusCode::FORBIDDEN);
    })
    .await;
}

/// Administrators read what was reported, page by page, and put it away; nobody else does.
#[tokio::test]
async fn reports_are_for_administrators() {
    for fresh in Fresh::each().await {
        let store = fresh.open().await;
        let options = AccountsOptions {
            password_cost: PasswordCost { memory_kib: 16, passes: 1 },
            ..AccountsOptions::new(owned_server_name!("example.org"))
        };
        let accounts = Accounts::open(store.clone(), options).await.unwrap();
        let mut tokens = Vec::new();
        for (username, is_admin) in [("root", true), ("alice", false)] {
            let new = NewUser { username, password: "password", is_admin, display_name: None };
            accounts.create_user(new).await.unwrap();
            let login = accounts.log_in_by_password(username, "password", NewDevice::default()).await.unwrap();
            tokens.push(login.access_token);
        }
        let services = AdminServices {
            accounts: accounts.clone(),
            store: store.clone(),
            rate_limiter: Arc::new(RateLimiter::new(&RateLimits::OFF).unwrap()),
        };
        let router = layers(router(services));
        let ask = async |method: &str, rest: &str, token: Option<&str>| {
            let mut request = Request::builder().method(method).uri(format!("/_myelin/admin/v1/reports{rest}"));
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice::<Value>(&body).unwrap())
        };
        let root = Some(tokens[0].as_str());
        assert_eq!(ask("GET", "", root).await, (StatusCode::OK, json!({ "reports": [] })));
        let alice = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
        for number in 0..3 {
            let reported = Reported { user_id: Some(format!("@{number}:example.org")), ..Reported::default() };
            store.keep_report(alice, &reported, "spam", 1000 + number).await.unwrap();
        }
        let (_, first) = ask("GET", "?limit=2", root).await;
        assert_eq!(first["reports"].as_array().unwrap().len(), 2);
        let newest = &first["reports"][0];
        let shown = json!({
            "id": newest["id"], "reporter": "@alice:example.org", "user_id": "@2:example.org", "reason": "spam",
            "received_ts": 1002,
        });
        assert_eq!(*newest, shown);
        let (_, rest) = ask("GET", &format!("?from={}", first["next_from"]), root).await;
        assert_eq!(rest["reports"][0]["user_id"], "@0:example.org");
        assert!(rest.get("next_from").is_none());
        let path = format!("/{}", newest["id"]);
        assert_eq!(ask("DELETE", &path, root).await.0, StatusCode::OK);
        for path in [path.as_str(), "/x"] {
            let (status, refused) = ask("DELETE", path, root).await;
            assert_eq!((status, &refused["errcode"]), (StatusCode::NOT_FOUND, &json!("M_NOT_FOUND")));
        }
        assert_eq!(ask("GET", "", root).await.1["reports"].as_array().unwrap().len(), 2);
        assert_eq!(ask("GET", "?from=x", root).await.1["errcode"], "M_INVALID_PARAM");

        for method_path in [("GET", ""), ("DELETE", "/1")] {
            let (method, path) = method_path;
            let (status, refused) = ask(method, path, Some(&tokens[1])).await;
            assert_eq!((status, &refused["errcode"]), (StatusCode::FORBIDDEN, &json!("M_FORBIDDEN")));
            let (status, refused) = ask(method, path, None).await;
            assert_eq!((status, &refused["errcode"]), (StatusCode::UNAUTHORIZED, &json!("M_MISSING_TOKEN")));
            let (status, refused) = ask(method, path, Some("guess")).await;
            assert_eq!((status, &refused["errcode"]), (StatusCode::UNAUTHORIZED, &json!("M_UNKNOWN_TOKEN")));
        }
        store.close().await;
    }
}
