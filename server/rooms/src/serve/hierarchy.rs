//! The rooms of a space.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#spaces)

use std::{collections::HashMap, sync::Arc};

use myelin_store::{Member, Membership, RoomName, state_tree};
use ruma::{OwnedRoomId, RoomId, ServerName};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    RoomSummary,
    child::{Child, in_order},
    summary::{Entrance, Told},
};
use crate::{Error, Result, Rooms};

/// Children that another server is told of.
const SERVED_CHILDREN_MAX: usize = 100;

const UNKNOWN: Error = Error::NotFound("there is no such room, or your server could not join it");

/// A room of a space, with what it says of its own children.
#[derive(Clone, Debug, Serialize)]
pub struct SpaceRoom {
    /// The room.
    #[serde(flatten)]
    pub summary: RoomSummary,
    /// Its `m.space.child` events, stripped; empty if it is no space.
    pub children_state: Vec<Box<RawValue>>,
}

/// What another server is told of a space.
#[derive(Clone, Debug, Serialize)]
pub struct ServedHierarchy {
    /// The space.
    pub room: SpaceRoom,
    /// Those of its children that the server could join or read.
    pub children: Vec<RoomSummary>,
    /// Those that it could not.
    pub inaccessible_children: Vec<OwnedRoomId>,
}

/// The memberships of a user, by room.
pub(super) type Places = HashMap<i64, Member>;

impl Rooms {
    /// A space and its children as far as a server could join or read them ([specification]).
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when we are not in the room, or the server could neither join nor read it.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1hierarchyroomid
    pub async fn serve_hierarchy(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<ServedHierarchy> {
        let room = self.store.room(room_id).await?.ok_or(UNKNOWN)?;
        let told = self.told_by(std::slice::from_ref(&room)).await?.pop().ok_or(UNKNOWN)?;
        if !self.is_resident(&room, &told).await? || !self.is_open_to_server(origin, &room, &told).await? {
            return Err(UNKNOWN);
        }
        let mut children = self.children(&told, suggested_only).await?;
        children.truncate(SERVED_CHILDREN_MAX);
        let mut open = Vec::new();
        let mut inaccessible_children = Vec::new();
        for (child, told) in self.known_children(&children).await? {
            // "Rooms which the responding server cannot provide details on will be outright excluded."
            if !self.is_resident(&child, &told).await? {
                continue;
            }
            if self.is_open_to_server(origin, &child, &told).await? {
                open.push((child, told));
            } else {
                inaccessible_children.push(child.room_id.clone());
            }
        }
        let summary = self.summarise(&[(room, told)]).await?.pop().ok_or(UNKNOWN)?;
        let children_state = children.iter().map(Child::stripped).collect::<Result<_>>()?;
        let room = SpaceRoom { summary, children_state };
        Ok(ServedHierarchy { room, children: self.summarise(&open).await?, inaccessible_children })
    }

    /// The children of a space, in their order; none if the room is no space.
    pub(super) async fn children(&self, told: &Told, suggested_only: bool) -> Result<Vec<Child>> {
        if !told.is_space {
            return Ok(Vec::new());
        }
        let nids = self.child_events(told.root).await?;
        let events = self.store.events(&nids).await?;
        Ok(in_order(events.iter().filter_map(|event| Child::of_event(event, suggested_only)).collect()))
    }

    async fn child_events(&self, root: i64) -> Result<Arc<[i64]>> {
        if let Some(known) = self.serving.children.get(&root) {
            return Ok(known);
        }
        let entries = state_tree::entries(&*self.store, &[root]).await.map_err(myelin_store::Error::from)?;
        let entries = entries.into_iter().next().unwrap_or_default();
        let keys = self.store.state_keys(&entries.iter().map(|(key_nid, _)| *key_nid).collect::<Vec<_>>()).await?;
        let children = entries.iter().zip(&keys).filter(|(_, key)| &*key.event_type == "m.space.child");
        let children: Arc<[i64]> = children.map(|((_, nid), _)| *nid).collect();
        self.serving.children.insert(root, children.clone());
        self.serving.show_weight();
        Ok(children)
    }

    /// The children that we know, in the same order, with what they tell of themselves.
    pub(super) async fn known_children(&self, children: &[Child]) -> Result<Vec<(Arc<RoomName>, Arc<Told>)>> {
        let mut rooms = Vec::new();
        for child in children {
            rooms.extend(self.store.room(&child.room_id).await?);
        }
        let told = self.told_by(&rooms).await?;
        Ok(rooms.into_iter().zip(told).collect())
    }

    /// True if we know the present of a room: we are in it, or nobody is any more.
    pub(super) async fn is_known_here(&self, room: &RoomName, told: &Told) -> Result<bool> {
        if told.root == state_tree::EMPTY {
            return Ok(false);
        }
        let servers = self.room_servers(room, told.root).await?;
        Ok(servers.has(&self.server_name) || !servers.has_anyone())
    }

    /// True if we are in a room, and so know its present.
    async fn is_resident(&self, room: &RoomName, told: &Told) -> Result<bool> {
        Ok(told.root != state_tree::EMPTY && self.room_servers(room, told.root).await?.has(&self.server_name))
    }

    /// True if a server could join a room or read it.
    async fn is_open_to_server(&self, origin: &ServerName, room: &RoomName, told: &Told) -> Result<bool> {
        match self.check_acl_at(origin, told.root).await {
            Ok(()) => {}
            Err(Error::Forbidden(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        let presence = self.room_servers(room, told.root).await?.of(origin);
        if presence.joined > 0 || presence.invited > 0 || told.world_readable {
            return Ok(true);
        }
        match self.entrance(room, told)? {
            _ if !told.is_federated => Ok(false),
            Entrance::Open => Ok(true),
            Entrance::Closed => Ok(false),
            Entrance::Restricted => {
                for allowed in &told.allowed_room_ids {
                    if let Some(allowed) = self.store.room(allowed).await?
                        && self.is_server_in(&allowed, origin).await?
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// True if a user is in a room that is known here, could join it, or may read it.
    pub(super) async fn is_open_to_user(&self, places: &Places, room: &RoomName, told: &Told) -> Result<bool> {
        let entrance = self.entrance(room, told)?;
        self.is_open_by(places, Some(room.nid), told, entrance).await
    }

    /// The same of a room that another server describes.
    pub(super) async fn is_open_elsewhere(&self, places: &Places, summary: &RoomSummary) -> Result<bool> {
        let room = self.store.room(&summary.room_id).await?;
        self.is_open_by(places, room.map(|room| room.nid), &summary.told, summary.entrance()).await
    }

    async fn is_open_by(
        &self,
        places: &Places,
        room_nid: Option<i64>,
        told: &Told,
        entrance: Entrance,
    ) -> Result<bool> {
        let membership = room_nid.and_then(|room_nid| places.get(&room_nid)).map(|member| member.membership);
        if told.world_readable || matches!(membership, Some(Membership::Join | Membership::Invite)) {
            return Ok(true);
        }
        if membership == Some(Membership::Ban) {
            return Ok(false);
        }
        match entrance {
            Entrance::Open => Ok(true),
            Entrance::Closed => Ok(false),
            Entrance::Restricted => {
                for allowed in &told.allowed_room_ids {
                    if let Some(allowed) = self.store.room(allowed).await?
                        && places.get(&allowed.nid).is_some_and(|member| member.membership == Membership::Join)
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Where a user is, and was.
    pub(super) async fn places_of(&self, user_nid: i64) -> Result<Places> {
        let memberships = self.store.memberships(user_nid).await?;
        Ok(memberships.into_iter().map(|member| (member.room_nid, member)).collect())
    }
}
