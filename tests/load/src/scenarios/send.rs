//! Concurrent senders: each into a room of its own, or all into one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;

use crate::{
    client::Session,
    report::{Faults, Outcome},
    run::{History, Run},
    scenarios::{Timed, check_history},
};

pub(super) async fn into_many_rooms(run: &mut Run) -> anyhow::Result<Outcome> {
    let senders = run.accounts.crowd(run.options.senders).await?;
    let places: Vec<Place> = stream::iter(senders)
        .map(|sender| async {
            let room = run.room(std::slice::from_ref(&sender), "Many").await?;
            anyhow::Ok(Place { sender, room })
        })
        .buffered(run.options.prepare_concurrency)
        .try_collect()
        .await?;
    let (outcome, _sent) = send(run, places, "many").await?;
    Ok(outcome)
}

pub(super) async fn into_one_room(run: &mut Run) -> anyhow::Result<Outcome> {
    let senders = run.accounts.crowd(run.options.senders).await?;
    let room = run.room(&senders, "One").await?;
    let places = senders.iter().map(|sender| Place { sender: sender.clone(), room: room.clone() }).collect();
    let (outcome, mut sent) = send(run, places, "one").await?;
    if let (Some(messages), Some(reader)) = (sent.remove(&room), senders.first()) {
        run.keep_history(History { room, reader: reader.clone(), messages: Arc::new(messages) });
    }
    Ok(outcome)
}

#[derive(Clone, Debug)]
struct Place {
    sender: Session,
    room: String,
}

/// Messages that were acknowledged, by room.
type Sent = HashMap<String, HashSet<String>>;

/// Sends from all places at once, each sender one message after the other, and then reads the rooms' history.
async fn send(run: &Run, places: Vec<Place>, label: &str) -> anyhow::Result<(Outcome, Sent)> {
    let mut sent = Sent::new();
    for place in &places {
        let id = place.sender.send(&place.room, &format!("{label}-warm-up"), "warm-up").await?;
        sent.entry(place.room.clone()).or_default().insert(id);
    }
    let messages = run.options.messages;
    let readers: HashMap<String, Session> =
        places.iter().map(|place| (place.room.clone(), place.sender.clone())).collect();
    let measurement = run.watch.begin().await?;
    let mut tasks = JoinSet::new();
    let count = places.len();
    for (number, place) in places.into_iter().enumerate() {
        let share = messages / count + usize::from(number < messages % count);
        tasks.spawn(send_all(place, share, label.to_owned()));
    }
    let results = tasks.join_all().await;
    let usage = measurement.end().await?;

    let mut timed = Timed::default();
    for (place, result, ids) in results {
        timed.add(result);
        sent.entry(place.room).or_default().extend(ids);
    }
    let mut faults = Faults::default();
    for (room, ids) in &sent {
        if let Some(reader) = readers.get(room) {
            faults.add(check_history(reader, room, ids).await?);
        }
    }
    let outcome = Outcome::new("messages", timed.delays.len(), usage)
        .delays("send to acknowledgement", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("senders", count as f64)
        .figure("rooms", sent.len() as f64);
    Ok((outcome, sent))
}

async fn send_all(place: Place, count: usize, label: String) -> (Place, Timed, Vec<String>) {
    let mut timed = Timed::default();
    let mut ids = Vec::new();
    for number in 0..count {
        let text = format!("Message {number} of the load test, about as long as what people write to each other.");
        let transaction = format!("{label}-{number}");
        let sending = place.sender.send(&place.room, &transaction, &text);
        ids.extend(timed.time(sending).await);
    }
    (place, timed, ids)
}
