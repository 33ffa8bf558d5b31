//! The join of a large room that another server holds.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    client::{Presence, Session, SyncRequest},
    follow::{FILTER, SyncAnswer},
    peers::RoomSize,
    report::{Faults, Outcome, mebibytes},
    run::Run,
    scenarios::{PAGE, Timed},
};

/// How long one poll of who has joined may be held.
const POLL: Duration = Duration::from_secs(30);

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let size = RoomSize { members: run.options.remote_members, events: run.options.remote_events };
    let peers = run.peers(1, size).await?;
    let newcomer = run.accounts.named("newcomer").await?;
    let request = SyncRequest { since: None, wait: Duration::ZERO, filter: FILTER, presence: Presence::Online };
    let since = SyncAnswer::parse(&newcomer.sync(request).await?)?.next_batch;
    let room = peers.room();
    let mut timed = Timed::default();
    let mut shown = Timed::default();
    run.watch.settle().await?;
    let bytes_before = database_bytes(run)?;

    let measurement = run.watch.begin().await?;
    let begun = Instant::now();
    timed.time(newcomer.join_through(&room, peers.holder())).await.context("the room could not be joined")?;
    shows(&newcomer, &room, since).await?;
    shown.delays.push(begun.elapsed());
    let usage = measurement.end().await?;
    let bytes_after = database_bytes(run)?;

    let mut faults = Faults::default();
    let members = newcomer.joined_members(&room).await.context("joined members")?.len();
    faults.missing += (size.members + 1).saturating_sub(members);
    let mut read = Timed::default();
    let page = read.time(newcomer.messages(&room, None, None, PAGE)).await;
    faults.missing += PAGE.saturating_sub(page.map_or(0, |page| page.chunk.len()));
    let mut outcome = Outcome::new("joins", timed.delays.len(), usage)
        .delays("until /sync shows the room", &shown.delays)
        .delays("a join", &timed.delays)
        .faults(timed.faults)
        .faults(read.faults)
        .faults(faults)
        .figure("members", members as f64)
        .figure("events of the room", size.events as f64);
    if let Some(delay) = read.delays.first() {
        outcome = outcome.figure("ms to the first page of history", delay.as_secs_f64() * 1_000.0);
    }
    if let (Some(before), Some(after)) = (bytes_before, bytes_after) {
        outcome = outcome.figure("MiB that the database grew", mebibytes(after.saturating_sub(before)));
    }
    Ok(outcome)
}

/// Polls until the room is there; the run's bounds end it otherwise.
async fn shows(newcomer: &Session, room: &str, mut since: String) -> anyhow::Result<()> {
    loop {
        let request = SyncRequest { since: Some(&since), wait: POLL, filter: FILTER, presence: Presence::Online };
        let answer = SyncAnswer::parse(&newcomer.sync(request).await?)?;
        let is_shown = answer.joined().contains_key(room);
        since = answer.next_batch;
        if is_shown {
            return Ok(());
        }
    }
}

fn database_bytes(run: &Run) -> anyhow::Result<Option<u64>> {
    let Some(folder) = &run.options.database_folder else {
        return Ok(None);
    };
    bytes_below(folder).map(Some).with_context(|| format!("look into {}", folder.display()))
}

/// The sizes of all files. One that goes away meanwhile is none.
fn bytes_below(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path())?,
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files in folders of folders count.
    #[test]
    fn every_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("base")).unwrap();
        std::fs::write(folder.path().join("base/1"), [0; 100]).unwrap();
        std::fs::write(folder.path().join("2"), [0; 20]).unwrap();
        assert_eq!(bytes_below(folder.path()).unwrap(), 120);
    }
}
