//! GET /_matrix/client/v3/thirdparty/…
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#third-party-networks>
//!
//! Application services bring such networks; as long as there are none, no protocol is known, and nobody has a place in one.

use axum::{Router, extract::State};
use myelin_http::{ApiError, Endpoints as _, Matrix, Reply};
use ruma::api::client::thirdparty::{
    get_location_for_protocol::v3 as location_for_protocol, get_location_for_room_alias::v3 as location_for_alias,
    get_protocol::v3 as protocol, get_protocols::v3 as protocols, get_user_for_protocol::v3 as user_for_protocol,
    get_user_for_user_id::v3 as user_for_user_id,
};

use crate::{Services, errors::Result};

/// Adds the endpoints.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router
        .endpoint(list)
        .endpoint(one)
        .endpoint(location_by_protocol)
        .endpoint(location_by_alias)
        .endpoint(user_by_protocol)
        .endpoint(user_by_id)
}

fn unknown_protocol() -> ApiError {
    ApiError::not_found("The protocol is unknown")
}

async fn list(_: State<Services>, _: Matrix<protocols::Request>) -> Result<Reply<protocols::Response>> {
    Ok(Reply(protocols::Response::new(Default::default())))
}

async fn one(_: State<Services>, _: Matrix<protocol::Request>) -> Result<Reply<protocol::Response>> {
    Err(unknown_protocol().into())
}

async fn location_by_protocol(
    _: State<Services>,
    _: Matrix<location_for_protocol::Request>,
) -> Result<Reply<location_for_protocol::Response>> {
    Err(unknown_protocol().into())
}

async fn user_by_protocol(
    _: State<Services>,
    _: Matrix<user_for_protocol::Request>,
) -> Result<Reply<user_for_protocol::Response>> {
    Err(unknown_protocol().into())
}

/// "The Matrix room alias was not found", among those that lead to a third-party network.
async fn location_by_alias(
    _: State<Services>,
    _: Matrix<location_for_alias::Request>,
) -> Result<Reply<location_for_alias::Response>> {
    Err(ApiError::not_found("The alias leads to no third-party network").into())
}

async fn user_by_id(
    _: State<Services>,
    _: Matrix<user_for_user_id::Request>,
) -> Result<Reply<user_for_user_id::Response>> {
    Err(ApiError::not_found("The user is of no third-party network").into())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    /// Nothing is known of any network, and that is said as the specification has it.
    #[tokio::test]
    async fn no_protocol_is_known() {
        on_both(async |server: &Server| {
            let token = server.user("alice").await;
            let path = |rest: &str| format!("/_matrix/client/v3/thirdparty/{rest}");
            assert_eq!(server.get(&path("protocols"), Some(&token)).await.json(StatusCode::OK), json!({}));
            for rest in [
                "protocol/irc",
                "location/irc?channel=x",
                "user/irc?nick=x",
                "location?alias=%23a:example.org",
                "user?userid=@a:example.org",
            ] {
                assert_eq!(server.get(&path(rest), Some(&token)).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
                assert_eq!(server.get(&path(rest), None).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
            }
            let missing = server.get(&path("location"), Some(&token)).await;
            assert_eq!(missing.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        })
        .await;
    }
}
