//! `GET /_matrix/federation/v1/openid/userinfo`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1openiduserinfo)

use axum::{
    Router,
    extract::{RawQuery, State},
};
use http::StatusCode;
use myelin_http::{ApiError, Endpoints as _, LimitKind, Matrix, Reply, RouteOptions};
use ruma::api::{
    IncomingRequest, Metadata,
    error::{DeserializationError, ErrorCode},
    federation::openid::get_openid_userinfo::v1::{Request, Response},
};

use crate::{Services, errors::Result};

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    // Anyone may ask: a token shows itself that it is a good one.
    router.endpoint_with(RouteOptions::new().rate_limit(LimitKind::Other), user_info)
}

async fn user_info(
    State(services): State<Services>,
    RawQuery(query): RawQuery,
    _: Matrix<UserInfo>,
) -> Result<Reply<Response>> {
    let query = query.unwrap_or_default();
    let token = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "access_token");
    let (_, token) = token.ok_or_else(|| ApiError::missing_param("access_token is missing"))?;
    match services.accounts.openid_user(&token).await? {
        Some(user_id) => Ok(Reply(Response::new(user_id))),
        None => {
            let message = "Access token unknown or expired";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, message).into())
        }
    }
}

/// ruma's request without its one field: [`Matrix`] takes tokens of our own sessions out of queries, and they have that
/// name too.
#[derive(Debug)]
struct UserInfo;

impl Metadata for UserInfo {
    const METHOD: http::Method = <Request as Metadata>::METHOD;
    const RATE_LIMITED: bool = <Request as Metadata>::RATE_LIMITED;
    type Authentication = <Request as Metadata>::Authentication;
    type PathBuilder = <Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = <Request as Metadata>::PATH_BUILDER;
}

impl IncomingRequest for UserInfo {
    type EndpointError = <Request as IncomingRequest>::EndpointError;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(_: http::Request<&[u8]>, _: &[&str]) -> Result<Self, DeserializationError> {
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    /// A token tells its user to anyone; what is none tells nothing.
    #[tokio::test]
    async fn tokens_are_traded_for_names() {
        on_both(async |server: &Server| {
            let alice = server.user("alice").await;
            let accounts = &server.services.accounts;
            let login = accounts.log_in_by_password("alice", "correct horse", Default::default()).await.unwrap();
            let session = accounts.session(&login.access_token, None).await.unwrap();
            let token = accounts.create_openid_token(&session).await.unwrap().token;
            let path = |token: &str| format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
            let told = server.get(&path(&token)).await.json(StatusCode::OK);
            assert_eq!(told, json!({ "sub": alice }));
            for wrong in ["nonsense", &login.access_token, ""] {
                let refused = server.get(&path(wrong)).await;
                assert_eq!(refused.errcode(StatusCode::UNAUTHORIZED), "M_UNKNOWN_TOKEN", "{wrong}");
            }
            let without = server.get("/_matrix/federation/v1/openid/userinfo").await;
            assert_eq!(without.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        })
        .await;
    }
}
