//! What peers answer to a server that asks them.

use std::collections::HashMap;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{Arrival, Shared, signer::now_ms};

/// Events that one answer has at most.
const EVENTS_MAX: usize = 100;

/// A request as far as it matters.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) body: &'a [u8],
}

/// A status and JSON.
pub(super) type Reply = (StatusCode, Vec<u8>);

#[derive(Deserialize)]
struct Transaction<'a> {
    #[serde(borrow)]
    pdus: Vec<Pdu<'a>>,
}

#[derive(Deserialize)]
struct Pdu<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct Content {
    body: String,
}

#[derive(Deserialize)]
struct Missing {
    #[serde(default)]
    earliest_events: Vec<String>,
    latest_events: Vec<String>,
    #[serde(default = "few")]
    limit: usize,
}

/// What is meant where a limit is left out.
fn few() -> usize {
    10
}

impl Shared {
    /// Answers for one of the peers.
    pub(super) fn answer(&self, peer: usize, question: &Question<'_>) -> anyhow::Result<Reply> {
        let path: Vec<String> = question
            .path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
            .collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match (question.method.as_str(), &path[..]) {
            ("GET", ["_matrix", "key", "v2", "server", ..]) => ok(&self.signer.key_document(&self.names[peer])?),
            ("GET", ["_matrix", "federation", "v1", "version"]) => ok(&json!({ "server": { "name": "load" } })),
            ("PUT", ["_matrix", "federation", "v1", "send", _]) => self.take(peer, question.body),
            (_, ["_matrix", "federation", "v1" | "v2", what, room, rest @ ..]) => {
                self.of_the_room(what, room, rest, question)
            }
            _ => Ok(unknown()),
        }
    }

    fn of_the_room(&self, what: &str, first: &str, rest: &[&str], question: &Question<'_>) -> anyhow::Result<Reply> {
        let mut room = self.room.lock();
        if room.id != first && what != "event" {
            return Ok(unknown());
        }
        let query = parameters(question.query);
        let named = || query.get("event_id").and_then(|id| room.position(id));
        match (what, rest) {
            ("make_join", [user]) => ok(&room.join_template(user)),
            ("send_join", [_]) => Ok((StatusCode::OK, room.take_join(&self.signer, question.body)?)),
            ("state_ids", []) => Ok(named().map_or_else(unknown, |at| json_of(&room.state_ids_before(at)))),
            ("state", []) => Ok(named().map_or_else(unknown, |at| {
                let state = room.state_before(at);
                json_of(&json!({ "auth_chain": state.auth_chain, "pdus": state.state }))
            })),
            ("backfill", []) => {
                let end = query.get("v").and_then(|id| room.position(id)).map_or(0, |position| position + 1);
                let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(EVENTS_MAX);
                Ok(self.transaction(&room.before(end, limit.min(EVENTS_MAX))))
            }
            ("get_missing_events", []) => {
                let missing: Missing = serde_json::from_slice(question.body)?;
                let newest = |ids: &[String]| ids.iter().filter_map(|id| room.position(id)).max();
                let end = newest(&missing.latest_events).unwrap_or(0);
                let begin = newest(&missing.earliest_events).map_or(0, |position| position + 1);
                let limit = end.saturating_sub(begin).min(missing.limit).min(EVENTS_MAX);
                let mut events = room.before(end, limit);
                events.reverse();
                ok(&json!({ "events": events }))
            }
            ("event", []) => Ok(room.event(first).map_or_else(unknown, |event| self.transaction(&[event]))),
            _ => Ok(unknown()),
        }
    }

    fn transaction(&self, pdus: &[&RawValue]) -> Reply {
        json_of(&json!({ "origin": self.names[0], "origin_server_ts": now_ms(), "pdus": pdus }))
    }

    /// Takes a transaction, and tells of each message in it.
    fn take(&self, peer: usize, body: &[u8]) -> anyhow::Result<Reply> {
        let transaction: Transaction<'_> = serde_json::from_slice(body)?;
        for pdu in transaction.pdus {
            if let Ok(Content { body }) = serde_json::from_str(pdu.content.get()) {
                // Nobody listens where arrivals are not counted.
                let _ = self.arrivals.send(Arrival { peer, words: body, at: std::time::Instant::now() });
            }
        }
        ok(&json!({ "pdus": {} }))
    }
}

fn parameters(query: &str) -> HashMap<String, String> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (decode(key), decode(value))).collect()
}

fn ok(value: &Value) -> anyhow::Result<Reply> {
    Ok(json_of(value))
}

fn json_of(value: &Value) -> Reply {
    (StatusCode::OK, value.to_string().into_bytes())
}

fn unknown() -> Reply {
    (StatusCode::NOT_FOUND, json!({ "errcode": "M_NOT_FOUND", "error": "Not here" }).to_string().into_bytes())
}
