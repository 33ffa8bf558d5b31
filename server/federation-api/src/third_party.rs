//! `PUT /_matrix/federation/v1/3pid/onbind`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv13pidonbind)

use axum::{Router, extract::State};
use myelin_http::{ApiError, Endpoints as _, LimitKind, Matrix, Reply, RouteOptions};
use myelin_rooms::Error;
use ruma::{
    api::federation::thirdparty::{
        bind_callback::v1::{Request, Response, ThirdPartyInvite},
        exchange_invite,
    },
    events::room::member::ThirdPartyInvite as InContent,
};
use serde_json::{json, value::to_raw_value};

use crate::{Services, errors::Result};

/// Invites that wait for one address at the most; each may make us ask another server.
const INVITES_MAX: usize = 20;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    // Identity servers do not sign their requests: anyone may ask.
    router.endpoint_with(RouteOptions::new().rate_limit(LimitKind::Other), on_bind)
}

async fn on_bind(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let Request { mxid, invites, .. } = request.body;
    if mxid.server_name() != services.rooms.server_name() || services.accounts.profile(&mxid).await?.is_none() {
        return Err(ApiError::not_found("There is no such user here").into());
    }
    if invites.len() > INVITES_MAX {
        return Err(ApiError::invalid_param(format!("There are more than {INVITES_MAX} invites")).into());
    }
    for invite in invites.into_iter().filter(|invite| invite.mxid == mxid) {
        let room_id = invite.room_id.clone();
        // Each is good or bad for itself, and the identity server could do nothing about it.
        if let Err(reason) = exchange(&services, invite).await {
            tracing::info!(room.id = %room_id, "an invite by a third party to {room_id} came to nothing: {reason}");
        }
    }
    Ok(Reply(Response::new()))
}

/// "If the invited homeserver is in the room the invite came from, it can auth the event and send it. However, if the
/// invited homeserver isn't in the room the invite came from, it will need to request the inviting homeserver to auth the
/// event at the /exchange_third_party_invite endpoint."
async fn exchange(services: &Services, invite: ThirdPartyInvite) -> Result<(), String> {
    let us = services.rooms.server_name();
    // The inviting server knows the name that was shown for the address; it takes the place of this one.
    let content = InContent::new(invite.mxid.to_string(), invite.signed);
    let event = json!({
        "type": "m.room.member",
        "room_id": invite.room_id,
        "sender": invite.sender,
        "state_key": invite.mxid,
        "content": { "membership": "invite", "third_party_invite": content },
    });
    let event = to_raw_value(&event).map_err(|error| error.to_string())?;
    match services.writes.exchange_third_party_invite(us, &invite.room_id, event).await {
        Err(Error::NotFound(_) | Error::Forbidden(_)) if invite.sender.server_name() != us => {}
        done => return done.map_err(|error| error.to_string()),
    }
    let server = invite.sender.server_name().to_owned();
    if !services.peers.is_allowed(&server) {
        return Err(format!("we do not federate with {server}"));
    }
    let request =
        exchange_invite::v1::Request::with_third_party_invite(invite.room_id, invite.sender, invite.mxid, content);
    let request = request.map_err(|error| error.to_string())?;
    services.peers.exchange_invite(&server, request).await.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
