//! What rooms ask of other servers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures_util::future::BoxFuture;
use ruma::{
    OwnedServerName, ServerName,
    api::federation::{
        authorization::get_event_authorization,
        backfill::get_backfill,
        directory::get_public_rooms_filtered,
        event::{get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids},
        membership::{
            create_invite, create_join_event, create_knock_event, create_leave_event, prepare_join_event,
            prepare_knock_event, prepare_leave_event,
        },
        policy::sign_event,
        query::{get_profile_information, get_room_information},
        space::get_hierarchy,
        thirdparty::exchange_invite,
    },
    serde::Base64,
    signatures::PublicKeyMap,
};

/// The answer of another server.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RemoteError>>;

/// Why another server gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The configuration does not let us talk to it.
    #[error("federation with {0} is not allowed here")]
    NotAllowed(OwnedServerName),
    /// It did not answer lately, and is left alone for a while.
    #[error("{server} did not answer lately; it will be tried again in {wait:?}")]
    BackingOff {
        /// The server.
        server: OwnedServerName,
        /// Until it is tried again.
        wait: Duration,
    },
    /// It cannot be found, connected to, or did not answer in time.
    #[error("{server} cannot be reached: {reason}")]
    Unreachable {
        /// The server.
        server: OwnedServerName,
        /// What happened.
        reason: String,
    },
    /// It refused.
    #[error("{server} refuses with status {status}: {errcode} {message}")]
    Refused {
        /// The server.
        server: OwnedServerName,
        /// The status.
        status: u16,
        /// The error code, `M_UNKNOWN` if it gave none.
        errcode: String,
        /// What it said.
        message: String,
        /// Its whole answer, if that was a JSON object: some refusals carry more than a message.
        body: Option<serde_json::Map<String, serde_json::Value>>,
    },
    /// Its answer makes no sense.
    #[error("{server} answers nonsense: {reason}")]
    Nonsense {
        /// The server.
        server: OwnedServerName,
        /// What is wrong with the answer.
        reason: String,
    },
}

/// A key by which another server signed, and how long its signatures are to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyKey {
    /// The public key.
    pub key: Base64,
    /// Signatures of events up to this time are good, in milliseconds since 1970: the document's `valid_until_ts`,
    /// or the `expired_ts` of a key that is used no more.
    pub valid_until_ts: u64,
}

/// Keys that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedKeys {
    /// The identifiers, for example `ed25519:1`.
    pub key_ids: BTreeSet<String>,
    /// The latest time that an event says it was signed at; the key should be valid then.
    pub valid_at_ts: u64,
}

/// Keys of servers, as far as they could be had.
#[derive(Clone, Debug, Default)]
pub struct VerifyKeys(pub HashMap<OwnedServerName, HashMap<String, VerifyKey>>);

impl VerifyKeys {
    /// The keys of some servers by which an event of this time may have been signed.
    ///
    /// `signed_at_ts` is `None` in room versions that do not look at the time (1 to 4).
    pub fn usable(&self, servers: &BTreeSet<OwnedServerName>, signed_at_ts: Option<u64>) -> PublicKeyMap {
        let mut map = PublicKeyMap::new();
        for server in servers {
            let Some(keys) = self.0.get(server) else { continue };
            let usable: BTreeMap<String, Base64> = keys
                .iter()
                .filter(|(_, key)| signed_at_ts.is_none_or(|ts| ts <= key.valid_until_ts))
                .map(|(id, key)| (id.clone(), key.key.clone()))
                .collect();
            map.insert(server.to_string(), usable);
        }
        map
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident: $module:ident :: $version:ident,)+) => {
        /// What rooms ask of other servers. Each request has its own deadline, and the answer a bound on its size.
        pub trait RemoteServers: Send + Sync {
            /// Gets keys, from memory, from the database, from their servers or from a notary. Those that could not
            /// be had are missing from the answer.
            fn verify_keys<'a>(
                &'a self,
                wanted: &'a BTreeMap<OwnedServerName, WantedKeys>,
            ) -> BoxFuture<'a, VerifyKeys>;

            $(
                $(#[$doc])*
                fn $name<'a>(
                    &'a self,
                    server: &'a ServerName,
                    request: $module::$version::Request,
                ) -> Answer<'a, $module::$version::Response>;
            )+
        }

        /// Implements the requests of [`RemoteServers`] by a method that sends any of them:
        /// `fn call<R>(&self, server: &ServerName, request: R) -> impl Future<Output = Result<Answer, RemoteError>>`.
        #[macro_export]
        macro_rules! remote_requests_by_call {
            () => {
                $(
                    fn $name<'a>(
                        &'a self,
                        server: &'a ::ruma::ServerName,
                        request: $crate::remote::requests::$module::$version::Request,
                    ) -> $crate::remote::Answer<'a, $crate::remote::requests::$module::$version::Response> {
                        ::std::boxed::Box::pin(self.call(server, request))
                    }
                )+
            };
        }
    };
}

/// The modules of the requests, for the macro.
#[doc(hidden)]
pub mod requests {
    pub use ruma::api::federation::{
        authorization::get_event_authorization,
        backfill::get_backfill,
        directory::get_public_rooms_filtered,
        event::{get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids},
        membership::{
            create_invite, create_join_event, create_knock_event, create_leave_event, prepare_join_event,
            prepare_knock_event, prepare_leave_event,
        },
        policy::sign_event,
        query::{get_profile_information, get_room_information},
        space::get_hierarchy,
        thirdparty::exchange_invite,
    };
}

requests! {
    /// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`
    make_join: prepare_join_event::v1,
    /// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
    send_join: create_join_event::v2,
    /// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`
    make_leave: prepare_leave_event::v1,
    /// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
    send_leave: create_leave_event::v2,
    /// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`
    make_knock: prepare_knock_event::v1,
    /// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
    send_knock: create_knock_event::v1,
    /// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
    invite: create_invite::v2,
    /// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
    exchange_invite: exchange_invite::v1,
    /// `GET /_matrix/federation/v1/event/{eventId}`
    event: get_event::v1,
    /// `POST /_matrix/federation/v1/get_missing_events/{roomId}`
    missing_events: get_missing_events::v1,
    /// `GET /_matrix/federation/v1/state_ids/{roomId}`
    state_ids: get_room_state_ids::v1,
    /// `GET /_matrix/federation/v1/state/{roomId}`
    state: get_room_state::v1,
    /// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
    event_auth: get_event_authorization::v1,
    /// `GET /_matrix/federation/v1/backfill/{roomId}`
    backfill: get_backfill::v1,
    /// `GET /_matrix/federation/v1/query/directory`
    room_by_alias: get_room_information::v1,
    /// `GET /_matrix/federation/v1/query/profile`
    profile: get_profile_information::v1,
    /// `POST /_matrix/federation/v1/publicRooms`
    public_rooms: get_public_rooms_filtered::v1,
    /// `GET /_matrix/federation/v1/hierarchy/{roomId}`
    hierarchy: get_hierarchy::v1,
    /// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
    event_by_timestamp: get_event_by_timestamp::v1,
    /// `POST /_matrix/policy/v1/sign`
    sign_event: sign_event::v1,
}
