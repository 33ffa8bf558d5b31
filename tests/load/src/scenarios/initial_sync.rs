//! The first `/sync` of a new device of an account with many rooms.

use std::collections::HashMap;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::{
    client::{Presence, RequestError, Session, SyncRequest},
    follow::{FILTER, SyncAnswer},
    report::{Faults, Outcome},
    run::Run,
    scenarios::Timed,
};

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let owner = run.accounts.named("collector").await?;
    let peers = run.accounts.crowd(run.options.senders).await?;
    let rooms = prepare_rooms(run, &owner, &peers).await?;
    // A server may keep an answer for a while and give it again to the same device: each sync is of a new one.
    let mut devices = Vec::new();
    for _ in 0..run.options.devices {
        devices.push(owner.log_in_again().await.context("log in a device")?);
    }

    let mut timed = Timed::default();
    let mut faults = Faults::default();
    let mut bodies = Vec::new();
    let measurement = run.watch.begin().await?;
    for device in &devices {
        let request =
            SyncRequest { since: None, wait: std::time::Duration::ZERO, filter: FILTER, presence: Presence::Online };
        bodies.extend(timed.time(device.sync(request)).await);
    }
    let usage = measurement.end().await?;

    let mut bytes = 0;
    for body in &bodies {
        bytes += body.len();
        match SyncAnswer::parse(body) {
            Ok(answer) => check(&answer, &rooms, &mut faults),
            Err(error) => faults.fail(RequestError::from(error)),
        }
    }
    Ok(Outcome::new("initial syncs", timed.delays.len(), usage)
        .delays("an initial sync", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("rooms", rooms.len() as f64)
        .figure("bytes a sync", bytes as f64 / bodies.len().max(1) as f64))
}

/// Each room must be there, and its newest message in it once.
fn check(answer: &SyncAnswer, rooms: &HashMap<String, String>, faults: &mut Faults) {
    for (room, newest) in rooms {
        let times = answer
            .joined()
            .get(room)
            .map_or(0, |joined| joined.timeline.events.iter().filter(|event| event.event_id == *newest).count());
        faults.missing += usize::from(times == 0);
        faults.duplicated += times.saturating_sub(1);
    }
    if answer.joined().len() > rooms.len() {
        faults.fail("an initial sync shows rooms that the user is not in");
    }
}

/// Rooms of the owner with one peer each, who says something: the newest message of each, by room.
pub(super) async fn prepare_rooms(
    run: &Run,
    owner: &Session,
    peers: &[Session],
) -> anyhow::Result<HashMap<String, String>> {
    let messages = run.options.room_messages;
    stream::iter((0..run.options.rooms).zip(peers.iter().cycle()))
        .map(|(number, peer)| async move {
            let body = json!({
                "preset": "public_chat",
                "name": format!("Room {number}"),
                "topic": "One of many",
            });
            let room = owner.create_room(&body).await?;
            peer.join(&room).await?;
            let mut newest = String::new();
            for message in 0..messages {
                newest = peer.send(&room, &format!("collect-{number}-{message}"), "Something to read.").await?;
            }
            Ok::<_, RequestError>((room, newest))
        })
        .buffer_unordered(run.options.prepare_concurrency)
        .try_collect()
        .await
        .context("prepare the rooms of an account")
}
