//! Sending messages and state.

use std::sync::Arc;

use myelin_store::RoomName;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, UserId};
use serde_json::value::RawValue;

use crate::{Appended, Error, Result, Rooms, Template};

/// A client's transaction: repeated with the same values, a request has no further effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// The device, by number.
    pub device_nid: i64,
    /// What tells one endpoint's transactions from another's, without spaces.
    pub scope: String,
    /// The client's transaction id.
    pub id: String,
}

impl Transaction {
    /// As the store keeps it.
    pub(crate) fn key(&self) -> String {
        format!("{} {}", self.scope, self.id)
    }
}

/// Reads an event's content, which must be an object of canonical JSON.
///
/// # Errors
///
/// [`Error::BadJson`] for anything else, for example a number with a fraction.
pub fn content(raw: &RawValue) -> Result<CanonicalJsonObject> {
    match serde_json::from_str(raw.get()) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(Error::BadJson("an event's content must be an object".into())),
        Err(error) => Err(Error::BadJson(format!("an event's content must be canonical JSON: {error}"))),
    }
}

impl Rooms {
    /// Sends an event. A transaction that was seen before gives the event that it made then.
    pub async fn send(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        mut template: Template,
        transaction: Option<&Transaction>,
    ) -> Result<OwnedEventId> {
        if let Some(transaction) = transaction {
            if let Some(event_id) = self.recent_transactions.get(transaction) {
                return Ok(event_id);
            }
            template.transaction = Some((transaction.device_nid, transaction.key()));
        }
        let sent = match self.check_relation(room, &template).await {
            Ok(_held) => self.append(room, template).await,
            Err(error) => Err(error),
        };
        match (sent, transaction) {
            (Ok(appended), Some(transaction)) => {
                self.recent_transactions.insert(transaction.clone(), appended.event_id.clone());
                Ok(appended.event_id)
            }
            (Ok(appended), None) => Ok(appended.event_id),
            (Err(error), Some(transaction)) => {
                // The database takes a transaction once. If it has this one, the request is a repeated one.
                match self.store.event_by_transaction(transaction.device_nid, &transaction.key()).await {
                    Ok(Some(event_id)) => Ok(event_id),
                    _ => Err(error),
                }
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn append(self: &Arc<Self>, room: &Arc<RoomName>, template: Template) -> Result<Appended> {
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let built = writer.append(template.clone()).await;
            if let Some(appended) = attempts.finish(writer, built).await? {
                return Ok(appended);
            }
        }
    }

    /// Sets a piece of state.
    pub async fn set_state(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        sender: &UserId,
        event_type: &str,
        state_key: &str,
        content: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        self.send(room, Template::state(sender, event_type, state_key, content), None).await
    }
}
