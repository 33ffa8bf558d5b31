//! How clients say what they have read.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#receipts)

use myelin_store::{AccountData, Event, Operation, Receipt, RoomName};
use ruma::EventId;

use crate::{
    Error, Result, Sync, now_ms,
    unread::{MAIN, is_event_id, thread_of},
};

/// Up to where something is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptType {
    /// `m.read`, which others see.
    Read,
    /// `m.read.private`, which they do not.
    ReadPrivate,
    /// `m.fully_read`, the read marker.
    FullyRead,
}

impl Sync {
    /// Marks a room as read up to an event. A thread is [`None`] for all of the room, `main`, or its root's id.
    ///
    /// Receipts only move forward; one that would not is accepted and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the user is not in the room, [`Error::NotFound`] when the event is not one of the
    /// room, [`Error::InvalidParam`] when the thread is empty or not the event's.
    pub async fn mark_read(
        &self,
        room: &RoomName,
        user_nid: i64,
        receipt_type: ReceiptType,
        thread: Option<&str>,
        event_id: &EventId,
    ) -> Result<()> {
        self.mark_read_at(room, user_nid, receipt_type, thread, event_id, None).await
    }

    /// [`Self::mark_read`] at a time in milliseconds since 1970, which is when the user's own server says that it was. No
    /// receipt is from the future.
    ///
    /// # Errors
    ///
    /// Those of [`Self::mark_read`].
    pub async fn mark_read_at(
        &self,
        room: &RoomName,
        user_nid: i64,
        receipt_type: ReceiptType,
        thread: Option<&str>,
        event_id: &EventId,
        at_ms: Option<u64>,
    ) -> Result<()> {
        self.require_joined(room.nid, user_nid).await?;
        let event = self.store.event_by_id(event_id).await?;
        let event = event
            .filter(|event| event.room_nid == room.nid && event.is_shown())
            .ok_or(Error::NotFound("there is no such event in this room"))?;
        self.rouse(user_nid);
        let receipt_type = match receipt_type {
            ReceiptType::FullyRead => {
                if thread.is_some() {
                    return Err(Error::InvalidParam("a read marker has no thread".into()));
                }
                return self.move_marker(room, user_nid, &event).await;
            }
            ReceiptType::Read => "m.read",
            ReceiptType::ReadPrivate => "m.read.private",
        };
        if let Some(thread) = thread {
            self.check_thread(&event, thread).await?;
        }
        let thread = thread.unwrap_or_default();
        let event_pos = event.pos.unwrap_or_default();
        let known = self.store.receipts_of_user(user_nid, &[room.nid]).await?;
        let is_behind = known.iter().any(|known| {
            *known.receipt_type == *receipt_type && *known.thread == *thread && known.event_pos >= event_pos
        });
        if is_behind {
            return Ok(());
        }
        let receipt = Receipt {
            room_nid: room.nid,
            user_nid,
            receipt_type: receipt_type.into(),
            thread: thread.into(),
            event_nid: event.nid,
            event_pos,
            ts: i64::try_from(at_ms.unwrap_or(u64::MAX).min(now_ms())).unwrap_or(i64::MAX),
            pos: 0,
        };
        self.store.commit(Operation::Receipt(receipt)).await?;
        Ok(())
    }

    async fn move_marker(&self, room: &RoomName, user_nid: i64, event: &Event) -> Result<()> {
        let content = serde_json::json!({ "event_id": event.event_id }).to_string();
        let data = AccountData {
            user_nid,
            room_nid: room.nid,
            data_type: "m.fully_read".into(),
            content: content.into(),
            pos: 0,
        };
        self.store.commit(Operation::AccountData(data)).await?;
        Ok(())
    }

    /// "The thread_id is invalid […]: it is empty; the event_id is not related to the thread_id."
    async fn check_thread(&self, event: &Event, thread: &str) -> Result<()> {
        if thread.is_empty() {
            return Err(Error::InvalidParam("thread_id must not be empty".into()));
        }
        // "It MUST be main or the thread root's event ID": nothing else may reach the database.
        if thread != MAIN && !is_event_id(thread) {
            return Err(Error::InvalidParam("thread_id must be main or an event's identifier".into()));
        }
        // "Thread roots are considered to be in the main timeline"; clients also name a root within its thread.
        if *thread_of(&self.store, event).await? == *thread || (thread != MAIN && event.event_id == thread) {
            return Ok(());
        }
        Err(Error::InvalidParam("the event is not in this thread".into()))
    }
}
