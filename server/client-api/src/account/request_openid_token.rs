//! POST /_matrix/client/v3/user/{userId}/openid/request_token
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3useruseridopenidrequest_token>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use ruma::{
    api::client::account::request_openid_token::v3::{Request, Response},
    authentication::TokenType,
};

use crate::{Services, errors::Result, services::own};

pub(crate) async fn request_openid_token(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    if request.body.user_id != session.user_id {
        return Err(ApiError::forbidden("This is another user").into());
    }
    let made = services.accounts.create_openid_token(&own(session)).await?;
    let server_name = services.rooms.server_name().clone();
    Ok(Reply(Response::new(made.token, TokenType::Bearer, server_name, made.expires_in)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    /// A user gets a token for the own name alone, and it is none for this API.
    #[tokio::test]
    async fn tokens_are_for_oneself() {
        on_both(async |server: &Server| {
            let alice = server.user("alice").await;
            let path = |user: &str| format!("/_matrix/client/v3/user/@{user}:example.org/openid/request_token");
            let made = server.post(&path("alice"), Some(&alice), &json!({})).await.json(StatusCode::OK);
            assert_eq!((&made["token_type"], &made["matrix_server_name"]), (&json!("Bearer"), &json!("example.org")));
            assert_eq!(made["expires_in"], 3600);
            let token = made["access_token"].as_str().unwrap();
            let user = server.services.accounts.openid_user(token).await.unwrap();
            assert_eq!(user.unwrap(), "@alice:example.org");
            let used = server.get("/_matrix/client/v3/account/whoami", Some(token)).await;
            assert_eq!(used.errcode(StatusCode::UNAUTHORIZED), "M_UNKNOWN_TOKEN");
            let other = server.post(&path("bob"), Some(&alice), &json!({})).await;
            assert_eq!(other.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
            let nobody = server.post(&path("alice"), None, &json!({})).await;
            assert_eq!(nobody.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        })
        .await;
    }
}
