//! `GET /_matrix/client/v3/rooms/{roomId}/members`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmembers)

use axum::extract::State;
use myelin_http::{Matrix, RawJson};
use myelin_rooms::visibility::membership_in;
use myelin_store::Event;
use ruma::{api::client::membership::get_member_events::v3::Request, events::room::member::MembershipState};

use super::{
    json::{self, Object},
    messages::token,
};
use crate::{Services, errors::Result};

pub(super) async fn members(State(services): State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let session = request.session();
    let Request { room_id, at, membership, not_membership, .. } = &request.body;
    let rooms = &services.rooms;
    let at = token(at.as_deref())?;
    let reader = rooms.reader(room_id, &session.user_id, session.user_nid).await?;
    let root = match at {
        Some(pos) => rooms.readable_root_at(&reader, pos).await?,
        None => rooms.readable_root(&reader).await?,
    };
    let mut events = rooms.store().all_state_events(root).await?;
    events.retain(|event| {
        event.event_type() == "m.room.member" && is_wanted(event, membership.as_ref(), not_membership.as_ref())
    });
    let events = rooms.without_erased(&reader.room, &reader.viewer, events).await?;
    let events = json::events(rooms, session, room_id, &events).await?;
    let mut answer = Object::with_capacity(json::size(&events));
    answer.list("chunk", &events);
    Ok(answer.finish())
}

/// "the two parameters create an 'or' condition: either the membership is the same as membership or is not the same
/// as not_membership."
fn is_wanted(event: &Event, is: Option<&MembershipState>, is_not: Option<&MembershipState>) -> bool {
    if is.is_none() && is_not.is_none() {
        return true;
    }
    let Some(membership) = membership_in(event) else { return false };
    let is_it = |wanted: &MembershipState| wanted.as_str() == membership.word();
    is.is_some_and(is_it) || is_not.is_some_and(|not| !is_it(not))
}
