//! Unread counts: the events after a user's receipt that the user's push rules notify of.
//!
//! Nothing is counted when a message is sent. A count is worked out when its user syncs, from where it was worked out
//! last; what was counted stays in memory, and in the database after a long scan.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications)

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use myelin_rooms::visibility::membership_in;
use myelin_store::{Event, Membership, Receipt, RoomName, StateKey, Store, UnreadCheckpoint};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{
    EventId, OwnedUserId, UInt, UserId,
    events::room::{
        create::RoomCreateEventContent,
        power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource},
    },
    push::{Action, FlattenedJson, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    index::Settings,
    metrics::{UNREAD_EVENTS, UNREAD_SCANS},
    notify::Pushed,
};

/// Users' counts of rooms in memory.
const COUNTS: usize = 200_000;
/// Events in memory in the form that push rules look at, shared by all who receive them.
const FLATTENED: usize = 4096;
/// Rooms whose power levels are kept for push rules.
const LEVELS: usize = 4096;
/// Events that a count looks back over; older ones do not count any more.
const SCAN_MAX: usize = 1000;
/// Rooms whose events are read at once.
const ROOMS_AT_ONCE: usize = 16;
/// After a scan of so many events, the counts are kept in the database.
const WORTH_KEEPING: usize = 64;
/// Membership events followed back to find when a user joined.
const STEPS_BACK: usize = 16;
/// "Implementations are encouraged to do a maximum of 3 hops to find a thread".
const HOPS: usize = 3;

/// "The length of an event ID […] MUST NOT exceed 255 bytes."
const EVENT_ID_BYTES_MAX: usize = 255;

/// The thread of what is in no thread.
pub(crate) const MAIN: &str = "main";

/// Unread events of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) notifications: u64,
    pub(crate) highlights: u64,
    first: i64,
    last: i64,
}

/// By thread, [`MAIN`] among them.
pub(crate) type ThreadCounts = BTreeMap<Box<str>, Counts>;

/// What a user has not read in a room.
#[derive(Clone, Debug, Default)]
struct Unread {
    loaded: bool,
    /// How far the user has read: by thread, and under the empty name whatever the thread.
    floors: BTreeMap<Box<str>, i64>,
    /// All events up to this position were counted.
    counted: i64,
    counts: ThreadCounts,
    /// A receipt was put in the middle of what was counted.
    stale: bool,
    /// Grows with each receipt.
    receipts: u64,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    floors: BTreeMap<Box<str>, i64>,
    counts: ThreadCounts,
}

impl Unread {
    fn floor(&self, thread: &str) -> i64 {
        let of = |thread: &str| self.floors.get(thread).copied().unwrap_or(0);
        of("").max(of(thread))
    }

    /// Takes note that events up to a position were read. Receipts only move forward.
    fn read_up_to(&mut self, thread: &str, pos: i64) {
        if self.floors.get(thread).is_some_and(|floor| *floor >= pos) {
            return;
        }
        self.floors.insert(thread.into(), pos);
        self.receipts += 1;
        let mut stale = false;
        self.counts.retain(|name, counts| {
            if !thread.is_empty() && **name != *thread || counts.first > pos {
                return true;
            }
            stale |= counts.last > pos;
            counts.last > pos
        });
        self.stale |= stale;
    }

    fn count(&mut self, thread: Box<str>, pos: i64, highlight: bool) {
        let counts = self.counts.entry(thread).or_insert_with(|| Counts { first: pos, ..Counts::default() });
        counts.notifications += 1;
        counts.highlights += u64::from(highlight);
        counts.last = pos;
    }
}

type Levels = (i64, Option<Arc<PushConditionPowerLevelsCtx>>);

/// All counts.
pub(crate) struct UnreadCounts {
    rooms: Cache<(i64, i64), Arc<Mutex<Unread>>>,
    flattened: Cache<i64, Arc<FlattenedJson>>,
    levels: Cache<i64, Levels>,
    pushed: Pushed,
}

/// Whose counts, with what they depend on.
pub(crate) struct Reader<'a> {
    pub(crate) user_nid: i64,
    pub(crate) user_id: &'a UserId,
    pub(crate) settings: &'a Settings,
}

/// A room to count in.
#[derive(Clone, Debug)]
pub(crate) struct ReadRoom {
    pub(crate) name: Arc<RoomName>,
    /// The user's membership event.
    pub(crate) member_nid: i64,
    pub(crate) joined_count: u64,
}

impl UnreadCounts {
    pub(crate) fn new() -> Self {
        Self {
            rooms: Cache::new(COUNTS),
            flattened: Cache::new(FLATTENED),
            levels: Cache::new(LEVELS),
            pushed: Pushed::new(),
        }
    }

    /// What is remembered of those who are pushed to.
    pub(crate) fn pushed(&self) -> &Pushed {
        &self.pushed
    }

    /// How far a user has read a thread, or under the empty name the whole room, as far as that is in memory.
    pub(crate) fn floor(&self, user_nid: i64, room_nid: i64, thread: &str) -> i64 {
        self.rooms.get(&(user_nid, room_nid)).map_or(0, |unread| unread.lock().floor(thread))
    }

    /// Up to where a user's unread events in some rooms were counted; 0 where they have to be counted anew.
    pub(crate) async fn counted(&self, store: &Store, reader: &Reader<'_>, rooms: &[ReadRoom]) -> Result<Vec<i64>> {
        let places: Vec<Arc<Mutex<Unread>>> =
            rooms.iter().map(|room| self.place(reader.user_nid, room.name.nid)).collect();
        self.load(store, reader, rooms, &places).await?;
        let counted = |place: &Arc<Mutex<Unread>>| {
            let unread = place.lock();
            if unread.stale { 0 } else { unread.counted }
        };
        Ok(places.iter().map(counted).collect())
    }

    /// Takes note of a receipt, which only matters for counts in memory.
    pub(crate) fn received(&self, receipt: &Receipt) {
        if !is_read(receipt) {
            return;
        }
        if let Some(unread) = self.rooms.get(&(receipt.user_nid, receipt.room_nid)) {
            unread.lock().read_up_to(&receipt.thread, receipt.event_pos);
        }
    }

    /// What a user has not read in some rooms, up to a position.
    pub(crate) async fn of(
        &self,
        store: &Store,
        reader: &Reader<'_>,
        rooms: &[ReadRoom],
        to: i64,
    ) -> Result<HashMap<i64, ThreadCounts>> {
        let places: Vec<Arc<Mutex<Unread>>> =
            rooms.iter().map(|room| self.place(reader.user_nid, room.name.nid)).collect();
        self.load(store, reader, rooms, &places).await?;

        let mut counts = HashMap::with_capacity(rooms.len());
        let mut keep = Vec::new();
        for (rooms, places) in rooms.chunks(ROOMS_AT_ONCE).zip(places.chunks(ROOMS_AT_ONCE)) {
            let mut states: Vec<Unread> = places.iter().map(|place| place.lock().clone()).collect();
            for state in &mut states {
                if state.stale {
                    UNREAD_SCANS.inc();
                    state.counts.clear();
                    state.counted = state.floor("");
                    state.stale = false;
                }
            }
            let wanted: Vec<(i64, i64, i64)> =
                rooms.iter().zip(&states).map(|(room, state)| (room.name.nid, state.counted, to)).collect();
            let events = store.newest_events_of(&wanted, SCAN_MAX).await?;
            for (((room, place), mut state), events) in rooms.iter().zip(places).zip(states).zip(events) {
                let receipts = state.receipts;
                self.count(store, reader, room, &mut state, &events).await?;
                state.counted = state.counted.max(to);
                counts.insert(room.name.nid, state.counts.clone());
                let mut place = place.lock();
                if place.receipts == receipts && place.counted <= state.counted {
                    if events.len() >= WORTH_KEEPING {
                        keep.push(checkpoint(reader.user_nid, room.name.nid, &state));
                    }
                    *place = state;
                }
            }
        }
        if !keep.is_empty() {
            store.save_unread_checkpoints(&keep).await?;
        }
        Ok(counts)
    }

    fn place(&self, user_nid: i64, room_nid: i64) -> Arc<Mutex<Unread>> {
        let made =
            self.rooms.get_or_insert_with(&(user_nid, room_nid), || Ok::<_, std::convert::Infallible>(Arc::default()));
        made.unwrap_or_default()
    }

    /// Reads receipts and checkpoints of the rooms that are not in memory yet.
    async fn load(
        &self,
        store: &Store,
        reader: &Reader<'_>,
        rooms: &[ReadRoom],
        places: &[Arc<Mutex<Unread>>],
    ) -> Result<()> {
        let missing: Vec<usize> = (0..rooms.len()).filter(|&place| !places[place].lock().loaded).collect();
        if missing.is_empty() {
            return Ok(());
        }
        UNREAD_SCANS.inc_by(missing.len() as u64);
        let nids: Vec<i64> = missing.iter().map(|&place| rooms[place].name.nid).collect();
        let mut kept: HashMap<i64, UnreadCheckpoint> = HashMap::new();
        for checkpoint in store.unread_checkpoints(reader.user_nid, &nids).await? {
            kept.insert(checkpoint.room_nid, checkpoint);
        }
        let mut receipts: HashMap<i64, Vec<Receipt>> = HashMap::new();
        for receipt in store.receipts_of_user(reader.user_nid, &nids).await?.into_iter().filter(is_read) {
            receipts.entry(receipt.room_nid).or_default().push(receipt);
        }
        for place in missing {
            let room = &rooms[place];
            let mut found = Unread { loaded: true, ..Unread::default() };
            if let Some(checkpoint) = kept.remove(&room.name.nid)
                && let Ok(kept) = serde_json::from_str::<Kept>(&checkpoint.counts)
            {
                found.floors = kept.floors;
                found.counts = kept.counts;
                found.counted = checkpoint.counted_pos;
            }
            for receipt in receipts.remove(&room.name.nid).unwrap_or_default() {
                found.read_up_to(&receipt.thread, receipt.event_pos);
            }
            // Nothing that happened before one joined is unread. A later join is a new beginning.
            let joined = joined_pos(store, room.member_nid).await?;
            found.read_up_to("", joined);
            if found.counted == 0 {
                found.counted = found.floor("");
            }
            let mut place = places[place].lock();
            if !place.loaded {
                // Receipts that came meanwhile.
                for (thread, pos) in &place.floors {
                    found.read_up_to(thread, *pos);
                }
                found.receipts = place.receipts + 1;
                *place = found;
            }
        }
        Ok(())
    }

    async fn count(
        &self,
        store: &Store,
        reader: &Reader<'_>,
        room: &ReadRoom,
        state: &mut Unread,
        events: &[Arc<Event>],
    ) -> Result<()> {
        let mut context = None;
        for event in events {
            let Some(pos) = event.pos else { continue };
            if event.sender_nid == reader.user_nid {
                // "When the user updates their read receipt (either by using the API or by sending an event),
                // notifications prior to and including that event MUST be marked as read." Changing one's profile is
                // no sending, but a join is a new beginning.
                if event.key_nid.is_none() || is_new_join(store, event).await? {
                    state.read_up_to("", pos);
                    state.stale = false;
                }
                continue;
            }
            if pos <= state.floor("") || (event.key_nid.is_none() && reader.settings.ignored.contains(event.sender())) {
                continue;
            }
            UNREAD_EVENTS.inc();
            let flat = self.flatten(event);
            let context = match &mut context {
                Some(context) => context,
                None => context.insert(self.context(store, reader, room, event.room_state).await?),
            };
            let Some(highlight) = notifies(&reader.settings.rules, &flat, context).await else { continue };
            let thread = thread_of(store, event).await?;
            if pos > state.floor(&thread) {
                state.count(thread, pos, highlight);
            }
        }
        Ok(())
    }

    pub(crate) fn flatten(&self, event: &Event) -> Arc<FlattenedJson> {
        if let Some(flat) = self.flattened.get(&event.nid) {
            return flat;
        }
        // Stored events are JSON, as their header was read from them.
        let raw = serde_json::value::RawValue::from_string(event.json().to_owned()).unwrap_or_default();
        let flat = Arc::new(FlattenedJson::from_raw(&Raw::<serde_json::Value>::from_json(raw)));
        self.flattened.insert(event.nid, flat.clone());
        flat
    }

    pub(crate) async fn context(
        &self,
        store: &Store,
        reader: &Reader<'_>,
        room: &ReadRoom,
        root: i64,
    ) -> Result<PushConditionRoomCtx> {
        let name = match needs_display_name(&reader.settings.rules) {
            true => display_name(store, room.member_nid).await?,
            false => None,
        };
        let mut context = PushConditionRoomCtx::new(
            room.name.room_id.clone(),
            UInt::try_from(room.joined_count).unwrap_or(UInt::MAX),
            reader.user_id.to_owned(),
            name.unwrap_or_default(),
        );
        if let Some(levels) = self.levels(store, &room.name, root).await? {
            context = context.with_power_levels((*levels).clone());
        }
        Ok(context)
    }

    async fn levels(
        &self,
        store: &Store,
        room: &RoomName,
        root: i64,
    ) -> Result<Option<Arc<PushConditionPowerLevelsCtx>>> {
        if let Some((at, levels)) = self.levels.get(&room.nid)
            && at == root
        {
            return Ok(levels);
        }
        let levels = read_levels(store, room, root).await?.map(Arc::new);
        self.levels.insert(room.nid, (root, levels.clone()));
        Ok(levels)
    }
}

fn is_read(receipt: &Receipt) -> bool {
    matches!(&*receipt.receipt_type, "m.read" | "m.read.private")
}

fn checkpoint(user_nid: i64, room_nid: i64, state: &Unread) -> UnreadCheckpoint {
    let kept = Kept { floors: state.floors.clone(), counts: state.counts.clone() };
    let counts = serde_json::to_string(&kept).expect("texts and numbers are JSON");
    UnreadCheckpoint { user_nid, room_nid, receipt_pos: state.floor(""), counted_pos: state.counted, counts }
}

/// Whether a rule notifies of an event, and whether it is a highlight.
async fn notifies(rules: &Ruleset, flat: &FlattenedJson, context: &PushConditionRoomCtx) -> Option<bool> {
    let actions = matching(rules, flat, context).await?;
    Some(actions.iter().any(|action| action.is_highlight()))
}

/// What the rule says that notifies of an event, if the first one that applies does.
pub(crate) async fn matching<'r>(
    rules: &'r Ruleset,
    flat: &FlattenedJson,
    context: &PushConditionRoomCtx,
) -> Option<&'r [Action]> {
    for rule in rules.iter() {
        if rule.applies(flat, context).await {
            let actions = rule.actions();
            return actions.iter().any(|action| action.should_notify()).then_some(actions);
        }
    }
    None
}

fn needs_display_name(rules: &Ruleset) -> bool {
    let conditions = rules.override_.iter().chain(&rules.underride).flat_map(|rule| &rule.conditions);
    conditions.into_iter().any(|condition| condition.kind() == "contains_display_name")
}

async fn display_name(store: &Store, member_nid: i64) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Content {
        displayname: Option<String>,
    }
    let event = store.event(member_nid).await?;
    Ok(serde_json::from_str::<Content>(event.content()).ok().and_then(|content| content.displayname))
}

async fn read_levels(store: &Store, room: &RoomName, root: i64) -> Result<Option<PushConditionPowerLevelsCtx>> {
    let Some(rules) = room.version.rules() else { return Ok(None) };
    let keys = [StateKey::new("m.room.power_levels", ""), StateKey::new("m.room.create", "")];
    let nids: Vec<i64> = store.known_key_nids(&keys).await?.into_iter().map(Option::unwrap_or_default).collect();
    let mut found = store.state_events(root, &nids).await?.into_iter();
    let (levels, create) = (found.next().flatten(), found.next().flatten());
    let source = levels
        .and_then(|event| serde_json::from_str::<RoomPowerLevelsEventContent>(event.content()).ok())
        .map_or_else(RoomPowerLevelsSource::default, RoomPowerLevelsSource::Original);
    let mut creators: Vec<OwnedUserId> = Vec::new();
    if let Some(create) = create {
        creators.push(create.sender().clone());
        if let Ok(content) = serde_json::from_str::<RoomCreateEventContent>(create.content()) {
            creators.extend(content.additional_creators);
        }
    }
    Ok(Some(RoomPowerLevels::new(source, &rules.authorization, creators).into()))
}

/// Since when a user is in a room without a break.
pub(crate) async fn joined_pos(store: &Store, member_nid: i64) -> Result<i64> {
    let mut event = store.event(member_nid).await?;
    for _ in 0..STEPS_BACK {
        let Some(before) = event.replaces else { break };
        let before = store.event(before).await?;
        if membership_in(&before) != Some(Membership::Join) {
            break;
        }
        event = before;
    }
    Ok(event.pos.unwrap_or(0))
}

async fn is_new_join(store: &Store, event: &Event) -> Result<bool> {
    let own = event.event_type() == "m.room.member" && event.state_key() == Some(event.sender().as_str());
    if !own || membership_in(event) != Some(Membership::Join) {
        return Ok(false);
    }
    let Some(before) = event.replaces else { return Ok(true) };
    Ok(membership_in(&*store.event(before).await?) != Some(Membership::Join))
}

#[derive(Deserialize)]
struct Relating<'a> {
    #[serde(borrow, rename = "m.relates_to")]
    relates_to: Option<Relation<'a>>,
}

#[derive(Deserialize)]
struct Relation<'a> {
    #[serde(borrow)]
    rel_type: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    event_id: Option<std::borrow::Cow<'a, str>>,
}

/// "To determine if an event is part of a thread the server follows the event relationship until it finds a thread
/// root via an m.thread relation".
pub(crate) async fn thread_of(store: &Store, event: &Event) -> Result<Box<str>> {
    let Some((mut is_thread, mut related)) = relation(event) else { return Ok(MAIN.into()) };
    for _ in 0..HOPS {
        if is_thread {
            return Ok(related);
        }
        let Some(parent) =
            store.events_by_id(&[&related]).await?.pop().filter(|parent| parent.room_nid == event.room_nid)
        else {
            break;
        };
        match relation(&parent) {
            Some(next) => (is_thread, related) = next,
            None => break,
        }
    }
    Ok(if is_thread { related } else { MAIN.into() })
}

/// The event that one relates to, and whether it is the root of its thread.
fn relation(event: &Event) -> Option<(bool, Box<str>)> {
    if !event.content().contains("m.relates_to") {
        return None;
    }
    let relation = serde_json::from_str::<Relating<'_>>(event.content()).ok()?.relates_to?;
    let event_id = relation.event_id.filter(|event_id| is_event_id(event_id))?;
    Some((relation.rel_type.as_deref() == Some("m.thread"), event_id.into()))
}

/// Whether a text may be the identifier of an event: "MUST NOT exceed 255 bytes", and it has no control characters.
pub(crate) fn is_event_id(text: &str) -> bool {
    (2..=EVENT_ID_BYTES_MAX).contains(&text.len())
        && !text.chars().any(char::is_control)
        && EventId::parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{MAIN, Unread};

    fn unread() -> Unread {
        let mut unread = Unread { loaded: true, counted: 50, ..Unread::default() };
        unread.count(MAIN.into(), 10, false);
        unread.count("$root".into(), 12, true);
        unread.count(MAIN.into(), 14, false);
        unread
    }

    /// Receipts take away what they cover; one in the middle asks for a new count; none moves back.
    #[test]
    fn receipts_take_away() {
        let mut all = unread();
        all.read_up_to("", 14);
        assert!(all.counts.is_empty() && !all.stale);
        all.read_up_to("", 9);
        assert_eq!(all.floor(""), 14);

        let mut thread = unread();
        thread.read_up_to("$root", 12);
        assert_eq!(thread.counts.keys().map(|key| &**key).collect::<Vec<_>>(), [MAIN]);
        assert!(!thread.stale);

        let mut middle = unread();
        middle.read_up_to(MAIN, 10);
        assert!(middle.stale);
        assert_eq!((middle.floor(MAIN), middle.floor("$root")), (10, 0));
    }
}
