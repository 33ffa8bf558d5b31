//! What one room tells of itself.

use myelin_store::Membership;
use ruma::{OwnedServerName, RoomId};

use super::{RoomSummary, hierarchy::Places, summary::Entrance};
use crate::{Error, Result, Rooms};

/// Servers that are asked for a room, one after the other.
const SERVERS_MAX: usize = 5;

const UNKNOWN: Error = Error::NotFound("there is no such room, or it is not open to you");

impl Rooms {
    /// What a room tells of itself to a user who is in it, could join it or may read it, with what the user is in it; or
    /// to one who does not say who they are ([specification]). Other servers are asked for a room that we do not know,
    /// for our users alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias
    pub async fn summary_of(
        &self,
        room_id: &RoomId,
        via: &[OwnedServerName],
        user_nid: Option<i64>,
    ) -> Result<(RoomSummary, Option<Membership>)> {
        let places = match user_nid {
            Some(user_nid) => Some(self.places_of(user_nid).await?),
            None => None,
        };
        let summary = match (self.here(room_id).await?, &places) {
            (Some((room, told)), places) => {
                let is_open = match places {
                    Some(places) => self.is_open_to_user(places, &room, &told).await?,
                    // "Servers MAY allow unauthenticated access to this API if […] The room has a join rule of public,
                    // knock or knock_restricted. The room has a world_readable history visibility."
                    None => told.world_readable || self.entrance(&room, &told)? == Entrance::Open,
                };
                let summary = self.summarise(&[(room, told)]).await?.pop();
                summary.filter(|_| is_open).ok_or(UNKNOWN)?
            }
            (None, Some(places)) => {
                let servers = self.servers_near(room_id, via, places).await?;
                let room = self.described_elsewhere(room_id, &servers, false).await.ok_or(UNKNOWN)?;
                if !self.is_open_elsewhere(places, &room.summary).await? {
                    return Err(UNKNOWN);
                }
                room.summary.clone()
            }
            (None, None) => return Err(UNKNOWN),
        };
        let Some(places) = places else { return Ok((summary, None)) };
        let room = self.store.room(room_id).await?;
        let member = room.and_then(|room| places.get(&room.nid).map(|member| member.membership));
        Ok((summary, Some(member.unwrap_or(Membership::Leave))))
    }

    /// The servers that may know a room that we do not: those given, the one that has invited the user, the one that the
    /// room's identifier names.
    pub(super) async fn servers_near(
        &self,
        room_id: &RoomId,
        via: &[OwnedServerName],
        places: &Places,
    ) -> Result<Vec<OwnedServerName>> {
        let mut near = via.to_vec();
        if let Some(room) = self.store.room(room_id).await?
            && let Some(member) = places.get(&room.nid)
        {
            near.push(self.store.event(member.event_nid).await?.sender().server_name().to_owned());
        }
        near.extend(room_id.server_name().map(ToOwned::to_owned));
        let mut servers: Vec<OwnedServerName> = Vec::new();
        for server in near {
            if server != self.server_name && !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers.truncate(SERVERS_MAX);
        Ok(servers)
    }
}
