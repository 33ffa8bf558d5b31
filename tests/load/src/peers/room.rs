//! A room that peers hold: a line of signed events.

use std::collections::HashMap;

use anyhow::Context as _;
use ruma::{CanonicalJsonObject, RoomVersionId};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::signer::{Signer, now_ms};

/// The version of rooms of peers, which every measured server knows.
pub(super) const VERSION: RoomVersionId = RoomVersionId::V11;

/// Between two events of the past.
const STEP_MS: u64 = 10;

/// How many people and words a room begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomSize {
    /// Members, with the one who made it; in turns of each server.
    pub(crate) members: usize,
    /// Events, of which those that are no state are messages.
    pub(crate) events: usize,
}

/// A room, and who speaks in it.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) id: String,
    /// The server that made it.
    holder: String,
    events: Vec<Held>,
    positions: HashMap<String, usize>,
    members: Vec<Member>,
    /// The creation, the power levels and the rules for joining, which allow everything else.
    foundation: Foundation,
    begun_ms: u64,
}

#[derive(Debug)]
struct Held {
    id: String,
    json: Box<RawValue>,
    is_state: bool,
}

#[derive(Debug)]
struct Member {
    server: String,
    user: String,
    /// The event by which they joined.
    event: String,
}

#[derive(Clone, Debug, Default)]
struct Foundation {
    create: String,
    power: String,
    rules: String,
}

/// An event to be made.
struct New<'a> {
    server: &'a str,
    sender: &'a str,
    kind: &'a str,
    state_key: Option<&'a str>,
    content: Value,
    auth: Vec<&'a str>,
}

/// What answers to joins, and to questions for state, have of events.
#[derive(Debug, Serialize)]
pub(super) struct State<'a> {
    pub(super) auth_chain: Vec<&'a RawValue>,
    pub(super) state: Vec<&'a RawValue>,
}

impl Room {
    /// A public room with members of these servers, of whom the first makes it.
    pub(super) fn new(signer: &Signer, servers: &[String], size: RoomSize) -> anyhow::Result<Self> {
        let holder = servers.first().context("a room needs a server")?.clone();
        let mut room = Self {
            id: format!("!load-{:x}:{holder}", now_ms()),
            holder: holder.clone(),
            events: Vec::with_capacity(size.events),
            positions: HashMap::with_capacity(size.events),
            members: Vec::with_capacity(size.members),
            foundation: Foundation::default(),
            begun_ms: now_ms() - STEP_MS * size.events as u64,
        };
        room.found(signer, &holder)?;
        for (number, server) in (1..size.members).zip(servers.iter().cycle().skip(1)) {
            room.add_member(signer, server, number)?;
        }
        while room.events.len() < size.events {
            room.speak(signer, &format!("Something that was said as number {}.", room.events.len()))?;
        }
        Ok(room)
    }

    fn found(&mut self, signer: &Signer, server: &str) -> anyhow::Result<()> {
        let owner = format!("@owner:{server}");
        let state = |kind, content, auth| New { server, sender: &owner, kind, state_key: Some(""), content, auth };
        let version = json!({ "room_version": VERSION });
        let create = self.append(signer, state("m.room.create", version, Vec::new()))?;
        let member = json!({ "membership": "join" });
        let joins = New { state_key: Some(&owner), ..state("m.room.member", member, vec![&create]) };
        let owner_joins = self.append(signer, joins)?;
        let levels = json!({ "users": { &owner: 100 } });
        let power = self.append(signer, state("m.room.power_levels", levels, vec![&create, &owner_joins]))?;
        let allowed = || vec![create.as_str(), power.as_str(), owner_joins.as_str()];
        let rule = json!({ "join_rule": "public" });
        let rules = self.append(signer, state("m.room.join_rules", rule, allowed()))?;
        let visibility = json!({ "history_visibility": "shared" });
        self.append(signer, state("m.room.history_visibility", visibility, allowed()))?;
        self.append(signer, state("m.room.name", json!({ "name": "A room of others" }), allowed()))?;
        self.foundation = Foundation { create, power, rules };
        self.members.push(Member { server: server.to_owned(), user: owner, event: owner_joins });
        Ok(())
    }

    fn add_member(&mut self, signer: &Signer, server: &str, number: usize) -> anyhow::Result<()> {
        let user = format!("@member-{number}:{server}");
        let Foundation { create, power, rules } = self.foundation.clone();
        let content = json!({ "membership": "join", "displayname": format!("Member {number}") });
        let auth = vec![create.as_str(), power.as_str(), rules.as_str()];
        let joins = New { server, sender: &user, kind: "m.room.member", state_key: Some(&user), content, auth };
        let event = self.append(signer, joins)?;
        self.members.push(Member { server: server.to_owned(), user, event });
        Ok(())
    }

    /// The next of the members says something; returns the server, the event's id and the event.
    pub(super) fn speak(&mut self, signer: &Signer, words: &str) -> anyhow::Result<(String, String, Box<RawValue>)> {
        let Member { server, user, event } = &self.members[self.events.len() % self.members.len()];
        let (server, user, joined) = (server.clone(), user.clone(), event.clone());
        let Foundation { create, power, .. } = self.foundation.clone();
        let id = self.append(
            signer,
            New {
                server: &server,
                sender: &user,
                kind: "m.room.message",
                state_key: None,
                content: json!({ "msgtype": "m.text", "body": words }),
                auth: vec![&create, &power, &joined],
            },
        )?;
        let json = self.event(&id).context("what was appended is there")?.to_owned();
        Ok((server, id, json))
    }

    fn append(&mut self, signer: &Signer, new: New<'_>) -> anyhow::Result<String> {
        let number = self.events.len();
        let mut event = json!({
            "room_id": self.id,
            "sender": new.sender,
            "type": new.kind,
            "content": new.content,
            "auth_events": new.auth,
            "prev_events": self.newest(),
            "depth": number + 1,
            "origin_server_ts": self.begun_ms + STEP_MS * number as u64,
        });
        if let Some(key) = new.state_key {
            event["state_key"] = key.into();
        }
        let (id, json) = signer.event(new.server, event)?;
        self.hold(Held { id: id.clone(), json, is_state: new.state_key.is_some() });
        Ok(id)
    }

    fn hold(&mut self, held: Held) {
        self.positions.insert(held.id.clone(), self.events.len());
        self.events.push(held);
    }

    fn newest(&self) -> Vec<&str> {
        self.events.last().map(|held| held.id.as_str()).into_iter().collect()
    }

    /// What `make_join` answers.
    pub(super) fn join_template(&self, user: &str) -> Value {
        let Foundation { create, power, rules } = &self.foundation;
        json!({
            "room_version": VERSION,
            "event": {
                "room_id": self.id,
                "sender": user,
                "type": "m.room.member",
                "state_key": user,
                "content": { "membership": "join" },
                "auth_events": [create, power, rules],
                "prev_events": self.newest(),
                "depth": self.events.len() + 1,
                "origin_server_ts": now_ms(),
            },
        })
    }

    /// What `send_join` answers: the state before the join.
    pub(super) fn take_join(&mut self, signer: &Signer, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Answer<'a> {
            origin: &'a str,
            members_omitted: bool,
            event: &'a RawValue,
            #[serde(flatten)]
            state: State<'a>,
        }
        let event: CanonicalJsonObject = serde_json::from_slice(body)?;
        let id = signer.event_id(&event)?;
        let json = RawValue::from_string(serde_json::to_string(&event)?)?;
        let state = self.state_before(self.events.len());
        let answer = serde_json::to_vec(&Answer { origin: &self.holder, members_omitted: false, event: &json, state })?;
        self.hold(Held { id, json, is_state: true });
        Ok(answer)
    }

    /// The state before an event. Nothing of it ever changes, so that it is all state that came before.
    pub(super) fn state_before(&self, position: usize) -> State<'_> {
        let before = &self.events[..position];
        let state = before.iter().filter(|held| held.is_state).map(|held| &*held.json).collect();
        State { auth_chain: self.chain().filter_map(|id| self.event(id)).collect(), state }
    }

    /// The ids of the same.
    pub(super) fn state_ids_before(&self, position: usize) -> Value {
        let before = &self.events[..position];
        let ids: Vec<&str> = before.iter().filter(|held| held.is_state).map(|held| held.id.as_str()).collect();
        json!({ "auth_chain_ids": self.chain().collect::<Vec<_>>(), "pdu_ids": ids })
    }

    /// What allows every event, besides its sender's own joining.
    fn chain(&self) -> impl Iterator<Item = &str> {
        let Foundation { create, power, rules } = &self.foundation;
        let owner = self.members.first().map(|owner| owner.event.as_str());
        [create.as_str(), power, rules].into_iter().chain(owner)
    }

    pub(super) fn event(&self, id: &str) -> Option<&RawValue> {
        Some(&*self.events[self.position(id)?].json)
    }

    pub(super) fn position(&self, id: &str) -> Option<usize> {
        self.positions.get(id).copied()
    }

    /// Events up to a position, without it, and no more than `limit`, newest first.
    pub(super) fn before(&self, end: usize, limit: usize) -> Vec<&RawValue> {
        self.events[..end].iter().rev().take(limit).map(|held| &*held.json).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ruma::signatures::{PublicKeyMap, Verified, verify_event};

    use super::*;

    fn room(size: RoomSize) -> (Signer, Room) {
        let signer = Signer::new(VERSION.rules().unwrap()).unwrap();
        let servers: Vec<String> = ["one.test", "two.test"].map(str::to_owned).to_vec();
        let room = Room::new(&signer, &servers, size).unwrap();
        (signer, room)
    }

    /// Every event bears its hash and its server's signature, and follows the one before it.
    #[test]
    fn events_are_signed_and_in_line() {
        let (signer, room) = room(RoomSize { members: 5, events: 40 });
        let rules = VERSION.rules().unwrap();
        let mut keys: PublicKeyMap = BTreeMap::new();
        for server in ["one.test", "two.test"] {
            let document = signer.key_document(server).unwrap();
            let key = document["verify_keys"]["ed25519:load"]["key"].as_str().unwrap();
            let key = ruma::serde::Base64::parse(key).unwrap();
            keys.insert(server.to_owned(), BTreeMap::from([("ed25519:load".to_owned(), key)]));
        }
        assert_eq!(room.events.len(), 40);
        let mut newest: Vec<String> = Vec::new();
        for held in &room.events {
            let event: CanonicalJsonObject = serde_json::from_str(held.json.get()).unwrap();
            assert!(matches!(verify_event(&keys, &event, &rules), Ok(Verified::All)), "{}", held.json);
            assert_eq!(signer.event_id(&event).unwrap(), held.id);
            let value: Value = serde_json::from_str(held.json.get()).unwrap();
            assert_eq!(value["prev_events"], json!(newest));
            newest = vec![held.id.clone()];
        }
    }

    /// Who joins is told the state, and what comes after follows the join.
    #[test]
    fn joins_are_taken() {
        let (signer, mut room) = room(RoomSize { members: 5, events: 40 });
        let template = room.join_template("@new:three.test");
        let (id, event) = signer.event("three.test", template["event"].clone()).unwrap();
        let answer: Value = serde_json::from_slice(&room.take_join(&signer, event.get().as_bytes()).unwrap()).unwrap();
        assert_eq!(answer["state"].as_array().unwrap().len(), 5 + 5, "{answer}");
        assert_eq!(answer["auth_chain"].as_array().unwrap().len(), 4);
        let (_, _, next) = room.speak(&signer, "welcome").unwrap();
        let next: Value = serde_json::from_str(next.get()).unwrap();
        assert_eq!(next["prev_events"], json!([id]));
        assert_eq!(room.before(room.position(&id).unwrap() + 1, 2)[0].get(), event.get());
    }
}
