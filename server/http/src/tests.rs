//! Each refusal, and success, through a router of real endpoints.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use ruma::{
    api::client::{
        account::{change_password, register, whoami},
        appservice::request_ping,
        discovery::get_supported_versions,
        filter::create_filter,
        media::create_content,
        membership::{forget_room, join_room_by_id_or_alias, kick_user},
        message::{get_message_events, send_message_event},
        profile::get_display_name,
        push::get_pushrules_all,
        session::{login, logout},
        state::{get_state_event_for_key, send_state_event},
        sync::sync_events,
        thirdparty::get_location_for_protocol,
    },
    event_id, owned_device_id, owned_user_id,
    serde::Raw,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::*;

struct App {
    limiter: RateLimiter,
}

impl App {
    fn new(limits: RateLimits) -> Arc<Self> {
        Arc::new(Self { limiter: RateLimiter::new(&limits).unwrap() })
    }
}

impl Authenticator for App {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Arc<Session>, AuthError> {
        let mut session = Session {
            user_nid: 1,
            user_id: owned_user_id!("@alice:example.org"),
            device_nid: 2,
            device_id: owned_device_id!("PHONE"),
            is_guest: false,
            is_admin: false,
            standing: Standing::Good,
            appservice_id: None,
            is_rate_limit_exempt: false,
        };
        match credentials.token {
            "good" => {}
            "guest" => session.is_guest = true,
            "suspended" => session.standing = Standing::Suspended,
            "locked" => session.standing = Standing::Locked,
            "exempt" => session.is_rate_limit_exempt = true,
            "bridge" => {
                session.appservice_id = Some("irc".into());
                if let Some(user_id) = credentials.asserted_user_id() {
                    session.user_id = user_id.into_owned().try_into().map_err(|_| AuthError::NotItsUser)?;
                }
            }
            "expired" => return Err(AuthError::UnknownToken { soft_logout: true }),
            "outage" => return Err(AuthError::Unavailable("connection refused".into())),
            _ => return Err(AuthError::UnknownToken { soft_logout: false }),
        }
        Ok(Arc::new(session))
    }

    fn rate_limiter(&self) -> Option<&RateLimiter> {
        Some(&self.limiter)
    }
}

type Shared = State<Arc<App>>;

async fn log_in(_: Shared, request: Matrix<login::v3::Request>) -> Result<RawJson, ApiError> {
    let appservice = request.caller.and_then(|session| session.appservice_id.clone());
    let login_type = request.body.login_info.login_type().to_owned();
    let answer = json!({ "type": login_type, "appservice": appservice.as_deref(), "from": request.client_address });
    Ok(answer.to_string().into())
}

async fn send(
    _: Shared,
    request: Matrix<send_message_event::v3::Request>,
) -> Result<Reply<send_message_event::v3::Response>, ApiError> {
    request.session().require_good_standing()?;
    request.session().require_full_account()?;
    assert_eq!(request.body.txn_id, "txn/1");
    Ok(Reply(send_message_event::v3::Response::new(event_id!("$sent").to_owned())))
}

async fn state(_: Shared, request: Matrix<get_state_event_for_key::v3::Request>) -> Result<RawJson, ApiError> {
    let body = request.body;
    Ok(json!([body.room_id, body.event_type, body.state_key]).to_string().into())
}

async fn set_state(
    _: Shared,
    request: Matrix<send_state_event::v3::Request>,
) -> Result<Reply<send_state_event::v3::Response>, ApiError> {
    Err(match request.body.state_key.as_str() {
        "uiaa" => ApiError::uiaa(&json!({ "flows": [{ "stages": ["m.login.dummy"] }], "session": "s" })),
        "fault" => ApiError::unknown(std::io::Error::other("secret path of a disk")),
        "version" => {
            ApiError::new(StatusCode::FORBIDDEN, ruma::api::error::ErrorCode::WrongRoomKeysVersion, "Wrong version")
                .with_field("current_version", "42")
        }
        _ => ApiError::not_found("No such room"),
    })
}

async fn sync(_: Shared, request: Matrix<sync_events::v3::Request>) -> Result<RawJson, ApiError> {
    tokio::time::sleep(request.body.timeout.unwrap_or_default()).await;
    Ok(RawJson(Bytes::from_static(b"{}")))
}

async fn messages(_: Shared, request: Matrix<get_message_events::v3::Request>) -> Result<RawJson, ApiError> {
    Ok(json!(u64::from(request.body.limit)).to_string().into())
}

async fn join(_: Shared, request: Matrix<join_room_by_id_or_alias::v3::Request>) -> Result<RawJson, ApiError> {
    Ok(json!([request.body.room_id_or_alias, request.body.reason]).to_string().into())
}

async fn versions(_: Shared, request: Matrix<get_supported_versions::Request>) -> Result<RawJson, ApiError> {
    Ok(json!(request.caller.map(|session| session.user_id.clone())).to_string().into())
}

/// Answers with nothing: what a test asks here is whether the request got this far.
macro_rules! reached {
    ($($name:ident: $request:ty),* $(,)?) => {
        $(async fn $name(_: Shared, _: Matrix<$request>) -> Result<RawJson, ApiError> {
            Ok(RawJson(Bytes::from_static(b"{}")))
        })*
    };
}

reached! {
    log_out: logout::v3::Request,
    who_am_i: whoami::v3::Request,
    sign_up: register::v3::Request,
    ping: request_ping::v1::Request,
    forget: forget_room::v3::Request,
    kick: kick_user::v3::Request,
    push_rules: get_pushrules_all::v3::Request,
    display_name: get_display_name::v3::Request,
    new_password: change_password::v3::Request,
    filter: create_filter::v3::Request,
}

async fn upload(_: Shared, request: Matrix<create_content::v3::Request>) -> Result<RawJson, ApiError> {
    Ok(json!(request.body.file.len()).to_string().into())
}

async fn location(_: Shared, request: Matrix<get_location_for_protocol::v3::Request>) -> Result<RawJson, ApiError> {
    Ok(json!(request.body.fields).to_string().into())
}

fn router(limits: RateLimits, options: LayerOptions) -> Router {
    let app = App::new(limits);
    let router = Router::new()
        .endpoint_with(RouteOptions::new().rate_limit(LimitKind::Login), log_in)
        .endpoint_with(RouteOptions::new().rate_limit(LimitKind::Messages), send)
        .endpoint_with(RouteOptions::new().long_poll(), sync)
        .endpoint_with(RouteOptions::new().raw_body().body_bytes_max(1000), upload)
        .endpoint(state)
        .endpoint(set_state)
        .endpoint(messages)
        .endpoint(join)
        .endpoint(versions)
        .endpoint(log_out)
        .endpoint(who_am_i)
        .endpoint(sign_up)
        .endpoint(ping)
        .endpoint(forget)
        .endpoint(kick)
        .endpoint(push_rules)
        .endpoint(display_name)
        .endpoint(new_password)
        .endpoint(filter)
        .endpoint(location)
        .route("/panics", get(async || -> () { panic!("a bug") }))
        .route("/waits", get(async || tokio::time::sleep(Duration::from_secs(3600)).await))
        .route("/me", get(async |Authenticated(session): Authenticated| session.user_id.to_string()));
    layers_with(router, options).with_state(app)
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn is(&self, status: u16, errcode: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.body["errcode"].as_str()), (status, Some(errcode)), "{}", self.body);
        assert!(self.body["error"].is_string(), "{}", self.body);
        self
    }

    #[track_caller]
    fn is_ok(&self, body: Value) -> &Self {
        assert_eq!((self.status, &self.body), (StatusCode::OK, &body));
        self
    }
}

async fn ask(router: &Router, request: Request) -> Answer {
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // Whatever the answer is, a browser may read it and an operator may find it.
    assert_eq!(parts.headers["access-control-allow-origin"], "*");
    assert_eq!(parts.headers["access-control-allow-methods"], "GET, POST, PUT, DELETE, OPTIONS");
    assert_eq!(parts.headers["access-control-allow-headers"], "X-Requested-With, Content-Type, Authorization");
    assert!(parts.headers.contains_key("x-request-id"));
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
    Answer { status: parts.status, headers: parts.headers, body }
}

fn request(method: &str, uri: &str, token: &str, body: impl Into<Body>) -> Request {
    let mut request = Request::builder().method(method).uri(uri);
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(body.into()).unwrap()
}

/// One question to a router without limits.
async fn one(method: &str, uri: &str, token: &str, body: impl Into<Body>) -> Answer {
    ask(&router(RateLimits::OFF, LayerOptions::default()), request(method, uri, token, body)).await
}

const SEND: &str = "/_matrix/client/v3/rooms/!room:example.org/send/m.room.message/txn%2F1";
const LOGIN: &str = "/_matrix/client/v3/login";
const STATE: &str = "/_matrix/client/v3/rooms/!room:example.org/state";
const MESSAGES: &str = "/_matrix/client/v3/rooms/!room:example.org/messages";
const KICK: &str = "/_matrix/client/v3/rooms/!room:example.org/kick";
const JOIN: &str = "/_matrix/client/v3/join";

#[tokio::test]
async fn success_carries_the_response() {
    let sent = one("PUT", SEND, "good", r#"{"body":"hi"}"#).await;
    sent.is_ok(json!({ "event_id": "$sent" }));
    assert_eq!(sent.headers["content-type"], "application/json");
}

/// A token is found in both places that the specification has, and a wrong or missing one is told apart.
#[tokio::test]
async fn tokens_are_checked() {
    one("PUT", SEND, "", "{}").await.is(401, "M_MISSING_TOKEN");
    let unknown = one("PUT", SEND, "wrong", "{}").await;
    assert_eq!(unknown.is(401, "M_UNKNOWN_TOKEN").body["soft_logout"], false);
    let expired = one("PUT", SEND, "expired", "{}").await;
    assert_eq!(expired.is(401, "M_UNKNOWN_TOKEN").body["soft_logout"], true);
    one("PUT", SEND, "outage", "{}").await.is(503, "M_UNKNOWN");
    one("PUT", &format!("{SEND}?access_token=good"), "", "{}").await.is_ok(json!({ "event_id": "$sent" }));
    one("PUT", &format!("{SEND}?access_token=wrong"), "", "{}").await.is(401, "M_UNKNOWN_TOKEN");
    one("PUT", &format!("{SEND}?access_token="), "", "{}").await.is(401, "M_MISSING_TOKEN");

    for header in ["Basic Z29vZA==", "Bearer", "Bearer ", "good"] {
        let mut request = request("PUT", SEND, "", "{}");
        request.headers_mut().insert("authorization", header.parse().unwrap());
        ask(&router(RateLimits::OFF, LayerOptions::default()), request).await.is(401, "M_MISSING_TOKEN");
    }
    let mut request = request("PUT", SEND, "", "{}");
    request.headers_mut().insert("authorization", "bearer good".parse().unwrap());
    ask(&router(RateLimits::OFF, LayerOptions::default()), request).await.is_ok(json!({ "event_id": "$sent" }));
}

/// A caller without a right token hears of the token, whatever else is wrong with the request.
#[tokio::test]
async fn authentication_comes_first() {
    let huge = vec![b'x'; LayerOptions::default().json_body_bytes_max + 1];
    one("PUT", SEND, "", huge.clone()).await.is(401, "M_MISSING_TOKEN");
    one("PUT", SEND, "wrong", huge).await.is(401, "M_UNKNOWN_TOKEN");
    one("POST", &format!("{JOIN}/nonsense"), "", "{").await.is(401, "M_MISSING_TOKEN");
    one("GET", &format!("{MESSAGES}?dir=sideways"), "wrong", "").await.is(401, "M_UNKNOWN_TOKEN");
}

/// An optional token may be missing but not wrong; an endpoint without authentication does not look at it.
#[tokio::test]
async fn authentication_follows_the_endpoint() {
    one("GET", "/_matrix/client/versions", "", "").await.is_ok(Value::Null);
    one("GET", "/_matrix/client/versions", "good", "").await.is_ok(json!("@alice:example.org"));
    one("GET", "/_matrix/client/versions", "wrong", "").await.is(401, "M_UNKNOWN_TOKEN");
    // Clients send their last token when they log in again.
    let login = r#"{"type":"m.login.token","token":"t"}"#;
    one("POST", LOGIN, "wrong", login)
        .await
        .is_ok(json!({ "type": "m.login.token", "appservice": null, "from": "0.0.0.0" }));
    assert_eq!(one("POST", LOGIN, "good", login).await.body["appservice"], Value::Null);
    assert_eq!(one("POST", LOGIN, "bridge", login).await.body["appservice"], "irc");
    let ping = "/_matrix/client/v1/appservice/irc/ping";
    one("POST", ping, "bridge", "{}").await.is_ok(json!({}));
    one("POST", ping, "good", "{}").await.is(403, "M_FORBIDDEN");
    one("POST", ping, "", "{}").await.is(401, "M_MISSING_TOKEN");
    let asserted = one("GET", "/_matrix/client/versions?user_id=%40irc_bob%3Aexample.org", "bridge", "").await;
    asserted.is_ok(json!("@irc_bob:example.org"));
    assert_eq!(one("GET", "/me", "good", "").await.body, "@alice:example.org");
    one("GET", "/me", "", "").await.is(401, "M_MISSING_TOKEN");
    one("GET", "/me", "locked", "").await.is(401, "M_USER_LOCKED");
}

/// A locked user can log out and nothing else; a suspended one and a guest are refused where the handler says so.
#[tokio::test]
async fn standing_is_enforced() {
    let locked = one("PUT", SEND, "locked", "{}").await;
    assert_eq!(locked.is(401, "M_USER_LOCKED").body["soft_logout"], true);
    one("GET", "/_matrix/client/versions", "locked", "").await.is(401, "M_USER_LOCKED");
    one("POST", "/_matrix/client/v3/logout", "locked", "").await.is_ok(json!({}));
    one("PUT", SEND, "suspended", "{}").await.is(403, "M_USER_SUSPENDED");
    one("GET", &format!("{STATE}/m.room.name/"), "suspended", "").await.is_ok(json!([
        "!room:example.org",
        "m.room.name",
        ""
    ]));
    one("PUT", SEND, "guest", "{}").await.is(403, "M_GUEST_ACCESS_FORBIDDEN");
}

/// A deprecated token in the query is no field of the request: endpoints that pass on all fields do not pass it on.
#[tokio::test]
async fn a_token_in_the_query_goes_no_further() {
    let uri = "/_matrix/client/v3/thirdparty/location/irc?channel=%23a&access_token=good&network=n";
    one("GET", uri, "", "").await.is_ok(json!({ "channel": "#a", "network": "n" }));
    let uri = "/_matrix/client/v3/thirdparty/location/irc?access_token=wrong&channel=a";
    one("GET", uri, "good", "").await.is_ok(json!({ "channel": "a" }));
}

#[tokio::test]
async fn bodies_are_json_objects() {
    for body in ["{", "hello", "{\"a\":1}x", "{'a':1}", "\u{feff}{}", "[1", "nul"] {
        one("PUT", SEND, "good", body).await.is(400, "M_NOT_JSON");
        // Also where the endpoint takes no field, and where a wrong field comes before the fault.
        one("POST", "/_matrix/client/v3/rooms/!room:example.org/forget", "good", body).await.is(400, "M_NOT_JSON");
        one("POST", LOGIN, "", body).await.is(400, "M_NOT_JSON");
    }
    one("POST", KICK, "good", r#"{"user_id":5,"#).await.is(400, "M_NOT_JSON");
    one("PUT", SEND, "good", b"{\"a\":\"\xff\"}".to_vec()).await.is(400, "M_NOT_JSON");
    for body in ["[]", "null", "5", "\"text\"", " [ ] "] {
        one("PUT", SEND, "good", body).await.is(400, "M_BAD_JSON");
        one("POST", LOGIN, "", body).await.is(400, "M_BAD_JSON");
    }
    one("POST", KICK, "good", r#"{"user_id":5}"#).await.is(400, "M_BAD_JSON");
    one("POST", &format!("{JOIN}/!room:example.org"), "good", r#"{"reason":[]}"#).await.is(400, "M_BAD_JSON");
    one("POST", KICK, "good", r#"{"user_id":"bob"}"#).await.is(400, "M_INVALID_PARAM");
    one("POST", KICK, "good", r#"{"user_id":"@bob:"}"#).await.is(400, "M_INVALID_PARAM");
    one("POST", KICK, "good", "{}").await.is(400, "M_MISSING_PARAM");
    one("POST", "/_matrix/client/v3/account/password", "good", "{}").await.is(400, "M_MISSING_PARAM");
    // However deep it is, it is read without deep recursion.
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    one("PUT", SEND, "good", deep).await.is_ok(json!({ "event_id": "$sent" }));
}

/// An empty body counts as an empty object: enough where every field is optional, and only there.
#[tokio::test]
async fn an_empty_body_is_an_empty_object() {
    let join = format!("{JOIN}/!room:example.org");
    one("POST", &join, "good", "").await.is_ok(json!(["!room:example.org", null]));
    one("POST", &join, "good", " \n{} ").await.is_ok(json!(["!room:example.org", null]));
    one("POST", "/_matrix/client/v3/logout", "good", "").await.is_ok(json!({}));
    one("POST", KICK, "good", "").await.is(400, "M_MISSING_PARAM");
}

/// A body over the route's limit is refused whether or not it announces its length.
#[tokio::test]
async fn bodies_are_limited() {
    let huge = format!(r#"{{"body":"{}"}}"#, "x".repeat(LayerOptions::default().json_body_bytes_max));
    one("PUT", SEND, "good", huge.clone()).await.is(413, "M_TOO_LARGE");
    let chunks = Bytes::from(huge);
    let chunks: Vec<_> =
        (0..chunks.len()).step_by(65536).map(|at| chunks.slice(at..(at + 65536).min(chunks.len()))).collect();
    let stream = futures_util::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
    one("PUT", SEND, "good", Body::from_stream(stream)).await.is(413, "M_TOO_LARGE");
    let mut announced = request("PUT", SEND, "good", "{}");
    announced.headers_mut().insert("content-length", "99999999999".parse().unwrap());
    ask(&router(RateLimits::OFF, LayerOptions::default()), announced).await.is(413, "M_TOO_LARGE");

    let upload = "/_matrix/media/v3/upload";
    one("POST", upload, "good", vec![0xff; 1000]).await.is_ok(json!(1000));
    one("POST", upload, "good", vec![0xff; 1001]).await.is(413, "M_TOO_LARGE");

    let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("gone"))]);
    one("PUT", SEND, "good", Body::from_stream(broken)).await.is(400, "M_UNKNOWN");
}

#[tokio::test]
async fn queries_are_checked() {
    one("GET", &format!("{MESSAGES}?dir=b&limit=7"), "good", "").await.is_ok(json!(7));
    one("GET", MESSAGES, "good", "").await.is(400, "M_MISSING_PARAM");
    one("GET", &format!("{MESSAGES}?dir=sideways"), "good", "").await.is(400, "M_INVALID_PARAM");
    one("GET", &format!("{MESSAGES}?dir=b&limit=many"), "good", "").await.is(400, "M_INVALID_PARAM");
    one("GET", &format!("{MESSAGES}?dir=b&limit=-1"), "good", "").await.is(400, "M_INVALID_PARAM");
    // A body has no place in a GET, and does no harm.
    one("GET", &format!("{MESSAGES}?dir=b&limit=7"), "good", "nonsense").await.is_ok(json!(7));
}

#[tokio::test]
async fn path_arguments_are_decoded_and_checked() {
    let uri = format!("{STATE}/org.example%2Ftype/%40a%3Aexample.org%20%3F%25");
    one("GET", &uri, "good", "").await.is_ok(json!(["!room:example.org", "org.example/type", "@a:example.org ?%"]));
    for room in ["nonsense", "%20", "@user:example.org"] {
        one("POST", &format!("{JOIN}/{room}"), "good", "").await.is(400, "M_INVALID_PARAM");
    }
    one("POST", &format!("{JOIN}/%ff"), "good", "").await.is(400, "M_INVALID_PARAM");
    let long = |length: usize| format!("{JOIN}/!{}", "a".repeat(length - 1));
    one("POST", &long(256), "good", "").await.is(400, "M_INVALID_PARAM");
    assert_eq!(one("POST", &long(255), "good", "").await.status, 200);
    // The domain of a room id went with room version 12.
    one("POST", &format!("{JOIN}/!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM"), "good", "")
        .await
        .is_ok(json!(["!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", null]));
}

#[tokio::test]
async fn old_versions_and_left_out_slashes_are_answered() {
    for version in ["r0", "v1", "v3"] {
        let uri = format!("/_matrix/client/{version}/rooms/!room:example.org/send/m.room.message/txn%2F1");
        one("PUT", &uri, "good", "{}").await.is_ok(json!({ "event_id": "$sent" }));
        one("POST", &format!("/_matrix/media/{version}/upload"), "good", "1234").await.is_ok(json!(4));
        for slash in ["", "/"] {
            let uri = format!("/_matrix/client/{version}/rooms/!room:example.org/state/m.room.name{slash}");
            one("GET", &uri, "good", "").await.is_ok(json!(["!room:example.org", "m.room.name", ""]));
            one("PUT", &uri, "good", "{}").await.is(404, "M_NOT_FOUND");
            one("GET", &format!("/_matrix/client/{version}/pushrules{slash}"), "good", "").await.is_ok(json!({}));
        }
    }
    one("PUT", &SEND.replace("v3", "v2"), "good", "{}").await.is(404, "M_UNRECOGNIZED");
    assert_eq!(
        paths::<login::v3::Request>().into_iter().collect::<Vec<_>>(),
        ["/_matrix/client/r0/login", "/_matrix/client/v1/login", "/_matrix/client/v3/login"]
    );
    assert!(
        paths::<send_message_event::v3::Request>().iter().all(|path| path.ends_with("/send/{event_type}/{txn_id}"))
    );
}

#[tokio::test]
async fn unknown_endpoints_and_methods_are_unrecognized() {
    for uri in ["/", "/_matrix", "/_matrix/client/v3/nothing", "/_matrix/client/v3/login/", "/_matrix/federation/v1/x"]
    {
        one("GET", uri, "good", "").await.is(404, "M_UNRECOGNIZED");
    }
    one("DELETE", LOGIN, "good", "").await.is(405, "M_UNRECOGNIZED");
    one("POST", SEND, "", "{}").await.is(405, "M_UNRECOGNIZED");
    one("PROPFIND", SEND, "", "").await.is(405, "M_UNRECOGNIZED");
}

/// A preflight is answered on every path, and reaches no handler.
#[tokio::test]
async fn preflights_are_answered() {
    for uri in [SEND, LOGIN, "/_matrix/client/v3/nothing", "/panics", "/"] {
        let answer = one("OPTIONS", uri, "", "").await;
        assert_eq!((answer.status.as_u16(), &answer.body), (204, &json!("")));
        assert_eq!(answer.headers["access-control-max-age"], "86400");
    }
}

#[tokio::test]
async fn errors_say_what_belongs_to_their_code() {
    let state = |key: &str| format!("{STATE}/m.x/{key}");
    let uiaa = one("PUT", &state("uiaa"), "good", "{}").await;
    assert_eq!(uiaa.status, 401);
    assert_eq!(uiaa.body, json!({ "flows": [{ "stages": ["m.login.dummy"] }], "session": "s" }));
    let version = one("PUT", &state("version"), "good", "{}").await;
    assert_eq!(version.is(403, "M_WRONG_ROOM_KEYS_VERSION").body["current_version"], "42");
    let fault = one("PUT", &state("fault"), "good", "{}").await;
    assert_eq!(fault.is(500, "M_UNKNOWN").body, json!({ "errcode": "M_UNKNOWN", "error": "Internal server error" }));

    use ruma::api::error::{ErrorKind, IncompatibleRoomVersionErrorData};
    let kind = ErrorKind::IncompatibleRoomVersion(IncompatibleRoomVersionErrorData::new(ruma::RoomVersionId::V9));
    let response = ApiError::from_kind(StatusCode::BAD_REQUEST, kind, "Too old").into_response();
    assert_eq!(
        json_of(response).await,
        json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "Too old", "room_version": "9" })
    );
    // The two fields that every error has are not to be overwritten.
    let error = ApiError::not_found("x").with_field("errcode", "M_FORBIDDEN");
    assert_eq!(json_of(error.into_response()).await["errcode"], "M_NOT_FOUND");
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// A limit holds for a user on one endpoint and for an address on the other, before the body is read, with the time to
/// wait in both forms.
#[tokio::test]
async fn limits_refuse_with_the_time_to_wait() {
    let tight = RateLimit { per_second: 0.01, burst: 2 };
    let limits =
        RateLimits { enabled: true, login: tight, registration: tight, joins: tight, messages: tight, other: tight };
    let router = router(limits, LayerOptions::default());
    for _ in 0..2 {
        ask(&router, request("PUT", SEND, "good", "{}")).await.is_ok(json!({ "event_id": "$sent" }));
    }
    let refused = ask(&router, request("PUT", SEND, "good", "not json")).await;
    let wait_ms = refused.is(429, "M_LIMIT_EXCEEDED").body["retry_after_ms"].as_u64().unwrap();
    let wait_s: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((90_000..=100_000).contains(&wait_ms), "{wait_ms}");
    assert_eq!(wait_s, wait_ms.div_ceil(1000));
    ask(&router, request("PUT", SEND, "exempt", "{}")).await.is_ok(json!({ "event_id": "$sent" }));
    // Another kind is another count.
    ask(&router, request("POST", &format!("{JOIN}/!r"), "good", "")).await.is_ok(json!(["!r", null]));

    let login_from = |address: &str| {
        let mut request = request("POST", LOGIN, "", r#"{"type":"m.login.token","token":"t"}"#);
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(address.parse().unwrap(), 4000)));
        ask(&router, request)
    };
    assert_eq!(login_from("192.0.2.1").await.body["from"], "192.0.2.1");
    assert_eq!(login_from("::ffff:192.0.2.1").await.status, 200);
    login_from("192.0.2.1").await.is(429, "M_LIMIT_EXCEEDED");
    assert_eq!(login_from("192.0.2.2").await.status, 200);
}

/// A panic is answered and logged once, with the request's id and the place, and not by the process's hook.
#[tokio::test]
async fn a_panic_is_answered_and_logged_once() {
    let logs = Logs::default();
    let _guard = logs.start();
    let answer = one("GET", "/panics", "", "").await;
    answer.is(500, "M_UNKNOWN");
    let id = answer.headers["x-request-id"].to_str().unwrap();
    let lines = logs.lines();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert!(
        line.contains(id) && line.contains("a bug") && line.contains("tests.rs") && line.contains("/panics"),
        "{line}"
    );
}

/// A fault's cause goes to the log with the request's id; neither the token nor what the path and body name does.
#[tokio::test]
async fn a_fault_is_logged_once_and_without_secrets() {
    let logs = Logs::default();
    let _guard = logs.start();
    let uri = format!("{STATE}/m.x/fault?access_token=good");
    let answer = one("PUT", &uri, "", r#"{"body":"private words"}"#).await;
    answer.is(500, "M_UNKNOWN");
    let lines = logs.lines();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert!(line.contains(answer.headers["x-request-id"].to_str().unwrap()), "{line}");
    assert!(line.contains("secret path of a disk") && line.contains("{room_id}"), "{line}");
    assert!(!line.contains("good") && !line.contains("private") && !line.contains("!room"), "{line}");
}

/// A handler that hangs is stopped at the deadline and named; a long poll waits as long as it likes and is not slow.
#[tokio::test]
async fn handlers_have_a_deadline_unless_they_wait_on_purpose() {
    let logs = Logs::default();
    let _guard = logs.start();
    let options = LayerOptions {
        deadline: Duration::from_millis(50),
        slow: Duration::from_millis(20),
        ..LayerOptions::default()
    };
    let router = router(RateLimits::OFF, options);
    let started = Instant::now();
    let uri = "/_matrix/client/v3/sync?timeout=200";
    ask(&router, request("GET", uri, "good", "")).await.is_ok(json!({}));
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(logs.lines(), Vec::<String>::new());

    ask(&router, request("GET", "/waits", "", "")).await.is(503, "M_UNKNOWN");
    let lines = logs.lines().join("\n");
    assert!(lines.contains("/waits gave no answer") && lines.contains("slow request: /waits"), "{lines}");
}

/// Requests are counted by route, not by path, and one whose client left is counted as such.
#[tokio::test]
async fn requests_are_measured() {
    let count = |labels: &[&str]| crate::metrics::REQUESTS.with_label_values(labels).get();
    let route = "/_matrix/client/v3/profile/{user_id}/displayname";
    one("GET", "/_matrix/client/v3/profile/@a:example.org/displayname", "", "").await.is_ok(json!({}));
    one("GET", "/_matrix/client/v3/profile/@b:example.org/displayname", "", "").await.is_ok(json!({}));
    one("GET", "/_matrix/client/v3/profile/b/displayname", "", "").await.is(400, "M_INVALID_PARAM");
    assert_eq!(count(&[route, "GET", "200"]), 2);
    assert_eq!(count(&[route, "GET", "400"]), 1);
    assert_eq!(crate::metrics::DURATION.with_label_values(&[route, "GET"]).get_sample_count(), 3);
    let before = count(&["unmatched", "PATCH", "404"]);
    one("PATCH", "/no/such/path", "", "").await.is(404, "M_UNRECOGNIZED");
    assert_eq!(count(&["unmatched", "PATCH", "404"]), before + 1);

    let router = router(RateLimits::OFF, LayerOptions::default());
    let waiting = router.oneshot(request("GET", "/waits", "", ""));
    assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
    assert_eq!(count(&["/waits", "GET", "499"]), 1);
}

/// All paths of ruma's endpoints, aliases included, fit into one router: a conflict would show at start, as a panic.
#[test]
#[expect(deprecated, reason = "the deprecated media endpoints are still answered")]
fn endpoints_do_not_get_in_each_others_way() {
    use ruma::api::client;
    macro_rules! register {
        ($($endpoint:path),* $(,)?) => {
            Router::<()>::new()$(.merge({
                use $endpoint as endpoint;
                route::<endpoint::Request, _, _, _>(Router::new(), RouteOptions::new(), async || {})
            }))*
        };
    }
    let _router: Router = register![
        client::account::change_password::v3,
        client::account::check_registration_token_validity::v1,
        client::account::deactivate::v3,
        client::account::get_username_availability::v3,
        client::account::register::v3,
        client::account::whoami::v3,
        client::alias::create_alias::v3,
        client::alias::delete_alias::v3,
        client::alias::get_alias::v3,
        client::authenticated_media::get_content::v1,
        client::authenticated_media::get_content_as_filename::v1,
        client::authenticated_media::get_content_thumbnail::v1,
        client::authenticated_media::get_media_config::v1,
        client::authenticated_media::get_media_preview::v1,
        client::backup::add_backup_keys::v3,
        client::backup::add_backup_keys_for_room::v3,
        client::backup::add_backup_keys_for_session::v3,
        client::backup::create_backup_version::v3,
        client::backup::get_backup_info::v3,
        client::backup::get_latest_backup_info::v3,
        client::config::get_global_account_data::v3,
        client::config::get_room_account_data::v3,
        client::config::set_global_account_data::v3,
        client::config::set_room_account_data::v3,
        client::context::get_context::v3,
        client::device::delete_device::v3,
        client::device::delete_devices::v3,
        client::device::get_device::v3,
        client::device::get_devices::v3,
        client::device::update_device::v3,
        client::directory::get_public_rooms::v3,
        client::directory::get_public_rooms_filtered::v3,
        client::directory::get_room_visibility::v3,
        client::directory::set_room_visibility::v3,
        client::discovery::get_capabilities::v3,
        client::discovery::get_supported_versions,
        client::filter::create_filter::v3,
        client::filter::get_filter::v3,
        client::keys::claim_keys::v3,
        client::keys::get_keys::v3,
        client::keys::upload_keys::v3,
        client::keys::upload_signatures::v3,
        client::keys::upload_signing_keys::v3,
        client::knock::knock_room::v3,
        client::media::create_content::v3,
        client::media::create_content_async::v3,
        client::media::create_mxc_uri::v1,
        client::media::get_content::v3,
        client::media::get_content_as_filename::v3,
        client::media::get_content_thumbnail::v3,
        client::media::get_media_config::v3,
        client::membership::ban_user::v3,
        client::membership::forget_room::v3,
        client::membership::get_member_events::v3,
        client::membership::invite_user::v3,
        client::membership::join_room_by_id::v3,
        client::membership::join_room_by_id_or_alias::v3,
        client::membership::joined_members::v3,
        client::membership::joined_rooms::v3,
        client::membership::kick_user::v3,
        client::membership::leave_room::v3,
        client::membership::unban_user::v3,
        client::message::get_message_events::v3,
        client::message::send_message_event::v3,
        client::presence::get_presence::v3,
        client::presence::set_presence::v3,
        client::profile::delete_profile_field::v3,
        client::profile::get_avatar_url::v3,
        client::profile::get_display_name::v3,
        client::profile::get_profile::v3,
        client::profile::get_profile_field::v3,
        client::profile::set_avatar_url::v3,
        client::profile::set_display_name::v3,
        client::profile::set_profile_field::v3,
        client::push::delete_pushrule::v3,
        client::push::get_pushrule::v3,
        client::push::get_pushrule_actions::v3,
        client::push::get_pushrules_all::v3,
        client::push::get_pushrules_global_scope::v3,
        client::push::set_pushrule::v3,
        client::read_marker::set_read_marker::v3,
        client::receipt::create_receipt::v3,
        client::redact::redact_event::v3,
        client::relations::get_relating_events::v1,
        client::relations::get_relating_events_with_rel_type::v1,
        client::relations::get_relating_events_with_rel_type_and_event_type::v1,
        client::room::aliases::v3,
        client::room::create_room::v3,
        client::room::get_event_by_timestamp::v1,
        client::room::get_room_event::v3,
        client::room::get_summary::v1,
        client::room::report_content::v3,
        client::room::report_room::v3,
        client::room::upgrade_room::v3,
        client::search::search_events::v3,
        client::session::get_login_token::v1,
        client::session::get_login_types::v3,
        client::session::login::v3,
        client::session::logout::v3,
        client::session::logout_all::v3,
        client::session::refresh_token::v3,
        client::session::sso_login::v3,
        client::session::sso_login_with_provider::v3,
        client::space::get_hierarchy::v1,
        client::state::get_state_event_for_key::v3,
        client::state::get_state_events::v3,
        client::state::send_state_event::v3,
        client::sync::sync_events::v3,
        client::tag::create_tag::v3,
        client::tag::delete_tag::v3,
        client::tag::get_tags::v3,
        client::thirdparty::get_location_for_protocol::v3,
        client::thirdparty::get_protocol::v3,
        client::thirdparty::get_protocols::v3,
        client::threads::get_threads::v1,
        client::to_device::send_event_to_device::v3,
        client::typing::create_typing_event::v3,
        client::user_directory::search_users::v3,
        client::voip::get_turn_server_info::v3,
    ];
}

/// ruma's responses are serialised as they are, headers included.
#[tokio::test]
async fn replies_are_serialised() {
    let event = Raw::<ruma::events::AnyStateEventContent>::from_json_string(r#"{"name": "Room"}"#.to_owned()).unwrap();
    let reply = Reply(get_state_event_for_key::v3::Response::from(event)).into_response();
    assert_eq!(reply.headers()["content-type"], "application/json");
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&*body, br#"{"name": "Room"}"#);
}

/// The lines that were logged on this thread.
#[derive(Clone, Default)]
struct Logs(Arc<std::sync::Mutex<Vec<u8>>>);

impl Logs {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let logs = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || logs.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
