//! `GET /_matrix/client/v3/publicRooms` and `POST /_matrix/client/v3/publicRooms`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3publicrooms)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::{DirectoryPage, DirectorySearch, Listing};
use ruma::{
    OwnedRoomId, ServerName, UInt,
    api::{
        client::directory::{get_public_rooms, get_public_rooms_filtered},
        federation::directory::get_public_rooms_filtered::v1 as elsewhere,
    },
    directory::{PublicRoomsChunk, PublicRoomsChunkInit, RoomNetwork},
    room::{JoinRuleKind, RoomType},
};

use crate::{Services, errors::Result};

/// Rooms of an answer where the client does not say how many.
const LIMIT: u64 = 100;
/// Rooms of an answer at the most.
const LIMIT_MAX: u64 = 500;

pub(super) async fn public_rooms(
    State(services): State<Services>,
    request: Matrix<get_public_rooms::v3::Request>,
) -> Result<Reply<get_public_rooms::v3::Response>> {
    let body = &request.body;
    let mut answer = get_public_rooms::v3::Response::new(Vec::new());
    if let Some(server) = other_server(&services, body.server.as_deref()) {
        let mut search = elsewhere::Request::new();
        (search.limit, search.since) = (body.limit, body.since.clone());
        let page = services.rooms.directory_elsewhere(server, search).await?;
        (answer.prev_batch, answer.next_batch) = (page.prev_batch, page.next_batch);
        (answer.total_room_count_estimate, answer.chunk) = (page.total_room_count_estimate, page.chunk);
        return Ok(Reply(answer));
    }
    let search = DirectorySearch { skip: skip(body.since.as_deref())?, limit: limit(body.limit), ..Default::default() };
    let page = services.rooms.directory(&search).await?;
    (answer.prev_batch, answer.next_batch) = batches(&search, &page);
    answer.total_room_count_estimate = UInt::new(page.total as u64);
    answer.chunk = page.rooms.into_iter().map(chunk).collect();
    Ok(Reply(answer))
}

pub(super) async fn search_public_rooms(
    State(services): State<Services>,
    request: Matrix<get_public_rooms_filtered::v3::Request>,
) -> Result<Reply<get_public_rooms_filtered::v3::Response>> {
    let body = &request.body;
    let mut answer = get_public_rooms_filtered::v3::Response::new();
    if let Some(server) = other_server(&services, body.server.as_deref()) {
        let mut search = elsewhere::Request::new();
        (search.limit, search.since) = (body.limit, body.since.clone());
        (search.filter, search.room_network) = (body.filter.clone(), body.room_network.clone());
        let page = services.rooms.directory_elsewhere(server, search).await?;
        (answer.prev_batch, answer.next_batch) = (page.prev_batch, page.next_batch);
        (answer.total_room_count_estimate, answer.chunk) = (page.total_room_count_estimate, page.chunk);
        return Ok(Reply(answer));
    }
    if matches!(body.room_network, RoomNetwork::ThirdParty(_)) {
        // There is no bridge to another network here.
        answer.total_room_count_estimate = UInt::new(0);
        return Ok(Reply(answer));
    }
    let term = body.filter.generic_search_term.as_deref().map(str::trim).filter(|term| !term.is_empty());
    let search = DirectorySearch {
        term: term.map(str::to_owned),
        room_types: body.filter.room_types.iter().map(|kind| kind.as_str().map(str::to_owned)).collect(),
        skip: skip(body.since.as_deref())?,
        limit: limit(body.limit),
    };
    let page = services.rooms.directory(&search).await?;
    (answer.prev_batch, answer.next_batch) = batches(&search, &page);
    answer.total_room_count_estimate = UInt::new(page.total as u64);
    answer.chunk = page.rooms.into_iter().map(chunk).collect();
    Ok(Reply(answer))
}

/// The server that is meant, if it is not this one.
fn other_server<'a>(services: &Services, server: Option<&'a ServerName>) -> Option<&'a ServerName> {
    server.filter(|server| *server != services.rooms.server_name())
}

/// A token is the number of rooms before the page.
fn skip(since: Option<&str>) -> Result<usize, ApiError> {
    let Some(since) = since.filter(|since| !since.is_empty()) else { return Ok(0) };
    let number = since.strip_prefix('p').and_then(|number| number.parse().ok());
    number.ok_or_else(|| ApiError::invalid_param("since is not a token of this server"))
}

fn limit(limit: Option<UInt>) -> usize {
    limit.map_or(LIMIT, u64::from).clamp(1, LIMIT_MAX) as usize
}

fn batches(search: &DirectorySearch, page: &DirectoryPage) -> (Option<String>, Option<String>) {
    let end = search.skip.saturating_add(page.rooms.len());
    let previous = (search.skip > 0).then(|| format!("p{}", search.skip.saturating_sub(search.limit)));
    let next = (end < page.total && !page.rooms.is_empty()).then(|| format!("p{end}"));
    (previous, next)
}

fn chunk((room_id, joined, listing): (OwnedRoomId, i64, std::sync::Arc<Listing>)) -> PublicRoomsChunk {
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: UInt::new(joined.unsigned_abs()).unwrap_or_default(),
        room_id,
        world_readable: listing.is_world_readable,
        guest_can_join: listing.guests_can_join,
    });
    chunk.canonical_alias = listing.canonical_alias.clone();
    chunk.name = listing.name.clone();
    chunk.topic = listing.topic.clone();
    chunk.avatar_url = listing.avatar_url.clone();
    chunk.join_rule = JoinRuleKind::from(listing.join_rule.as_str());
    chunk.room_type = listing.room_type.as_deref().map(RoomType::from);
    chunk
}
