//! Messages to the device that asks.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging)

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{Error, Result, Sync};

/// "If there is a large queue of send-to-device messages, the server should limit the number sent in each /sync response.
/// 100 messages is recommended as a reasonable limit."
pub(crate) const MESSAGES_MAX: usize = 100;
/// Devices of which it is known what they have acknowledged; with more, all are forgotten and looked at again.
const DEVICES_MAX: usize = 100_000;

/// By device, up to where its messages have been deleted.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged(Mutex<HashMap<i64, i64>>);

impl Acknowledged {
    /// Whether a device may have messages up to a position, the last of them at `last`.
    fn may_have(&self, device_nid: i64, up_to: i64, last: i64) -> bool {
        let deleted = self.0.lock().get(&device_nid).copied().unwrap_or(i64::MIN);
        deleted < up_to && deleted < last
    }

    fn deleted(&self, device_nid: i64, up_to: i64) {
        let mut known = self.0.lock();
        if known.len() >= DEVICES_MAX && !known.contains_key(&device_nid) {
            known.clear();
        }
        let place = known.entry(device_nid).or_insert(up_to);
        *place = up_to.max(*place);
    }
}

/// A message as it is told.
#[derive(Serialize)]
struct Message<'a> {
    sender: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    content: &'a RawValue,
}

/// A message to a device as its client is told of it.
pub(crate) fn written(sender: &str, event_type: &str, content: String) -> Result<Box<RawValue>> {
    let content = RawValue::from_string(content).map_err(Error::Write)?;
    to_raw_value(&Message { sender, event_type, content: &content }).map_err(Error::Write)
}

impl Sync {
    /// "When the client calls /sync again with the next_batch token from the first response, the server should infer
    /// that any send-to-device messages in that response have been delivered successfully, and delete them from the
    /// store."
    pub(crate) async fn acknowledge(&self, user_nid: i64, device_nid: i64, up_to: i64) -> Result<()> {
        let last = self.index.to_device_pos(user_nid, device_nid);
        if self.acknowledged.may_have(device_nid, up_to, last) {
            Box::pin(self.store.delete_to_device(device_nid, up_to)).await?;
            self.acknowledged.deleted(device_nid, up_to);
        }
        Ok(())
    }

    /// The messages for a device with positions in `(after, to]`, and up to where they are, if there are too many for one
    /// answer.
    pub(crate) async fn messages(
        &self,
        (user_nid, device_nid): (i64, i64),
        after: i64,
        to: i64,
        limit: usize,
    ) -> Result<(Vec<Box<RawValue>>, Option<i64>)> {
        if self.index.to_device_pos(user_nid, device_nid) <= after {
            return Ok((Vec::new(), None));
        }
        let mut waiting = self.store.to_device_messages(device_nid, after, to, limit as i64 + 1).await?;
        let mut told_to = None;
        if waiting.len() > limit {
            waiting.truncate(limit);
            told_to = waiting.last().map(|message| message.pos);
        }
        let messages =
            waiting.into_iter().map(|message| written(&message.sender, &message.event_type, message.content));
        Ok((messages.collect::<Result<_>>()?, told_to))
    }
}
