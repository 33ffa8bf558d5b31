//! Transactions of another server, one after the other, as servers send them.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    client::Session,
    peers::{RoomSize, Transaction},
    report::Outcome,
    run::Run,
    scenarios::{PAGE, Timed, check_history},
};

/// What a transaction may have at most, and has.
const EVENTS: usize = 50;

/// Who speaks in the room.
const SIZE: RoomSize = RoomSize { members: 50, events: 60 };

/// Between two looks at whether all has come.
const LOOK: Duration = Duration::from_millis(20);

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let peers = run.peers(1, SIZE).await?;
    let reader = run.accounts.named("reader").await?;
    let room = peers.room();
    reader.join_through(&room, peers.holder()).await.context("join the room")?;
    let transactions = (0..run.options.transactions)
        .map(|number| peers.transaction(reader.server_name(), number, EVENTS))
        .collect::<anyhow::Result<Vec<_>>>()
        .context("make the transactions")?;
    let events: HashSet<String> = transactions.iter().flat_map(|transaction| &transaction.events).cloned().collect();
    let last = transactions.last().and_then(|transaction| transaction.events.last()).context("no transactions")?;

    let mut timed = Timed::default();
    let measurement = run.watch.begin().await?;
    let begun = Instant::now();
    for Transaction { path, authorization, body, .. } in &transactions {
        timed.time(reader.server.put_signed(path, authorization, body.clone())).await;
    }
    let acknowledged = begun.elapsed();
    shows(&reader, &room, last, run.options.delivery_time_max()).await?;
    let usage = measurement.end().await?;

    let faults = check_history(&reader, &room, &events).await.context("read the history")?;
    Ok(Outcome::new("events", events.len(), usage)
        .delays("a transaction", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("seconds until the last was acknowledged", acknowledged.as_secs_f64())
        .figure("events a transaction", EVENTS as f64))
}

/// Waits until an event is among the newest. A server may acknowledge what it has not yet shown.
async fn shows(reader: &Session, room: &str, event: &str, time_max: Duration) -> anyhow::Result<()> {
    let look = async {
        loop {
            let page = reader.messages(room, None, None, PAGE).await?;
            if page.chunk.iter().any(|newest| newest.event_id == event) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(time_max, look).await.context("the last event is not shown in time")?
}
