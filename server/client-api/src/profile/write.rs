//! PUT and DELETE /_matrix/client/v3/profile/{userId}/{keyName}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3profileuseridkeyname>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply, Session};
use ruma::{
    OwnedUserId, UserId,
    api::{
        IncomingRequest, Metadata,
        client::profile::{delete_profile_field, set_profile_field},
        error::DeserializationError,
    },
};
use serde::de::Error as _;
use serde_json::{Map, Value};

use crate::{Services, errors::Result};

pub(crate) async fn set(
    State(services): State<Services>,
    request: Matrix<SetField>,
) -> Result<Reply<set_profile_field::v3::Response>> {
    let session = request.session();
    let SetField { user_id, field, value } = &request.body;
    check_own(session, user_id, field)?;
    services.accounts.set_profile_field(session.user_nid, &session.user_id, field, value.clone()).await?;
    Ok(Reply(set_profile_field::v3::Response::new()))
}

pub(crate) async fn delete(
    State(services): State<Services>,
    request: Matrix<delete_profile_field::v3::Request>,
) -> Result<Reply<delete_profile_field::v3::Response>> {
    let session = request.session();
    let field = request.body.field.as_str();
    check_own(session, &request.body.user_id, field)?;
    services.accounts.delete_profile_field(session.user_nid, &session.user_id, field).await?;
    Ok(Reply(delete_profile_field::v3::Response::new()))
}

fn check_own(session: &Session, user_id: &UserId, field: &str) -> Result<()> {
    if session.user_id != user_id {
        return Err(ApiError::forbidden("This is another user's profile").into());
    }
    // "Guest users may only modify their display name; other profile fields may not be changed."
    if field != "displayname" {
        session.require_full_account()?;
    }
    session.require_good_standing()?;
    Ok(())
}

/// ruma's request, with any JSON as the value: clients remove a name or an avatar with `null` too.
#[derive(Debug)]
pub(crate) struct SetField {
    user_id: OwnedUserId,
    field: String,
    value: Value,
}

type Ruma = set_profile_field::v3::Request;

impl Metadata for SetField {
    const METHOD: http::Method = <Ruma as Metadata>::METHOD;
    const RATE_LIMITED: bool = <Ruma as Metadata>::RATE_LIMITED;
    type Authentication = <Ruma as Metadata>::Authentication;
    type PathBuilder = <Ruma as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = <Ruma as Metadata>::PATH_BUILDER;
}

impl IncomingRequest for SetField {
    type EndpointError = <Ruma as IncomingRequest>::EndpointError;
    type OutgoingResponse = set_profile_field::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let [user_id, field] = path_args else {
            return Err(serde_json::Error::custom("the path has other parts").into());
        };
        let body: Map<String, Value> = match request.body() {
            [] => Map::new(),
            body => serde_json::from_slice(body)?,
        };
        let value = body.get(*field).cloned();
        let value = value.ok_or_else(|| serde_json::Error::custom(format!("missing field `{field}`")))?;
        Ok(Self { user_id: UserId::parse(*user_id)?, field: (*field).to_owned(), value })
    }
}
