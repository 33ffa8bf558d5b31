//! The router over a fresh store, for the tests of this crate.

use axum::{Router, body::Body};
use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use myelin_accounts::{Accounts, AccountsOptions, NewDevice, NewUser, PasswordCost};
use myelin_encryption::Encryption;
use myelin_http::{RateLimiter, RateLimits, layers};
use myelin_media::{Media, MediaOptions};
use myelin_rooms::Rooms;
use myelin_store::testing::Fresh;
use myelin_sync::{Sync, SyncOptions};
use ruma::{owned_server_name, signatures::Ed25519KeyPair};
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt as _;

use crate::{RoomProfiles, Services, router};

pub(crate) const PASSWORD: &str = "correct horse battery staple";
pub(crate) const UPLOAD_BYTES_MAX: usize = 1000;

/// A server.
pub(crate) struct Server {
    router: Router,
    pub(crate) services: Services,
    folder: Arc<tempfile::TempDir>,
}

/// An answer, read to its end.
pub(crate) struct Answer {
    head: http::response::Parts,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.head.status
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub(crate) fn json(&self, status: StatusCode) -> Value {
        assert_eq!(self.head.status, status, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The errcode of a refusal with this status.
    #[track_caller]
    pub(crate) fn errcode(&self, status: StatusCode) -> String {
        self.json(status)["errcode"].as_str().unwrap_or_default().to_owned()
    }
}

impl Server {
    /// The same server, whose files are kept otherwise.
    pub(crate) async fn with_media(&self, change: impl FnOnce(&mut MediaOptions)) -> Self {
        let mut options = MediaOptions::new(owned_server_name!("example.org"), self.folder.path().to_owned());
        change(&mut options);
        let media = Media::open(self.services.store.clone(), options).await.unwrap();
        let services = Services { media, ..self.services.clone() };
        Self { router: layers(router(services.clone())), services, folder: Arc::clone(&self.folder) }
    }

    pub(crate) fn registration_token(&self) -> &str {
        self.services.accounts.registration_token()
    }

    /// The same server with something else in it.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Services)) -> Self {
        let mut services = self.services.clone();
        change(&mut services);
        Self { router: layers(router(services.clone())), services, folder: Arc::clone(&self.folder) }
    }

    /// The access token of a new user with [`PASSWORD`].
    pub(crate) async fn user(&self, username: &str) -> String {
        let new = NewUser { username, password: PASSWORD, is_admin: false, display_name: None };
        self.services.accounts.create_user(new).await.unwrap();
        let device = NewDevice::default();
        self.services.accounts.log_in_by_password(username, PASSWORD, device).await.unwrap().access_token
    }

    /// What shows that someone knows the password of a user: good for `auth` and for /login.
    pub(crate) fn password_auth(&self, username: &str) -> Value {
        let identifier = json!({ "type": "m.id.user", "user": username });
        json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD })
    }

    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.send(Method::GET, path, token, &[], Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.request(Method::POST, path, token, body).await
    }

    pub(crate) async fn request(&self, method: Method, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.send(method, path, token, &[], body.to_string().into_bytes()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(HeaderName, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        Answer { head, body: body.collect().await.unwrap().to_bytes().to_vec() }
    }
}

/// Runs a test on each engine that is there.
pub(crate) async fn on_both(test: impl AsyncFn(&Server)) {
    for fresh in Fresh::each().await {
        let store = fresh.open().await;
        let server_name = owned_server_name!("example.org");
        let options = AccountsOptions {
            registration: true,
            password_cost: PasswordCost { memory_kib: 16, passes: 1 },
            ..AccountsOptions::new(server_name.clone())
        };
        let folder = tempfile::tempdir().unwrap();
        let media = MediaOptions {
            upload_bytes_max: UPLOAD_BYTES_MAX as u64,
            ..MediaOptions::new(server_name.clone(), folder.path().to_owned())
        };
        let (version, document) = store.signing_key().await.unwrap();
        let key = Ed25519KeyPair::from_der(&document, version).unwrap();
        let rooms = Rooms::new(store.clone(), server_name.clone(), key);
        let services = Services {
            accounts: Accounts::open(store.clone(), options).await.unwrap(),
            sync: Sync::new(store.clone(), rooms.clone(), SyncOptions::default()),
            encryption: Encryption::new(store.clone(), server_name),
            rooms,
            media: Media::open(store.clone(), media).await.unwrap(),
            rate_limiter: Arc::new(RateLimiter::new(&RateLimits::OFF).unwrap()),
            pushers: Arc::new(myelin_push::Pushers::new(store.clone(), false)),
            client_baseurl: "https://matrix.example.org/".into(),
            calls: Arc::default(),
            store: store.clone(),
        };
        services.accounts.observe(Arc::new(RoomProfiles::new(services.rooms.clone())));
        let server = Server { router: layers(router(services.clone())), services, folder: Arc::new(folder) };
        Box::pin(test(&server)).await;
        store.close().await;
    }
}
