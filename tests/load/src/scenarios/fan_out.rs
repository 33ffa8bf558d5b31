//! One sender, and members who all wait in `/sync`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{follow::Followers, report::Outcome, run::Run, scenarios::Timed};

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let (receivers, broadcasts) = (run.options.receivers, run.options.broadcasts);
    let people = run.accounts.crowd(receivers + 1).await?;
    let (sender, members) = people.split_first().context("no sender")?;
    let room = run.room(&people, "Fan-out").await?;
    let followers = Followers::start(members, &room, run.options.prepare_concurrency).await?;
    sender.send(&room, "fan-out-warm-up", "warm-up").await?;
    followers.wait_for(receivers, run.options.delivery_time_max()).await;

    let mut timed = Timed::default();
    let mut sent = HashMap::new();
    let mut spreading = Duration::ZERO;
    let measurement = run.watch.begin().await?;
    let mut expected = followers.received();
    for number in 0..broadcasts {
        let transaction = format!("fan-out-{number}");
        let begun = Instant::now();
        let sending = sender.send(&room, &transaction, "To whom it may concern.");
        if let Some(id) = timed.time(sending).await {
            sent.insert(id, begun);
            expected += receivers;
            if !followers.wait_for(expected, run.options.delivery_time_max()).await {
                break;
            }
        }
        spreading += begun.elapsed();
        tokio::time::sleep(run.options.broadcast_rest()).await;
    }
    let usage = measurement.end().await?;

    let received = followers.stop().await?;
    let answers = received.answers;
    let (delays, faults) = received.compare(&sent);
    let mut outcome = Outcome::new("deliveries", delays.len(), usage)
        .delays("send to receipt", &delays)
        .delays("send to acknowledgement", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("receivers", receivers as f64)
        .figure("sync answers", answers as f64);
    // Rests are no part of the throughput.
    outcome.per_second = delays.len() as f64 / spreading.as_secs_f64().max(f64::MIN_POSITIVE);
    Ok(outcome)
}
