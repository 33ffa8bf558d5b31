//! Rooms that we are not in, as the servers that are in them describe them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName, api::federation::space::get_hierarchy};

use super::{
    RoomSummary,
    child::{CHILDREN_MAX, Child, in_order},
};
use crate::{
    Rooms,
    elsewhere::{Kept, Weight},
    remote::RemoteError,
};

/// Bytes of rooms of other servers in memory at the most.
const BYTES_MAX: u64 = 8 << 20;
/// "Responses to this endpoint should be cached for a period of time."
const LIFETIME: Duration = Duration::from_secs(300);
/// How long a server is believed that a room is none that we may know of.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(60);
/// How long a server may take to describe a room: people wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rooms of other servers in memory: by room, who tells, and whether only suggested children are listed.
pub(super) type Described = Kept<(OwnedRoomId, OwnedServerName, bool), Option<Arc<RoomElsewhere>>>;

pub(super) fn described() -> Described {
    Kept::new("space", 256, BYTES_MAX)
}

/// A room as another server describes it.
#[derive(Debug)]
pub(super) struct RoomElsewhere {
    pub(super) summary: RoomSummary,
    /// The rooms of it, if it is a space, in their order.
    pub(super) children: Vec<Child>,
    /// What the server tells of those that we could join or read.
    pub(super) near: HashMap<OwnedRoomId, RoomSummary>,
    /// Those that it says we could not.
    pub(super) inaccessible: HashSet<OwnedRoomId>,
}

impl Weight for Option<Arc<RoomElsewhere>> {
    fn weight(&self) -> u64 {
        let Some(room) = self else { return 256 };
        let children: usize = room.children.iter().map(Child::bytes).sum();
        let near: usize = room.near.values().map(RoomSummary::bytes).sum();
        let inaccessible: usize = room.inaccessible.iter().map(|room_id| room_id.as_str().len() + 48).sum();
        (512 + room.summary.bytes() + children + near + inaccessible) as u64
    }
}

impl RoomElsewhere {
    /// `None` when the answer is about another room.
    fn new(room_id: &RoomId, answer: get_hierarchy::v1::Response, suggested_only: bool) -> Option<Self> {
        if answer.room.summary.room_id != *room_id {
            return None;
        }
        let summary = RoomSummary::of_other(answer.room.summary);
        let children = match summary.told.is_space {
            true => answer.room.children_state,
            false => Vec::new(),
        };
        let children = children.iter().filter_map(|child| Child::of_stripped(child.json(), suggested_only));
        let children = in_order(children.collect());
        // What is no child of this room is none of the server's business here.
        let ids: HashSet<&RoomId> = children.iter().map(|child| &*child.room_id).collect();
        let near = answer.children.into_iter().filter(|near| ids.contains(&*near.room_id));
        let near = near.take(CHILDREN_MAX).map(|near| (near.room_id.clone(), RoomSummary::of_other(near))).collect();
        let inaccessible = answer.inaccessible_children.into_iter().filter(|child| ids.contains(&**child)).collect();
        Some(Self { summary, children, near, inaccessible })
    }
}

impl Rooms {
    /// A room as the first of some servers describes it that does. `None` when none does.
    pub(super) async fn described_elsewhere(
        &self,
        room_id: &RoomId,
        via: &[OwnedServerName],
        suggested_only: bool,
    ) -> Option<Arc<RoomElsewhere>> {
        for server in via.iter().filter(|server| **server != self.server_name) {
            match self.described_by(server, room_id, suggested_only).await {
                Ok(Some(room)) => return Some(room),
                Ok(None) => {}
                Err(error) => tracing::debug!(room.id = %room_id, %error, "{server} does not describe a room: {error}"),
            }
        }
        None
    }

    async fn described_by(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<Option<Arc<RoomElsewhere>>, RemoteError> {
        let key = (room_id.to_owned(), server.to_owned(), suggested_only);
        let ask = async {
            let mut request = get_hierarchy::v1::Request::new(room_id.to_owned());
            request.suggested_only = suggested_only;
            let Ok(remote) = self.remote() else { return Err(RemoteError::NotAllowed(server.to_owned())) };
            let unreachable =
                |reason: &str| RemoteError::Unreachable { server: server.to_owned(), reason: reason.into() };
            let answer = tokio::time::timeout(PATIENCE, remote.hierarchy(server, request)).await;
            match answer.unwrap_or_else(|_| Err(unreachable("it took too long"))) {
                Ok(answer) => {
                    let room = RoomElsewhere::new(room_id, answer, suggested_only);
                    let lifetime = if room.is_some() { LIFETIME } else { REFUSAL_LIFETIME };
                    Ok((room.map(Arc::new), lifetime))
                }
                Err(RemoteError::Refused { .. } | RemoteError::Nonsense { .. }) => Ok((None, REFUSAL_LIFETIME)),
                Err(error) => Err(error),
            }
        };
        self.serving.elsewhere.get_or_ask(&key, ask).await
    }
}
