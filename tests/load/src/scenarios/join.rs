//! Joins to a large room, one after the other.

use std::collections::HashSet;

use anyhow::Context as _;

use crate::{
    report::{Faults, Outcome},
    run::Run,
    scenarios::Timed,
};

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let (people, room) = run.large_room().await?;
    let everyone = run.accounts.crowd(people.len() + run.options.joins).await?;
    let before = people[0].joined_members(&room).await.context("joined members")?.len();
    let mut timed = Timed::default();
    let mut joined = HashSet::new();
    let measurement = run.watch.begin().await?;
    for newcomer in &everyone[people.len()..] {
        if timed.time(newcomer.join(&room)).await.is_some() {
            joined.insert(newcomer.user_id.to_string());
        }
    }
    let usage = measurement.end().await?;

    let mut faults = Faults::default();
    let after: HashSet<String> = people[0].joined_members(&room).await.context("joined members")?.into_iter().collect();
    faults.missing += joined.difference(&after).count();
    Ok(Outcome::new("joins", timed.delays.len(), usage)
        .delays("a join", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("members before", before as f64)
        .figure("members after", after.len() as f64))
}
