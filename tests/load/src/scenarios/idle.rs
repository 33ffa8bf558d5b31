//! Long polls that nothing happens to: what a round costs in CPU time, and a held poll in memory.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use crate::{
    client::{Presence, RequestError, Session, SyncRequest},
    follow::{FILTER, SyncAnswer},
    measure::Watch,
    report::{Faults, Outcome},
    run::Run,
};

/// How long polls are held while memory is read. Servers may cut a longer wait.
const HELD: Duration = Duration::from_secs(30);

/// The time over which the first polls of a round begin. A thousand at the same instant would overflow the queue of
/// connections that wait to be accepted, and measure that instead of idleness.
const RAMP: Duration = Duration::from_secs(15);

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let polls = run.options.polls;
    let people = run.accounts.crowd(polls).await?;
    let (members, _room) = run.large_room().await?;
    // Each in the same large room, as far as it reaches; the others idle in none.
    let in_room = members.len().min(people.len());
    let tokens = first_tokens(&people, run.options.prepare_concurrency).await?;
    let pollers = people
        .into_iter()
        .zip(tokens)
        .enumerate()
        .map(|(number, (session, since))| Poller {
            session,
            since,
            rng: StdRng::seed_from_u64(run.options.seed.wrapping_add(number as u64)),
            rounds: Rounds::default(),
        })
        .collect();
    let pollers = warm_up(pollers, run.options.prepare_concurrency).await;
    let (bytes_a_poll, pollers) = hold(&run.watch, pollers).await?;
    let measurement = run.watch.begin().await?;
    let mut tasks = JoinSet::new();
    let (rounds, poll_ms) = (run.options.rounds, run.options.poll_ms());
    for (mut poller, begin) in pollers.into_iter().zip(ramp(polls)) {
        let poll_ms = poll_ms.clone();
        tasks.spawn(async move {
            tokio::time::sleep(begin).await;
            for _ in 0..rounds {
                let wait = Duration::from_millis(poller.rng.random_range(poll_ms.clone()));
                poller.poll(wait).await;
            }
            poller.rounds
        });
    }
    let mut all = Rounds::default();
    for rounds in tasks.join_all().await {
        all.late.extend(rounds.late);
        all.early += rounds.early;
        all.faults.add(rounds.faults);
    }
    let usage = measurement.end().await?;

    let mut outcome = Outcome::new("rounds", all.late.len() + all.early, usage)
        .delays("answer after the timeout", &all.late)
        .faults(all.faults)
        .figure("polls held", polls as f64)
        .figure("polls of members of the large room", in_room as f64)
        .figure("answers before the timeout", all.early as f64);
    if let Some(bytes) = bytes_a_poll {
        outcome = outcome.figure("KiB of memory a held poll", bytes / 1024.0);
    }
    Ok(outcome)
}

/// Where each begins: now, whatever rooms there are, so that nobody needs to list a thousand members a thousand times.
async fn first_tokens(people: &[Session], concurrency: usize) -> anyhow::Result<Vec<String>> {
    const NO_ROOMS: &str = r#"{"room":{"rooms":[]}}"#;
    stream::iter(people)
        .map(|person| async move {
            let request =
                SyncRequest { since: None, wait: Duration::ZERO, filter: NO_ROOMS, presence: Presence::Offline };
            let body = person.sync(request).await?;
            Ok::<_, RequestError>(SyncAnswer::parse(&body)?.next_batch)
        })
        .buffered(concurrency)
        .try_collect()
        .await
        .context("first /sync")
}

/// When each of so many begins.
fn ramp(count: usize) -> impl Iterator<Item = Duration> {
    (0..count).map(move |number| RAMP.mul_f64(number as f64 / count as f64))
}

/// Lets each poll once, a few at a time, so that what a server keeps for each of its users is there before memory is
/// read, while connections for all are not.
async fn warm_up(pollers: Vec<Poller>, concurrency: usize) -> Vec<Poller> {
    stream::iter(pollers)
        .map(|mut poller| async move {
            poller.poll(Duration::ZERO).await;
            poller
        })
        .buffered(concurrency)
        .collect()
        .await
}

/// Holds all polls at once and reads how much memory that takes, connections included.
async fn hold(watch: &Watch, pollers: Vec<Poller>) -> anyhow::Result<(Option<f64>, Vec<Poller>)> {
    // From the last beginning to the first end.
    const ALL_HELD: Duration = HELD.saturating_sub(RAMP);
    let sum = |memory: std::collections::BTreeMap<String, crate::processes::Memory>| -> u64 {
        memory.values().map(|memory| memory.pss).sum()
    };
    watch.settle().await?;
    let before = watch.memory()?.map(sum);
    let count = pollers.len();
    let mut tasks = JoinSet::new();
    for (mut poller, begin) in pollers.into_iter().zip(ramp(count)) {
        tasks.spawn(async move {
            tokio::time::sleep(begin).await;
            poller.poll(HELD).await;
            poller
        });
    }
    tokio::time::sleep(RAMP).await;
    let quiet = tokio::time::timeout(ALL_HELD * 2 / 3, watch.settle()).await;
    if let Ok(settled) = quiet {
        settled?;
    }
    let during = watch.memory()?.map(sum);
    let mut pollers = tasks.join_all().await;
    for poller in &mut pollers {
        // Of rounds that are not measured, only faults matter.
        poller.rounds = Rounds { faults: std::mem::take(&mut poller.rounds.faults), ..Rounds::default() };
    }
    let bytes = before.zip(during).map(|(before, during)| (during as f64 - before as f64) / count as f64);
    Ok((bytes, pollers))
}

/// One idle client.
#[derive(Debug)]
struct Poller {
    session: Session,
    since: String,
    rng: StdRng,
    rounds: Rounds,
}

/// What came of polls.
#[derive(Debug, Default)]
struct Rounds {
    /// How long after the timeout answers came.
    late: Vec<Duration>,
    /// How many came before, as something had happened.
    early: usize,
    faults: Faults,
}

impl Poller {
    async fn poll(&mut self, wait: Duration) {
        let request = SyncRequest { since: Some(&self.since), wait, filter: FILTER, presence: Presence::Offline };
        let begun = Instant::now();
        let answer = match self.session.sync(request).await {
            Ok(body) => SyncAnswer::parse(&body).map_err(RequestError::from),
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => {
                self.since = answer.next_batch;
                match begun.elapsed().checked_sub(wait) {
                    Some(late) => self.rounds.late.push(late),
                    None => self.rounds.early += 1,
                }
            }
            Err(error) => self.rounds.faults.fail(error),
        }
    }
}
