//! One run against one server: what scenarios share.

use std::{collections::HashSet, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use crate::{
    accounts::{Accounts, Registration},
    client::{Homeserver, Session},
    measure::Watch,
    options::{Options, Scenario},
    peers::{Peers, RoomSize},
    processes::Processes,
    report::{Outcome, Report},
    scenarios,
};

/// What scenarios of a run share: the server, accounts, and rooms that are dear to make.
#[derive(Debug)]
pub(crate) struct Run {
    /// The command line's options.
    pub(crate) options: Options,
    /// Accounts, made when first asked for.
    pub(crate) accounts: Accounts,
    /// Measures the server.
    pub(crate) watch: Watch,
    history: Option<History>,
    large_room: Option<String>,
}

/// A room with a known history.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// The room.
    pub(crate) room: String,
    /// Someone who is in it.
    pub(crate) reader: Session,
    /// The ids of all its messages.
    pub(crate) messages: Arc<HashSet<String>>,
}

impl Run {
    /// Connects a run to the server that the options name.
    pub(crate) fn new(options: Options) -> anyhow::Result<(Self, Report)> {
        if !options.url.starts_with("http://") {
            bail!("{} is not a plain http:// URL", options.url);
        }
        let registration = registration(&options)?;
        let run = match &options.run {
            Some(run) => run.clone(),
            None => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
                format!("{:x}", now.as_millis())
            }
        };
        let server = Arc::new(Homeserver::new(&options.url, options.request_time_max()));
        let processes = Processes::find(&options.pid, &options.process_tree)?;
        let watch = Watch::new(processes, server.clone(), options.settle_time_max())?;
        let report = Report {
            name: options.name.clone(),
            url: options.url.clone(),
            seed: options.seed,
            run: run.clone(),
            ..Report::default()
        };
        let accounts = Accounts::new(server, registration, run, options.prepare_concurrency);
        Ok((Self { options, accounts, watch, history: None, large_room: None }, report))
    }

    /// Runs scenarios in order; one that breaks does not stop those after it.
    pub(crate) async fn run(&mut self, scenarios: &[Scenario], report: &mut Report) -> anyhow::Result<()> {
        self.watch.settle().await?;
        report.memory_before = self.watch.memory()?;
        for scenario in scenarios {
            let begun = Instant::now();
            let time_max = self.options.scenario_time_max();
            eprintln!("{}: preparing", scenario.name());
            let outcome = match tokio::time::timeout(time_max, scenarios::run(*scenario, self)).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Err(anyhow::anyhow!("not done within {} s", time_max.as_secs())),
            };
            eprintln!("{}: over after {:.0} s", scenario.name(), begun.elapsed().as_secs_f64());
            match outcome {
                Ok(outcome) => {
                    let outcome = Outcome { scenario: scenario.name().to_owned(), ..outcome };
                    println!("{outcome}");
                    report.scenarios.push(outcome);
                }
                Err(error) => {
                    println!("{}\n  broken: {error:#}\n", scenario.name());
                    report.broken.insert(scenario.name().to_owned(), format!("{error:#}"));
                }
            }
        }
        Ok(())
    }

    /// A public room with these members, of whom the first makes it.
    pub(crate) async fn room(&self, members: &[Session], name: &str) -> anyhow::Result<String> {
        self.room_with(members, name, json!({})).await
    }

    /// The same, with the power levels that `power_levels` overrides.
    pub(crate) async fn room_with(
        &self,
        members: &[Session],
        name: &str,
        power_levels: Value,
    ) -> anyhow::Result<String> {
        let [owner, others @ ..] = members else {
            bail!("a room needs a member");
        };
        let body = json!({
            "preset": "public_chat",
            "name": name,
            "power_level_content_override": power_levels,
        });
        let room = owner.create_room(&body).await.with_context(|| format!("create room {name}"))?;
        stream::iter(others)
            .map(|member| member.join(&room))
            .buffer_unordered(self.options.prepare_concurrency)
            .try_collect::<()>()
            .await
            .with_context(|| format!("fill room {name}"))?;
        Ok(room)
    }

    /// The crowd's first members in one large room: those members, and the room.
    pub(crate) async fn large_room(&mut self) -> anyhow::Result<(Vec<Session>, String)> {
        let members = self.accounts.crowd(self.options.members).await?;
        let room = match &self.large_room {
            Some(room) => room.clone(),
            None => self.room(&members, "Large").await?,
        };
        self.large_room = Some(room.clone());
        Ok((members, room))
    }

    /// Other servers with a room that has members of each.
    pub(crate) async fn peers(&self, count: usize, size: RoomSize) -> anyhow::Result<Peers> {
        let folder = self.options.authority.as_deref().context("other servers need --authority")?;
        Peers::start(folder, count, size).await
    }

    /// Keeps a room that was filled with messages for who reads history.
    pub(crate) fn keep_history(&mut self, history: History) {
        self.history = Some(history);
    }

    /// A room filled with messages, if there is one.
    pub(crate) fn history(&self) -> Option<History> {
        self.history.clone()
    }
}

fn registration(options: &Options) -> anyhow::Result<Registration> {
    if let Some(path) = &options.shared_secret_file {
        let secret = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        return Ok(Registration::SharedSecret(secret.trim().to_owned()));
    }
    Ok(match (&options.shared_secret, &options.registration_token) {
        (Some(secret), _) => Registration::SharedSecret(secret.clone()),
        (None, Some(token)) => Registration::Token(token.clone()),
        (None, None) => Registration::Open,
    })
}
