//! EDUs on their way: those that pass by and those that others keep.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, ServerName, presence::PresenceState};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::metrics::EDUS_DROPPED;

/// Ephemeral EDUs that wait for one server at the most.
const WAITING_MAX: usize = 256;
/// Users in one `m.presence` EDU.
const PRESENCE_MAX: usize = 100;

/// An EDU that is kept by its source until a server has taken it.
#[derive(Clone, Debug)]
pub struct QueuedEdu {
    /// Its place among those for the same server: grows.
    pub id: i64,
    /// The object with `edu_type` and `content`.
    pub json: Box<RawValue>,
}

/// Where durable EDUs come from: device-list updates, signing-key updates, to-device messages.
pub trait EduSource: Send + Sync {
    /// The oldest EDUs that a server has not taken yet, in the order of their ids.
    fn pending<'a>(&'a self, server: &'a ServerName, limit: usize) -> BoxFuture<'a, Vec<QueuedEdu>>;
    /// A server has taken all up to an id: they are not to be sent again.
    fn sent<'a>(&'a self, server: &'a ServerName, up_to: i64) -> BoxFuture<'a, ()>;
    /// Servers for which something is pending. Asked at the start and every few minutes, for what
    /// [`Sender::notify`](super::Sender::notify) said when nobody could hear it.
    fn servers(&self) -> BoxFuture<'_, Vec<OwnedServerName>>;
}

/// Which ephemeral EDU another one takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EduKey {
    Typing { room_nid: i64, user_nid: i64 },
    Presence { user_nid: i64 },
    Receipt { room_nid: i64, user_nid: i64, thread: Box<str> },
}

/// What an ephemeral EDU says.
#[derive(Clone, Debug)]
pub(crate) enum EduValue {
    Typing { room_id: OwnedRoomId, user_id: OwnedUserId, typing: bool },
    Presence { user_id: OwnedUserId, state: PresenceState, status_msg: Option<String>, active_ms: u64 },
    Receipt { room_id: OwnedRoomId, user_id: OwnedUserId, event_id: OwnedEventId, ts: i64 },
}

/// An ephemeral EDU, shared by the queues of all servers that it goes to.
#[derive(Clone, Debug)]
pub(crate) struct EphemeralEdu {
    pub(crate) key: EduKey,
    pub(crate) value: EduValue,
}

/// The ephemeral EDUs that wait for one server.
#[derive(Debug, Default)]
pub(crate) struct EduQueue(VecDeque<Arc<EphemeralEdu>>);

impl EduQueue {
    /// Puts an EDU in the place of the one that it replaces, or at the end.
    pub(crate) fn push(&mut self, edu: Arc<EphemeralEdu>) {
        if let Some(place) = self.0.iter_mut().rev().find(|known| known.key == edu.key) {
            *place = edu;
            return;
        }
        if self.0.len() == WAITING_MAX {
            self.0.pop_front();
            EDUS_DROPPED.with_label_values(&["full"]).inc();
        }
        self.0.push_back(edu);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        EDUS_DROPPED.with_label_values(&["trouble"]).inc_by(self.0.len() as u64);
        self.0 = VecDeque::new();
    }

    /// Takes what fits into some EDUs.
    pub(crate) fn take(&mut self, edus_max: usize, now_ms: u64) -> Vec<Box<RawValue>> {
        let mut drawn = Drawn::default();
        let mut rest = VecDeque::new();
        for edu in self.0.drain(..) {
            if !drawn.add(&edu, edus_max, now_ms) {
                rest.push_back(edu);
            }
        }
        self.0 = rest;
        drawn.into_json()
    }
}

#[derive(Serialize)]
struct Edu<'a, C> {
    edu_type: &'a str,
    content: C,
}

#[derive(Serialize)]
struct Typing {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    typing: bool,
}

#[derive(Serialize)]
struct PresenceUpdate {
    user_id: OwnedUserId,
    presence: PresenceState,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_msg: Option<String>,
    last_active_ago: u64,
    currently_active: bool,
}

#[derive(Serialize)]
struct Presence {
    push: Vec<PresenceUpdate>,
}

#[derive(Default, Serialize)]
struct RoomReceipts {
    #[serde(rename = "m.read")]
    read: BTreeMap<OwnedUserId, UserReceipt>,
}

#[derive(Serialize)]
struct UserReceipt {
    data: ReceiptData,
    event_ids: [OwnedEventId; 1],
}

#[derive(Serialize)]
struct ReceiptData {
    ts: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    thread_id: Box<str>,
}

/// The EDUs of one transaction while they are put together.
#[derive(Default)]
struct Drawn {
    typing: Vec<Typing>,
    presence: Vec<PresenceUpdate>,
    /// A user has one receipt a room in an EDU; those of other threads go into the next.
    receipts: Vec<BTreeMap<OwnedRoomId, RoomReceipts>>,
}

impl Drawn {
    fn len(&self) -> usize {
        self.typing.len() + usize::from(!self.presence.is_empty()) + self.receipts.len()
    }

    /// Adds an EDU; false when there is no place left for it.
    fn add(&mut self, edu: &EphemeralEdu, edus_max: usize, now_ms: u64) -> bool {
        let has_place = self.len() < edus_max;
        match &edu.value {
            EduValue::Typing { room_id, user_id, typing } => {
                if !has_place {
                    return false;
                }
                self.typing.push(Typing { room_id: room_id.clone(), user_id: user_id.clone(), typing: *typing });
            }
            EduValue::Presence { user_id, state, status_msg, active_ms } => {
                if self.presence.len() == PRESENCE_MAX || (self.presence.is_empty() && !has_place) {
                    return false;
                }
                self.presence.push(PresenceUpdate {
                    user_id: user_id.clone(),
                    presence: state.clone(),
                    status_msg: status_msg.clone(),
                    last_active_ago: now_ms.saturating_sub(*active_ms),
                    currently_active: *state == PresenceState::Online,
                });
            }
            EduValue::Receipt { room_id, user_id, event_id, ts } => {
                let is_free = |room: &RoomReceipts| !room.read.contains_key(user_id);
                let place = self.receipts.iter().position(|rooms| rooms.get(room_id).is_none_or(is_free));
                let place = match place {
                    Some(place) => place,
                    None if has_place => {
                        self.receipts.push(BTreeMap::new());
                        self.receipts.len() - 1
                    }
                    None => return false,
                };
                let thread_id = match &edu.key {
                    EduKey::Receipt { thread, .. } => thread.clone(),
                    _ => Box::default(),
                };
                let receipt = UserReceipt { data: ReceiptData { ts: *ts, thread_id }, event_ids: [event_id.clone()] };
                self.receipts[place].entry(room_id.clone()).or_default().read.insert(user_id.clone(), receipt);
            }
        }
        true
    }

    fn into_json(self) -> Vec<Box<RawValue>> {
        let mut edus = Vec::with_capacity(self.len());
        edus.extend(self.receipts.into_iter().map(|content| json("m.receipt", content)));
        if !self.presence.is_empty() {
            edus.push(json("m.presence", Presence { push: self.presence }));
        }
        edus.extend(self.typing.into_iter().map(|content| json("m.typing", content)));
        edus
    }
}

fn json(edu_type: &str, content: impl Serialize) -> Box<RawValue> {
    to_raw_value(&Edu { edu_type, content }).expect("maps with texts as keys are JSON")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ruma::{event_id, presence::PresenceState, room_id, user_id};
    use serde_json::{Value, json};

    use super::{EduKey, EduQueue, EduValue, EphemeralEdu, WAITING_MAX};

    fn typing(user_nid: i64, typing: bool) -> Arc<EphemeralEdu> {
        Arc::new(EphemeralEdu {
            key: EduKey::Typing { room_nid: 1, user_nid },
            value: EduValue::Typing {
                room_id: room_id!("!a:example.org").to_owned(),
                user_id: user_id!("@a:example.org").to_owned(),
                typing,
            },
        })
    }

    fn receipt(thread: &str, event_id: &ruma::EventId) -> Arc<EphemeralEdu> {
        Arc::new(EphemeralEdu {
            key: EduKey::Receipt { room_nid: 1, user_nid: 1, thread: thread.into() },
            value: EduValue::Receipt {
                room_id: room_id!("!a:example.org").to_owned(),
                user_id: user_id!("@a:example.org").to_owned(),
                event_id: event_id.to_owned(),
                ts: 7,
            },
        })
    }

    fn taken(queue: &mut EduQueue, max: usize) -> Vec<Value> {
        queue.take(max, 1000).iter().map(|edu| serde_json::from_str(edu.get()).unwrap()).collect()
    }

    /// The newest of a kind replaces the older one, and nothing grows without end.
    #[test]
    fn newest_of_a_kind() {
        let mut queue = EduQueue::default();
        queue.push(typing(1, true));
        queue.push(typing(1, false));
        let edu = json!({ "edu_type": "m.typing",
            "content": { "room_id": "!a:example.org", "user_id": "@a:example.org", "typing": false } });
        assert_eq!(taken(&mut queue, 100), [edu]);
        (0..2 * WAITING_MAX as i64).for_each(|user_nid| queue.push(typing(user_nid, true)));
        assert_eq!(taken(&mut queue, 100).len(), 100);
        assert_eq!(taken(&mut queue, 1000).len(), WAITING_MAX - 100);
        assert!(queue.is_empty());
    }

    /// Receipts are batched as the specification has them; those of another thread go into an EDU of their own.
    #[test]
    fn receipts_by_thread() {
        let mut queue = EduQueue::default();
        queue.push(receipt("", event_id!("$old")));
        queue.push(receipt("", event_id!("$all")));
        queue.push(receipt("main", event_id!("$main")));
        let edu = |data: Value, event_id: &str| {
            json!({ "edu_type": "m.receipt", "content": { "!a:example.org": { "m.read": {
                "@a:example.org": { "data": data, "event_ids": [event_id] } } } } })
        };
        let expected = [edu(json!({ "ts": 7 }), "$all"), edu(json!({ "ts": 7, "thread_id": "main" }), "$main")];
        assert_eq!(taken(&mut queue, 100), expected);
    }

    /// Presence goes in one EDU, with the time since the user was active when it is sent.
    #[test]
    fn presence_is_one_edu() {
        let mut queue = EduQueue::default();
        for user_nid in 0..2 {
            queue.push(Arc::new(EphemeralEdu {
                key: EduKey::Presence { user_nid },
                value: EduValue::Presence {
                    user_id: user_id!("@a:example.org").to_owned(),
                    state: PresenceState::Online,
                    status_msg: None,
                    active_ms: 400,
                },
            }));
        }
        let update = json!({ "user_id": "@a:example.org", "presence": "online", "last_active_ago": 600,
            "currently_active": true });
        let edu = json!({ "edu_type": "m.presence", "content": { "push": [update, update] } });
        assert_eq!(taken(&mut queue, 1), [edu]);
    }
}
