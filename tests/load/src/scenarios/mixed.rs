//! People who all sync and do what people do.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    client::{RequestError, Session},
    follow::Followers,
    report::Outcome,
    run::Run,
    scenarios::Timed,
};

const STATE: &str = "org.example.load.status";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Send,
    Type,
    Read,
    JoinOrLeave,
    Rename,
    SetState,
}

impl Action {
    fn draw(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0..40 => Self::Send,
            40..60 => Self::Type,
            60..80 => Self::Read,
            80..90 => Self::JoinOrLeave,
            90..95 => Self::Rename,
            _ => Self::SetState,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Type => "typing",
            Self::Read => "receipt",
            Self::JoinOrLeave => "join or leave",
            Self::Rename => "display name",
            Self::SetState => "state",
        }
    }
}

pub(super) async fn run(run: &mut Run) -> anyhow::Result<Outcome> {
    let people = run.accounts.crowd(run.options.users).await?;
    // All stay in the hall, where everything is said, and come and go by the door.
    let open = json!({ "events": { STATE: 0 } });
    let hall = run.room_with(&people, "Hall", open).await?;
    let door = run.room(&people, "Door").await?;
    let followers = Followers::start(&people, &hall, run.options.prepare_concurrency).await?;
    let mut first = None;
    for person in &people {
        first = Some(person.send(&hall, "mixed-warm-up", "warm-up").await?);
    }
    followers.wait_for(people.len() * people.len(), run.options.delivery_time_max()).await;

    let mut rng = StdRng::seed_from_u64(run.options.seed);
    let mut plans = vec![Vec::new(); people.len()];
    for number in 0..run.options.actions {
        plans[number % people.len()].push(Action::draw(&mut rng));
    }
    let measurement = run.watch.begin().await?;
    let before = followers.received();
    let mut tasks = JoinSet::new();
    for ((session, plan), newest) in people.iter().zip(plans).zip(followers.newest()) {
        let person = Person {
            session: session.clone(),
            hall: hall.clone(),
            door: door.clone(),
            newest,
            first: first.clone().unwrap_or_default(),
            behind_door: true,
            typing: false,
            sent: HashMap::new(),
            timed: BTreeMap::new(),
        };
        tasks.spawn(person.act(plan));
    }
    let mut all = Timed::default();
    let mut kinds: BTreeMap<Action, Timed> = BTreeMap::new();
    let mut sent = HashMap::new();
    for person in tasks.join_all().await {
        sent.extend(person.sent);
        for (action, timed) in person.timed {
            all.delays.extend(&timed.delays);
            kinds.entry(action).or_default().add(timed);
        }
    }
    let acted = Instant::now();
    followers.wait_for(before + sent.len() * people.len(), run.options.delivery_time_max()).await;
    let arriving = acted.elapsed();
    let mut usage = measurement.end().await?;
    usage.wall_seconds -= arriving.as_secs_f64();

    let received = followers.stop().await?;
    let (answers, gaps) = (received.answers, received.gaps);
    let (deliveries, faults) = received.compare(&sent);
    let mut outcome = Outcome::new("actions", all.delays.len(), usage)
        .delays("an action", &all.delays)
        .delays("send to receipt", &deliveries)
        .faults(faults)
        .figure("users", people.len() as f64)
        .figure("sync answers", answers as f64)
        .figure("sync answers with a gap", gaps as f64);
    for (action, timed) in kinds {
        outcome = outcome.delays(action.name(), &timed.delays).faults(timed.faults);
    }
    Ok(outcome)
}

/// Someone who acts.
struct Person {
    session: Session,
    hall: String,
    door: String,
    newest: Arc<Mutex<Option<String>>>,
    first: String,
    behind_door: bool,
    typing: bool,
    sent: HashMap<String, Instant>,
    timed: BTreeMap<Action, Timed>,
}

impl Person {
    async fn act(mut self, plan: Vec<Action>) -> Self {
        for (number, action) in plan.into_iter().enumerate() {
            let mut timed = self.timed.remove(&action).unwrap_or_default();
            let begun = Instant::now();
            let message = timed.time(self.perform(action, number)).await.flatten();
            if let Some(event) = message {
                self.sent.insert(event, begun);
            }
            self.timed.insert(action, timed);
        }
        self
    }

    /// Does one thing; when it is a message, returns its id.
    async fn perform(&mut self, action: Action, number: usize) -> Result<Option<String>, RequestError> {
        let Self { session, hall, door, .. } = self;
        match action {
            Action::Send => {
                let text = format!("Remark {number}, made in passing.");
                return session.send(hall, &format!("mixed-{number}"), &text).await.map(Some);
            }
            Action::Type => {
                self.typing = !self.typing;
                session.set_typing(hall, self.typing).await?;
            }
            Action::Read => {
                let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
                session.mark_read(hall, newest.as_deref().unwrap_or(&self.first)).await?;
            }
            Action::JoinOrLeave if self.behind_door => {
                session.leave(door).await?;
                self.behind_door = false;
            }
            Action::JoinOrLeave => {
                session.join(door).await?;
                self.behind_door = true;
            }
            Action::Rename => session.set_display_name(&format!("Name {number}")).await?,
            Action::SetState => {
                // A key that begins with @ would be reserved to the user of that id.
                let key = session.user_id.trim_start_matches('@');
                session.set_state(hall, STATE, key, &json!({ "number": number })).await?;
            }
        }
        Ok(None)
    }
}
