//! The scenarios: each prepares, measures, then checks what it did.

mod encryption;
mod fan_out;
mod idle;
mod initial_sync;
mod join;
mod members;
mod messages;
mod mixed;
mod remote_join;
mod remote_receive;
mod remote_send;
mod send;
mod sliding_sync;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::{
    client::{Page, RequestError, Session},
    options::Scenario,
    report::{Faults, Outcome},
    run::Run,
};

/// Events on a page of history.
const PAGE: usize = 100;

/// Runs one scenario.
pub(crate) async fn run(scenario: Scenario, run: &mut Run) -> anyhow::Result<Outcome> {
    match scenario {
        Scenario::SendManyRooms => send::into_many_rooms(run).await,
        Scenario::SendOneRoom => send::into_one_room(run).await,
        Scenario::Messages => messages::run(run).await,
        Scenario::FanOut => fan_out::run(run).await,
        Scenario::Mixed => mixed::run(run).await,
        Scenario::InitialSync => initial_sync::run(run).await,
        Scenario::SlidingSync => sliding_sync::run(run).await,
        Scenario::Members => members::run(run).await,
        Scenario::Join => join::run(run).await,
        Scenario::Idle => idle::run(run).await,
        Scenario::KeyQuery => encryption::key_query(run).await,
        Scenario::ToDevice => encryption::to_device(run).await,
        Scenario::RemoteJoin => remote_join::run(run).await,
        Scenario::RemoteReceive => remote_receive::run(run).await,
        Scenario::RemoteSend => remote_send::run(run).await,
    }
}

/// Operations of one kind, timed.
#[derive(Debug, Default)]
struct Timed {
    delays: Vec<Duration>,
    faults: Faults,
}

impl Timed {
    /// Waits for an operation; its delay counts when it succeeds, and its fault when it does not.
    async fn time<T>(&mut self, operation: impl Future<Output = Result<T, RequestError>>) -> Option<T> {
        let begun = Instant::now();
        match operation.await {
            Ok(value) => {
                self.delays.push(begun.elapsed());
                Some(value)
            }
            Err(error) => {
                self.faults.fail(error);
                None
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.delays.extend(other.delays);
        self.faults.add(other.faults);
    }
}

/// Compares a room's whole history with the messages that a server acknowledged: each must be there once. Messages
/// that it did not acknowledge may be there too.
async fn check_history(reader: &Session, room: &str, acknowledged: &HashSet<String>) -> Result<Faults, RequestError> {
    let mut faults = Faults::default();
    let mut found = HashSet::new();
    let mut from: Option<String> = None;
    let pages_max = acknowledged.len() / PAGE * 2 + 20;
    for _ in 0..pages_max {
        let Page { chunk, end } = reader.messages(room, from.as_deref(), None, PAGE).await?;
        for event in chunk {
            if !found.insert(event.event_id) {
                faults.duplicated += 1;
            }
        }
        from = end;
        if from.is_none() {
            break;
        }
    }
    faults.missing += acknowledged.difference(&found).count();
    Ok(faults)
}
