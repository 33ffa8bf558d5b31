//! Simplified sliding sync: of the rooms that a client looks at, what it does not have yet.
//!
//! A client has one or more connections. What it was told of which room is kept with each of them, and written with an
//! answer that changes it; an answer that tells nothing of rooms, and the wait for one, leave the database alone.
//!
//! [Proposal](https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/4186-simplified-sliding-sync.md)

mod connection;
mod extensions;
mod facts;
mod plan;
mod request;
mod required;
mod response;
mod rooms;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use ruma::OwnedRoomId;

pub use self::request::{SlidingCaller, SlidingForm, SlidingQuery, SlidingRequest};
use self::{
    connection::{Connection, Connections, Point, Sent},
    extensions::Extended,
    facts::FactCaches,
    plan::{Asked, Plan},
    required::Required,
    response::{Count, SlidingAnswer},
    rooms::{LazyMembers, Rooms},
};
use crate::{
    Error, Result, Sync,
    lazy::SentMembers,
    metrics::{SLIDING_ANSWERS, SLIDING_EXPIRED, SLIDING_SECONDS, WAKE_SECONDS},
    now_ms,
};

/// What sliding sync has in memory.
pub(crate) struct Sliding {
    connections: Connections,
    facts: FactCaches,
    /// By connection and room, the members that came lazily.
    members: SentMembers,
}

impl Sliding {
    pub(crate) fn new() -> Self {
        Self { connections: Connections::new(), facts: FactCaches::new(), members: SentMembers::new() }
    }

    /// Forgets everything, as a restart would.
    #[cfg(test)]
    pub(crate) fn forget(&self) {
        self.connections.forget();
    }
}

/// A request under way.
struct Sitting {
    request: SlidingRequest,
    connection: Arc<Connection>,
    required: Vec<Required>,
    since: Option<Point>,
    subscriptions: Vec<(i64, OwnedRoomId)>,
}

impl Sitting {
    fn asked(&self) -> Asked<'_> {
        Asked {
            request: &self.request,
            connection: &self.connection,
            required: &self.required,
            since: self.since,
            subscriptions: &self.subscriptions,
        }
    }
}

/// What a look has come to.
enum Found {
    /// Something to tell.
    Answer(Box<SlidingAnswer>),
    /// Nothing, up to a position; and rooms that have news which the client does not look at.
    Nothing(Point, HashMap<i64, Sent>, BTreeMap<Box<str>, usize>),
}

impl Sync {
    /// Answers a request of sliding sync, at once if there is news or when the client wants no wait. The answer is JSON.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPos`] when the client has to begin anew, [`Error::Store`] and [`Error::Rooms`] when the database
    /// does not answer.
    pub async fn sliding_sync(self: &Arc<Self>, request: SlidingRequest) -> Result<Bytes> {
        let mut sitting = Box::pin(self.sit_down(request)).await?;
        let (user_nid, txn_id) = (sitting.request.caller.user_nid, sitting.request.txn_id.take());
        let is_first = sitting.since.is_none();
        let mut answer = self.wait_for_rooms(&mut sitting).await?;
        answer.txn_id = txn_id;
        self.live.note_seen(user_nid, now_ms());
        let kind = match (is_first, answer.is_empty()) {
            (true, _) => "initial",
            (false, false) => "news",
            (false, true) => "empty",
        };
        SLIDING_ANSWERS.with_label_values(&[kind]).inc();
        serde_json::to_vec(&answer).map(Bytes::from).map_err(Error::Write)
    }

    /// Finds what the client goes on from.
    async fn sit_down(self: &Arc<Self>, mut request: SlidingRequest) -> Result<Sitting> {
        let caller = request.caller.clone();
        self.load(caller.user_nid).await?;
        self.seen_syncing(caller.user_nid, &request.set_presence).await?;
        let since = request.pos;
        let told_to = request.extensions.to_device.and_then(|to_device| to_device.since);
        if since.map(|since| since.pos).max(told_to).is_some_and(|pos| pos > self.store.position()) {
            // Another replica may have told of what we have not heard of yet; if not, the database is an older one.
            let committed = Box::pin(self.store.committed_position()).await?;
            if since.is_some_and(|since| since.pos > committed) {
                SLIDING_EXPIRED.with_label_values(&["unknown"]).inc();
                return Err(Error::UnknownPos);
            }
            if let Some(to_device) = request.extensions.to_device.as_mut().filter(|_| told_to > Some(committed)) {
                to_device.since = None;
            }
        }
        let connection = match &since {
            Some(point) => self.connection(caller.device_nid, point).await?,
            None => Arc::new(Connection::new(caller.device_nid)),
        };
        let required = connection.with_required(&request)?;
        if let Some(up_to) = request.extensions.to_device.and_then(|to_device| to_device.since)
            && up_to <= self.store.position()
        {
            // "The server should infer that any send-to-device messages in that response have been delivered".
            self.acknowledge(caller.user_nid, caller.device_nid, up_to).await?;
        }
        let mut subscriptions = Vec::with_capacity(request.subscriptions.len());
        for room_id in request.subscriptions.keys() {
            if let Some(room) = self.store.room(room_id).await? {
                subscriptions.push((room.nid, room_id.clone()));
            }
        }
        Ok(Sitting { request, connection, required, since, subscriptions })
    }

    async fn wait_for_rooms(self: &Arc<Self>, sitting: &mut Sitting) -> Result<SlidingAnswer> {
        let user_nid = sitting.request.caller.user_nid;
        let poll = self.index.wait(user_nid);
        let wait = sitting.request.timeout.min(self.options.timeout_max);
        let mut timeout = std::pin::pin!(tokio::time::sleep(wait));
        loop {
            let mut woken = std::pin::pin!(poll.notify.notified());
            woken.as_mut().enable();
            self.load(user_nid).await?;
            let started = self.index.take_woken(user_nid);
            match self.look_at_rooms(sitting).await? {
                Found::Answer(answer) => {
                    if let Some(started) = started {
                        WAKE_SECONDS.observe(started.elapsed().as_secs_f64());
                    }
                    return Ok(*answer);
                }
                Found::Nothing(point, missed, counts) => {
                    if wait.is_zero() || self.stopping.load(Ordering::Acquire) {
                        return self.no_rooms(sitting, point, &missed, counts).await;
                    }
                    if missed.is_empty() {
                        sitting.since = Some(point);
                    }
                    tokio::select! {
                        biased;
                        () = &mut woken => {}
                        () = &mut timeout => return self.no_rooms(sitting, point, &missed, counts).await,
                    }
                }
            }
        }
    }

    /// One look, in a box of its own: those who wait must not hold the room for it.
    fn look_at_rooms<'a>(
        self: &'a Arc<Self>,
        sitting: &'a Sitting,
    ) -> Pin<Box<dyn Future<Output = Result<Found>> + Send + 'a>> {
        Box::pin(async move {
            let started = Instant::now();
            let asked = sitting.asked();
            let plan = self.plan(&asked).await?;
            let serial = self.live.news(asked.since.map(|since| since.serial), false).to;
            if asked.since.is_some() && plan.tell.is_empty() && !self.may_extend(&asked, &plan) {
                let point = self.point_at(&asked, &plan, asked.connection, serial);
                return Ok(Found::Nothing(point, plan.missed, plan.counts));
            }
            let rooms = self.tell_rooms(&asked, &plan).await?;
            let extended = self.extend(&asked, &plan, &rooms).await?;
            let found = self.finish(&asked, plan, rooms, extended).await?;
            let kind = if asked.since.is_some() { "incremental" } else { "full" };
            SLIDING_SECONDS.with_label_values(&[kind]).observe(started.elapsed().as_secs_f64());
            Ok(found)
        })
    }

    /// Puts the parts together and moves the connection on, if there is anything to tell.
    async fn finish(&self, asked: &Asked<'_>, plan: Plan, rooms: Rooms, extended: Extended) -> Result<Found> {
        let Extended { answer: extensions, changes, serial } = extended;
        let counts = plan.counts.clone();
        let mut answer = SlidingAnswer {
            lists: counts.iter().map(|(name, count)| (name.clone(), Count { count: *count })).collect(),
            rooms: rooms.answers,
            extensions,
            ..SlidingAnswer::default()
        };
        if asked.since.is_some() && answer.is_empty() {
            // What would be remembered without being told is remembered by those who wait no longer.
            return Ok(Found::Nothing(self.point_at(asked, &plan, asked.connection, serial), changes, counts));
        }
        let moved;
        let connection = if asked.since.is_none() || is_different(asked.connection, &changes) {
            moved = Box::pin(self.advance(asked.connection, asked.request, asked.required.to_vec(), &changes)).await?;
            &*moved
        } else {
            asked.connection
        };
        let point = self.point_at(asked, &plan, connection, serial);
        for LazyMembers { room_nid, is_new, events } in rooms.lazy {
            let known = &self.sliding.members;
            match asked.since {
                Some(since) if !is_new => known.rewind(connection.nid, room_nid, since.moment()),
                _ => known.forget(connection.nid, room_nid),
            }
            known.remember(connection.nid, room_nid, events, point.moment());
        }
        answer.pos = point.to_string();
        Ok(Found::Answer(Box::new(answer)))
    }

    /// The position after a look.
    fn point_at(&self, asked: &Asked<'_>, plan: &Plan, connection: &Connection, serial: u64) -> Point {
        let extensions = &asked.request.extensions;
        let since = asked.since;
        Point {
            pos: since.map_or(0, |since| since.pos).max(plan.survey.view.to),
            // Who types is told by the extension alone; without it, the client has been told up to here before.
            serial: if extensions.typing.is_some() { serial } else { since.map_or(0, |since| since.serial) },
            connection_nid: connection.nid,
            at: connection.at,
            knows_data: extensions.account_data.is_some(),
        }
    }

    /// The answer where there is no news that the client looks at.
    async fn no_rooms(
        &self,
        sitting: &Sitting,
        point: Point,
        missed: &HashMap<i64, Sent>,
        counts: BTreeMap<Box<str>, usize>,
    ) -> Result<SlidingAnswer> {
        let mut point = point;
        if is_different(&sitting.connection, missed) {
            let required = sitting.required.clone();
            let moved = Box::pin(self.advance(&sitting.connection, &sitting.request, required, missed)).await?;
            point.at = moved.at;
        }
        let mut answer = SlidingAnswer {
            pos: point.to_string(),
            lists: counts.into_iter().map(|(name, count)| (name, Count { count })).collect(),
            ..SlidingAnswer::default()
        };
        let extensions = &sitting.request.extensions;
        if extensions.e2ee {
            let keys = self.keys_left(sitting.request.caller.device_nid).await?;
            answer.extensions.e2ee = Some(response::E2eeAnswer { keys, ..Default::default() });
        }
        if let Some(to_device) = extensions.to_device {
            let next_batch = to_device.since.unwrap_or(0).max(point.pos).to_string();
            answer.extensions.to_device = Some(response::ToDeviceAnswer { next_batch, events: Vec::new() });
        }
        Ok(answer)
    }
}

/// Whether there is anything to remember.
fn is_different(connection: &Connection, changes: &HashMap<i64, Sent>) -> bool {
    changes.iter().any(|(nid, sent)| connection.rooms.get(nid) != Some(sent))
}
