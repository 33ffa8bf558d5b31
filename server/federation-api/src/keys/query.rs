//! `GET /_matrix/key/v2/query/{serverName}` and `POST /_matrix/key/v2/query`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server)

use std::collections::BTreeMap;

use axum::extract::State;
use myelin_federation::KeyQuery;
use myelin_http::{Matrix, Reply};
use ruma::{
    OwnedServerName,
    api::federation::discovery::{
        ServerSigningKeys, get_remote_server_keys,
        get_remote_server_keys_batch::{self, v2::QueryCriteria},
    },
    serde::Raw,
};

use crate::{Services, errors::Result, metrics::KEY_DOCUMENTS};

pub(super) async fn one(
    State(services): State<Services>,
    request: Matrix<get_remote_server_keys::v2::Request>,
) -> Result<Reply<get_remote_server_keys::v2::Response>> {
    let get_remote_server_keys::v2::Request { server_name, minimum_valid_until_ts, .. } = request.body;
    let mut criteria = QueryCriteria::new();
    criteria.minimum_valid_until_ts = Some(minimum_valid_until_ts);
    // It asks for no key in particular, but for how long they have to be valid.
    let query = KeyQuery::from([(String::new(), criteria)]);
    let keys = keys(&services, BTreeMap::from([(server_name, query)])).await;
    Ok(Reply(get_remote_server_keys::v2::Response::new(keys)))
}

pub(super) async fn several(
    State(services): State<Services>,
    request: Matrix<get_remote_server_keys_batch::v2::Request>,
) -> Result<Reply<get_remote_server_keys_batch::v2::Response>> {
    let queries = request.body.server_keys.into_iter().map(|(server, keys)| {
        (server, keys.into_iter().map(|(key_id, criteria)| (key_id.to_string(), criteria)).collect())
    });
    let keys = keys(&services, queries.collect()).await;
    Ok(Reply(get_remote_server_keys_batch::v2::Response::new(keys)))
}

async fn keys(services: &Services, mut queries: BTreeMap<OwnedServerName, KeyQuery>) -> Vec<Raw<ServerSigningKeys>> {
    queries.retain(|server, _| services.peers.is_allowed(server));
    let documents = services.peers.notarised_keys(queries).await;
    KEY_DOCUMENTS.inc_by(documents.len() as u64);
    documents
}
