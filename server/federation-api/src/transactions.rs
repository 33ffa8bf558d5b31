//! `PUT /_matrix/federation/v1/send/{txnId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#put_matrixfederationv1sendtxnid)

mod answers;
mod edus;
mod presence;
mod receipts;
#[cfg(test)]
mod tests;
mod typing;

use std::collections::BTreeMap;

use axum::{Router, extract::State};
use bytes::Bytes;
use http::StatusCode;
use myelin_http::{ApiError, Endpoints as _, RawJson, RouteOptions};
use ruma::{
    OwnedEventId, ServerName,
    api::{
        error::ErrorCode,
        federation::transactions::{edu::Edu, send_transaction_message::v1::Request},
    },
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::RawValue;

pub(crate) use self::answers::Answers;
use crate::{
    Services,
    errors::Result,
    metrics::{PDUS, TRANSACTIONS},
    signed::Signed,
};

/// "Transactions are limited in size; they can have at most 50 PDUs and 100 EDUs."
const PDUS_MAX: usize = 50;
const EDUS_MAX: usize = 100;
/// An event has at most 65,536 bytes in its shortest form; nothing bounds the form that it is sent in, nor EDUs.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint_with(RouteOptions::new().body_bytes_max(BODY_BYTES_MAX), send)
}

async fn send(State(services): State<Services>, request: Signed<Request>) -> Result<RawJson> {
    check(&request).inspect_err(|_| TRANSACTIONS.with_label_values(&["refused"]).inc())?;
    let Signed { body: Request { transaction_id, pdus, edus, .. }, origin, admission, .. } = request;
    // Whoever repeats a transaction that is under way waits for its answer; if its first sender leaves, the next goes on
    // where it ended, since events that we have are answered for at once.
    let place = match services.inbound.answers.find(&origin, &transaction_id).await {
        Ok(answer) => {
            TRANSACTIONS.with_label_values(&["repeated"]).inc();
            return Ok(answer.into());
        }
        Err(place) => place,
    };
    let _turn = admission.turn().await?;
    let answer = take(&services, &origin, pdus, &edus).await?;
    TRANSACTIONS.with_label_values(&["processed"]).inc();
    place.put(answer.clone());
    Ok(answer.into())
}

/// Refuses what no server in its mind sends.
fn check(request: &Signed<Request>) -> Result<(), ApiError> {
    let Request { origin, pdus, edus, .. } = &request.body;
    if *origin != request.origin {
        return Err(ApiError::forbidden("The transaction is another server's"));
    }
    if pdus.len() > PDUS_MAX || edus.len() > EDUS_MAX {
        let message = format!("A transaction has at most {PDUS_MAX} PDUs and {EDUS_MAX} EDUs");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::TooLarge, message));
    }
    Ok(())
}

/// Events first: receipts may be for them.
async fn take(services: &Services, origin: &ServerName, pdus: Vec<Box<RawValue>>, edus: &[Raw<Edu>]) -> Result<Bytes> {
    let received = pdus.len();
    let outcomes = if pdus.is_empty() { Vec::new() } else { services.writes.receive(origin, pdus).await? };
    count(received, &outcomes);
    edus::take(services, origin, edus).await?;
    let results = outcomes.into_iter().map(|(event_id, outcome)| (event_id, Processed { error: outcome.err() }));
    let answer = Answer { pdus: results.collect() };
    Ok(serde_json::to_vec(&answer).map_err(ApiError::unknown)?.into())
}

fn count(received: usize, outcomes: &[(OwnedEventId, Result<(), String>)]) {
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
    let unnamed = received.saturating_sub(outcomes.len());
    for (outcome, number) in [("accepted", outcomes.len() - failed), ("failed", failed), ("unnamed", unnamed)] {
        PDUS.with_label_values(&[outcome]).inc_by(number as u64);
    }
}

/// "The server is to use this response even in the event of one or more PDUs failing to be processed."
#[derive(Serialize)]
struct Answer {
    pdus: BTreeMap<OwnedEventId, Processed>,
}

#[derive(Serialize)]
struct Processed {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}
