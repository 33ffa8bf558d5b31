//! A walk through a space, for a user.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use myelin_store::RoomName;
use ruma::{OwnedRoomId, OwnedServerName, RoomId};
use serde_json::value::RawValue;

use super::{RoomSummary, SpaceRoom, child::Child, elsewhere::RoomElsewhere, hierarchy::Places, summary::Told};
use crate::{Error, Result, Rooms};

/// Rooms of a space tree at the most, over all pages.
const ROOMS_MAX: usize = 5000;
/// Rooms that wait to be visited at the most.
const WAITING_MAX: usize = 10_000;
/// Rooms that other servers are asked for at the same time.
const ASKED_AT_ONCE: usize = 8;
/// How long other servers are asked for the rooms of a page; what there is then, is the page.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// A room that the walk comes by.
struct Stop {
    room_id: OwnedRoomId,
    at: At,
    depth: usize,
}

/// Who describes a room.
enum At {
    /// We do.
    Here(Arc<RoomName>, Arc<Told>),
    /// Another server did already; it has no children.
    Near(Box<RoomSummary>),
    /// One of these may.
    Elsewhere(Vec<OwnedServerName>),
}

/// A room of the page.
enum Found {
    Here(Arc<RoomName>, Arc<Told>),
    Elsewhere(Box<RoomSummary>),
}

/// A walk.
struct Walk<'a> {
    rooms: &'a Rooms,
    places: Places,
    request: &'a HierarchyRequest,
    /// Taken from the end.
    waiting: Vec<Stop>,
    seen: HashSet<OwnedRoomId>,
    waited: usize,
    passed: usize,
    found: Vec<(Found, Vec<Box<RawValue>>)>,
    until: Instant,
}

impl Rooms {
    /// A part of a space tree as a user may see it; other servers are asked for the rooms that we do not know
    /// ([specification]).
    ///
    /// Each room is listed once, where a walk comes by it first: circles end there. Rooms that no server describes are
    /// left out.
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
        let places = self.places_of(user_nid).await?;
        let at = match self.here(room_id).await? {
            Some((room, told)) if self.is_open_to_user(&places, &room, &told).await? => At::Here(room, told),
            Some(_) => return Err(forbidden()),
            None => {
                let via = self.servers_near(room_id, &[], &places).await?;
                let room = self.described_elsewhere(room_id, &via, request.suggested_only).await;
                let room = room.ok_or_else(forbidden)?;
                if !self.is_open_elsewhere(&places, &room.summary).await? {
                    return Err(forbidden());
                }
                At::Elsewhere(via)
            }
        };
        let walk = Walk {
            rooms: self,
            places,
            request,
            waiting: vec![Stop { room_id: room_id.to_owned(), at, depth: 0 }],
            seen: HashSet::new(),
            waited: 0,
            passed: 0,
            found: Vec::new(),
            until: Instant::now() + PATIENCE,
        };
        walk.page().await
    }

    /// A room whose present we know, with what it tells of itself.
    pub(super) async fn here(&self, room_id: &RoomId) -> Result<Option<(Arc<RoomName>, Arc<Told>)>> {
        let Some(room) = self.store.room(room_id).await? else { return Ok(None) };
        let Some(told) = self.told_by(std::slice::from_ref(&room)).await?.pop() else { return Ok(None) };
        let is_known = self.is_known_here(&room, &told).await?;
        Ok(is_known.then_some((room, told)))
    }
}

impl Walk<'_> {
    async fn page(mut self) -> Result<HierarchyPage> {
        while let Some(stop) = self.waiting.pop() {
            if self.passed >= ROOMS_MAX || self.seen.contains(&stop.room_id) {
                continue;
            }
            if self.found.len() >= self.request.limit {
                return self.finish(false).await;
            }
            if matches!(stop.at, At::Elsewhere(_)) && Instant::now() >= self.until {
                // Nobody is asked any more for this page. One without rooms would be asked for again and again.
                if self.found.is_empty() {
                    continue;
                }
                return self.finish(false).await;
            }
            self.seen.insert(stop.room_id.clone());
            self.visit(stop).await?;
        }
        self.finish(true).await
    }

    async fn visit(&mut self, stop: Stop) -> Result<()> {
        let suggested_only = self.request.suggested_only;
        match stop.at {
            At::Here(room, told) => {
                let children = self.rooms.children(&told, suggested_only).await?;
                if stop.depth < self.request.max_depth {
                    self.push(&children, None, stop.depth + 1).await?;
                }
                self.pass(Found::Here(room, told), &children)
            }
            At::Near(summary) => self.pass(Found::Elsewhere(summary), &[]),
            At::Elsewhere(via) => {
                self.ask_ahead(&stop.room_id, &via).await;
                let room = self.rooms.described_elsewhere(&stop.room_id, &via, suggested_only).await;
                let Some(room) = room else { return Ok(()) };
                if !self.rooms.is_open_elsewhere(&self.places, &room.summary).await? {
                    return Ok(());
                }
                if stop.depth < self.request.max_depth {
                    self.push(&room.children, Some(&room), stop.depth + 1).await?;
                }
                self.pass(Found::Elsewhere(Box::new(room.summary.clone())), &room.children)
            }
        }
    }

    /// Asks for a room and for those that come after it, so that they are known when the walk gets there.
    async fn ask_ahead(&self, room_id: &RoomId, via: &[OwnedServerName]) {
        let wanted = (self.request.limit - self.found.len()).min(ASKED_AT_ONCE);
        let next = self.waiting.iter().rev().filter_map(|stop| match &stop.at {
            At::Elsewhere(via) => Some((&*stop.room_id, via.as_slice())),
            _ => None,
        });
        let next = std::iter::once((room_id, via)).chain(next).take(wanted.max(1));
        let suggested_only = self.request.suggested_only;
        join_all(next.map(|(room_id, via)| self.rooms.described_elsewhere(room_id, via, suggested_only))).await;
    }

    /// Lets the children of a space wait for their turn; `described` is what another server said of them.
    async fn push(&mut self, children: &[Child], described: Option<&RoomElsewhere>, depth: usize) -> Result<()> {
        let known = self.rooms.known_children(children).await?;
        let mut known: HashMap<OwnedRoomId, (Arc<RoomName>, Arc<Told>)> =
            known.into_iter().map(|(room, told)| (room.room_id.clone(), (room, told))).collect();
        let asks = self.rooms.remote().is_ok();
        // Taken from the end: the first child is to be the next.
        for child in children.iter().rev() {
            if self.waited >= WAITING_MAX || self.seen.contains(&child.room_id) {
                continue;
            }
            let at = match known.remove(&child.room_id) {
                Some((room, told)) if self.rooms.is_known_here(&room, &told).await? => {
                    if !self.rooms.is_open_to_user(&self.places, &room, &told).await? {
                        continue;
                    }
                    At::Here(room, told)
                }
                _ if !asks || described.is_some_and(|described| described.inaccessible.contains(&child.room_id)) => {
                    continue;
                }
                _ => match described.and_then(|described| described.near.get(&child.room_id)) {
                    Some(near) if !near.told.is_space => {
                        if !self.rooms.is_open_elsewhere(&self.places, near).await? {
                            continue;
                        }
                        At::Near(Box::new(near.clone()))
                    }
                    _ => At::Elsewhere(child.via.clone()),
                },
            };
            self.waited += 1;
            self.waiting.push(Stop { room_id: child.room_id.clone(), at, depth });
        }
        Ok(())
    }

    fn pass(&mut self, found: Found, children: &[Child]) -> Result<()> {
        self.passed += 1;
        if self.passed > self.request.skip {
            self.found.push((found, children.iter().map(Child::stripped).collect::<Result<_>>()?));
        }
        Ok(())
    }

    async fn finish(self, is_last: bool) -> Result<HierarchyPage> {
        let here = self.found.iter().filter_map(|(found, _)| match found {
            Found::Here(room, told) => Some((room.clone(), told.clone())),
            Found::Elsewhere(_) => None,
        });
        let mut here = self.rooms.summarise(&here.collect::<Vec<_>>()).await?.into_iter();
        let mut rooms = Vec::with_capacity(self.found.len());
        for (found, children_state) in self.found {
            let summary = match found {
                Found::Here(..) => here.next(),
                Found::Elsewhere(summary) => Some(*summary),
            };
            rooms.extend(summary.map(|summary| SpaceRoom { summary, children_state }));
        }
        Ok(HierarchyPage { rooms, is_last })
    }
}
