//! `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1make_knockroomiduserid)

use axum::extract::State;
use myelin_http::Reply;
use ruma::api::federation::membership::prepare_knock_event::v1::{Request, Response};

use super::must_be_of;
use crate::{Services, errors::Result, signed::Signed};

pub(super) async fn make_knock(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    let Request { room_id, user_id, ver, .. } = &request.body;
    let origin = &request.origin;
    must_be_of(origin, user_id)?;
    services.writes.check_acl(origin, room_id).await?;
    let template = services.writes.make_knock(origin, room_id, user_id, ver).await?;
    Ok(Reply(Response::new(template.room_version, template.event)))
}
