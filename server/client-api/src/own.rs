//! Requests that ruma's types read too strictly, or without telling what is missing.

use std::{fmt::Debug, marker::PhantomData};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::{IncomingRequest, Metadata, error::DeserializationError},
};
use serde::{de::DeserializeOwned, de::Error as _};

/// A request on the paths of ruma's type `R`, whose path has the parts `P` and whose body is read as `B`.
#[derive(Debug)]
pub(crate) struct Own<R, P, B> {
    pub(crate) path: P,
    pub(crate) body: B,
    of: PhantomData<fn() -> R>,
}

impl<R: Metadata, P, B> Metadata for Own<R, P, B> {
    const METHOD: http::Method = R::METHOD;
    const RATE_LIMITED: bool = R::RATE_LIMITED;
    type Authentication = R::Authentication;
    type PathBuilder = R::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = R::PATH_BUILDER;
}

impl<R: IncomingRequest, P: PathParts, B: DeserializeOwned> IncomingRequest for Own<R, P, B> {
    type EndpointError = R::EndpointError;
    type OutgoingResponse = R::OutgoingResponse;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let body = if request.body().is_empty() { b"{}" } else { *request.body() };
        Ok(Self { path: P::parse(path_args)?, body: serde_json::from_slice(body)?, of: PhantomData })
    }
}

/// The parts of a path.
pub(crate) trait PathParts: Sized {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError>;
}

impl PathParts for () {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError> {
        if path_args.is_empty() { Ok(()) } else { Err(other_parts()) }
    }
}

impl PathParts for OwnedRoomId {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError> {
        match path_args {
            [room_id] => Ok(RoomId::parse(*room_id)?),
            _ => Err(other_parts()),
        }
    }
}

impl PathParts for (OwnedRoomId, OwnedUserId) {
    fn parse(path_args: &[&str]) -> Result<Self, DeserializationError> {
        match path_args {
            [room_id, user_id] => Ok((RoomId::parse(*room_id)?, UserId::parse(*user_id)?)),
            _ => Err(other_parts()),
        }
    }
}

fn other_parts() -> DeserializationError {
    serde_json::Error::custom("the path has other parts").into()
}
