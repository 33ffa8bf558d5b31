//! `GET /_matrix/federation/v1/query/{queryType}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1queryquerytype)

use myelin_http::{ApiError, RawJson};
use ruma::api::federation::query::get_custom_information::v1::Request;

use crate::{errors::Result, signed::Signed};

/// "Known query types are specified as their own endpoints as an extension to this definition": any other is an endpoint
/// that we do not have.
pub(super) async fn other(_: Signed<Request>) -> Result<RawJson> {
    Err(ApiError::unrecognized().into())
}
