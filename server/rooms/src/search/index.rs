//! Keeps what is searched up to date with the stream: texts, and the user directory.
//!
//! One replica does so, under a lease, in batches. Nothing waits for it: a message is written without, and found a
//! moment later.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use myelin_store::{
    Candidate, Event, IndexStep, Lease, Member, SEARCH_HISTORY, SEARCH_INDEX, SearchText, Store, TextField,
    redacted_event_id,
};
use prometheus::{
    IntCounter, IntCounterVec, IntGauge, register_int_counter, register_int_counter_vec, register_int_gauge,
};
use serde::Deserialize;
use tokio::sync::watch;

use super::words::words;
use crate::{Result, Rooms};

/// Positions of the stream that are read at once.
const PAGE: i64 = 250;
/// Events of history that are read at once.
const HISTORY_PAGE: usize = 250;
/// Positions without anything to find that are passed before the place is written down.
const UNWRITTEN_MAX: i64 = 5_000;
/// How often is looked for history, which does not move the stream.
const HISTORY_PERIOD: Duration = Duration::from_secs(10);
/// How long to wait when the database failed.
const RETRY: Duration = Duration::from_secs(5);

static LAG: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "myelin_search_index_lag_positions",
        "Positions of the stream that cannot be searched yet, at the replica that has the duty."
    )
    .expect("metric names are unique")
});
static TEXTS: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!("myelin_search_texts_indexed_total", "Texts that were made searchable.")
        .expect("metric names are unique")
});
static PLACES: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "myelin_search_directory_changes_total",
        "Places of users in rooms that were written into the user directory."
    )
    .expect("metric names are unique")
});
static FAILED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_search_index_failures_total",
        "Steps of the search index that failed, and are tried again, and rooms that it left out.",
        &["what"]
    )
    .expect("metric names are unique")
});

/// How the index is kept.
#[derive(Clone, Copy, Debug)]
pub struct IndexerOptions {
    /// How long to gather what comes before it is written.
    pub pause: Duration,
    /// How long the lease lasts after the replica that holds it has died.
    pub lease_ttl: Duration,
}

impl Default for IndexerOptions {
    fn default() -> Self {
        Self { pause: Duration::from_secs(1), lease_ttl: Duration::from_secs(15) }
    }
}

/// Keeps the index: one for a process. It does so while it holds the lease.
#[derive(Debug)]
pub struct Indexer {
    pub(super) rooms: Arc<Rooms>,
    options: IndexerOptions,
    holder: String,
    indexed: watch::Sender<i64>,
}

/// Whether a step is done.
enum Step {
    /// There may be more.
    More,
    /// There is no more for now.
    Done,
    /// Another replica has the duty.
    LeaseLost,
}

/// How far a term has come.
struct Places {
    stream: i64,
    written: i64,
    history: i64,
}

impl Indexer {
    /// Indexes nothing before [`Indexer::run`].
    pub fn new(rooms: Arc<Rooms>, options: IndexerOptions) -> Arc<Self> {
        for what in ["step", "room"] {
            FAILED.with_label_values(&[what]);
        }
        LazyLock::force(&LAG);
        LazyLock::force(&TEXTS);
        LazyLock::force(&PLACES);
        let holder = format!("{:016x}", rand::random::<u64>());
        Arc::new(Self { rooms, options, holder, indexed: watch::Sender::new(0) })
    }

    /// Indexes whenever this replica holds the lease, until `stop` is true.
    pub async fn run(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let candidate = Candidate { name: SEARCH_INDEX, holder: self.holder.clone(), ttl: self.options.lease_ttl };
        let told = stop.clone();
        self.store()
            .lead(&candidate, stop, |lease| {
                let (indexer, told) = (self.clone(), told.clone());
                async move { Box::pin(indexer.serve(lease, told)).await }
            })
            .await;
    }

    /// The position up to which this replica has indexed.
    pub fn indexed(&self) -> watch::Receiver<i64> {
        self.indexed.subscribe()
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.rooms.store
    }

    async fn serve(self: Arc<Self>, lease: Lease, mut stop: watch::Receiver<bool>) {
        let mut places = None;
        let mut positions = self.store().positions();
        while !*stop.borrow() {
            positions.borrow_and_update();
            let outcome = match &mut places {
                Some(places) => self.advance(&lease, places).await,
                None => self.places().await.map(|found| {
                    places = Some(found);
                    Step::More
                }),
            };
            let pause = match outcome {
                Ok(Step::More) => continue,
                Ok(Step::LeaseLost) => break,
                Ok(Step::Done) => {
                    tokio::select! {
                        _ = positions.changed() => {}
                        () = tokio::time::sleep(HISTORY_PERIOD) => {}
                        _ = stop.wait_for(|stop| *stop) => break,
                    }
                    self.options.pause
                }
                Err(error) => {
                    FAILED.with_label_values(&["step"]).inc();
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "could not bring the search index up to date; will try again"
                    );
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        LAG.set(0);
    }

    async fn places(&self) -> Result<Places> {
        let stream = self.store().duty_position(SEARCH_INDEX).await?;
        let history = self.store().duty_position(SEARCH_HISTORY).await?;
        Ok(Places { stream, written: stream, history })
    }

    async fn advance(&self, lease: &Lease, places: &mut Places) -> Result<Step> {
        let end = self.store().position();
        LAG.set(end - places.stream);
        if places.stream < end {
            return self.advance_stream(lease, places, end.min(places.stream + PAGE)).await;
        }
        let events = self.store().history_events(places.history, HISTORY_PAGE).await?;
        let Some(lowest) = events.last().and_then(|event| event.pos) else { return Ok(Step::Done) };
        let news = self.news(&events).await?;
        let position = Some((SEARCH_HISTORY, lowest));
        let step = IndexStep { texts: &news.texts, removed: &news.removed, position };
        if !self.store().write_index(lease, &step).await? {
            return Ok(Step::LeaseLost);
        }
        TEXTS.inc_by(news.texts.len() as u64);
        places.history = lowest;
        Ok(Step::More)
    }

    async fn advance_stream(&self, lease: &Lease, places: &mut Places, to: i64) -> Result<Step> {
        let events = self.store().stream_events(places.stream, to).await?;
        let members = self.store().changed_members(places.stream, to).await?;
        let news = self.news(&events).await?;
        if !self.update_directory(lease, members, &news.reopened).await? {
            return Ok(Step::LeaseLost);
        }
        for room_nid in &news.encrypted {
            loop {
                match self.store().unindex_room(lease, *room_nid).await? {
                    None => return Ok(Step::LeaseLost),
                    Some(true) => {}
                    Some(false) => break,
                }
            }
        }
        let is_empty = news.texts.is_empty() && news.removed.is_empty() && news.encrypted.is_empty();
        if !is_empty || to - places.written > UNWRITTEN_MAX {
            let position = Some((SEARCH_INDEX, to));
            let step = IndexStep { texts: &news.texts, removed: &news.removed, position };
            if !self.store().write_index(lease, &step).await? {
                return Ok(Step::LeaseLost);
            }
            TEXTS.inc_by(news.texts.len() as u64);
            places.written = to;
        }
        places.stream = to;
        LAG.set(self.store().position() - to);
        self.indexed.send_replace(to);
        Ok(Step::More)
    }

    /// What some events mean for the index.
    async fn news(&self, events: &[Event]) -> Result<News> {
        let mut news = News::default();
        let mut redacted: Vec<String> = Vec::new();
        for event in events.iter().filter(|event| event.is_shown()) {
            match (event.event_type(), event.state_key()) {
                ("m.room.redaction", None) => redacted.extend(redacted_event_id(event)),
                ("m.room.encryption", Some("")) => {
                    news.encrypted.insert(event.room_nid);
                }
                ("m.room.join_rules" | "m.room.history_visibility", Some("")) => {
                    news.reopened.insert(event.room_nid);
                }
                _ => {}
            }
        }
        let redacted: Vec<&str> = redacted.iter().map(String::as_str).collect();
        if !redacted.is_empty() {
            let events = self.store().events_by_id(&redacted).await?;
            news.removed = events.iter().filter(|event| event.redacted_by.is_some()).filter_map(|e| e.pos).collect();
        }
        let mut secrets: HashMap<i64, bool> = HashMap::new();
        for event in events {
            let Some(text) = text_of(event).filter(|_| !news.encrypted.contains(&event.room_nid)) else { continue };
            let is_secret = match secrets.get(&event.room_state) {
                Some(is_secret) => *is_secret,
                None => *secrets.entry(event.room_state).or_insert(self.is_encrypted(event).await?),
            };
            if !is_secret {
                news.texts.push(text);
            }
        }
        Ok(news)
    }

    /// Whether an event's room was encrypted when it came.
    async fn is_encrypted(&self, event: &Event) -> Result<bool> {
        match self.rooms.state_event_at(event.room_state, "m.room.encryption", "").await {
            Ok(found) => Ok(found.is_some()),
            Err(error) => left_out(event.room_nid, error).map(|()| true),
        }
    }

    /// Brings the directory up to date with changed memberships, and with rooms that may have become public or are so no
    /// more. False when the lease is lost.
    async fn update_directory(&self, lease: &Lease, members: Vec<Member>, reopened: &HashSet<i64>) -> Result<bool> {
        let mut by_room: BTreeMap<i64, Vec<Member>> = reopened.iter().map(|room| (*room, Vec::new())).collect();
        for member in members {
            by_room.entry(member.room_nid).or_default().push(member);
        }
        for (room_nid, members) in by_room {
            PLACES.inc_by(members.len() as u64);
            match self.update_room(lease, room_nid, &members).await {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => left_out(room_nid, error)?,
            }
        }
        Ok(true)
    }
}

/// Passes on what may go away by itself. What will not must not stop all that comes behind it.
fn left_out(room_nid: i64, error: crate::Error) -> Result<()> {
    if matches!(&error, crate::Error::Store(error) if error.is_unavailable()) {
        return Err(error);
    }
    FAILED.with_label_values(&["room"]).inc();
    tracing::error!(
        error = &error as &dyn std::error::Error,
        room.nid = room_nid,
        "a part of room {room_nid} cannot be found by search"
    );
    Ok(())
}

/// What some events mean.
#[derive(Debug, Default)]
struct News {
    texts: Vec<SearchText>,
    removed: Vec<i64>,
    /// Rooms that are encrypted from now on.
    encrypted: HashSet<i64>,
    /// Rooms that may be open to others than before.
    reopened: HashSet<i64>,
}

/// The text of an event that can be searched for, if it has one.
///
/// "The supported keys to search over are: content.body in m.room.message; content.name in m.room.name; in m.room.topic,
/// content.topic as well as the body of the text/plain representation in content['m.topic']."
fn text_of(event: &Event) -> Option<SearchText> {
    if !event.is_shown() || event.redacted_by.is_some() {
        return None;
    }
    let (field, words) = match (event.event_type(), event.state_key()) {
        ("m.room.message", None) => (TextField::Body, words(&content::<Body>(event)?.body)),
        ("m.room.name", Some("")) => (TextField::Name, words(&content::<Name>(event)?.name)),
        ("m.room.topic", Some("")) => (TextField::Topic, words(&content::<Topic>(event)?.text())),
        _ => return None,
    };
    if words.is_empty() {
        return None;
    }
    let Event { nid: event_nid, room_nid, sender_nid, .. } = *event;
    Some(SearchText { pos: event.pos?, event_nid, room_nid, sender_nid, field, words })
}

fn content<'e, T: Deserialize<'e>>(event: &'e Event) -> Option<T> {
    serde_json::from_str(event.content()).ok()
}

#[derive(Deserialize)]
struct Body {
    body: String,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Topic {
    topic: Option<String>,
    #[serde(rename = "m.topic")]
    block: Option<TopicBlock>,
}

#[derive(Deserialize)]
struct TopicBlock {
    #[serde(rename = "m.text", default)]
    texts: Vec<Representation>,
}

#[derive(Deserialize)]
struct Representation {
    mimetype: Option<String>,
    body: String,
}

impl Topic {
    /// The topic, and what its plain representation has to say besides.
    fn text(self) -> String {
        let is_plain = |text: &Representation| text.mimetype.as_deref().is_none_or(|mimetype| mimetype == "text/plain");
        let topic = self.topic.unwrap_or_default();
        let plain = self.block.and_then(|block| block.texts.into_iter().find(is_plain)).map(|text| text.body);
        match plain {
            Some(plain) if plain != topic => format!("{topic} \n {plain}"),
            _ => topic,
        }
    }
}
