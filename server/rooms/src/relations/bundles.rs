//! What is told of events together with them, in `unsigned`.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events)

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use myelin_store::{BundledChild, Event, Parent, Relation, RoomName, ThreadQuery};
use ruma::{OwnedEventId, OwnedUserId, UserId};

use super::is_ignored;
use crate::{Result, Rooms, history::Reader, visibility::Viewer};

/// Newest events of a thread among which one is looked for that the user may see, where that is not the newest.
const NEWEST: i64 = 16;

/// Who is told of events.
#[derive(Clone, Copy, Debug)]
pub struct Audience<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The user's number.
    pub user_nid: i64,
    /// Whom the user ignores, if that is known; otherwise it is read where it matters.
    pub ignored: Option<&'a HashSet<OwnedUserId>>,
}

/// What the user sees of a room.
#[derive(Clone, Debug)]
pub struct Sight<'a> {
    /// The room.
    pub room: Arc<RoomName>,
    /// The user, unless the user sees everything.
    pub viewer: Option<Viewer<'a>>,
    /// The last position that the user is told of.
    pub end: i64,
}

impl<'a> From<&Reader<'a>> for Sight<'a> {
    fn from(reader: &Reader<'a>) -> Self {
        Self { room: reader.room.clone(), viewer: Some(reader.viewer.clone()), end: reader.end() }
    }
}

/// What is told together with one event.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// Its newest edit.
    pub edit: Option<Arc<Event>>,
    /// The events that refer to it.
    pub references: Vec<OwnedEventId>,
    /// The thread that starts from it.
    pub thread: Option<BundledThread>,
}

/// A thread, as told with its first event.
#[derive(Clone, Debug)]
pub struct BundledThread {
    /// The newest event in it.
    pub latest: Arc<Event>,
    /// How many events are in it.
    pub count: i64,
    /// "true when the authenticated user is either: the sender of the thread root event; the sender of an event which
    /// references the thread root".
    pub participated: bool,
}

/// What is told together with events, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Bundles(HashMap<i64, Bundle>);

impl Bundles {
    /// What is told together with an event.
    pub fn of(&self, event: &Event) -> Option<&Bundle> {
        if self.0.is_empty() { None } else { self.0.get(&event.nid) }
    }
}

impl Extend<(i64, Bundle)> for Bundles {
    fn extend<T: IntoIterator<Item = (i64, Bundle)>>(&mut self, bundles: T) {
        self.0.extend(bundles);
    }
}

impl IntoIterator for Bundles {
    type Item = (i64, Bundle);
    type IntoIter = std::collections::hash_map::IntoIter<i64, Bundle>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// All that decides about what is told.
struct Desk<'a> {
    user_nid: i64,
    sights: HashMap<i64, &'a Sight<'a>>,
    ignored: Cow<'a, HashSet<OwnedUserId>>,
    ignored_nids: Vec<i64>,
}

/// A parent, and what was found for it.
type Family = (Arc<Event>, Vec<BundledChild>);

impl Rooms {
    /// What is to be told together with some events of some rooms.
    ///
    /// No query for events of which it is in memory that nothing relates to them, and a few for all others together.
    pub async fn bundles(
        &self,
        audience: &Audience<'_>,
        sights: &[Sight<'_>],
        events: &[Arc<Event>],
    ) -> Result<Bundles> {
        let sights: HashMap<i64, &Sight<'_>> = sights.iter().map(|sight| (sight.room.nid, sight)).collect();
        let families = self.families(&sights, events).await?;
        let mut bundles = Bundles::default();
        if families.is_empty() {
            return Ok(bundles);
        }
        let ignored = match audience.ignored {
            Some(ignored) => Cow::Borrowed(ignored),
            None => Cow::Owned(self.ignored_by(audience.user_id, audience.user_nid).await?),
        };
        let ignored_ids: Vec<&str> = ignored.iter().map(|user_id| user_id.as_str()).collect();
        let ignored_nids = self.store.nids_of_users(&ignored_ids).await?;
        let desk = Desk { user_nid: audience.user_nid, sights, ignored, ignored_nids };
        self.gather(&desk, families, &mut bundles).await?;

        // "child events of the latest_event should themselves be aggregated"; no thread starts from within a thread.
        let latest: Vec<Arc<Event>> = bundles
            .0
            .values()
            .filter_map(|bundle| bundle.thread.as_ref())
            .map(|thread| thread.latest.clone())
            .filter(|latest| !bundles.0.contains_key(&latest.nid))
            .collect();
        if !latest.is_empty() {
            let families = self.families(&desk.sights, &latest).await?;
            self.gather(&desk, families, &mut bundles).await?;
        }
        Ok(bundles)
    }

    /// The events that something is to be told with, with what that may be.
    async fn families(&self, sights: &HashMap<i64, &Sight<'_>>, events: &[Arc<Event>]) -> Result<Vec<Family>> {
        let parents: Vec<Parent<'_>> =
            events.iter().filter_map(|event| Some(Parent { event, end: sights.get(&event.room_nid)?.end })).collect();
        let mut children = self.store.bundled_children(&parents).await?;
        if children.is_empty() {
            return Ok(Vec::new());
        }
        let mut families = Vec::with_capacity(children.len());
        for event in events {
            let Some(mut found) = children.remove(&event.nid) else { continue };
            let own = Relation::of(event);
            // "If the original event is redacted, any m.replace relationship should not be bundled with it"; "you
            // cannot edit an edit"; "It is not possible to create a thread from an event which itself is the child of
            // an event relationship".
            let is_edited = event.redacted_by.is_none() && own.as_ref().is_none_or(|own| own.rel_type != "m.replace");
            found.retain(|child| match child {
                BundledChild::Edit(_) => is_edited,
                BundledChild::Reference(_) => true,
                BundledChild::Thread(_) => own.is_none(),
            });
            families.push((event.clone(), found));
        }
        Ok(families)
    }

    async fn gather(&self, desk: &Desk<'_>, families: Vec<Family>, bundles: &mut Bundles) -> Result<()> {
        let nids: Vec<i64> = families
            .iter()
            .flat_map(|(_, children)| children)
            .filter_map(|child| match child {
                BundledChild::Edit(nid) | BundledChild::Reference(nid) => Some(*nid),
                BundledChild::Thread(_) => None,
            })
            .collect();
        let shown = self.shown(desk, &nids).await?;
        let mut threads = self.threads_of(desk, &families).await?;
        for (event, children) in families {
            let mut bundle = Bundle { thread: threads.remove(&event.nid), ..Bundle::default() };
            for child in children {
                match child {
                    BundledChild::Edit(nid) => {
                        // "The most recent event is determined by comparing origin_server_ts; if two or more
                        // replacement events have identical origin_server_ts, the event with the lexicographically
                        // largest event_id is treated as more recent."
                        let when = |event: &Arc<Event>| (event.origin_server_ts(), event.event_id.clone());
                        let edit = shown.get(&nid).cloned();
                        bundle.edit = bundle.edit.into_iter().chain(edit).max_by_key(when);
                    }
                    BundledChild::Reference(nid) => {
                        bundle.references.extend(shown.get(&nid).map(|event| event.event_id.clone()));
                    }
                    BundledChild::Thread(_) => {}
                }
            }
            if bundle.edit.is_some() || bundle.thread.is_some() || !bundle.references.is_empty() {
                bundles.0.insert(event.nid, bundle);
            }
        }
        Ok(())
    }

    /// The events among some that the user is told of, by number.
    async fn shown(&self, desk: &Desk<'_>, nids: &[i64]) -> Result<HashMap<i64, Arc<Event>>> {
        let mut by_room: HashMap<i64, Vec<Arc<Event>>> = HashMap::new();
        for event in self.store.events(nids).await? {
            if event.is_shown() && !is_ignored(&event, &desk.ignored) {
                by_room.entry(event.room_nid).or_default().push(event);
            }
        }
        let mut shown = HashMap::with_capacity(nids.len());
        for (room_nid, events) in by_room {
            let Some(sight) = desk.sights.get(&room_nid) else { continue };
            let events = match &sight.viewer {
                Some(viewer) => self.visible(&sight.room, viewer, events).await?,
                None => events,
            };
            shown.extend(events.into_iter().map(|event| (event.nid, event)));
        }
        Ok(shown)
    }

    /// The threads that start from some events, as far as the user sees anything of them.
    async fn threads_of(&self, desk: &Desk<'_>, families: &[Family]) -> Result<HashMap<i64, BundledThread>> {
        let mut open: Vec<ThreadQuery<'_>> = Vec::new();
        for (event, children) in families {
            let Some(sight) = desk.sights.get(&event.room_nid) else { continue };
            for child in children {
                if let BundledChild::Thread(count) = child {
                    open.push(ThreadQuery { root: Parent { event, end: sight.end }, count: *count });
                }
            }
        }
        let mut threads = HashMap::with_capacity(open.len());
        // The newest event first. Who may not see that, for having been elsewhere then, may see one before it.
        for newest in [1, NEWEST] {
            if open.is_empty() {
                break;
            }
            let views = self.store.thread_views(&open, newest, desk.user_nid, &desk.ignored_nids).await?;
            let nids: Vec<i64> = views.iter().flat_map(|view| view.newest.iter().copied()).collect();
            let shown = self.shown(desk, &nids).await?;
            let mut unseen = Vec::new();
            for (query, view) in open.into_iter().zip(views) {
                let root = query.root.event;
                let Some(latest) = view.newest.iter().find_map(|nid| shown.get(nid)).cloned() else {
                    if !view.newest.is_empty() {
                        unseen.push(query);
                    }
                    continue;
                };
                let participated = view.participated || root.sender_nid == desk.user_nid;
                threads.insert(root.nid, BundledThread { latest, count: view.count, participated });
            }
            open = unseen;
        }
        Ok(threads)
    }
}
