//! The way to other servers, as the queues see it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use myelin_rooms::remote::RemoteError;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, OwnedTransactionId, ServerName,
    api::federation::transactions::send_transaction_message::v1::Request, serde::Raw,
};
use serde_json::value::RawValue;

use crate::Client;

/// The longest that the client waits for an answer; the queues may be less patient.
const DEADLINE: Duration = Duration::from_secs(120);

/// What is sent at once.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Unique for ever, for this server as the origin.
    pub id: OwnedTransactionId,
    /// This server.
    pub origin: OwnedServerName,
    /// When it was made.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// At most 50 events: the bytes that were hashed and signed.
    pub pdus: Vec<Box<RawValue>>,
    /// At most 100 EDUs: objects with `edu_type` and `content`.
    pub edus: Vec<Box<RawValue>>,
}

/// What a server says of a transaction that it took.
#[derive(Clone, Debug, Default)]
pub struct TransactionAnswer {
    /// The events that it did not want, and why.
    pub refused: Vec<(OwnedEventId, String)>,
}

/// The way to other servers.
pub trait Transport: Send + Sync {
    /// Sends a transaction. The time that this may take is bounded by the caller; a server that cannot be connected to
    /// should be given up within some ten seconds.
    fn send<'a>(
        &'a self,
        server: &'a ServerName,
        transaction: Transaction,
    ) -> BoxFuture<'a, Result<TransactionAnswer, RemoteError>>;
}

impl Transport for Client {
    fn send<'a>(
        &'a self,
        server: &'a ServerName,
        transaction: Transaction,
    ) -> BoxFuture<'a, Result<TransactionAnswer, RemoteError>> {
        Box::pin(async move {
            let Transaction { id, origin, origin_server_ts, pdus, edus } = transaction;
            let mut request = Request::new(id, origin, origin_server_ts);
            request.pdus = pdus;
            request.edus = edus.into_iter().map(Raw::from_json).collect();
            let answer = self.send_transaction(server, request, DEADLINE).await?;
            let refused = answer.pdus.into_iter().filter_map(|(event_id, taken)| Some((event_id, taken.err()?)));
            Ok(TransactionAnswer { refused: refused.collect() })
        })
    }
}
