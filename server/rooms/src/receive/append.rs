//! What becomes of an event once everything that it refers to is here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{Event, EventParts, Membership, MembershipChange, StateKey, flags, redacted_event_id};
use ruma::{EventId, OwnedEventId, events::TimelineEventType};
use ruma_state_res::{
    Event as _, auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules,
    events::RoomPowerLevelsIntField,
};

use super::{Incoming, Node};
use crate::{
    Error, Pdu, Result, RoomWriter, pdu,
    redact::redacted_json,
    resolve::{Draft, Drafts, resolve_with},
    writer::{AuthState, Extremity, PREV_EVENTS},
};

/// Events that are looked at to find out which extremities an event follows.
const FOLLOWED_MAX: usize = 1_000;

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is part of the room.
    Accepted,
    /// It was here before.
    Known,
    /// It is not allowed by its auth events or the state before it.
    Rejected(String),
    /// It is not allowed by the room's current state.
    SoftFailed(String),
}

/// Where an event goes, and how much is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the end of the timeline.
    Timeline,
    /// At the end of the timeline, to be sent on to the other servers of the room.
    TimelineAndOn,
    /// At the end of the timeline, as a join of ours that the room's servers have taken already: what we know of the
    /// room is what they told us with it.
    Entrance,
    /// Before what we have of the room.
    History,
}

impl RoomWriter {
    /// Looks up events by their identifiers, those that are not known yet by one query.
    pub(crate) async fn learn(&mut self, event_ids: &[&OwnedEventId]) -> Result<()> {
        let mut unknown: Vec<&str> = event_ids
            .iter()
            .filter(|event_id| !self.graph.nodes.contains_key(**event_id))
            .map(|event_id| event_id.as_str())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        unknown.sort_unstable();
        unknown.dedup();
        for event in self.rooms.store.events_by_id(&unknown).await? {
            if event.room_nid != self.room.nid {
                // As good as none: nothing of another room counts here.
                continue;
            }
            let parsed = self.slot.as_ref().and_then(|loaded| loaded.parsed(event.nid));
            let pdu = match parsed {
                Some(pdu) => pdu,
                None => Arc::new(Pdu::from_event(&event, &self.rules)?),
            };
            let is_shown = event.flags & (flags::REJECTED | flags::SOFT_FAILED) == 0;
            let node = Node { pdu, is_outlier: event.is_outlier(), is_shown, state_after: event.state_after() };
            self.graph.nodes.insert(event.event_id.clone(), node);
        }
        Ok(())
    }

    /// Looks up all that deciding about some events needs, at once.
    pub(crate) async fn prepare(&mut self, events: &[&Incoming]) -> Result<()> {
        let referred: Vec<&OwnedEventId> = events.iter().flat_map(|event| event.references()).collect();
        self.learn(&referred).await?;
        let own: Vec<&EventId> = events.iter().map(|event| &*event.event_id).collect();
        self.graph.missing.extend(self.rooms.store.missing_among(self.room.nid, &own).await?);
        self.graph.redactions.extend(self.rooms.store.waiting_redactions(&own).await?);
        Ok(())
    }

    /// Decides about an event that was [prepared](Self::prepare) and adds it to the draft.
    ///
    /// `state` names the state before it where that cannot be known from the events before it.
    ///
    /// # Errors
    ///
    /// [`Error::Gap`] when events before it are missing and no state is given.
    pub(crate) async fn receive(
        &mut self,
        incoming: &Incoming,
        state: Option<&[OwnedEventId]>,
        place: Place,
    ) -> Result<Verdict> {
        let prevs: Vec<OwnedEventId> = incoming.pdu.prevs().to_vec();
        let auths: Vec<OwnedEventId> = incoming.pdu.auths().to_vec();
        self.learn(&state.unwrap_or_default().iter().collect::<Vec<_>>()).await?;
        let outlier = self.graph.get(&incoming.event_id).map(|node| (node.pdu.nid, node.is_outlier));
        if outlier.is_some_and(|(_, is_outlier)| !is_outlier) {
            return Ok(Verdict::Known);
        }
        let outlier = outlier.map(|(nid, _)| nid);
        let state_before = match state {
            Some(event_ids) => self.snapshot_of(event_ids).await?,
            None => self.state_between(&prevs).await?,
        };
        let fresh = self.rooms.store.take_event_nids(1).await?.start;
        let nid = outlier.unwrap_or(fresh);
        let mut pdu = incoming.pdu.clone();
        pdu.nid = nid;
        let mut verdict = self.judge(&Arc::new(pdu.clone()), &auths, state_before, place).await?;
        if verdict == Verdict::Accepted && matches!(place, Place::Timeline | Place::TimelineAndOn) {
            verdict = self.judge_by_policy(incoming).await?;
        }
        if matches!(verdict, Verdict::Rejected(_)) {
            pdu.reject();
        }
        let pdu = Arc::new(pdu);
        self.place(incoming, &pdu, &prevs, &auths, state_before, &mut verdict, place, outlier.is_some()).await?;
        self.head.version = fresh;
        Ok(verdict)
    }

    /// The checks 4 to 6: by the auth events, by the state before, by the current state.
    async fn judge(
        &mut self,
        pdu: &Arc<Pdu>,
        auths: &[OwnedEventId],
        state_before: i64,
        place: Place,
    ) -> Result<Verdict> {
        let auth_types = match auth_types_for_event(
            pdu.event_type(),
            pdu.sender(),
            pdu.state_key(),
            pdu.content(),
            &self.rules.authorization,
        ) {
            Ok(auth_types) => auth_types,
            Err(reason) => return Ok(Verdict::Rejected(reason)),
        };
        let before = self.auth_state_at(state_before, &auth_types).await?;
        let mut auth_pdus: Vec<Arc<Pdu>> =
            auths.iter().filter_map(|event_id| self.graph.get(event_id)).map(|node| node.pdu.clone()).collect();
        if auth_pdus.len() < auths.len() {
            return Ok(Verdict::Rejected("an auth event is not known, and could not be had".into()));
        }
        if let Some((_, create)) = before.iter().find(|(_, pdu)| *pdu.event_type() == TimelineEventType::RoomCreate)
            && pdu::find(&auth_pdus, create.id()).is_none()
        {
            // From version 12 on it is not named; the room's identifier names it.
            auth_pdus.push(create.clone());
        }
        if let Err(reason) = self.allowed_by_auth_events(pdu, &auth_pdus) {
            return Ok(Verdict::Rejected(format!("not allowed by its auth events: {reason}")));
        }
        if let Err(reason) = self.allowed_by_state(pdu, &before) {
            return Ok(Verdict::Rejected(format!("not allowed by the state before it: {reason}")));
        }
        if place != Place::History && self.head.state_root != state_before && self.head.state_root != 0 {
            let current = self.auth_state_at(self.head.state_root, &auth_types).await?;
            if let Err(reason) = self.allowed_by_state(pdu, &current) {
                return Ok(Verdict::SoftFailed(format!("not allowed by the current state: {reason}")));
            }
        }
        Ok(Verdict::Accepted)
    }

    pub(super) fn allowed_by_auth_events(&self, pdu: &Arc<Pdu>, auth: &[Arc<Pdu>]) -> Result<(), String> {
        let rules = &self.rules.authorization;
        check_state_independent_auth_rules(rules, pdu.clone(), |event_id: &EventId| {
            pdu::find(auth, event_id).cloned()
        })?;
        check_state_dependent_auth_rules(rules, pdu.clone(), |event_type, state_key| {
            let is_it = |pdu: &&Arc<Pdu>| {
                pdu.event_type().to_string() == event_type.to_string() && pdu.state_key() == Some(state_key)
            };
            auth.iter().find(is_it).cloned()
        })
    }

    fn allowed_by_state(&self, pdu: &Arc<Pdu>, state: &AuthState) -> Result<(), String> {
        check_state_dependent_auth_rules(&self.rules.authorization, pdu.clone(), |event_type, state_key| {
            state.iter().find(|(key, _)| key.0 == *event_type && key.1 == state_key).map(|(_, pdu)| pdu.clone())
        })
    }

    /// Puts an event into the draft, and moves the room's head.
    #[expect(clippy::too_many_arguments, reason = "they are what the step before has found out")]
    async fn place(
        &mut self,
        incoming: &Incoming,
        pdu: &Arc<Pdu>,
        prevs: &[OwnedEventId],
        auths: &[OwnedEventId],
        state_before: i64,
        verdict: &mut Verdict,
        place: Place,
        was_outlier: bool,
    ) -> Result<()> {
        let store = self.rooms.store.clone();
        let key_nid = match pdu.state_key() {
            Some(state_key) => {
                let key = StateKey::new(&pdu.event_type().to_string(), state_key);
                Some(store.key_nids(&[key]).await?[0])
            }
            None => None,
        };
        let is_rejected = matches!(verdict, Verdict::Rejected(_));
        let mut state_after = state_before;
        if let Some(key_nid) = key_nid
            && !is_rejected
        {
            state_after = self.snapshot_from(state_before, &[(key_nid, Some(pdu.nid))]).await?;
        }
        let auth_nids: Vec<i64> =
            auths.iter().filter_map(|event_id| self.graph.get(event_id)).map(|node| node.pdu.nid).collect();
        if key_nid.is_some() && !was_outlier {
            self.draft.auth_edges.push((pdu.nid, auth_nids));
        }
        self.draft.pdus.push(pdu.clone());
        let is_shown = *verdict == Verdict::Accepted;
        let node = Node { pdu: pdu.clone(), is_outlier: false, is_shown, state_after };
        self.graph.nodes.insert(incoming.event_id.clone(), node);
        self.note_gaps(incoming, prevs, pdu.nid);

        let old_root = self.head.state_root;
        if *verdict == Verdict::Accepted && place != Place::History {
            self.advance(pdu, prevs, state_after, &incoming.event_id).await?;
        }
        let room_state = if place == Place::History { state_after } else { self.head.state_root };
        let replaces = match key_nid {
            Some(key_nid) if *verdict == Verdict::Accepted => {
                let base = if place == Place::History { state_before } else { old_root };
                store.state_event_nids(base, &[key_nid]).await?[0]
            }
            _ => None,
        };
        let verdict_flags = match verdict {
            Verdict::Rejected(_) => flags::REJECTED,
            Verdict::SoftFailed(_) => flags::SOFT_FAILED,
            _ if place == Place::TimelineAndOn => flags::TO_SEND,
            _ => 0,
        };
        let (device_nid, txn) = self.graph.transactions.remove(&incoming.event_id).unzip();
        let parts = EventParts {
            nid: pdu.nid,
            room_nid: self.room.nid,
            depth: pdu.depth,
            device_nid,
            txn,
            sender_nid: store.user_nid(pdu.sender()).await?,
            key_nid,
            state_before,
            room_state,
            forked_state: (state_after != room_state).then_some(state_after),
            replaces,
            flags: verdict_flags,
            ..EventParts::default()
        };
        let event = Event::new(parts, incoming.event_id.clone(), (*incoming.json).into())?;
        if was_outlier {
            self.draft.promoted.insert(pdu.nid);
        }
        let event = self.redacted_on_arrival(event).await?;
        if *verdict == Verdict::Accepted && *pdu.event_type() == TimelineEventType::RoomRedaction {
            self.redact_target(&event).await?;
        }
        match place {
            Place::History => self.draft.history.push(event),
            Place::Timeline | Place::TimelineAndOn | Place::Entrance => {
                self.draft.events.push(event);
                self.change_members(old_root).await?;
            }
        }
        Ok(())
    }

    /// Moves the forward extremities and the current state.
    async fn advance(
        &mut self,
        pdu: &Arc<Pdu>,
        prevs: &[OwnedEventId],
        state_after: i64,
        event_id: &OwnedEventId,
    ) -> Result<()> {
        let before: HashSet<i64> = self.extremities.iter().map(|extremity| extremity.state).collect();
        let followed = self.followed(prevs).await?;
        self.extremities.retain(|extremity| !followed.contains(extremity.pdu.id()));
        if !self.draft.filled.contains(event_id) {
            self.extremities.push(Extremity { pdu: pdu.clone(), state: state_after });
        }
        if self.extremities.len() > PREV_EVENTS {
            // The lowest goes: the next event of a server that knows it will follow it.
            self.extremities.sort_by_key(|extremity| extremity.pdu.depth);
            self.extremities.remove(0);
        }
        let states: HashSet<i64> = self.extremities.iter().map(|extremity| extremity.state).collect();
        if states.len() == 1 {
            self.head.state_root = self.extremities[0].state;
        } else if states != before {
            let roots: Vec<i64> = states.into_iter().collect();
            self.head.state_root = self.resolved(&roots).await?;
        }
        self.head.extremities = self.extremities.iter().map(|extremity| extremity.pdu.nid).collect();
        self.head.depth = self.head.depth.max(pdu.depth);
        Ok(())
    }

    /// The events that one with these predecessors follows, as far as they can be extremities: its predecessors, and
    /// theirs where those were not taken into the room and so have not followed anything.
    async fn followed(&mut self, prevs: &[OwnedEventId]) -> Result<HashSet<OwnedEventId>> {
        let mut followed = HashSet::new();
        let mut open = prevs.to_vec();
        while !open.is_empty() && followed.len() < FOLLOWED_MAX {
            self.learn(&open.iter().collect::<Vec<_>>()).await?;
            let nodes = open.iter().filter_map(|event_id| self.graph.get(event_id));
            let hidden = nodes.filter(|node| !node.is_outlier && !node.is_shown);
            let before: Vec<OwnedEventId> = hidden.flat_map(|node| node.pdu.prevs().iter().cloned()).collect();
            followed.extend(open);
            open = before.into_iter().filter(|event_id| !followed.contains(event_id)).collect();
        }
        Ok(followed)
    }

    /// The state after some events together.
    async fn state_between(&mut self, prevs: &[OwnedEventId]) -> Result<i64> {
        let mut roots: Vec<i64> = Vec::new();
        for event_id in prevs {
            match self.graph.get(event_id) {
                Some(node) if !node.is_outlier => roots.push(node.state_after),
                _ => return Err(Error::Gap),
            }
        }
        roots.sort_unstable();
        roots.dedup();
        match roots.as_slice() {
            [] => Ok(0),
            [root] => Ok(*root),
            _ => self.resolved(&roots).await,
        }
    }

    async fn resolved(&mut self, roots: &[i64]) -> Result<i64> {
        let drafts: Drafts = self
            .draft
            .auth_edges
            .iter()
            .filter_map(|(nid, auth)| {
                let pdu = self.draft.pdus.iter().find(|pdu| pdu.nid == *nid)?.clone();
                Some((*nid, Draft { pdu, auth: auth.as_slice().into() }))
            })
            .collect();
        let resolved = resolve_with(&self.rooms, &self.rules, roots, &drafts).await?;
        self.snapshot_from(resolved.base, &resolved.changes).await
    }

    pub(super) async fn snapshot_from(&mut self, base: i64, changes: &[(i64, Option<i64>)]) -> Result<i64> {
        if changes.is_empty() {
            return Ok(base);
        }
        let (root, nodes) = self.rooms.store.update_state(base, changes).await?;
        self.draft.nodes.extend(nodes);
        Ok(root)
    }

    /// The snapshot of the state that some events make up. Those that are not known or rejected are left out.
    pub(crate) async fn snapshot_of(&mut self, event_ids: &[OwnedEventId]) -> Result<i64> {
        let state: Vec<Arc<Pdu>> = event_ids
            .iter()
            .filter_map(|event_id| self.graph.get(event_id))
            .filter(|node| !node.pdu.rejected() && node.pdu.state_key().is_some())
            .map(|node| node.pdu.clone())
            .collect();
        let keys: Vec<StateKey> = state
            .iter()
            .map(|pdu| StateKey::new(&pdu.event_type().to_string(), pdu.state_key().unwrap_or_default()))
            .collect();
        let key_nids = self.rooms.store.key_nids(&keys).await?;
        // From the current state, so that what both have is shared.
        let current: HashMap<i64, i64> =
            self.rooms.store.state_entries(self.head.state_root).await?.into_iter().collect();
        let wanted: HashMap<i64, i64> = key_nids.into_iter().zip(state.iter().map(|pdu| pdu.nid)).collect();
        let mut changes: Vec<(i64, Option<i64>)> = wanted
            .iter()
            .filter(|(key, nid)| current.get(key) != Some(nid))
            .map(|(key, nid)| (*key, Some(*nid)))
            .collect();
        changes.extend(current.keys().filter(|key| !wanted.contains_key(key)).map(|key| (*key, None)));
        self.snapshot_from(self.head.state_root, &changes).await
    }

    /// Takes note of events before this one that are missing, and that this one no longer is.
    fn note_gaps(&mut self, incoming: &Incoming, prevs: &[OwnedEventId], nid: i64) {
        let missing = prevs.iter().filter(|event_id| self.graph.get(event_id).is_none_or(|node| node.is_outlier));
        self.draft.gaps.extend(missing.map(|event_id| (event_id.clone(), nid)));
        let event_id = &incoming.event_id;
        let drafted = self.draft.gaps.len();
        self.draft.gaps.retain(|(gap, _)| gap != event_id);
        if self.draft.gaps.len() < drafted || self.graph.missing.contains(event_id) {
            self.draft.filled.push(event_id.clone());
        }
    }

    /// The memberships that a change of the current state brings.
    pub(crate) async fn change_members(&mut self, old_root: i64) -> Result<()> {
        let store = self.rooms.store.clone();
        if old_root == self.head.state_root {
            return Ok(());
        }
        let changes = store.state_diff(old_root, self.head.state_root).await?;
        let keys = store.state_keys(&changes.iter().map(|change| change.key).collect::<Vec<_>>()).await?;
        let members: Vec<(String, Option<i64>, Option<i64>)> = changes
            .iter()
            .zip(&keys)
            .filter(|(_, key)| &*key.event_type == "m.room.member")
            .map(|(change, key)| (key.state_key.to_string(), change.new, change.old))
            .collect();
        let users: Vec<ruma::OwnedUserId> =
            members.iter().filter_map(|(user, ..)| ruma::UserId::parse(user).ok()).collect();
        let user_refs: Vec<&ruma::UserId> = users.iter().map(|user| &**user).collect();
        let user_nids: HashMap<&str, i64> =
            user_refs.iter().map(|user| user.as_str()).zip(store.user_nids(&user_refs).await?).collect();
        let nids: Vec<i64> = members.iter().filter_map(|(_, new, _)| *new).collect();
        let words = self.memberships_in(&nids).await?;
        for (user, new, old) in &members {
            let Some(user_nid) = user_nids.get(user.as_str()) else { continue };
            let change = match new {
                Some(nid) => words.get(nid).map(|membership| (*membership, *nid)),
                // The state says nothing of the user any more.
                None => old.map(|nid| (Membership::Leave, nid)),
            };
            if let Some((membership, event_nid)) = change {
                self.draft.memberships.retain(|change| change.user_nid != *user_nid);
                self.draft.memberships.push(MembershipChange { user_nid: *user_nid, membership, event_nid });
            }
        }
        Ok(())
    }

    async fn memberships_in(&self, nids: &[i64]) -> Result<HashMap<i64, Membership>> {
        #[derive(serde::Deserialize)]
        struct Content {
            membership: String,
        }
        let word = |content: Option<Content>| content.and_then(|content| Membership::from_word(&content.membership));
        let mut found = HashMap::new();
        let mut stored = Vec::new();
        for &nid in nids {
            match self.draft.pdus.iter().find(|pdu| pdu.nid == nid) {
                Some(pdu) => drop(word(pdu.content_as()).map(|membership| found.insert(nid, membership))),
                None => stored.push(nid),
            }
        }
        for event in self.rooms.store.events(&stored).await? {
            if let Some(membership) = word(serde_json::from_str(event.content()).ok()) {
                found.insert(event.nid, membership);
            }
        }
        Ok(found)
    }

    /// Takes the content of the event that a redaction names, if the redaction's sender may.
    ///
    /// "[…] the redaction is valid if the sender has the power level to redact, or its domain matches the redacted
    /// event's sender's"; in room versions 1 and 2 the authorisation rules have asked for that.
    async fn redact_target(&mut self, redaction: &Event) -> Result<()> {
        let Some(target_id) = redacted_event_id(redaction).and_then(|id| EventId::parse(id).ok()) else {
            return Ok(());
        };
        if let Some(place) = self.draft.events.iter().position(|event| event.event_id == target_id) {
            if self.may_redact(redaction, self.draft.events[place].sender().clone()).await? {
                let event = redacted_by(&self.draft.events[place], redaction.nid, &self.rules)?;
                self.draft.events[place] = event;
            }
            return Ok(());
        }
        let Some(target) = self.rooms.store.event_by_id(&target_id).await? else {
            self.draft.waiting_redactions.push((target_id, redaction.nid));
            return Ok(());
        };
        let is_ours = target.room_nid == self.room.nid && target.redacted_by.is_none();
        if is_ours && self.may_redact(redaction, target.sender().clone()).await? {
            let json = redacted_json(&target, &self.rules)?;
            self.draft.redactions.push(myelin_store::Redaction { target, by: redaction.nid, json });
        }
        Ok(())
    }

    async fn may_redact(&mut self, redaction: &Event, target_sender: ruma::OwnedUserId) -> Result<bool> {
        if self.rules.authorization.special_case_room_redaction {
            return Ok(true);
        }
        if redaction.sender().server_name() == target_sender.server_name() {
            return Ok(true);
        }
        let level = self.level_of(redaction.sender()).await?;
        Ok(level >= self.level_for(RoomPowerLevelsIntField::Redact).await?)
    }

    /// The event without its content, if a redaction came before it.
    async fn redacted_on_arrival(&mut self, event: Event) -> Result<Event> {
        let waiting = self.graph.redactions.iter().filter(|(target, _)| *target == event.event_id);
        let waiting: Vec<i64> = waiting.map(|(_, redaction_nid)| *redaction_nid).collect();
        for redaction_nid in waiting {
            let redaction = self.rooms.store.event(redaction_nid).await?;
            if redaction.room_nid == self.room.nid && self.may_redact(&redaction, event.sender().clone()).await? {
                return redacted_by(&event, redaction_nid, &self.rules);
            }
        }
        Ok(event)
    }
}

fn redacted_by(event: &Event, redaction_nid: i64, rules: &ruma::room_version_rules::RoomVersionRules) -> Result<Event> {
    let parts = EventParts { redacted_by: Some(redaction_nid), ..event.parts() };
    Ok(Event::new(parts, event.event_id.clone(), redacted_json(event, rules)?)?)
}
