//! Policy servers: who has to recommend the events of a room, and what it thinks of those that are received
//! ([specification]).
//!
//! [specification]: https://spec.matrix.org/v1.19/server-server-api/#policy-servers

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use myelin_store::{RoomName, StateKey};
use prometheus::{IntCounterVec, register_int_counter_vec};
use quick_cache::sync::Cache;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedServerName, SigningKeyAlgorithm,
    api::federation::policy::sign_event,
    events::{
        TimelineEventType,
        room::policy::{POLICY_SERVER_ED25519_SIGNING_KEY_ID, RoomPolicyEventContent},
    },
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::verify_policy_server_signature,
};
use ruma_state_res::Event as _;
use serde_json::{Map, Value, value::RawValue};
use tokio::{sync::OnceCell, time::timeout};

use super::{Incoming, Verdict};
use crate::{Error, Pdu, Result, RoomWriter, Rooms, remote::RemoteError, writer::rules_of};

/// Snapshots of which it is remembered whether they have a policy.
const SNAPSHOTS: usize = 16_384;
/// How long a policy server may take for an event.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for all the events of a transaction.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(60);
/// Events that it is asked about at the same time.
const AT_ONCE: usize = 4;
/// The most bytes of an event.
const EVENT_BYTES_MAX: usize = 65_536;

static ANSWERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_rooms_policy_answers_total",
        "Events of rooms with a policy server, by what became of them: signed by it when they came, signed when it was \
         asked, refused, or without an answer.",
        &["outcome"]
    )
    .expect("metric names are unique")
});
static LOOKUPS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_rooms_policy_lookups_total",
        "Snapshots of rooms that were looked at for a policy, by whether they had one.",
        &["found"]
    )
    .expect("metric names are unique")
});

/// Shows the metrics from the start on.
pub(crate) fn show_metrics() {
    for outcome in ["signed", "recommended", "refused", "unanswered"] {
        ANSWERS.with_label_values(&[outcome]);
    }
    for found in ["true", "false"] {
        LOOKUPS.with_label_values(&[found]);
    }
}

/// What a room's `m.room.policy` event says.
#[derive(Debug)]
pub(crate) struct Policy {
    /// The event.
    event_nid: i64,
    content: RoomPolicyEventContent,
}

impl Policy {
    /// "Valid means `content` contains at least: A string value for `via`. An object value for `public_keys` containing
    /// at least a string value for `ed25519`."
    pub(crate) fn new(event_nid: i64, content: &str) -> Option<Self> {
        let said: Map<String, Value> = serde_json::from_str(content).ok()?;
        let key = said.get("public_keys")?.as_object()?.get("ed25519")?.as_str()?;
        // No user has joined from what is no server.
        let via = OwnedServerName::try_from(said.get("via")?.as_str()?).ok()?;
        // By what is no key nothing is signed, which closes the room as any wrong key does.
        let key = Base64::parse(key).unwrap_or_else(|_| Base64::new(Vec::new()));
        Some(Self { event_nid, content: RoomPolicyEventContent::new(via, key) })
    }

    fn of_pdu(pdu: &Pdu) -> Option<Self> {
        Self::new(pdu.nid, pdu.content().get())
    }

    /// The policy server.
    pub(crate) fn server(&self) -> &OwnedServerName {
        &self.content.via
    }

    /// Whether an event has the policy server's signature.
    fn has_signed(&self, object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<(), String> {
        debug_assert!(self.content.public_keys.contains_key(&SigningKeyAlgorithm::Ed25519));
        verify_policy_server_signature(&self.content, object, rules).map_err(|error| error.to_string())
    }
}

/// "This endpoint MUST NOT be called for events which have a type of `m.room.policy` and an empty string `state_key`."
pub(crate) fn is_exempt(event_type: &TimelineEventType, state_key: Option<&str>) -> bool {
    state_key == Some("") && event_type.to_string() == "m.room.policy"
}

/// Which snapshots have a policy.
#[derive(Debug)]
pub(crate) struct Policies {
    known: Cache<i64, bool>,
    key_nid: OnceCell<i64>,
}

impl Default for Policies {
    fn default() -> Self {
        show_metrics();
        Self { known: Cache::new(SNAPSHOTS), key_nid: OnceCell::new() }
    }
}

#[cfg(test)]
impl Policies {
    /// The snapshots that were looked at.
    pub(crate) fn snapshots(&self) -> usize {
        self.known.len()
    }
}

/// What policy servers think of some events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opinions {
    /// By event, with the policy that it was asked under.
    known: HashMap<OwnedEventId, (i64, Result<(), String>)>,
    /// Those that were not asked for, and would have been needed.
    pub(crate) unasked: Vec<(OwnedEventId, Arc<Policy>)>,
}

impl Opinions {
    pub(crate) fn note(&mut self, event_id: &OwnedEventId, policy: &Policy, opinion: Result<(), String>) {
        self.known.insert(event_id.clone(), (policy.event_nid, opinion));
    }

    fn of(&self, event_id: &OwnedEventId, policy: &Policy) -> Option<&Result<(), String>> {
        let (asked_under, opinion) = self.known.get(event_id)?;
        (*asked_under == policy.event_nid).then_some(opinion)
    }
}

impl RoomWriter {
    /// The policy of a snapshot, drafts included, if a user of the server that it names is in the room.
    ///
    /// Who is in the room is as of what is committed: a change of that counts from the next transaction on.
    pub(crate) async fn policy_at(&mut self, root: i64) -> Result<Option<Arc<Policy>>> {
        let rooms = self.rooms.clone();
        if rooms.policies.known.get(&root) == Some(false) {
            return Ok(None);
        }
        let key_nid = rooms.policy_key().await?;
        let pdu = self.state_pdus_at(root, &[key_nid]).await?.pop().flatten();
        rooms.note_policy(root, pdu.is_some());
        match pdu.and_then(|pdu| Policy::of_pdu(&pdu)) {
            Some(policy) if rooms.is_server_in(&self.room, policy.server()).await? => Ok(Some(Arc::new(policy))),
            _ => Ok(None),
        }
    }

    /// The check 7: "Is validated by the Policy Server, if the room is using a Policy Server, otherwise it is 'soft
    /// failed'."
    ///
    /// An opinion that was not asked for yet is taken to be good, and noted as one that is to be asked for.
    pub(super) async fn judge_by_policy(&mut self, incoming: &Incoming) -> Result<Verdict> {
        let pdu = &incoming.pdu;
        if is_exempt(pdu.event_type(), pdu.state_key()) {
            return Ok(Verdict::Accepted);
        }
        let Some(policy) = self.policy_at(self.head.state_root).await? else { return Ok(Verdict::Accepted) };
        let opinions = &mut self.graph.opinions;
        match opinions.of(&incoming.event_id, &policy) {
            Some(Ok(())) => return Ok(Verdict::Accepted),
            Some(Err(reason)) => return Ok(Verdict::SoftFailed(reason.clone())),
            None => {}
        }
        let object: CanonicalJsonObject = serde_json::from_str(&incoming.json).map_err(Error::Corrupt)?;
        if policy.has_signed(&object, &self.rules).is_ok() {
            ANSWERS.with_label_values(&["signed"]).inc();
            opinions.note(&incoming.event_id, &policy, Ok(()));
        } else {
            opinions.unasked.push((incoming.event_id.clone(), policy));
        }
        Ok(Verdict::Accepted)
    }
}

impl Rooms {
    async fn policy_key(&self) -> Result<i64> {
        let key = [StateKey::new("m.room.policy", "")];
        let make = async || Ok::<_, Error>(self.store.key_nids(&key).await?[0]);
        Ok(*self.policies.key_nid.get_or_try_init(make).await?)
    }

    fn note_policy(&self, root: i64, is_there: bool) {
        if self.policies.known.get(&root) != Some(is_there) {
            LOOKUPS.with_label_values(&[if is_there { "true" } else { "false" }]).inc();
            self.policies.known.insert(root, is_there);
        }
    }

    /// The policy of a room as it is committed, if a user of the server that it names is in the room.
    pub(crate) async fn policy_of(&self, room: &RoomName) -> Result<Option<Arc<Policy>>> {
        let root = self.state_root(room).await?;
        if self.policies.known.get(&root) == Some(false) {
            return Ok(None);
        }
        let key_nid = self.policy_key().await?;
        let event = self.store.state_events(root, &[key_nid]).await?.pop().flatten();
        self.note_policy(root, event.is_some());
        match event.and_then(|event| Policy::new(event.nid, event.content())) {
            Some(policy) if self.is_server_in(room, policy.server()).await? => Ok(Some(Arc::new(policy))),
            _ => Ok(None),
        }
    }

    /// Gets the policy server's signature for an event, which is the event with it.
    pub(crate) async fn recommended(
        &self,
        policy: &Policy,
        object: CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<CanonicalJsonObject, RemoteError> {
        let asked = timeout(PATIENCE, self.signed_by(policy, object, rules)).await;
        let signed = asked.unwrap_or_else(|_| {
            let reason = format!("no answer in {PATIENCE:?}");
            Err(RemoteError::Unreachable { server: policy.server().clone(), reason })
        });
        let outcome = match &signed {
            Ok(_) => "recommended",
            Err(RemoteError::Refused { .. } | RemoteError::Nonsense { .. }) => "refused",
            Err(_) => "unanswered",
        };
        ANSWERS.with_label_values(&[outcome]).inc();
        signed
    }

    async fn signed_by(
        &self,
        policy: &Policy,
        mut object: CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<CanonicalJsonObject, RemoteError> {
        let server = policy.server();
        let nonsense = |reason: String| RemoteError::Nonsense { server: server.clone(), reason };
        let Ok(remote) = self.remote() else { return Err(RemoteError::NotAllowed(server.clone())) };
        let json = serde_json::to_string(&object).map_err(|error| nonsense(error.to_string()))?;
        let pdu = RawValue::from_string(json).map_err(|error| nonsense(error.to_string()))?;
        let answer = remote.sign_event(server, sign_event::v1::Request::new(pdu)).await?;
        let signature = answer.ed25519_signature(server);
        let signature = signature.ok_or_else(|| nonsense("its signature is not in its answer".into()))?.to_owned();
        // "existing signatures might not be returned by the policy server, but should be retained"
        let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
        let all = object.entry("signatures".to_owned()).or_insert_with(empty);
        if let CanonicalJsonValue::Object(all) = all {
            let of_server = all.entry(server.to_string()).or_insert_with(empty);
            if let CanonicalJsonValue::Object(of_server) = of_server {
                let key_id = POLICY_SERVER_ED25519_SIGNING_KEY_ID.to_owned();
                of_server.insert(key_id, CanonicalJsonValue::String(signature));
            }
        }
        policy
            .has_signed(&object, rules)
            .map_err(|reason| nonsense(format!("its signature is not valid: {reason}")))?;
        Ok(object)
    }

    /// Asks policy servers for what they think of received events; those that they sign get the signature.
    pub(super) async fn ask_about(
        &self,
        room: &RoomName,
        events: &mut [Incoming],
        opinions: &mut Opinions,
    ) -> Result<()> {
        let rules = rules_of(&room.version)?;
        let until = tokio::time::Instant::now() + PATIENCE_FOR_ALL;
        let mut wanted = Vec::new();
        for (event_id, policy) in std::mem::take(&mut opinions.unasked) {
            let Some(event) = events.iter().find(|event| event.event_id == event_id) else { continue };
            let object: CanonicalJsonObject = serde_json::from_str(&event.json).map_err(Error::Corrupt)?;
            wanted.push((event_id, policy, object));
        }
        let answers: Vec<_> = stream::iter(wanted)
            .map(|(event_id, policy, object)| {
                let rules = &rules;
                async move {
                    let asked = tokio::time::timeout_at(until, self.recommended(&policy, object, rules)).await;
                    (event_id, policy, asked)
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (event_id, policy, answer) in answers {
            let opinion = match answer {
                Ok(Ok(object)) => {
                    if let Some(event) = events.iter_mut().find(|event| event.event_id == event_id) {
                        keep_signature(event, &object)?;
                    }
                    Ok(())
                }
                Ok(Err(error)) => Err(format!("not recommended by the room's policy server: {error}")),
                Err(_) => Err("the room's policy server takes too long".to_owned()),
            };
            opinions.note(&event_id, &policy, opinion);
        }
        Ok(())
    }
}

/// The event with the policy server's signature, where it is not too large with it: others ask for it then.
fn keep_signature(event: &mut Incoming, signed: &CanonicalJsonObject) -> Result<()> {
    let json = serde_json::to_string(signed).map_err(Error::Corrupt)?;
    if json.len() <= EVENT_BYTES_MAX {
        event.json = json.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy needs a server and a text for a key, and nothing else; who is no server is none.
    #[test]
    fn policies_are_valid_or_not() {
        let key = "6yhHGKhCiXTSEN2ksjV7kX/N6rBQZ3Xb+M7LlC6NS+s";
        let valid = [
            serde_json::json!({ "via": "policy.example.org", "public_keys": { "ed25519": key } }),
            serde_json::json!({ "via": "policy.example.org", "public_keys": { "ed25519": key, "other": 1 }, "x": [] }),
            serde_json::json!({ "via": "policy.example.org", "public_keys": { "ed25519": "?" } }),
        ];
        for content in valid {
            let policy = Policy::new(1, &content.to_string()).unwrap();
            assert_eq!(policy.server(), "policy.example.org", "{content}");
        }
        let invalid = [
            serde_json::json!({}),
            serde_json::json!({ "via": "policy.example.org" }),
            serde_json::json!({ "via": 1, "public_keys": { "ed25519": key } }),
            serde_json::json!({ "via": "no server", "public_keys": { "ed25519": key } }),
            serde_json::json!({ "via": "policy.example.org", "public_keys": { "ed25519": 1 } }),
            serde_json::json!({ "via": "policy.example.org", "public_keys": [key] }),
        ];
        for content in invalid {
            assert!(Policy::new(1, &content.to_string()).is_none(), "{content}");
        }
    }
}
