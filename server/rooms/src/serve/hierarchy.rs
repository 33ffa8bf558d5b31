//! The rooms of a space.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#spaces)

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Event, Member, Membership, RoomName, state_tree};
use ruma::{OwnedRoomId, RoomId, ServerName, SpaceChildOrder};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    RoomSummary,
    summary::{Entrance, Told},
};
use crate::{Error, Result, Rooms};

/// Children of a space that are looked at; others are left out.
const CHILDREN_MAX: usize = 1000;
/// Children that another server is told of.
const SERVED_CHILDREN_MAX: usize = 100;
/// Rooms of a space tree at the most, over all pages.
const ROOMS_MAX: usize = 5000;
/// Rooms that wait to be visited at the most.
const WAITING_MAX: usize = 10_000;

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

/// A part of a space tree that a user asks for.
#[derive(Clone, Debug)]
pub struct HierarchyRequest {
    /// Whether only suggested children are wanted.
    pub suggested_only: bool,
    /// How far down the tree goes; 0 is the space alone.
    pub max_depth: usize,
    /// How many rooms to leave out.
    pub skip: usize,
    /// How many rooms to list at the most.
    pub limit: usize,
}

/// A part of a space tree, depth first.
#[derive(Clone, Debug, Default)]
pub struct HierarchyPage {
    /// The rooms.
    pub rooms: Vec<SpaceRoom>,
    /// Whether there are none after these.
    pub is_last: bool,
}

/// A child of a space.
struct Child {
    room_id: OwnedRoomId,
    event: Arc<Event>,
    order: Option<String>,
}

impl Child {
    /// `None` when the event says of no room that it belongs to the space.
    fn from_event(event: &Arc<Event>, suggested_only: bool) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: Vec<String>,
            order: Option<serde_json::Value>,
            suggested: Option<serde_json::Value>,
        }
        let content: Content = serde_json::from_str(event.content()).ok()?;
        let is_suggested = content.suggested.and_then(|suggested| suggested.as_bool()).unwrap_or(false);
        if content.via.is_empty() || suggested_only && !is_suggested {
            return None;
        }
        let order = content.order.as_ref().and_then(|order| order.as_str());
        // "`order` values with the wrong type, or otherwise invalid contents, are to be treated as though the `order`
        // key was not provided."
        let order = order.filter(|order| <&SpaceChildOrder>::try_from(*order).is_ok()).map(str::to_owned);
        Some(Self { room_id: RoomId::parse(event.state_key()?).ok()?, event: event.clone(), order })
    }

    /// Children with an order first, by that; then by the age of the event, then by the room's id.
    fn sort_key(&self) -> (bool, Option<&str>, u64, &str) {
        (self.order.is_none(), self.order.as_deref(), self.event.origin_server_ts(), self.room_id.as_str())
    }

    /// "represented as Stripped State Events with an added `origin_server_ts` key"
    fn stripped(&self) -> Result<Box<RawValue>> {
        #[derive(Serialize)]
        struct Stripped<'a> {
            #[serde(rename = "type")]
            event_type: &'a str,
            state_key: &'a str,
            content: &'a RawValue,
            sender: &'a str,
            origin_server_ts: u64,
        }
        let stripped = Stripped {
            event_type: self.event.event_type(),
            state_key: self.room_id.as_str(),
            content: serde_json::from_str(self.event.content()).map_err(Error::Corrupt)?,
            sender: self.event.sender().as_str(),
            origin_server_ts: self.event.origin_server_ts(),
        };
        serde_json::value::to_raw_value(&stripped).map_err(Error::Corrupt)
    }
}

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

    /// A part of a space tree as a user may see it, of the rooms that this server is in ([specification]).
    ///
    /// Each room is listed once, where a walk comes by it first: circles end there.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the user could neither join nor read the space, and likewise when there is none.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy
    pub async fn hierarchy(
        &self,
        room_id: &RoomId,
        user_nid: i64,
        request: &HierarchyRequest,
    ) -> Result<HierarchyPage> {
        let forbidden = || Error::forbidden("you are not allowed to view this room");
        let memberships = self.store.memberships(user_nid).await?;
        let memberships: HashMap<i64, Member> =
            memberships.into_iter().map(|member| (member.room_nid, member)).collect();
        let room = self.store.room(room_id).await?.ok_or_else(forbidden)?;
        let told = self.told_by(std::slice::from_ref(&room)).await?.pop().ok_or_else(forbidden)?;
        if !self.is_open_to_user(&memberships, &room, &told).await? {
            return Err(forbidden());
        }

        let mut waiting = vec![(room, told, 0)];
        let (mut seen, mut waited) = (HashSet::new(), 0);
        let mut found = Vec::new();
        let mut children_states = Vec::new();
        let mut passed = 0;
        while let Some((room, told, depth)) = waiting.pop() {
            if passed >= ROOMS_MAX || !seen.insert(room.nid) {
                continue;
            }
            if found.len() >= request.limit {
                return self.page_of(&found, children_states, false).await;
            }
            let children = self.children(&told, request.suggested_only).await?;
            if depth < request.max_depth {
                // Taken from the end: the first child is to be the next.
                for (child, told) in self.known_children(&children).await?.into_iter().rev() {
                    let is_wanted = waited < WAITING_MAX && !seen.contains(&child.nid);
                    if is_wanted && self.is_open_to_user(&memberships, &child, &told).await? {
                        waited += 1;
                        waiting.push((child, told, depth + 1));
                    }
                }
            }
            passed += 1;
            if passed > request.skip {
                children_states.push(children.iter().map(Child::stripped).collect::<Result<_>>()?);
                found.push((room, told));
            }
        }
        self.page_of(&found, children_states, true).await
    }

    async fn page_of(
        &self,
        found: &[(Arc<RoomName>, Arc<Told>)],
        children_states: Vec<Vec<Box<RawValue>>>,
        is_last: bool,
    ) -> Result<HierarchyPage> {
        let summaries = self.summarise(found).await?.into_iter().zip(children_states);
        let rooms = summaries.map(|(summary, children_state)| SpaceRoom { summary, children_state }).collect();
        Ok(HierarchyPage { rooms, is_last })
    }

    /// The children of a space, in their order; none if the room is no space.
    async fn children(&self, told: &Told, suggested_only: bool) -> Result<Vec<Child>> {
        if !told.is_space {
            return Ok(Vec::new());
        }
        let nids = self.child_events(told.root).await?;
        let events = self.store.events(&nids).await?;
        let mut children: Vec<Child> =
            events.iter().filter_map(|event| Child::from_event(event, suggested_only)).collect();
        children.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        children.truncate(CHILDREN_MAX);
        Ok(children)
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
    async fn known_children(&self, children: &[Child]) -> Result<Vec<(Arc<RoomName>, Arc<Told>)>> {
        let mut rooms = Vec::new();
        for child in children {
            rooms.extend(self.store.room(&child.room_id).await?);
        }
        let told = self.told_by(&rooms).await?;
        Ok(rooms.into_iter().zip(told).collect())
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

    /// True if a user is in a room, could join it, or may read it.
    async fn is_open_to_user(&self, memberships: &HashMap<i64, Member>, room: &RoomName, told: &Told) -> Result<bool> {
        let servers = self.room_servers(room, told.root).await?;
        // Of a room that only others are in, we do not know the present.
        if told.root == state_tree::EMPTY || !servers.has(&self.server_name) && servers.has_anyone() {
            return Ok(false);
        }
        let membership = memberships.get(&room.nid).map(|member| member.membership);
        if told.world_readable || matches!(membership, Some(Membership::Join | Membership::Invite)) {
            return Ok(true);
        }
        if membership == Some(Membership::Ban) {
            return Ok(false);
        }
        match self.entrance(room, told)? {
            Entrance::Open => Ok(true),
            Entrance::Closed => Ok(false),
            Entrance::Restricted => {
                for allowed in &told.allowed_room_ids {
                    if let Some(allowed) = self.store.room(allowed).await?
                        && memberships.get(&allowed.nid).is_some_and(|member| member.membership == Membership::Join)
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}
