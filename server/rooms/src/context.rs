//! An event and what was said around it.

use std::{collections::HashSet, sync::Arc};

use myelin_store::{Direction, Event, state_tree};
use ruma::{OwnedEventId, api::client::filter::RoomEventFilter};

use crate::{
    Error, Result, Rooms,
    history::{PageRequest, Reader, matches},
};

/// An event, the events around it, and the state that they leave the room in.
#[derive(Clone, Debug)]
pub struct Context {
    /// The event.
    pub event: Arc<Event>,
    /// What came before it, the newest first.
    pub before: Vec<Arc<Event>>,
    /// What came after it, the oldest first.
    pub after: Vec<Arc<Event>>,
    /// The state after the last of these, as far as the filter lets it through.
    pub state: Vec<Arc<Event>>,
    /// The place before all of them: after everything up to this position.
    pub start: i64,
    /// The place after all of them, likewise.
    pub end: i64,
}

impl Rooms {
    /// Reads around an event ([specification]); `limit` is for both sides together.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such event, or the reader may not see it.
    ///
    /// [specification]: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidcontexteventid
    pub async fn read_context(
        self: &Arc<Self>,
        reader: &Reader<'_>,
        event_id: &OwnedEventId,
        limit: usize,
        filter: &RoomEventFilter,
    ) -> Result<Context> {
        let event = self.readable_event(reader, event_id).await?;
        let pos = event.pos.ok_or(Error::NotFound("the event is not part of the timeline"))?;
        let before = PageRequest {
            direction: Direction::Backward,
            from: Some(pos.saturating_sub(1)),
            to: None,
            limit: limit / 2,
            filter,
        };
        let before = self.read_page(reader, &before).await?;
        let after =
            PageRequest { direction: Direction::Forward, from: Some(pos), to: None, limit: limit - limit / 2, filter };
        let after = self.read_page(reader, &after).await?;

        let last = after.events.last().unwrap_or(&event);
        let state = if filter.lazy_load_options.is_disabled() {
            self.store.all_state_events(last.room_state).await?
        } else {
            let shown = before.events.iter().chain([&event]).chain(&after.events);
            let senders: HashSet<&str> = shown.map(|event| event.sender().as_str()).collect();
            self.state_with_members(last.room_state, &senders).await?
        };
        let state = state.into_iter().filter(|event| matches(filter, event)).collect();
        Ok(Context { event, before: before.events, after: after.events, state, start: before.end, end: after.end })
    }

    /// The state of a snapshot with no other members than these.
    async fn state_with_members(&self, root: i64, members: &HashSet<&str>) -> Result<Vec<Arc<Event>>> {
        let entries = state_tree::entries(&*self.store, &[root]).await.map_err(myelin_store::Error::from)?;
        let entries = entries.into_iter().next().unwrap_or_default();
        let key_nids: Vec<i64> = entries.iter().map(|(key_nid, _)| *key_nid).collect();
        // Keys are in memory or come in one query; the events of the other members are not read at all.
        let keys = self.store.state_keys(&key_nids).await?;
        let wanted: Vec<i64> = entries
            .iter()
            .zip(&keys)
            .filter(|(_, key)| &*key.event_type != "m.room.member" || members.contains(&*key.state_key))
            .map(|((_, event_nid), _)| *event_nid)
            .collect();
        Ok(self.store.events(&wanted).await?)
    }
}
