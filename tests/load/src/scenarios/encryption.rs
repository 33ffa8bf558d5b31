//! What encrypted rooms ask of a server: the keys of everybody's devices, and messages from device to device.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ruma::{
    CanonicalJsonObject,
    signatures::{Ed25519KeyPair, sign_json},
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::task::JoinSet;

use crate::{
    client::{Presence, RequestError, Session, SyncRequest},
    report::{Faults, Outcome},
    run::Run,
    scenarios::Timed,
};

/// The type of the messages from device to device.
const TYPE: &str = "org.example.load";
/// A filter for nothing but them.
const FILTER: &str = r#"{"room":{"rooms":[]},"presence":{"types":[]},"account_data":{"types":[]}}"#;
/// Answers to /sync that a device needs for the messages of one sender, of many more than a server gives at once.
const SYNCS_MAX: usize = 1_000;

/// Asks for the keys of all members of the large room, as a client does before it says the first word there.
pub(super) async fn key_query(run: &mut Run) -> anyhow::Result<Outcome> {
    let (people, _room) = run.large_room().await?;
    stream::iter(&people)
        .map(upload_keys)
        .buffer_unordered(run.options.prepare_concurrency)
        .try_collect::<()>()
        .await
        .context("upload device keys")?;
    let everybody: BTreeMap<&str, [&str; 0]> = people.iter().map(|person| (&*person.user_id, [])).collect();
    let question = json!({ "device_keys": everybody });

    let mut timed = Timed::default();
    let mut bodies = Vec::new();
    let measurement = run.watch.begin().await?;
    for asker in people.iter().cycle().take(run.options.key_queries) {
        bodies.extend(timed.time(asker.keys(&question)).await);
    }
    let usage = measurement.end().await?;

    let mut faults = Faults::default();
    let mut bytes = 0;
    for body in &bodies {
        bytes += body.len();
        match serde_json::from_slice::<Keys>(body) {
            Ok(keys) => {
                let shown =
                    |person: &&Session| keys.device_keys.get(&*person.user_id).is_some_and(|keys| keys.len() == 1);
                faults.missing += people.len() - people.iter().filter(shown).count();
            }
            Err(error) => faults.fail(RequestError::from(error)),
        }
    }
    Ok(Outcome::new("key queries", timed.delays.len(), usage)
        .delays("a key query", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("users", people.len() as f64)
        .figure("bytes a query", bytes as f64 / bodies.len().max(1) as f64))
}

#[derive(Deserialize)]
struct Keys {
    device_keys: HashMap<String, HashMap<String, Box<RawValue>>>,
}

/// Gives a person's device its keys, once: the key of a device does not change.
async fn upload_keys(person: &Session) -> anyhow::Result<()> {
    let device = person.device_id().await?;
    let document = Ed25519KeyPair::generate();
    let key = Ed25519KeyPair::from_der(&document, device.clone()).context("make a key")?;
    let mut keys: CanonicalJsonObject = serde_json::from_value(json!({
        "user_id": *person.user_id,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            format!("ed25519:{device}"): BASE64_STANDARD_NO_PAD.encode(key.public_key()),
            format!("curve25519:{device}"): BASE64_STANDARD_NO_PAD.encode(rand::random::<[u8; 32]>()),
        },
    }))?;
    sign_json(&person.user_id, &key, &mut keys)?;
    person.upload_keys(&json!({ "device_keys": keys })).await.context("upload keys")
}

/// Each sender sends to the device of the next one, who then fetches them all.
pub(super) async fn to_device(run: &mut Run) -> anyhow::Result<Outcome> {
    let people = run.accounts.crowd(run.options.senders).await?;
    let mut pairs = Vec::new();
    for (number, sender) in people.iter().enumerate() {
        let receiver = &people[(number + 1) % people.len()];
        // What was there before has nothing to do with it.
        let since = drain(receiver, None).await?.1;
        let device = receiver.device_id().await?;
        pairs.push(Pair { sender: sender.clone(), receiver: receiver.clone(), device, since });
    }
    let (messages, count) = (run.options.messages, pairs.len());
    let measurement = run.watch.begin().await?;
    let mut tasks = JoinSet::new();
    for (number, pair) in pairs.into_iter().enumerate() {
        tasks.spawn(exchange(pair, messages / count + usize::from(number < messages % count)));
    }
    let results = tasks.join_all().await;
    let usage = measurement.end().await?;

    let mut timed = Timed::default();
    let mut faults = Faults::default();
    for (sending, sent, got) in results {
        timed.add(sending);
        match got {
            Ok(got) => compare(&sent, &got, &mut faults),
            Err(error) => faults.fail(error),
        }
    }
    Ok(Outcome::new("messages to devices", timed.delays.len(), usage)
        .delays("send to acknowledgement", &timed.delays)
        .faults(timed.faults)
        .faults(faults)
        .figure("senders", count as f64))
}

struct Pair {
    sender: Session,
    receiver: Session,
    device: String,
    since: String,
}

/// Sends so many, and tells what was acknowledged and what arrived.
async fn exchange(pair: Pair, count: usize) -> (Timed, Vec<u64>, Result<Vec<u64>, RequestError>) {
    let mut timed = Timed::default();
    let mut sent = Vec::new();
    for number in 0..count as u64 {
        let content = json!({ "number": number, "ciphertext": "x".repeat(500) });
        let messages = json!({ "messages": { &*pair.receiver.user_id: { &pair.device: content } } });
        let transaction = format!("load-{number}");
        let sending = pair.sender.send_to_device(TYPE, &transaction, &messages);
        sent.extend(timed.time(sending).await.map(|()| number));
    }
    let got = drain(&pair.receiver, Some(pair.since)).await.map(|(got, _)| got);
    (timed, sent, got)
}

/// Takes all that waits for a device: the numbers of the messages, and the token that acknowledges them.
async fn drain(session: &Session, since: Option<String>) -> Result<(Vec<u64>, String), RequestError> {
    let mut numbers = Vec::new();
    let mut since = since;
    for _ in 0..SYNCS_MAX {
        let request = SyncRequest {
            since: since.as_deref(),
            wait: std::time::Duration::ZERO,
            filter: FILTER,
            presence: Presence::Offline,
        };
        let answer: Answer = serde_json::from_slice(&session.sync(request).await?)?;
        let is_last = answer.to_device.events.is_empty();
        let of_ours = answer.to_device.events.iter().filter(|event| event.kind == TYPE);
        numbers.extend(of_ours.filter_map(|event| event.content["number"].as_u64()));
        since = Some(answer.next_batch);
        if is_last {
            break;
        }
    }
    Ok((numbers, since.unwrap_or_default()))
}

#[derive(Deserialize)]
struct Answer {
    next_batch: String,
    #[serde(default)]
    to_device: ToDevice,
}

#[derive(Default, Deserialize)]
struct ToDevice {
    #[serde(default)]
    events: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: String,
    content: Value,
}

/// Each that was acknowledged must have arrived once, in order.
fn compare(sent: &[u64], got: &[u64], faults: &mut Faults) {
    faults.missing += sent.iter().filter(|number| !got.contains(number)).count();
    faults.duplicated += got.len() - got.iter().collect::<std::collections::HashSet<_>>().len();
    if !got.is_sorted() {
        faults.fail("messages to a device are not in order");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing, doubled or out of order is found.
    #[test]
    fn wrong_deliveries_are_found() {
        let compare = |sent: &[u64], got: &[u64]| {
            let mut faults = Faults::default();
            super::compare(sent, got, &mut faults);
            (faults.failed, faults.missing, faults.duplicated)
        };
        assert_eq!(compare(&[0, 1, 2], &[0, 1, 2]), (0, 0, 0));
        assert_eq!(compare(&[0, 1, 2], &[0, 0, 2]), (0, 1, 1));
        assert_eq!(compare(&[0, 1], &[1, 0]), (1, 0, 0));
    }
}
