//! `GET /_matrix/federation/v1/query/profile`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1queryprofile)

use axum::extract::State;
use myelin_accounts::Field;
use myelin_http::{ApiError, RawJson};
use ruma::api::federation::query::get_profile_information::v1::Request;

use crate::{Services, errors::Result, json::Object, signed::Signed};

pub(super) async fn profile(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    let Request { user_id, field, .. } = &request.body;
    // "MUST be a user local to the receiving homeserver."
    if user_id.server_name() != services.rooms.server_name() {
        return Err(ApiError::invalid_param("The user is not one of this server").into());
    }
    let unknown = || ApiError::not_found("There is no such user, or no such field");
    let fields = match field {
        None => services.accounts.profile(user_id).await?.ok_or_else(unknown)?,
        Some(field) => {
            let value = services.accounts.profile_field(user_id, field.as_str()).await?;
            vec![(field.as_str().to_owned(), value.ok_or_else(unknown)?)]
        }
    };
    Ok(object(&fields)?)
}

/// The stored JSON, spliced.
fn object(fields: &[Field]) -> Result<RawJson, ApiError> {
    let mut object = Object::with_capacity(256);
    for (name, value) in fields {
        object = object.value(name, value).map_err(ApiError::unknown)?;
    }
    Ok(object.finish())
}
