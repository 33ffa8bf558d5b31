//! What this crate asks of those who know other servers, and of those who write to rooms.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::BoxFuture;
use myelin_federation::{Client, KeyQuery};
use myelin_http::BoxError;
use myelin_rooms::{JoinedRoom, MembershipTemplate, Outcome, Rooms, remote::RemoteServers};
use ruma::{
    EventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId, ServerName, UserId,
    api::federation::discovery::ServerSigningKeys, serde::Raw,
};
use serde_json::value::RawValue;

/// What is known of other servers, and how they are asked.
pub trait Peers: RemoteServers {
    /// Whether the configuration lets us deal with a server.
    fn is_allowed(&self, server: &ServerName) -> bool;

    /// Takes note that a server is alive: whatever waits for it may be tried at once.
    fn heard_from(&self, server: &ServerName);

    /// Our keys, signed.
    fn key_document(&self) -> BoxFuture<'_, Result<Raw<ServerSigningKeys>, BoxError>>;

    /// The keys of servers as they signed them, with our signature besides, as far as they can be had.
    fn notarised_keys(
        &self,
        queries: BTreeMap<OwnedServerName, KeyQuery>,
    ) -> BoxFuture<'_, Vec<Raw<ServerSigningKeys>>>;
}

impl Peers for Client {
    fn is_allowed(&self, server: &ServerName) -> bool {
        self.is_allowed(server)
    }

    fn heard_from(&self, server: &ServerName) {
        self.heard_from(server);
    }

    fn key_document(&self) -> BoxFuture<'_, Result<Raw<ServerSigningKeys>, BoxError>> {
        Box::pin(async { Ok(self.key_document().await?) })
    }

    fn notarised_keys(
        &self,
        queries: BTreeMap<OwnedServerName, KeyQuery>,
    ) -> BoxFuture<'_, Vec<Raw<ServerSigningKeys>>> {
        Box::pin(self.notarised_keys(queries))
    }
}

/// A result of a room.
type RoomResult<T> = myelin_rooms::Result<T>;

/// What other servers do to rooms.
pub trait RemoteWrites: Send + Sync {
    /// Takes the events of a transaction. The answer has those that an identifier could be made out of.
    fn receive<'a>(
        &'a self,
        origin: &'a ServerName,
        pdus: Vec<Box<RawValue>>,
    ) -> BoxFuture<'a, RoomResult<Vec<Outcome>>>;

    /// Refuses a server that the room's access control list denies. A room that we do not know denies nobody.
    fn check_acl<'a>(&'a self, origin: &'a ServerName, room_id: &'a RoomId) -> BoxFuture<'a, RoomResult<()>>;

    /// A join for a user of the origin to sign.
    fn make_join<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        versions: &'a [RoomVersionId],
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>>;

    /// A leave for a user of the origin to sign.
    fn make_leave<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>>;

    /// A knock for a user of the origin to sign.
    fn make_knock<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        versions: &'a [RoomVersionId],
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>>;

    /// Takes a signed join into the room.
    fn send_join<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
        omit_members: bool,
    ) -> BoxFuture<'a, RoomResult<JoinedRoom>>;

    /// Takes a signed leave into the room.
    fn send_leave<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<()>>;

    /// Takes a signed knock into the room, and tells what the room is.
    fn send_knock<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<Vec<Box<RawValue>>>>;

    /// Signs the invite of one of our users, and tells them.
    fn invite<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a OwnedRoomId,
        event_id: &'a EventId,
        room_version: &'a RoomVersionId,
        event: Box<RawValue>,
        room_state: Vec<Box<RawValue>>,
    ) -> BoxFuture<'a, RoomResult<Box<RawValue>>>;

    /// Turns the invite of a third-party identifier into one of the user who turned out to own it.
    fn exchange_third_party_invite<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a OwnedRoomId,
        event: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<()>>;
}

impl RemoteWrites for Arc<Rooms> {
    fn receive<'a>(
        &'a self,
        origin: &'a ServerName,
        pdus: Vec<Box<RawValue>>,
    ) -> BoxFuture<'a, RoomResult<Vec<Outcome>>> {
        Box::pin(Rooms::receive(self, origin, pdus))
    }

    fn check_acl<'a>(&'a self, origin: &'a ServerName, room_id: &'a RoomId) -> BoxFuture<'a, RoomResult<()>> {
        Box::pin(Rooms::check_acl(self, origin, room_id))
    }

    fn make_join<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        versions: &'a [RoomVersionId],
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>> {
        Box::pin(Rooms::make_join_for(self, origin, room_id, user_id, versions))
    }

    fn make_leave<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>> {
        Box::pin(Rooms::make_leave_for(self, origin, room_id, user_id))
    }

    fn make_knock<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        user_id: &'a UserId,
        versions: &'a [RoomVersionId],
    ) -> BoxFuture<'a, RoomResult<MembershipTemplate>> {
        Box::pin(Rooms::make_knock_for(self, origin, room_id, user_id, versions))
    }

    fn send_join<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
        omit_members: bool,
    ) -> BoxFuture<'a, RoomResult<JoinedRoom>> {
        Box::pin(Rooms::send_join_for(self, origin, room_id, event_id, pdu, omit_members))
    }

    fn send_leave<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<()>> {
        Box::pin(Rooms::send_leave_for(self, origin, room_id, event_id, pdu))
    }

    fn send_knock<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a RoomId,
        event_id: &'a EventId,
        pdu: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<Vec<Box<RawValue>>>> {
        Box::pin(Rooms::send_knock_for(self, origin, room_id, event_id, pdu))
    }

    fn invite<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a OwnedRoomId,
        event_id: &'a EventId,
        room_version: &'a RoomVersionId,
        event: Box<RawValue>,
        room_state: Vec<Box<RawValue>>,
    ) -> BoxFuture<'a, RoomResult<Box<RawValue>>> {
        Box::pin(Rooms::invited_by(self, origin, room_id, event_id, room_version, event, room_state))
    }

    fn exchange_third_party_invite<'a>(
        &'a self,
        origin: &'a ServerName,
        room_id: &'a OwnedRoomId,
        event: Box<RawValue>,
    ) -> BoxFuture<'a, RoomResult<()>> {
        Box::pin(Rooms::exchange_third_party_invite_for(self, origin, room_id, event))
    }
}
