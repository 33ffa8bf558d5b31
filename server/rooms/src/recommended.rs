//! Our own events in rooms with a policy server: it is asked before anyone hears of them ([specification]).
//!
//! The server may take its time, and the room's writer is not held meanwhile. So an event that was built is taken out of
//! its draft, shown to the policy server, and then received like one of another server: what was written to the room
//! meanwhile stands beside it in the graph.
//!
//! [specification]: https://spec.matrix.org/v1.19/server-server-api/#asking-for-a-policy-server-signature-on-an-event

use std::sync::Arc;

use myelin_store::RoomName;
use ruma::CanonicalJsonObject;
use serde_json::value::RawValue;

use crate::{
    Error, Result, RoomWriter, Rooms,
    receive::{Incoming, Opinions, Place, Policy, Verdict, is_exempt, parse},
    writer::rules_of,
};

/// Events that were drafted, and that a policy server has to see.
pub(crate) struct Unseen {
    policy: Arc<Policy>,
    events: Vec<Drafted>,
}

/// An event as the writer has made it.
struct Drafted {
    json: Box<RawValue>,
    transaction: Option<(i64, Box<str>)>,
}

impl RoomWriter {
    /// What a policy server has to see of the draft before it is committed; `None` in nearly all rooms.
    pub(crate) async fn unseen(&mut self) -> Result<Option<Unseen>> {
        if !self.draft.is_ours || self.draft.create.is_some() {
            return Ok(None);
        }
        let Some(root) = self.draft.events.first().map(|event| event.state_before) else { return Ok(None) };
        let Some(policy) = self.policy_at(root).await? else { return Ok(None) };
        if self.draft.events.iter().all(|event| is_exempt(&event.event_type().into(), event.state_key())) {
            return Ok(None);
        }
        let drafted = |event: &myelin_store::Event| {
            let json = RawValue::from_string(event.json().to_owned()).map_err(Error::Corrupt)?;
            let parts = event.parts();
            Ok(Drafted { json, transaction: parts.device_nid.zip(parts.txn) })
        };
        let events = self.draft.events.iter().map(drafted).collect::<Result<_>>()?;
        Ok(Some(Unseen { policy, events }))
    }
}

impl Rooms {
    /// Shows events to the room's policy server and puts them into the room; `false` when they must be built anew: what
    /// they were built on is not there, or the room has another policy now.
    ///
    /// # Errors
    ///
    /// [`Error::NotRecommended`] with what the policy server answers: "reject the Client-Server API request which was
    /// generating the event […]. The event the client was attempting to send SHOULD be discarded". [`Error::Forbidden`]
    /// when the room does not allow an event any more.
    pub(crate) async fn put_in_recommended(self: &Arc<Self>, room: &Arc<RoomName>, unseen: Unseen) -> Result<bool> {
        let Unseen { policy, events } = unseen;
        let rules = rules_of(&room.version)?;
        let mut incoming = Vec::with_capacity(events.len());
        let mut opinions = Opinions::default();
        let mut transactions = Vec::new();
        for drafted in events {
            let received = parse(&drafted.json, &room.room_id, &rules)?;
            let object = self.shown_to(&policy, received.object, &rules).await?;
            let json = serde_json::to_string(&object).map_err(Error::Corrupt)?;
            let signed = parse(&RawValue::from_string(json).map_err(Error::Corrupt)?, &room.room_id, &rules)?;
            let event = Incoming::new(signed.event_id, &signed.object, &rules)?;
            opinions.note(&event.event_id, &policy, Ok(()));
            transactions.extend(drafted.transaction.map(|transaction| (event.event_id.clone(), transaction)));
            incoming.push(event);
        }
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open_settled().await?;
            writer.graph.opinions = opinions.clone();
            writer.graph.transactions = transactions.iter().cloned().collect();
            match writer.put_in_ours(&incoming).await {
                Ok(()) if !writer.graph.opinions.unasked.is_empty() => return Ok(false),
                Ok(()) => {
                    if attempts.submit(writer).await?.is_some() {
                        return Ok(true);
                    }
                }
                Err(Error::Gap) => return Ok(false),
                Err(_) if writer.give_up().await? => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The event with the signature of the policy server, if it needs one.
    async fn shown_to(
        &self,
        policy: &Policy,
        object: CanonicalJsonObject,
        rules: &ruma::room_version_rules::RoomVersionRules,
    ) -> Result<CanonicalJsonObject> {
        let text = |field: &str| object.get(field).and_then(|value| value.as_str());
        if is_exempt(&text("type").unwrap_or_default().into(), text("state_key")) {
            return Ok(object);
        }
        self.recommended(policy, object, rules).await.map_err(|error| Error::NotRecommended(Box::new(error)))
    }

    /// An event of ours with the signature of the room's policy server, if it has one: for those that other servers see
    /// before they are in the room.
    pub(crate) async fn recommended_in(
        &self,
        room: &RoomName,
        object: CanonicalJsonObject,
    ) -> Result<CanonicalJsonObject> {
        match self.policy_of(room).await? {
            Some(policy) => self.shown_to(&policy, object, &rules_of(&room.version)?).await,
            None => Ok(object),
        }
    }
}

impl RoomWriter {
    async fn put_in_ours(&mut self, events: &[Incoming]) -> Result<()> {
        self.learn_create().await?;
        self.prepare(&events.iter().collect::<Vec<_>>()).await?;
        for event in events {
            match self.receive(event, None, Place::Timeline).await? {
                Verdict::Accepted | Verdict::Known => {}
                Verdict::Rejected(reason) | Verdict::SoftFailed(reason) => return Err(Error::Forbidden(reason)),
            }
        }
        Ok(())
    }
}
