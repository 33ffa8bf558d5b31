//! Requests whose bodies have to be passed on as they came, which ruma's types do not all do, and endpoints of older
//! versions of the specification, which they do not have any more.

use std::{fmt::Debug, marker::PhantomData};

use http::Method;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId,
    api::{
        IncomingRequest, Metadata, error::DeserializationError, federation::authentication::ServerSignatures,
        path_builder::SinglePath,
    },
};
use serde::{de::DeserializeOwned, de::Error as _};

/// A request on the paths of `R`, whose path has the parts `P` and whose body is read as `B`.
#[derive(Debug)]
pub(crate) struct Own<R, P, B> {
    pub(crate) path: P,
    pub(crate) body: B,
    of: PhantomData<fn() -> R>,
}

impl<R: Metadata, P, B> Metadata for Own<R, P, B> {
    const METHOD: Method = R::METHOD;
    const RATE_LIMITED: bool = R::RATE_LIMITED;
    type Authentication = R::Authentication;
    type PathBuilder = R::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = R::PATH_BUILDER;
}

impl<R: Metadata, P: PathParts, B: DeserializeOwned> IncomingRequest for Own<R, P, B> {
    type EndpointError = ruma::api::error::Error;
    type OutgoingResponse = ruma::api::federation::membership::create_leave_event::v2::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self { path: P::parse(path_args)?, body: serde_json::from_slice(request.body())?, of: PhantomData })
    }
}

/// The parts of a path.
pub(crate) trait PathParts: Sized {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError>;
}

impl PathParts for OwnedRoomId {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError> {
        match path_args {
            [room_id] => Ok(RoomId::parse(*room_id)?),
            _ => Err(other_parts()),
        }
    }
}

impl PathParts for (OwnedRoomId, OwnedEventId) {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError> {
        match path_args {
            [room_id, event_id] => Ok((RoomId::parse(*room_id)?, EventId::parse(*event_id)?)),
            _ => Err(other_parts()),
        }
    }
}

fn other_parts() -> DeserializationError {
    serde_json::Error::custom("the path has other parts").into()
}

macro_rules! signed_put {
    ($($(#[$doc:meta])* $name:ident: $path:literal,)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub(crate) struct $name;

            impl Metadata for $name {
                const METHOD: Method = Method::PUT;
                const RATE_LIMITED: bool = false;
                type Authentication = ServerSignatures;
                type PathBuilder = SinglePath;
                const PATH_BUILDER: SinglePath = SinglePath::new($path);
            }
        )+
    };
}

signed_put! {
    /// In the specification up to version 1.17.
    SendJoinV1: "/_matrix/federation/v1/send_join/{room_id}/{event_id}",
    /// In the specification up to version 1.17.
    SendLeaveV1: "/_matrix/federation/v1/send_leave/{room_id}/{event_id}",
}
