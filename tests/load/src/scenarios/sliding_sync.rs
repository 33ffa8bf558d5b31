//! The first sliding sync of a new device of an account with many rooms, of which it sees 20; and those with nothing new.

use std::collections::HashMap;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::{Event, RequestError},
    report::{Faults, Outcome},
    run::Run,
    scenarios::{Timed, initial_sync::prepare_rooms},
};

/// Rooms that a client sees at first.
const VISIBLE: usize = 20;
/// Requests of each device for which there is nothing new.
const QUIET: usize = 10;

#[derive(Deserialize)]
struct Answer {
    pos: String,
    lists: HashMap<String, List>,
    #[serde(default)]
    rooms: HashMap<String, Room>,
}

#[derive(Deserialize)]
struct List {
    count: usize,
}

#[derive(Deserialize)]
struct Room {
    #[serde(default)]
    timeline: Vec<Event>,
}

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let owner = run.accounts.named("slider").await?;
    let peers = run.accounts.crowd(run.options.senders).await?;
    let rooms = prepare_rooms(run, &owner, &peers).await?;
    let mut devices = Vec::new();
    for _ in 0..run.options.devices {
        devices.push(owner.log_in_again().await.context("log in a device")?);
    }

    let question = question();
    let (mut first, mut quiet) = (Timed::default(), Timed::default());
    let mut faults = Faults::default();
    let mut bytes = 0;
    let measurement = run.watch.begin().await?;
    for device in &devices {
        let Some(body) = first.time(device.sliding_sync(None, &question)).await else { continue };
        bytes += body.len();
        let answer: Answer = serde_json::from_slice(&body).map_err(RequestError::from)?;
        check(&answer, &rooms, &mut faults);
        let mut pos = answer.pos;
        for _ in 0..QUIET {
            let Some(body) = quiet.time(device.sliding_sync(Some(&pos), &question)).await else { continue };
            let answer: Answer = serde_json::from_slice(&body).map_err(RequestError::from)?;
            faults.duplicated += answer.rooms.values().map(|room| room.timeline.len()).sum::<usize>();
            pos = answer.pos;
        }
    }
    let usage = measurement.end().await?;
    let count = first.delays.len();
    Ok(Outcome::new("first sliding syncs", count, usage)
        .delays("a first sliding sync", &first.delays)
        .delays("a sliding sync with nothing new", &quiet.delays)
        .faults(first.faults)
        .faults(quiet.faults)
        .faults(faults)
        .figure("rooms", rooms.len() as f64)
        .figure("bytes a first sliding sync", bytes as f64 / count.max(1) as f64))
}

/// All rooms must be counted, and each of those in sight must have its newest message.
fn check(answer: &Answer, rooms: &HashMap<String, String>, faults: &mut Faults) {
    let visible = VISIBLE.min(rooms.len());
    if answer.lists.get("all").is_none_or(|list| list.count != rooms.len()) {
        faults.fail("a sliding sync counts other rooms than there are");
    }
    let has_newest = |(room, shown): &(&String, &Room)| {
        rooms.get(*room).is_some_and(|newest| shown.timeline.iter().any(|event| event.event_id == *newest))
    };
    faults.missing += visible.saturating_sub(answer.rooms.iter().filter(has_newest).count());
}

/// What a client in use asks at first.
fn question() -> Value {
    let enabled = json!({ "enabled": true });
    json!({
        "lists": { "all": {
            "ranges": [[0, VISIBLE - 1]],
            "timeline_limit": 1,
            "required_state": [
                ["m.room.name", ""], ["m.room.encryption", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"],
                ["m.room.topic", ""], ["m.room.avatar", ""], ["m.room.canonical_alias", ""],
                ["m.room.power_levels", ""], ["m.room.join_rules", ""], ["m.room.tombstone", ""],
                ["m.room.create", ""], ["m.room.history_visibility", ""], ["m.space.child", "*"],
            ],
            "filters": { "not_room_types": ["m.space"] },
        } },
        "extensions": { "account_data": enabled, "receipts": enabled, "typing": enabled },
    })
}
