//! What is told besides rooms.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use myelin_store::{AccountData, Receipt, RoomName};
use ruma::{OwnedRoomId, RoomId};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::{
    connection::{Sent, Stand},
    plan::{Asked, Plan, stand_of},
    request::{Scope, ToDevice},
    response::{AccountDataAnswer, ByRoom, E2eeAnswer, ExtensionsAnswer, ToDeviceAnswer},
    rooms::Rooms,
};
use crate::{
    Error, Result, Sync,
    account_data::default_push_rules,
    ephemeral::{event, receipt_events, typing_event},
    index::may_see,
    response::DeviceLists,
};

/// What an answer tells besides rooms, and what the client knows of rooms after it.
pub(super) struct Extended {
    pub(super) answer: ExtensionsAnswer,
    pub(super) changes: HashMap<i64, Sent>,
    /// The last of what is not kept that was told.
    pub(super) serial: u64,
}

impl Sync {
    pub(super) async fn extend(&self, asked: &Asked<'_>, plan: &Plan, rooms: &Rooms) -> Result<Extended> {
        let extensions = &asked.request.extensions;
        let mut changes: HashMap<i64, Sent> = plan.missed.clone();
        changes.extend(&rooms.sent);
        let mut answer = ExtensionsAnswer::default();
        let names = self.names_of_eligible(asked, plan).await?;
        if let Some(to_device) = extensions.to_device {
            answer.to_device = Some(Box::pin(self.tell_messages(asked, plan, to_device)).await?);
        }
        if extensions.e2ee {
            answer.e2ee = Some(Box::pin(self.tell_keys(asked, plan)).await?);
        }
        if let Some(scope) = &extensions.account_data {
            answer.account_data = Box::pin(self.tell_data(asked, plan, scope, &names, &mut changes)).await?;
        }
        answer.receipts = Box::pin(self.tell_receipts(asked, plan, rooms, &names, &mut changes)).await?;
        let mut serial = asked.since.map_or(0, |since| since.serial);
        if let Some(scope) = &extensions.typing {
            answer.typing = Box::pin(self.tell_typing(asked, plan, scope, rooms, &names, &mut serial)).await?;
        }
        Ok(Extended { answer, changes, serial })
    }

    /// The names of the rooms in windows and subscriptions, where an extension may be about them.
    async fn names_of_eligible(&self, asked: &Asked<'_>, plan: &Plan) -> Result<HashMap<i64, Arc<RoomName>>> {
        let extensions = &asked.request.extensions;
        if extensions.account_data.is_none() && extensions.receipts.is_none() && extensions.typing.is_none() {
            return Ok(HashMap::new());
        }
        let nids: Vec<i64> = plan.eligible.keys().copied().collect();
        Ok(self.store.rooms(&nids).await?.into_iter().map(|name| (name.nid, name)).collect())
    }

    async fn tell_messages(&self, asked: &Asked<'_>, plan: &Plan, to_device: ToDevice) -> Result<ToDeviceAnswer> {
        let caller = &asked.request.caller;
        let (after, to) = (to_device.since.unwrap_or(0), plan.survey.view.to);
        let device = (caller.user_nid, caller.device_nid);
        let (events, told_to) = self.messages(device, after, to, to_device.limit).await?;
        Ok(ToDeviceAnswer { next_batch: told_to.unwrap_or(to.max(after)).to_string(), events })
    }

    async fn tell_keys(&self, asked: &Asked<'_>, plan: &Plan) -> Result<E2eeAnswer> {
        let caller = &asked.request.caller;
        let device_lists = match asked.since {
            Some(since) => self.device_lists(caller.user_nid, &caller.user_id, since.pos, &plan.survey.view).await?,
            None => DeviceLists::default(),
        };
        Ok(E2eeAnswer { device_lists, keys: self.keys_left(caller.device_nid).await? })
    }

    /// The user's data: what is new, and all of it of rooms that it was not told of before.
    async fn tell_data(
        &self,
        asked: &Asked<'_>,
        plan: &Plan,
        scope: &Scope,
        names: &HashMap<i64, Arc<RoomName>>,
        changes: &mut HashMap<i64, Sent>,
    ) -> Result<AccountDataAnswer> {
        let caller = &asked.request.caller;
        let (user_nid, to) = (caller.user_nid, plan.survey.view.to);
        let since = asked.since.filter(|since| since.knows_data).map(|since| since.pos);
        let in_scope = |nid: &i64| names.get(nid).is_some_and(|name| is_in(scope, plan, *nid, &name.room_id));
        let sent_of = |nid: &i64, changes: &HashMap<i64, Sent>| {
            changes.get(nid).or_else(|| asked.connection.rooms.get(nid)).copied()
        };
        let mut told: Vec<AccountData> = Vec::new();
        let mut has_push_rules = since.is_some();
        // The data of rooms that are not in sight may be much.
        let found = match since {
            None => self.store.account_data_in(user_nid, &[0]).await?,
            Some(since) if plan.survey.view.account_data => self.store.account_data_since(user_nid, since, to).await?,
            Some(_) => Vec::new(),
        };
        for data in found {
            let nid = data.room_nid;
            if nid == 0 {
                has_push_rules |= &*data.data_type == "m.push_rules";
                told.push(data);
            } else if let Some(sent) = sent_of(&nid, changes).filter(|sent| sent.data) {
                match in_scope(&nid) {
                    true => told.push(data),
                    false => drop(changes.insert(nid, Sent { data: false, ..sent })),
                }
            }
        }
        let mut new: Vec<i64> = Vec::new();
        for nid in plan.eligible.keys().filter(|nid| in_scope(nid)) {
            if let Some(sent) = sent_of(nid, changes).filter(|sent| !sent.data || since.is_none()) {
                new.push(*nid);
                changes.insert(*nid, Sent { data: true, ..sent });
            }
        }
        if !new.is_empty() {
            told.extend(self.store.account_data_in(user_nid, &new).await?);
        }
        let mut answer = AccountDataAnswer::default();
        for data in told {
            let content = RawValue::from_string(data.content.into()).map_err(Error::Write)?;
            let written = event(&data.data_type, &content)?;
            match names.get(&data.room_nid) {
                Some(name) => answer.rooms.entry(name.room_id.clone()).or_default().push(written),
                None => answer.global.push(written),
            }
        }
        if !has_push_rules {
            answer.global.push(event("m.push_rules", &default_push_rules(&caller.user_id)?)?);
        }
        Ok(answer)
    }

    /// Receipts: those that are new; of rooms where they were not told, the user's own and those of what was told of the
    /// room.
    async fn tell_receipts(
        &self,
        asked: &Asked<'_>,
        plan: &Plan,
        rooms: &Rooms,
        names: &HashMap<i64, Arc<RoomName>>,
        changes: &mut HashMap<i64, Sent>,
    ) -> Result<ByRoom> {
        let scope = asked.request.extensions.receipts.as_ref();
        let user_nid = asked.request.caller.user_nid;
        let in_scope = |nid: &i64| {
            let is_joined = plan.places.get(nid).is_some_and(|room| stand_of(room.place.membership) == Stand::Joined);
            let name = names.get(nid).filter(|_| is_joined);
            name.zip(scope).is_some_and(|(name, scope)| is_in(scope, plan, *nid, &name.room_id))
        };
        let sent_of = |nid: &i64, changes: &HashMap<i64, Sent>| {
            changes.get(nid).or_else(|| asked.connection.rooms.get(nid)).copied()
        };
        let mut told: Vec<Arc<Receipt>> = Vec::new();
        for receipt in &plan.receipts {
            let nid = receipt.room_nid;
            if let Some(sent) = sent_of(&nid, changes).filter(|sent| sent.receipts) {
                match in_scope(&nid) {
                    true => told.push(receipt.clone()),
                    false => drop(changes.insert(nid, Sent { receipts: false, ..sent })),
                }
            }
        }
        let mut new: Vec<i64> = Vec::new();
        for nid in plan.eligible.keys().filter(|nid| in_scope(nid)) {
            if let Some(sent) = sent_of(nid, changes).filter(|sent| !sent.receipts) {
                new.push(*nid);
                changes.insert(*nid, Sent { receipts: true, ..sent });
            }
        }
        if !new.is_empty() {
            let found = self.store.receipts(&new, 0, plan.survey.view.to).await?;
            let first = |nid: &i64| rooms.first.get(nid).copied().unwrap_or(i64::MIN);
            let concerns = |receipt: &Receipt| {
                may_see(receipt, user_nid)
                    && (receipt.user_nid == user_nid || receipt.event_pos >= first(&receipt.room_nid))
            };
            told.extend(found.into_iter().filter(concerns).map(Arc::new));
        }
        if told.is_empty() {
            return Ok(ByRoom::default());
        }
        let mut answer = BTreeMap::new();
        for (nid, events) in receipt_events(&self.store, &told).await? {
            if let Some(name) = names.get(&nid) {
                answer.insert(name.room_id.clone(), merged(events)?);
            }
        }
        Ok(ByRoom { rooms: answer })
    }

    async fn tell_typing(
        &self,
        asked: &Asked<'_>,
        plan: &Plan,
        scope: &Scope,
        rooms: &Rooms,
        names: &HashMap<i64, Arc<RoomName>>,
        serial: &mut u64,
    ) -> Result<ByRoom> {
        let news = self.live.news(asked.since.map(|since| since.serial), false);
        *serial = news.to;
        let mut typing: BTreeMap<i64, Vec<i64>> = news.typing.into_iter().collect();
        if rooms.answers.values().any(|room| room.initial) {
            // Where rooms are new to the client, who types there may not be.
            for (nid, users) in self.live.news(None, false).typing {
                typing.entry(nid).or_insert(users);
            }
        }
        let mut answer: BTreeMap<OwnedRoomId, Box<RawValue>> = BTreeMap::new();
        for (nid, users) in typing {
            let is_joined = plan.places.get(&nid).is_some_and(|room| stand_of(room.place.membership) == Stand::Joined);
            let Some(name) = names.get(&nid).filter(|name| is_joined && is_in(scope, plan, nid, &name.room_id)) else {
                continue;
            };
            let is_initial = rooms.answers.get(&name.room_id).is_some_and(|room| room.initial);
            if !users.is_empty() || !is_initial {
                answer.insert(name.room_id.clone(), typing_event(&self.store, &users).await?);
            }
        }
        Ok(ByRoom { rooms: answer })
    }

    /// Whether there may be news besides rooms; if not, no answer has to be put together to see it.
    pub(super) fn may_extend(&self, asked: &Asked<'_>, plan: &Plan) -> bool {
        let Some(since) = asked.since else { return true };
        let (caller, extensions) = (&asked.request.caller, &asked.request.extensions);
        let view = &plan.survey.view;
        if let Some(to_device) = extensions.to_device
            && self.index.to_device_pos(caller.user_nid, caller.device_nid) > to_device.since.unwrap_or(0)
        {
            return true;
        }
        let is_unsaid = |needs: fn(&Sent) -> bool| {
            let known = plan.eligible.keys().filter_map(|nid| asked.connection.rooms.get(nid));
            known.into_iter().any(|sent| !needs(sent))
        };
        let keys = view.device_lists.as_ref().is_none_or(|changed| !changed.is_empty());
        let moves = view
            .rooms
            .iter()
            .any(|room| room.place.pos > since.pos || room.members_pos > since.pos || room.encryption_pos > since.pos);
        let may_type =
            || self.live.news(Some(since.serial), false).typing.iter().any(|(nid, _)| plan.eligible.contains_key(nid));
        (extensions.e2ee && (keys || moves))
            || (extensions.account_data.is_some()
                && (view.account_data || !since.knows_data || is_unsaid(|sent| sent.data)))
            || (extensions.receipts.is_some() && (!plan.receipts.is_empty() || is_unsaid(|sent| sent.receipts)))
            || (extensions.typing.is_some() && may_type())
    }
}

/// Whether an extension is about a room.
fn is_in(scope: &Scope, plan: &Plan, nid: i64, room_id: &RoomId) -> bool {
    let one = plan.eligible.get(&nid);
    one.is_some_and(|one| scope.includes(room_id, one.is_subscribed, one.lists.iter().map(|list| &**list)))
}

/// One `m.receipt` event of those of all threads.
fn merged(mut events: Vec<Box<RawValue>>) -> Result<Box<RawValue>> {
    if events.len() == 1
        && let Some(only) = events.pop()
    {
        return Ok(only);
    }
    let mut content: Map<String, Value> = Map::new();
    for event in events {
        let mut event: Value = serde_json::from_str(event.get()).map_err(Error::Write)?;
        if let Some(Value::Object(more)) = event.get_mut("content").map(Value::take) {
            merge(&mut content, more);
        }
    }
    to_raw_value(&serde_json::json!({ "type": "m.receipt", "content": content })).map_err(Error::Write)
}

/// Adds what another object has, where both have an object that of it too. The depth is that of what we wrote.
fn merge(into: &mut Map<String, Value>, more: Map<String, Value>) {
    for (name, value) in more {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(known)), Value::Object(more)) => merge(known, more),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}
