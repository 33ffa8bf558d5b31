//! Clients that follow a room by long-polling `/sync`, as people's do, and remember what arrived.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    client::{Event, Presence, Session, SyncRequest},
    report::Faults,
};

/// How long a follower lets the server hold a poll.
const POLL: Duration = Duration::from_secs(30);

/// As clients in use ask: members only as they speak.
pub(crate) const FILTER: &str = r#"{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":50}}}"#;

/// An answer to `/sync`, as far as a load test looks at it.
#[derive(Debug, Deserialize)]
pub(crate) struct SyncAnswer {
    /// The next request's `since`.
    pub(crate) next_batch: String,
    #[serde(default)]
    rooms: Rooms,
}

#[derive(Debug, Default, Deserialize)]
struct Rooms {
    #[serde(default)]
    join: HashMap<String, JoinedRoom>,
}

/// A joined room in an answer.
#[derive(Debug, Deserialize)]
pub(crate) struct JoinedRoom {
    /// What is new in it.
    #[serde(default)]
    pub(crate) timeline: Timeline,
}

/// The newest events of a room.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Timeline {
    /// Oldest first.
    #[serde(default)]
    pub(crate) events: Vec<Event>,
    #[serde(default)]
    limited: bool,
    prev_batch: Option<String>,
}

impl SyncAnswer {
    /// Parses a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The joined rooms that the answer tells of.
    pub(crate) fn joined(&self) -> &HashMap<String, JoinedRoom> {
        &self.rooms.join
    }
}

/// What one follower received.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    seen: HashSet<String>,
    /// Messages in the order of arrival, with the time.
    arrived: Vec<(String, Instant)>,
    faults: Faults,
    answers: usize,
    gaps: usize,
}

/// What all followers share with whoever waits for them.
#[derive(Debug, Default)]
struct Arrivals {
    count: AtomicUsize,
    changed: Notify,
}

/// Followers of one room.
#[derive(Debug)]
pub(crate) struct Followers {
    tasks: JoinSet<Inbox>,
    stop: watch::Sender<bool>,
    arrivals: Arc<Arrivals>,
    newest: Vec<Arc<Mutex<Option<String>>>>,
}

impl Followers {
    /// Brings every member up to date, then lets each poll until stopped.
    pub(crate) async fn start(members: &[Session], room: &str, concurrency: usize) -> anyhow::Result<Self> {
        let tokens: Vec<String> = stream::iter(members)
            .map(|member| async move {
                let body = member.sync(request(None, Duration::ZERO)).await.context("first /sync")?;
                anyhow::Ok(SyncAnswer::parse(&body).context("first /sync")?.next_batch)
            })
            .buffered(concurrency)
            .try_collect()
            .await?;
        let (stop, stopped) = watch::channel(false);
        let arrivals = Arc::new(Arrivals::default());
        let mut tasks = JoinSet::new();
        let mut newest = Vec::new();
        for (member, since) in members.iter().zip(tokens) {
            let latest = Arc::new(Mutex::new(None));
            newest.push(latest.clone());
            let follower = Follower {
                member: member.clone(),
                room: room.to_owned(),
                since,
                arrivals: arrivals.clone(),
                newest: latest,
                inbox: Inbox::default(),
            };
            tasks.spawn(follower.run(stopped.clone()));
        }
        Ok(Self { tasks, stop, arrivals, newest })
    }

    /// Messages that all followers together have received.
    pub(crate) fn received(&self) -> usize {
        self.arrivals.count.load(Ordering::SeqCst)
    }

    /// Waits until that many messages were received, or the time is over; returns whether they were.
    pub(crate) async fn wait_for(&self, count: usize, within: Duration) -> bool {
        let enough = async {
            loop {
                let changed = self.arrivals.changed.notified();
                if self.received() >= count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, enough).await.is_ok()
    }

    /// The newest event that each follower knows, in the order of the members.
    pub(crate) fn newest(&self) -> Vec<Arc<Mutex<Option<String>>>> {
        self.newest.clone()
    }

    /// Stops polling and returns what arrived.
    pub(crate) async fn stop(self) -> anyhow::Result<Received> {
        // A send fails only when every follower has ended by itself.
        let _ = self.stop.send(true);
        let mut received = Received::default();
        for inbox in self.tasks.join_all().await {
            received.answers += inbox.answers;
            received.gaps += inbox.gaps;
            received.faults.add(inbox.faults);
            received.by_member.push(inbox.arrived);
        }
        Ok(received)
    }
}

/// What all followers of a room received.
#[derive(Debug, Default)]
pub(crate) struct Received {
    by_member: Vec<Vec<(String, Instant)>>,
    /// Answers to `/sync`.
    pub(crate) answers: usize,
    /// Answers that left events out, which were then fetched as a page of history.
    pub(crate) gaps: usize,
    faults: Faults,
}

impl Received {
    /// Compares with what was sent (event id and the time before sending): the delay of each first arrival, and what
    /// is missing or came twice.
    pub(crate) fn compare(self, sent: &HashMap<String, Instant>) -> (Vec<Duration>, Faults) {
        let mut faults = self.faults;
        let mut delays = Vec::new();
        for arrived in self.by_member {
            let mut open: HashSet<&str> = sent.keys().map(String::as_str).collect();
            for (event, at) in &arrived {
                let Some(sent_at) = sent.get(event) else {
                    continue;
                };
                if open.remove(event.as_str()) {
                    delays.push(at.saturating_duration_since(*sent_at));
                } else {
                    faults.duplicated += 1;
                }
            }
            faults.missing += open.len();
        }
        (delays, faults)
    }
}

fn request(since: Option<&str>, wait: Duration) -> SyncRequest<'_> {
    SyncRequest { since, wait, filter: FILTER, presence: Presence::Online }
}

struct Follower {
    member: Session,
    room: String,
    since: String,
    arrivals: Arc<Arrivals>,
    newest: Arc<Mutex<Option<String>>>,
    inbox: Inbox,
}

impl Follower {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Inbox {
        const FAILURES_MAX: usize = 200;
        const PAUSE: Duration = Duration::from_millis(100);
        while self.inbox.faults.failed < FAILURES_MAX {
            let polled = tokio::select! {
                // An error means that whoever would stop us is gone.
                _ = stopped.wait_for(|stop| *stop) => break,
                polled = self.poll() => polled,
            };
            if let Err(error) = polled {
                self.inbox.faults.fail(format!("{error:#}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.inbox
    }

    async fn poll(&mut self) -> anyhow::Result<()> {
        let body = self.member.sync(request(Some(&self.since), POLL)).await?;
        let at = Instant::now();
        let mut answer = SyncAnswer::parse(&body)?;
        self.inbox.answers += 1;
        if let Some(room) = answer.rooms.join.remove(&self.room) {
            let timeline = room.timeline;
            if timeline.limited {
                self.fill_gap(timeline.prev_batch.as_deref()).await?;
            }
            if let Some(event) = timeline.events.last() {
                *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.event_id.clone());
            }
            for event in timeline.events {
                self.take(event, at);
            }
        }
        self.since = answer.next_batch;
        Ok(())
    }

    /// Fetches what lies between the last answer and this one's `prev_batch`.
    async fn fill_gap(&mut self, prev_batch: Option<&str>) -> anyhow::Result<()> {
        const PAGES_MAX: usize = 50;
        self.inbox.gaps += 1;
        let mut from = prev_batch.map(str::to_owned);
        for _ in 0..PAGES_MAX {
            let Some(token) = from else {
                return Ok(());
            };
            let page = self.member.messages(&self.room, Some(&token), Some(&self.since), 100).await?;
            if page.chunk.is_empty() {
                return Ok(());
            }
            let at = Instant::now();
            for event in page.chunk {
                // A server may go on beyond `to`, into what is known.
                if self.inbox.seen.contains(&event.event_id) {
                    return Ok(());
                }
                self.take(event, at);
            }
            from = page.end;
        }
        Ok(())
    }

    fn take(&mut self, event: Event, at: Instant) {
        self.inbox.seen.insert(event.event_id.clone());
        if event.is_message() {
            self.inbox.arrived.push((event.event_id, at));
            self.arrivals.count.fetch_add(1, Ordering::SeqCst);
            self.arrivals.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each member is to see each message once: one that never came and one that came twice are told apart, and
    /// messages that were not counted are left alone.
    #[test]
    fn missing_and_doubled_deliveries_are_found() {
        let start = Instant::now();
        let later = |millis| start + Duration::from_millis(millis);
        let sent = HashMap::from([("$a".to_owned(), start), ("$b".to_owned(), start)]);
        let received = Received {
            by_member: vec![
                vec![("$a".to_owned(), later(5)), ("$other".to_owned(), later(6)), ("$b".to_owned(), later(7))],
                vec![("$a".to_owned(), later(9)), ("$a".to_owned(), later(11))],
            ],
            ..Received::default()
        };
        let (mut delays, faults) = received.compare(&sent);
        delays.sort_unstable();
        assert_eq!(delays, [5, 7, 9].map(Duration::from_millis));
        assert_eq!((faults.missing, faults.duplicated), (1, 1));
    }

    /// An answer with nothing new has no rooms; one with news keeps only what matters.
    #[test]
    fn answers_are_parsed() {
        let empty = SyncAnswer::parse(br#"{"next_batch":"s1","presence":{"events":[]}}"#).unwrap();
        assert_eq!(empty.next_batch, "s1");
        assert!(empty.joined().is_empty());
        let full = SyncAnswer::parse(
            br#"{"next_batch":"s2","rooms":{"join":{"!r":{"timeline":{"limited":true,"prev_batch":"p",
                "events":[{"event_id":"$e","type":"m.room.message","content":{"body":"x"}}]},
                "ephemeral":{"events":[]}},"!typing":{"ephemeral":{"events":[]}}}}}"#,
        )
        .unwrap();
        assert_eq!(full.joined().len(), 2);
        assert!(full.joined()["!r"].timeline.limited);
        assert!(full.joined()["!r"].timeline.events[0].is_message());
    }
}
