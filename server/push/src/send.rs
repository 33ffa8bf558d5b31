//! From what is to be sent to what gateways have taken.

use std::sync::Arc;

use bytes::Bytes;
use myelin_store::{Membership, Store};
use myelin_sync::{Listener, NotificationQuery, Only, Sync};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::{
    GatewayError,
    delivery::{Job, Mode, What},
    metrics::{DELAY_SECONDS, DELIVERIES, DROPPED, REJECTED, RETRIES},
    payload::{self, Definition, Details},
    term::{Term, now_ms},
};

/// Requests under way at once.
const REQUESTS_MAX: usize = 256;
/// Pushers that are taken up before others get their turn.
const AT_ONCE: usize = 64;
/// Notifications that a pusher is told of which it could not be told for a while: the newest that are unread.
const CATCH_UP_MAX: usize = 20;
/// Nobody is told of what is older, in milliseconds.
const AGE_MAX_MS: u64 = 24 * 60 * 60 * 1_000;
/// Milliseconds until a pusher is tried again after our own database failed.
const OWN_FAILURE_MS: i64 = 2_000;

/// What is under way for a pusher.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pusher_nid: i64,
    /// How much it says to be unread.
    unread: u64,
}

/// How something that was under way has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// A gateway was asked.
    Asked(Result<Vec<u8>, GatewayError>),
    /// What a pusher lacks was looked for.
    Gathered(myelin_sync::Result<Vec<Job>>),
}

impl Term {
    /// Whether there may be another request.
    pub(crate) fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX
    }

    /// Sends what may be sent.
    pub(crate) async fn send(&mut self) {
        let now = now_ms();
        while let Some((retry_at, pusher_nid)) = self.timetable.first().copied()
            && retry_at <= now
        {
            self.timetable.remove(&(retry_at, pusher_nid));
            self.ready.push_back(pusher_nid);
        }
        for _ in 0..AT_ONCE {
            if !self.has_room() {
                return;
            }
            let Some(pusher_nid) = self.ready.pop_front() else { return };
            if self.deliveries.get(&pusher_nid).is_some_and(|delivery| delivery.is_due(now)) {
                self.begin_request(pusher_nid).await;
            }
        }
    }

    async fn begin_request(&mut self, pusher_nid: i64) {
        let Some(delivery) = self.deliveries.get(&pusher_nid) else { return };
        let user_nid = delivery.definition.pusher.user_nid;
        let user_id = delivery.definition.pusher.user_id.clone();
        let known = match self.people.pushers_of(&[user_nid]).await {
            Ok(mut known) => known.remove(&user_nid),
            Err(error) => {
                self.database_failed(&error);
                return self.put_off(pusher_nid);
            }
        };
        let known = known.unwrap_or_default();
        let Some(current) = known.iter().find(|definition| definition.pusher.pusher_nid == pusher_nid) else {
            DROPPED.with_label_values(&["pusher_gone"]).inc();
            self.deliveries.remove(&pusher_nid);
            return;
        };
        if self.people.unread(user_nid).is_none()
            && let Err(error) = self.people.count(user_nid, &user_id, 0, self.scanned).await
        {
            self.database_failed(&error);
            return self.put_off(pusher_nid);
        }
        let unread = self.people.unread(user_nid).unwrap_or(0);
        let (definition, scanned) = (current.clone(), self.scanned);
        let Some(delivery) = self.deliveries.get_mut(&pusher_nid) else { return };
        delivery.definition = definition.clone();
        delivery.is_busy = true;
        let task = if delivery.mode == Mode::Lagging {
            delivery.mode = Mode::Gathering;
            let from = delivery.standing.pending_from.unwrap_or(scanned);
            let (store, sync) = (self.store.clone(), self.sync.clone());
            self.requests.spawn(async move {
                Ended::Gathered(Box::pin(gather(&store, &sync, &definition, from, scanned)).await)
            })
        } else {
            let Some(job) = delivery.next() else {
                delivery.is_busy = false;
                return;
            };
            let Ok(body) = body(&definition, &job.what, unread) else {
                // What is stored is JSON; so this does not happen, and would happen again.
                DROPPED.with_label_values(&["unwritable"]).inc();
                delivery.pop();
                delivery.is_busy = false;
                return self.nudge(pusher_nid);
            };
            if delivery.standing.failures > 0 {
                RETRIES.inc();
            }
            let gateway = self.gateway.clone();
            self.requests.spawn(async move { Ended::Asked(gateway.notify(&definition.url, body).await) })
        };
        self.under_way.insert(task.id(), Request { pusher_nid, unread });
    }

    /// Tries again after our own failure, which is not the gateway's.
    fn put_off(&mut self, pusher_nid: i64) {
        self.timetable.insert((now_ms() + OWN_FAILURE_MS, pusher_nid));
    }

    /// Draws the consequences of what has ended; `None` if it ended without a result.
    pub(crate) async fn settle(&mut self, request: Request, ended: Option<Ended>) {
        let pusher_nid = request.pusher_nid;
        let Some(delivery) = self.deliveries.get_mut(&pusher_nid) else { return };
        delivery.is_busy = false;
        match ended {
            Some(Ended::Asked(Ok(answer))) => self.answered(request, &answer).await,
            Some(Ended::Asked(Err(error))) => {
                let url = &delivery.definition.url;
                debug!(%error, gateway = url.host_str(), "a push gateway did not take a notification: {error}");
                let what = delivery.next().map_or("event", |job| label(&job.what));
                DELIVERIES.with_label_values(&[what, error.label()]).inc();
                delivery.failed(now_ms());
                self.nudge(pusher_nid);
            }
            Some(Ended::Gathered(Ok(jobs))) => {
                if delivery.mode == Mode::Gathering {
                    delivery.gathered(jobs);
                }
                self.nudge(pusher_nid);
            }
            Some(Ended::Gathered(Err(error))) => {
                delivery.mode = Mode::Lagging;
                self.database_failed(&error);
                self.put_off(pusher_nid);
            }
            None => {
                if delivery.mode == Mode::Gathering {
                    delivery.mode = Mode::Lagging;
                }
                delivery.failed(now_ms());
                self.nudge(pusher_nid);
            }
        }
    }

    async fn answered(&mut self, Request { pusher_nid, unread }: Request, answer: &[u8]) {
        let Some(delivery) = self.deliveries.get_mut(&pusher_nid) else { return };
        let what = delivery.next().map_or("event", |job| label(&job.what));
        let rejected = payload::rejected(answer);
        let pushkey = &delivery.definition.pusher.settings.pushkey;
        if rejected.as_ref().is_some_and(|rejected| rejected.contains(pushkey)) {
            DELIVERIES.with_label_values(&[what, "rejected"]).inc();
            return self.reject(pusher_nid).await;
        }
        DELIVERIES.with_label_values(&[what, if rejected.is_some() { "taken" } else { "unreadable" }]).inc();
        if delivery.standing.failures > 1 {
            info!(gateway = delivery.definition.url.host_str(), "a push gateway takes notifications again");
        }
        if let Some(job) = delivery.taken() {
            DELAY_SECONDS.observe((Instant::now() - job.found).as_secs_f64());
        }
        self.told.insert(pusher_nid, unread);
        self.nudge(pusher_nid);
    }

    /// "Homeservers must cease sending notification requests for these pushkeys and remove the associated pushers."
    async fn reject(&mut self, pusher_nid: i64) {
        let Some(delivery) = self.deliveries.get_mut(&pusher_nid) else { return };
        let definition = delivery.definition.clone();
        match self.store.delete_rejected_pusher(&self.lease, &definition.pusher).await {
            Ok(_) => {
                REJECTED.inc();
                self.deliveries.remove(&pusher_nid);
                self.told.remove(&pusher_nid);
                self.people.forget_pushers_of(definition.pusher.user_nid);
            }
            Err(error) => {
                delivery.failed(now_ms());
                self.database_failed(&error);
                self.nudge(pusher_nid);
            }
        }
    }
}

fn body(definition: &Definition, what: &What, unread: u64) -> serde_json::Result<Bytes> {
    match what {
        What::Event { event, details, actions } => payload::of_event(definition, event, details, actions, unread),
        What::Badge => payload::of_badge(definition, unread),
    }
}

fn label(what: &What) -> &'static str {
    match what {
        What::Event { .. } => "event",
        What::Badge => "badge",
    }
}

/// Looks for what a pusher was not told of from a position on, up to another one: what is still unread of it, and
/// invites. If there is nothing, it is told that.
async fn gather(
    store: &Store,
    sync: &Sync,
    definition: &Definition,
    from: i64,
    to: i64,
) -> myelin_sync::Result<Vec<Job>> {
    let pusher = &definition.pusher;
    let after = pusher.since_pos.max(from - 1);
    let query = NotificationQuery {
        user_nid: pusher.user_nid,
        user_id: &pusher.user_id,
        before: Some(to.saturating_add(1)),
        after,
        limit: CATCH_UP_MAX,
        only: Only::Unread,
    };
    let mut jobs = Vec::new();
    let mut add = async |pos: i64, event: Arc<myelin_store::Event>, actions: Vec<ruma::push::Action>| {
        let details = Arc::new(Details::of(store, &event).await?);
        let what = What::Event { event, details, actions: actions.into() };
        jobs.push(Job { pos, what, found: Instant::now() });
        Ok::<_, myelin_store::Error>(())
    };
    let oldest = u64::try_from(now_ms()).unwrap_or(0).saturating_sub(AGE_MAX_MS);
    for found in Box::pin(sync.notifications(&query)).await?.notifications {
        if let Some(pos) = found.event.pos.filter(|_| found.event.origin_server_ts() >= oldest) {
            add(pos, found.event, found.actions).await?;
        }
    }
    for member in store.memberships(pusher.user_nid).await? {
        if member.membership != Membership::Invite || member.pos <= after || member.pos > to {
            continue;
        }
        let event = store.event(member.event_nid).await?;
        let listener = Listener { user_nid: member.user_nid, member_nid: member.event_nid };
        if let Some(notified) = Box::pin(sync.notified(&event, &[listener])).await?.pop() {
            add(member.pos, event, notified.actions).await?;
        }
    }
    jobs.sort_by_key(|job| job.pos);
    let surplus = jobs.len().saturating_sub(CATCH_UP_MAX);
    jobs.drain(..surplus);
    if jobs.is_empty() {
        jobs.push(Job { pos: to, what: What::Badge, found: Instant::now() });
    }
    Ok(jobs)
}
