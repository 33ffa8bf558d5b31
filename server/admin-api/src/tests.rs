use std::{fmt::Write as _, sync::Arc};

use axum::{Router, body::Body};
use hmac::{Hmac, Mac as _};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use myelin_accounts::{Accounts, AccountsOptions, PasswordCost};
use myelin_http::{RateLimiter, RateLimits, layers};
use myelin_store::testing::Fresh;
use ruma::owned_server_name;
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
