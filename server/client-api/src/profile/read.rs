//! GET /_matrix/client/v3/profile/{userId} and GET /_matrix/client/v3/profile/{userId}/{keyName}
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3profileuserid>

use axum::extract::State;
use myelin_accounts::Field;
use myelin_http::{ApiError, Matrix, RawJson};
use ruma::api::client::profile::{get_profile, get_profile_field};
use serde_json::Value;

use crate::{Services, errors::Result};

pub(crate) async fn whole(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<get_profile::v3::Request>,
) -> Result<RawJson> {
    let fields = services.accounts.profile(&body.user_id).await?;
    let fields = fields.ok_or_else(|| ApiError::not_found("There is no such user"))?;
    Ok(object(&fields))
}

pub(crate) async fn field(
    State(services): State<Services>,
    Matrix { body, .. }: Matrix<get_profile_field::v3::Request>,
) -> Result<RawJson> {
    let name = body.field.as_str().to_owned();
    let value = services.accounts.profile_field(&body.user_id, &name).await?;
    let value = value.ok_or_else(|| ApiError::not_found("There is no such user, or no such field"))?;
    Ok(object(&[(name, value)]))
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
