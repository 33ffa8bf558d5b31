//! `GET /_matrix/client/v3/joined_rooms`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3joined_rooms)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use myelin_store::Membership;
use ruma::api::client::membership::joined_rooms::v3::{Request, Response};

use crate::{Services, errors::Result};

pub(super) async fn joined_rooms(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let store = services.rooms.store();
    let memberships = store.memberships(request.session().user_nid).await?;
    let joined = memberships.iter().filter(|member| member.membership == Membership::Join);
    let room_nids: Vec<i64> = joined.map(|member| member.room_nid).collect();
    let rooms = store.rooms(&room_nids).await?;
    Ok(Reply(Response::new(rooms.iter().map(|room| room.room_id.clone()).collect())))
}
