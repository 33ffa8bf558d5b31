//! GET /_matrix/client/v3/profile/{userId} and GET /_matrix/client/v3/profile/{userId}/{keyName}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3profileuserid>

use axum::extract::State;
use myelin_accounts::Field;
use myelin_http::{ApiError, Matrix, RawJson};
use ruma::{
    UserId,
    api::client::profile::{get_profile, get_profile_field},
    profile::UserProfile,
};
use serde_json::{Value, json};

use crate::{Services, errors::Result};

pub(crate) async fn whole(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<get_profile::v3::Request>,
) -> Result<RawJson> {
    if let Some(profile) = elsewhere(&services, &body.user_id).await? {
        return Ok(RawJson::from(serde_json::to_string(&profile).map_err(ApiError::unknown)?));
    }
    let fields = services.accounts.profile(&body.user_id).await?;
    let fields = fields.ok_or_else(|| ApiError::not_found("There is no such user"))?;
    Ok(object(&fields))
}

pub(crate) async fn field(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<get_profile_field::v3::Request>,
) -> Result<RawJson> {
    let name = body.field.as_str().to_owned();
    let unknown = || ApiError::not_found("There is no such user, or no such field");
    if let Some(profile) = elsewhere(&services, &body.user_id).await? {
        let value = profile.get(&name).ok_or_else(unknown)?;
        return Ok(RawJson::from(json!({ name: value }).to_string()));
    }
    let value = services.accounts.profile_field(&body.user_id, &name).await?.ok_or_else(unknown)?;
    Ok(object(&[(name, value)]))
}

/// The profile of a user who is not ours.
async fn elsewhere(services: &Services, user_id: &UserId) -> Result<Option<UserProfile>> {
    if user_id.server_name() == services.rooms.server_name() {
        return Ok(None);
    }
    Ok(Some(services.rooms.profile_elsewhere(user_id).await?))
}

/// The stored JSON, spliced.
fn object(fields: &[Field]) -> RawJson {
    let mut json = String::from("{");
    for (place, (name, value)) in fields.iter().enumerate() {
        if place > 0 {
            json.push(',');
        }
        json.push_str(&Value::from(name.as_str()).to_string());
        json.push(':');
        json.push_str(value.get());
    }
    json.push('}');
    RawJson(json.into())
}
