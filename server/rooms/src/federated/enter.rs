//! Our users who come into rooms that other servers hold.

use std::{collections::BTreeMap, sync::Arc};

use myelin_store::{Membership, NewRoom, RoomName};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomId,
    RoomVersionId, UserId,
    api::federation::membership::{create_join_event, create_knock_event, prepare_join_event, prepare_knock_event},
};
use ruma_state_res::Event as _;
use serde_json::value::RawValue;

use super::{raw, room_versions};
use crate::{
    Error, Pdu, Result, RoomWriter, Rooms,
    receive::{Incoming, Place, Verdict, parse, verify},
    remote::RemoteError,
    writer::rules_of,
};

/// Servers that are asked for a room, one after the other.
pub(super) const SERVERS_MAX: usize = 10;
/// Events of a room's state, or of its auth chain, that are taken over.
const STATE_MAX: usize = 500_000;

/// What a join through another server begins with.
struct Entrance {
    version: RoomVersionId,
    join: Incoming,
    /// State and auth chain, verified.
    events: Vec<Incoming>,
    /// The state before the join.
    state: Vec<OwnedEventId>,
}

impl Rooms {
    /// Joins a room through another server that is in it, trying several in turn.
    ///
    /// # Errors
    ///
    /// What the last server has answered, where one did; [`Error::NotFound`] when no server is known.
    pub(crate) async fn join_through(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        via: &[OwnedServerName],
        user_id: &UserId,
        content: &CanonicalJsonObject,
    ) -> Result<Arc<RoomName>> {
        let servers = self.servers_to_ask(room_id, via);
        let mut refusal = Error::NotFound("no server is known that is in the room");
        for server in servers {
            match Box::pin(self.join_by(&server, room_id, user_id, content)).await {
                Ok(room) => return Ok(room),
                Err(error) => {
                    tracing::info!(room.id = %room_id, %error, "could not join through {server}: {error}");
                    refusal = more_telling(refusal, error);
                }
            }
        }
        Err(refusal)
    }

    async fn join_by(
        self: &Arc<Self>,
        server: &OwnedServerName,
        room_id: &OwnedRoomId,
        user_id: &UserId,
        content: &CanonicalJsonObject,
    ) -> Result<Arc<RoomName>> {
        let mut request = prepare_join_event::v1::Request::new(room_id.clone(), user_id.to_owned());
        request.ver = room_versions();
        let template = self.remote()?.make_join(server, request).await.map_err(told_by_room)?;
        // "[…] if not provided, the room version is assumed to be either "1" or "2"."
        let version = template.room_version.unwrap_or(RoomVersionId::V1);
        let mut content = content.clone();
        if let Some(authoriser) = authoriser(&template.event) {
            content.insert("join_authorised_via_users_server".into(), CanonicalJsonValue::String(authoriser));
        }
        let join = self.completed(&template.event, room_id, &version, user_id, content)?;
        let request =
            create_join_event::v2::Request::new(room_id.clone(), join.event_id.clone(), raw_json(&join.json)?);
        let answer = self.remote()?.send_join(server, request).await.map_err(told_by_room)?.room_state;
        let join = match answer.event {
            // The resident server has added its signature.
            Some(event) => {
                let rules = rules_of(&version)?;
                let signed = parse(&event, room_id, &rules)?;
                super::must_be_called(&signed.event_id, &join.event_id)?;
                verify(self, &rules, vec![signed]).await?.pop().ok_or(Error::Gap)??
            }
            None => join,
        };
        if answer.state.len() + answer.auth_chain.len() > STATE_MAX {
            return Err(Error::TooLarge);
        }
        let (state, mut events) = self.checked(room_id, &version, &answer.state).await?;
        events.extend(self.checked(room_id, &version, &answer.auth_chain).await?.1);
        must_begin(&events, &version)?;
        let entrance = Entrance { version, join, events, state };
        Box::pin(self.settle_in(room_id, user_id, server, entrance)).await
    }

    /// Reads and verifies the events of a state. Those that are not as they must be are left out.
    async fn checked(
        &self,
        room_id: &RoomId,
        version: &RoomVersionId,
        events: &[Box<RawValue>],
    ) -> Result<(Vec<OwnedEventId>, Vec<Incoming>)> {
        let rules = rules_of(version)?;
        let mut received = Vec::with_capacity(events.len());
        for event in events {
            match parse(event, room_id, &rules) {
                Ok(event) => received.push(event),
                Err(refusal) => tracing::info!(room.id = %room_id, "an event of the state is dropped: {refusal}"),
            }
            tokio::task::consume_budget().await;
        }
        let mut verified = Vec::with_capacity(received.len());
        for outcome in verify(self, &rules, received).await? {
            match outcome {
                Ok(event) => verified.push(event),
                Err(refusal) => tracing::info!(room.id = %room_id, "an event of the state is dropped: {refusal}"),
            }
        }
        Ok((verified.iter().map(|event| event.event_id.clone()).collect(), verified))
    }

    /// Writes the room with the join.
    async fn settle_in(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        user_id: &UserId,
        server: &OwnedServerName,
        entrance: Entrance,
    ) -> Result<Arc<RoomName>> {
        loop {
            let (room, is_new) = self.room_or_new(room_id, &entrance.version).await?;
            if room.version != entrance.version {
                return Err(Error::BadJson(format!("{server} says that the room has another version")));
            }
            let receiver = self.receivers.of(room.nid);
            let _receiving = receiver.lock().await;
            let mut attempts = self.attempts(&room);
            let mut writer = match is_new {
                true => RoomWriter::open_new(self, &room).await?,
                false => attempts.open_settled().await?,
            };
            let built = writer.enter(&entrance).await;
            match attempts.finish(writer, built).await {
                Ok(Some(())) => {
                    tracing::info!(room.id = %room_id, user.id = %user_id, "joined {room_id} through {server}");
                    return Ok(self.store.room(room_id).await?.unwrap_or(room));
                }
                Ok(None) => {}
                // Another request has made the room meanwhile.
                Err(error) if is_new && self.store.room(room_id).await?.is_some() => {
                    tracing::debug!(room.id = %room_id, %error, "the room was made twice at a time");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Knocks at a room through another server that is in it, trying several in turn.
    pub(crate) async fn knock_through(
        self: &Arc<Self>,
        room_id: &OwnedRoomId,
        via: &[OwnedServerName],
        user_id: &UserId,
        content: &CanonicalJsonObject,
    ) -> Result<()> {
        let mut refusal = Error::NotFound("no server is known that is in the room");
        for server in self.servers_to_ask(room_id, via) {
            match Box::pin(self.knock_by(&server, room_id, user_id, content)).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::info!(room.id = %room_id, %error, "could not knock through {server}: {error}");
                    refusal = more_telling(refusal, error);
                }
            }
        }
        Err(refusal)
    }

    async fn knock_by(
        self: &Arc<Self>,
        server: &OwnedServerName,
        room_id: &OwnedRoomId,
        user_id: &UserId,
        content: &CanonicalJsonObject,
    ) -> Result<()> {
        let mut request = prepare_knock_event::v1::Request::new(room_id.clone(), user_id.to_owned());
        request.ver = room_versions();
        let template = self.remote()?.make_knock(server, request).await.map_err(told_by_room)?;
        let version = template.room_version;
        let knock = self.completed(&template.event, room_id, &version, user_id, content.clone())?;
        let request =
            create_knock_event::v1::Request::new(room_id.clone(), knock.event_id.clone(), raw_json(&knock.json)?);
        let answer = self.remote()?.send_knock(server, request).await.map_err(told_by_room)?;
        let stripped = super::invite::stripped(&answer.knock_room_state)?;
        self.keep_out_of_band(room_id, &version, &knock, user_id, Membership::Knock, &stripped).await
    }

    /// Completes and signs an event that another server has prepared for one of our users.
    ///
    /// Only what places it in the graph is taken from the other server.
    pub(super) fn completed(
        &self,
        template: &RawValue,
        room_id: &RoomId,
        version: &RoomVersionId,
        user_id: &UserId,
        content: CanonicalJsonObject,
    ) -> Result<Incoming> {
        let rules = rules_of(version)?;
        let template: CanonicalJsonObject =
            serde_json::from_str(template.get()).map_err(|error| Error::BadJson(error.to_string()))?;
        let text = |value: &str| CanonicalJsonValue::String(value.to_owned());
        let mut object: CanonicalJsonObject = template
            .into_iter()
            .filter(|(field, _)| matches!(field.as_str(), "prev_events" | "auth_events" | "depth"))
            .collect();
        object.insert("room_id".into(), text(room_id.as_str()));
        object.insert("type".into(), text("m.room.member"));
        object.insert("sender".into(), text(user_id.as_str()));
        object.insert("state_key".into(), text(user_id.as_str()));
        object.insert("content".into(), CanonicalJsonValue::Object(content));
        object.insert("origin_server_ts".into(), self.timestamp());
        if rules.event_format.require_event_id {
            object.insert("event_id".into(), text(EventId::new_v1(&self.server_name).as_str()));
        }
        self.sign(&mut object, version)?;
        let received = parse(&raw(&object)?, room_id, &rules)?;
        let json = serde_json::to_string(&received.object).map_err(Error::Corrupt)?;
        let depth = match received.object.get("depth") {
            Some(CanonicalJsonValue::Integer(depth)) => i64::from(*depth),
            _ => 0,
        };
        let pdu = Pdu::parse(0, depth, received.event_id.clone(), &json, false, &rules)?;
        Ok(Incoming { event_id: received.event_id, json: json.into(), pdu })
    }
}

impl RoomWriter {
    /// Takes over a room's state from another server, with the join of one of our users after it.
    async fn enter(&mut self, entrance: &Entrance) -> Result<()> {
        self.add_outliers(&entrance.events).await?;
        self.prepare(&[&entrance.join]).await?;
        let old_root = self.head.state_root;
        // What we may have had of the room is from before; the join follows what the others have.
        self.extremities.clear();
        self.head.extremities.clear();
        let verdict = self.receive_anew(&entrance.join, &entrance.state).await?;
        if let Verdict::Rejected(reason) | Verdict::SoftFailed(reason) = verdict {
            return Err(Error::Forbidden(reason));
        }
        self.change_members(old_root).await?;
        if self.base_version == 0 {
            self.draft.create = Some(NewRoom {
                room_id: self.room.room_id.clone(),
                version: self.room.version.clone(),
                is_public: false,
                alias: None,
            });
        }
        Ok(())
    }

    /// [`Self::receive`] where the room's state is what came with the event.
    async fn receive_anew(&mut self, join: &Incoming, state: &[OwnedEventId]) -> Result<Verdict> {
        self.learn(&state.iter().collect::<Vec<_>>()).await?;
        self.head.state_root = self.snapshot_of(state).await?;
        self.receive(join, Some(state), Place::Entrance).await
    }
}

/// The state must have the room's beginning.
fn must_begin(events: &[Incoming], version: &RoomVersionId) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Create {
        room_version: Option<String>,
    }
    let creates: BTreeMap<&OwnedEventId, &Incoming> = events
        .iter()
        .filter(|event| event.pdu.event_type().to_string() == "m.room.create")
        .map(|event| (&event.event_id, event))
        .collect();
    let [create] = creates.values().collect::<Vec<_>>()[..] else {
        return Err(Error::BadJson("the room's state has not one create event".into()));
    };
    let content: Option<Create> = create.pdu.content_as();
    let found = content.and_then(|content| content.room_version).unwrap_or_else(|| "1".to_owned());
    if found != version.as_str() {
        return Err(Error::BadJson("the room's create event is of another version".into()));
    }
    Ok(())
}

fn authoriser(template: &RawValue) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Event {
        content: Content,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        join_authorised_via_users_server: Option<String>,
    }
    let event: Event = serde_json::from_str(template.get()).ok()?;
    event.content.join_authorised_via_users_server
}

pub(super) fn raw_json(json: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(json.to_owned()).map_err(Error::Corrupt)
}

/// What a server of the room says counts as the room's word.
fn told_by_room(error: RemoteError) -> Error {
    match &error {
        RemoteError::Refused { errcode, message, .. } if errcode == "M_FORBIDDEN" => Error::Forbidden(message.clone()),
        RemoteError::Refused { errcode, body, .. } if errcode == "M_INCOMPATIBLE_ROOM_VERSION" => {
            let version = body.as_ref().and_then(|body| body.get("room_version")).and_then(|version| version.as_str());
            Error::UnsupportedRoomVersion(version.unwrap_or("unknown").to_owned())
        }
        _ => error.into(),
    }
}

/// Of two refusals, the one that says more: what a room says, before what keeps us from asking it.
fn more_telling(first: Error, second: Error) -> Error {
    let says = |error: &Error| match error {
        Error::Forbidden(_) | Error::UnsupportedRoomVersion(_) => 3,
        Error::Remote(error) if matches!(**error, RemoteError::Refused { .. }) => 2,
        Error::NotFound(_) => 0,
        _ => 1,
    };
    if says(&first) > says(&second) { first } else { second }
}
