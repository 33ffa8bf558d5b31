//! The task that sends to one server, while there is something for it: one transaction after the other.

use std::{sync::Arc, time::Duration};

use myelin_rooms::remote::RemoteError;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedTransactionId, UInt};
use serde_json::value::RawValue;
use tracing::{debug, info, warn};

use super::{
    catch_up::CatchUp,
    destination::{Destination, EDUS_MAX, NEVER, Next, Parcel},
    metrics::{COURIERS, Counted, EDUS, PDUS, PDUS_REFUSED, TRANSACTION_SECONDS, TRANSACTIONS, UNDER_WAY},
    term::Term,
    transport::{Transaction, TransactionAnswer},
};

/// How long an answer may take before the slot is wanted by others who wait.
const PATIENCE_MS: u64 = 1_000;
/// Milliseconds until a server is tried again after our own database failed.
const OWN_FAILURE_MS: u64 = 5_000;

/// How a try ended.
enum Outcome {
    Taken(TransactionAnswer),
    Failed { label: &'static str, reason: String, wait: Duration },
    NotAllowed,
}

/// Sets a destination free when its courier ends, however it ends.
struct Leaves<'a> {
    destination: &'a Destination,
    term: &'a Term,
    is_done: bool,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.destination.postponed();
            let at = self.term.clock.now_ms() + OWN_FAILURE_MS;
            self.term.schedule(at, &self.destination.server);
        }
    }
}

/// Sends all that there is for a server; ends when there is nothing more, or when the server does not take it.
pub(crate) async fn run(term: Arc<Term>, destination: Arc<Destination>) {
    let _counted = Counted::new(&COURIERS);
    let mut leaves = Leaves { destination: &destination, term: &term, is_done: false };
    let mut catch_up: Option<CatchUp> = None;
    loop {
        let parcel = match destination.next() {
            Next::Idle => break,
            Next::Again(parcel) => Some(parcel),
            Next::Live => {
                catch_up = None;
                let durable = durable(&term, &destination).await;
                destination.pack(term.transaction_id(), None, durable, term.clock.now_ms())
            }
            Next::CatchUp { from, newest } => {
                let plan = catch_up.get_or_insert_with(|| CatchUp::new(newest));
                let page = match plan.next(&term.store, &term.options.server_name, &destination.server, from).await {
                    Ok(page) => page,
                    Err(error) => {
                        let server = &destination.server;
                        warn!(error = &error as &dyn std::error::Error, "could not read what {server} lacks");
                        return;
                    }
                };
                if page.is_last {
                    catch_up = None;
                }
                if page.events.is_empty() {
                    if let Some(advance) = page.advance {
                        destination.advance(advance);
                    }
                    continue;
                }
                let durable = durable(&term, &destination).await;
                let page = (page.events, page.advance);
                destination.pack(term.transaction_id(), Some(page), durable, term.clock.now_ms())
            }
        };
        let Some(parcel) = parcel else { continue };
        if !deliver(&term, &destination, &parcel).await {
            break;
        }
    }
    leaves.is_done = true;
}

/// What the sources of durable EDUs have for the server.
async fn durable(term: &Term, destination: &Destination) -> Vec<(Vec<Box<RawValue>>, Option<i64>)> {
    if !destination.take_durable() {
        return Vec::new();
    }
    let mut found = Vec::with_capacity(term.options.sources.len());
    let mut place = EDUS_MAX;
    let mut is_full = false;
    for source in &term.options.sources {
        let mut edus = if place > 0 { source.pending(&destination.server, place).await } else { Vec::new() };
        edus.truncate(place);
        place -= edus.len();
        is_full |= place == 0;
        let last = edus.last().map(|edu| edu.id);
        found.push((edus.into_iter().map(|edu| edu.json).collect(), last));
    }
    if is_full {
        // There may be more.
        destination.expect_durable(0);
    }
    found
}

/// Sends a parcel and notes how that went; false when the server did not take it.
async fn deliver(term: &Arc<Term>, destination: &Destination, parcel: &Parcel) -> bool {
    let outcome = send(term, destination, parcel).await;
    let now = term.clock.now_ms();
    let server = &destination.server;
    match outcome {
        Outcome::Taken(answer) => {
            TRANSACTIONS.with_label_values(&["ok"]).inc();
            PDUS.inc_by(parcel.events.len() as u64);
            EDUS.inc_by(parcel.edus.len() as u64);
            PDUS_REFUSED.inc_by(answer.refused.len() as u64);
            for (event_id, reason) in &answer.refused {
                debug!(event.id = %event_id, %server, "{server} does not want the event {event_id}: {reason}");
            }
            for (source, last) in term.options.sources.iter().zip(&parcel.durable) {
                if let Some(last) = last {
                    source.sent(server, *last).await;
                }
            }
            destination.delivered(now);
            term.changed();
            true
        }
        Outcome::NotAllowed => {
            TRANSACTIONS.with_label_values(&["not_allowed"]).inc();
            destination.discard(now);
            term.changed();
            true
        }
        Outcome::Failed { label, reason, wait } => {
            TRANSACTIONS.with_label_values(&[label]).inc();
            let retry_at = destination.failed(term.chance(), wait.as_millis() as u64, now);
            if retry_at == NEVER {
                info!(%server, "{server} was away for weeks; it is tried again when we hear from it");
            } else {
                debug!(%server, "{server} did not take a transaction: {reason}");
                term.schedule(retry_at, server);
            }
            term.changed();
            false
        }
    }
}

async fn send(term: &Term, destination: &Destination, parcel: &Parcel) -> Outcome {
    let mut slot = loop {
        tokio::select! {
            slot = term.slots.enter(destination.standing()) => break slot,
            // We heard from it: it waits in another line from now on.
            () = destination.restanding.notified() => {}
        }
    };
    let _counted = Counted::new(&UNDER_WAY);
    let began = std::time::Instant::now();
    let give_up = term.clock.now_ms() + term.options.transaction_timeout.as_millis() as u64;
    let mut answer = term.transport.send(&destination.server, transaction(term, parcel));
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => {
                TRANSACTION_SECONDS.observe(began.elapsed().as_secs_f64());
                return outcome(answer);
            }
            () = term.clock.sleep(PATIENCE_MS) => {}
        }
        if term.clock.now_ms() >= give_up {
            return Outcome::Failed { label: "timeout", reason: "no answer in time".into(), wait: Duration::ZERO };
        }
        if !term.slots.linger(&mut slot) {
            return Outcome::Failed { label: "displaced", reason: "others wait".into(), wait: Duration::ZERO };
        }
    }
}

fn transaction(term: &Term, parcel: &Parcel) -> Transaction {
    let pdus = parcel.events.iter().filter_map(|event| {
        let json = RawValue::from_string(event.json().to_owned());
        if json.is_err() {
            warn!(event.id = %event.event_id, "the event {} is not JSON; it is not sent", event.event_id);
        }
        json.ok()
    });
    Transaction {
        id: parcel.id.clone(),
        origin: term.options.server_name.clone(),
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(parcel.made_ms)),
        pdus: pdus.collect(),
        edus: parcel.edus.clone(),
    }
}

fn outcome(answer: Result<TransactionAnswer, RemoteError>) -> Outcome {
    let error = match answer {
        Ok(answer) => return Outcome::Taken(answer),
        Err(error) => error,
    };
    let reason = error.to_string();
    let (label, wait) = match &error {
        RemoteError::NotAllowed(_) => return Outcome::NotAllowed,
        RemoteError::BackingOff { wait, .. } => ("backing_off", *wait),
        RemoteError::Unreachable { .. } => ("unreachable", Duration::ZERO),
        RemoteError::Nonsense { .. } => ("nonsense", Duration::ZERO),
        RemoteError::Refused { errcode, body, .. } => {
            let is_limit = errcode == "M_LIMIT_EXCEEDED";
            let wait_ms = body.as_ref().and_then(|body| body.get("retry_after_ms")).and_then(|ms| ms.as_u64());
            ("refused", wait_ms.filter(|_| is_limit).map_or(Duration::ZERO, Duration::from_millis))
        }
    };
    Outcome::Failed { label, reason, wait }
}

/// A name that no transaction of ours has had: the lease's fence differs from term to term.
pub(crate) fn transaction_id(began_ms: u64, fence: i64, count: u64) -> OwnedTransactionId {
    format!("{began_ms}-{fence}-{count}").into()
}
