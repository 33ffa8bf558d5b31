//! `POST /_matrix/client/v3/knock/{roomIdOrAlias}`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3knockroomidoralias)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use myelin_rooms::MembershipAction;
use ruma::api::client::knock::knock_room::v3::{Request, Response};

use super::resolve;
use crate::{Services, errors::Result};

pub(super) async fn knock(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let Request { room_id_or_alias, reason, via, .. } = &request.body;
    let (room_id, mut servers) = resolve(&services.rooms, room_id_or_alias).await?;
    servers.extend_from_slice(via);
    let action = MembershipAction::Knock;
    services.rooms.enter(&room_id, &servers, &session.user_id, action, reason.as_deref(), false).await?;
    Ok(Reply(Response::new(room_id)))
}
