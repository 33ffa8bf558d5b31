//! Pages of history: a room is read from its newest event to its oldest, again and again.

use std::collections::HashSet;

use anyhow::Context as _;

use crate::{
    client::Page,
    report::{Faults, Outcome},
    run::Run,
    scenarios::{PAGE, Timed, send},
};

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    if run.history().is_none() {
        // Sending fills the room; what it measures belongs to another scenario.
        send::into_one_room(run).await?;
    }
    let history = run.history().context("no room with a history")?;
    let mut timed = Timed::default();
    let mut faults = Faults::default();
    let mut events = 0;
    let mut pages = 0;
    let measurement = run.watch.begin().await?;
    while pages < run.options.pages {
        let mut seen = HashSet::new();
        let mut from: Option<String> = None;
        let mut whole = false;
        while pages < run.options.pages {
            pages += 1;
            let asking = history.reader.messages(&history.room, from.as_deref(), None, PAGE);
            let Some(Page { chunk, end }) = timed.time(asking).await else {
                break;
            };
            events += chunk.len();
            faults.duplicated += chunk.into_iter().filter(|event| !seen.insert(event.event_id.clone())).count();
            from = end;
            if from.is_none() {
                whole = true;
                break;
            }
        }
        if whole {
            faults.missing += history.messages.difference(&seen).count();
        }
    }
    let usage = measurement.end().await?;
    let bytes = usage.bytes_received as f64 / pages.max(1) as f64;
    Ok(Outcome::new("pages", timed.delays.len(), usage)
        .delays("a page of 100", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("events a page", events as f64 / pages.max(1) as f64)
        .figure("bytes a page", bytes))
}
