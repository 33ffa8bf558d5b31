//! GET /_matrix/client/v3/voip/turnServer, and GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3voipturnserver>,
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/4143>

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac as _};
use myelin_http::{ApiError, Endpoints as _, Matrix, RawJson};
use ruma::{
    UserId,
    api::client::{rtc::transports::v1 as transports, voip::get_turn_server_info::v3 as turn},
};
use serde_json::json;
use sha1::Sha1;

use crate::{Services, errors::Result};

/// What calls need beside this server.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// Where clients reach each other that cannot do so directly.
    pub turn: Option<TurnOptions>,
    /// Where clients get to a LiveKit server that this server's users may use.
    pub livekit_service_url: Option<String>,
}

/// A TURN server that shares a secret with this one.
#[derive(Clone)]
pub struct TurnOptions {
    /// Its addresses.
    pub uris: Vec<String>,
    /// The secret.
    pub shared_secret: String,
    /// How long what a client is given is good for.
    pub lifetime: Duration,
    /// Whether guests may use it.
    pub allow_guests: bool,
}

impl fmt::Debug for TurnOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnOptions").field("uris", &self.uris).finish_non_exhaustive()
    }
}

/// Adds the endpoints.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(turn_server).endpoint(rtc_transports)
}

async fn turn_server(State(services): State<Services>, request: Matrix<turn::Request>) -> Result<RawJson> {
    // There is none: clients know this empty answer.
    let Some(turn) = &services.calls.turn else { return Ok(RawJson::from("{}")) };
    let session = request.session();
    if !turn.allow_guests {
        session.require_full_account()?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (username, password) = turn.credentials(&session.user_id, now)?;
    let answer =
        json!({ "username": username, "password": password, "uris": turn.uris, "ttl": turn.lifetime.as_secs() });
    Ok(RawJson::from(answer.to_string()))
}

async fn rtc_transports(State(services): State<Services>, _: Matrix<transports::Request>) -> Result<RawJson> {
    let livekit = |url: &String| json!({ "type": "livekit", "livekit_service_url": url });
    let transports: Vec<_> = services.calls.livekit_service_url.iter().map(livekit).collect();
    Ok(RawJson::from(json!({ "rtc_transports": transports }).to_string()))
}

impl TurnOptions {
    /// A name that says until when it is good, in seconds since 1970, and the password that the TURN server reckons from
    /// it too.
    fn credentials(&self, user_id: &UserId, now: u64) -> Result<(String, String), ApiError> {
        let username = format!("{}:{user_id}", now.saturating_add(self.lifetime.as_secs()));
        let mut mac = Hmac::<Sha1>::new_from_slice(self.shared_secret.as_bytes()).map_err(ApiError::unknown)?;
        mac.update(username.as_bytes());
        let password = STANDARD.encode(mac.finalize().into_bytes());
        Ok((username, password))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use http::StatusCode;
    use ruma::user_id;
    use serde_json::json;

    use super::{CallOptions, TurnOptions};
    use crate::testing::{Server, on_both};

    const TURN: &str = "/_matrix/client/v3/voip/turnServer";
    const TRANSPORTS: &str = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";

    fn turn() -> TurnOptions {
        TurnOptions {
            uris: vec!["turn:turn.example.org?transport=udp".to_owned()],
            shared_secret: "north".to_owned(),
            lifetime: Duration::from_secs(3600),
            allow_guests: false,
        }
    }

    /// The password is what a TURN server with the same secret reckons.
    #[test]
    fn credentials_are_those_of_turn_servers() {
        let (username, password) = turn().credentials(user_id!("@alice:example.org"), 1_700_000_000).unwrap();
        assert_eq!(username, "1700003600:@alice:example.org");
        assert_eq!(password, "6cEh1+OSEPFM5XsksE7KvMgzX1c=");
        assert!(!format!("{:?}", turn()).contains("north"));
    }

    /// Who is logged in is told of the servers for calls; where there are none, that there are none.
    #[tokio::test]
    async fn servers_for_calls_are_told() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            for path in [TURN, TRANSPORTS] {
                assert_eq!(server.get(path, None).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            }
            assert_eq!(server.get(TURN, Some(&token)).await.json(StatusCode::OK), json!({}));
            let none = server.get(TRANSPORTS, Some(&token)).await.json(StatusCode::OK);
            assert_eq!(none, json!({ "rtc_transports": [] }));

            let url = "https://livekit.example.org".to_owned();
            let calls = CallOptions { turn: Some(turn()), livekit_service_url: Some(url) };
            let with = server.with(|services| services.calls = Arc::new(calls));
            let told = with.get(TURN, Some(&token)).await.json(StatusCode::OK);
            assert_eq!((&told["uris"], &told["ttl"]), (&json!(["turn:turn.example.org?transport=udp"]), &json!(3600)));
            assert!(told["username"].as_str().unwrap().ends_with(":@alice:example.org"), "{told}");
            assert!(told["password"].is_string());
            let told = with.get(TRANSPORTS, Some(&token)).await.json(StatusCode::OK);
            let livekit = json!({ "type": "livekit", "livekit_service_url": "https://livekit.example.org" });
            assert_eq!(told, json!({ "rtc_transports": [livekit] }));
            let guest = crate::account::tests::guest(&with).await.access_token;
            assert_eq!(with.get(TURN, Some(&guest)).await.errcode(StatusCode::FORBIDDEN), "M_GUEST_ACCESS_FORBIDDEN");
        })
        .await;
    }
}
