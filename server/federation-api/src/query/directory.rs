//! `GET /_matrix/federation/v1/query/directory`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1querydirectory)

use axum::extract::State;
use myelin_http::{ApiError, Reply};
use ruma::api::federation::query::get_room_information::v1::{Request, Response};

use crate::{Services, errors::Result, signed::Signed};

/// Servers of an answer at the most: nobody tries them all.
const SERVERS_MAX: usize = 50;

pub(super) async fn directory(State(services): State<Services>, request: Signed<Request>) -> Result<Reply<Response>> {
    let alias = &request.body.room_alias;
    let us = services.rooms.server_name();
    // "Homeservers should only query room aliases that belong to the target server"
    if alias.server_name() != us {
        return Err(ApiError::not_found("The alias is not one of this server").into());
    }
    let room_id = services.rooms.resolve_alias(alias).await?;
    let room = services.rooms.room(&room_id).await?;
    let mut servers = services.rooms.servers_in(&room).await?;
    // "an array of server names that are likely to hold the given room", of which we know ourselves best.
    servers.retain(|server| server != us);
    servers.insert(0, us.clone());
    servers.truncate(SERVERS_MAX);
    Ok(Reply(Response::new(room_id, servers)))
}
