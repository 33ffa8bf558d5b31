//! Messages that many other servers are sent, one after the other.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    peers::{Peers, RoomSize},
    report::{Faults, Outcome},
    run::Run,
    scenarios::Timed,
};

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let servers = run.options.destinations;
    let size = RoomSize { members: servers, events: servers + 10 };
    let peers = run.peers(servers, size).await?;
    let sender = run.accounts.named("correspondent").await?;
    let room = peers.room();
    sender.join_through(&room, peers.holder()).await.context("join the room")?;
    let mut receivers =
        Receivers { peers, servers, time_max: run.options.delivery_time_max(), faults: Faults::default() };
    // The first message opens the connections, as it does once in a while.
    let begun = Instant::now();
    sender.send(&room, "remote-first", "first").await.context("say something")?;
    let first = receivers.get("first", begun).await;

    let (mut sent, mut deliveries) = (Timed::default(), Vec::new());
    let measurement = run.watch.begin().await?;
    for number in 0..run.options.remote_messages {
        let words = format!("To everybody, number {number}.");
        let begun = Instant::now();
        if sent.time(sender.send(&room, &format!("remote-{number}"), &words)).await.is_some() {
            deliveries.extend(receivers.get(&words, begun).await);
        }
    }
    let usage = measurement.end().await?;
    Ok(Outcome::new("deliveries", deliveries.len(), usage)
        .delays("from sending to a server's receipt", &deliveries)
        .delays("send", &sent.delays)
        .delays("the first message, which opens connections", &first)
        .faults(sent.faults)
        .faults(receivers.faults)
        .figure("destinations", servers as f64))
}

/// The servers that are sent to, and what they were not sent or were sent again.
struct Receivers {
    peers: Peers,
    servers: usize,
    time_max: Duration,
    faults: Faults,
}

impl Receivers {
    /// Waits until each server has got a message that was sent at `begun`; returns how long each waited.
    async fn get(&mut self, words: &str, begun: Instant) -> Vec<Duration> {
        let mut delays = Vec::with_capacity(self.servers);
        let mut times: HashMap<usize, usize> = HashMap::new();
        while times.len() < self.servers {
            let left = self.time_max.saturating_sub(begun.elapsed());
            let Ok(Some(arrival)) = tokio::time::timeout(left, self.peers.arrival()).await else {
                break;
            };
            if arrival.words == words {
                *times.entry(arrival.peer).or_default() += 1;
                delays.push(arrival.at.saturating_duration_since(begun));
            } else {
                // What was said before has come to everybody: this is a second time.
                self.faults.duplicated += 1;
            }
        }
        self.faults.missing += self.servers - times.len();
        self.faults.duplicated += times.values().map(|times| times - 1).sum::<usize>();
        delays
    }
}
