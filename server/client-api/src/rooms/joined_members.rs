//! `GET /_matrix/client/v3/rooms/{roomId}/joined_members`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidjoined_members)

use axum::extract::State;
use myelin_http::{Matrix, Reply};
use ruma::{
    OwnedMxcUri, UserId,
    api::client::membership::joined_members::v3::{Request, Response, RoomMember},
};
use serde::Deserialize;
use serde_json::Value;

use super::{outsider, room_to_act_in};
use crate::{Services, errors::Result};

pub(super) async fn joined_members(
    State(services): State<Services>,
    request: Matrix<Request>,
) -> Result<Reply<Response>> {
    let session = request.session();
    let rooms = &services.rooms;
    let room = room_to_act_in(rooms, &request.body.room_id).await?;
    if !rooms.is_joined(&room, session.user_nid).await? {
        Err(outsider())?;
    }
    let root = rooms.state_root(&room).await?;
    let events = rooms.store().all_state_events(root).await?;
    let members = events.iter().filter(|event| event.event_type() == "m.room.member").filter_map(|event| {
        let user_id = UserId::parse(event.state_key()?).ok()?;
        let content: Content = serde_json::from_str(event.content()).ok()?;
        (content.membership == "join").then(|| (user_id, content.into()))
    });
    Ok(Reply(Response::new(members.collect())))
}

#[derive(Deserialize)]
struct Content {
    membership: String,
    // Anything may stand there; only a text is a name.
    displayname: Option<Value>,
    avatar_url: Option<Value>,
}

impl From<Content> for RoomMember {
    fn from(content: Content) -> Self {
        let mut member = Self::new();
        let text = |value: Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_owned);
        member.display_name = text(content.displayname);
        member.avatar_url = text(content.avatar_url).map(OwnedMxcUri::from);
        member
    }
}
