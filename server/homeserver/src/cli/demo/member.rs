//! One of the servers, and its user.

use std::{env, fs::File, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use http::Method;
use myelin_accounts::{NewDevice, NewUser};
use myelin_process::config::Config;
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, Command};

use super::{
    api::Api,
    place::{Place, Site},
};
use crate::{
    exit::{Exit, Failure},
    parts,
};

/// Between two looks at whether a server is ready.
const PAUSE: Duration = Duration::from_millis(50);

/// One of the servers, running.
pub(super) struct Member {
    /// Where it is.
    pub(super) place: Place,
    api: Api,
    process: Child,
    /// The server ends when this is closed, also if this process is killed. Waiting for the child would close its own.
    _input: Option<ChildStdin>,
}

impl Member {
    /// Makes the user and starts the server.
    pub(super) async fn start(site: &Site, place: &Place) -> Result<Self, Failure> {
        // What is set in the environment for a server of one's own is not for these.
        let config = Config::load_with(&[place.config()], []).map_err(|error| Failure::new(Exit::Software, error))?;
        let token = create_user(&config, place.name, &site.password).await?;
        let mut process = spawn(place).context("start a server").map_err(|error| Failure::new(Exit::System, error))?;
        Ok(Self { api: Api::new(place.port, token), place: place.clone(), _input: process.stdin.take(), process })
    }

    /// Waits until the server answers.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("the server {} ended: {status}", self.place.server_name());
            }
            if self.api.ask(Method::GET, "/health/ready", None).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The user's access token.
    pub(super) fn token(&self) -> &str {
        self.api.token()
    }

    /// Makes a public room with an alias and returns its id.
    pub(super) async fn create_room(&self) -> anyhow::Result<String> {
        let request = json!({
            "preset": "public_chat",
            "visibility": "public",
            "room_alias_name": "demo",
            "name": "A room on three servers",
        });
        let made = self.api.ask(Method::POST, "/_matrix/client/v3/createRoom", Some(&request)).await?;
        Ok(made["room_id"].as_str().context("a new room has an id")?.to_owned())
    }

    /// Joins a room by its alias, which leads to another server.
    pub(super) async fn join(&self, alias: &str) -> anyhow::Result<()> {
        let path = format!("/_matrix/client/v3/join/{}", encode(alias));
        self.api.ask(Method::POST, &path, Some(&json!({}))).await.map(drop)
    }

    /// Says something.
    pub(super) async fn say(&self, room: &str, words: &str) -> anyhow::Result<()> {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/hello", encode(room));
        let content: Value = json!({ "msgtype": "m.text", "body": words });
        self.api.ask(Method::PUT, &path, Some(&content)).await.map(drop)
    }

    /// Waits until the server ends by itself, which it should not.
    pub(super) async fn ended(&mut self) -> Failure {
        let name = self.place.server_name();
        let error = match self.process.wait().await {
            Ok(status) => anyhow::anyhow!("the server {name} ended: {status}"),
            Err(error) => anyhow::Error::new(error).context(format!("wait for the server {name}")),
        };
        Failure::new(Exit::Software, error)
    }

    /// Ends the server. Nothing of it is kept, so it need not end in order.
    pub(super) async fn stop(mut self) {
        if let Err(error) = self.process.kill().await {
            eprintln!("the server {} may still run: {error}", self.place.server_name());
        }
    }
}

/// Makes an account on the database of a server that does not run yet, and logs in.
async fn create_user(config: &Config, name: &str, password: &str) -> Result<String, Failure> {
    let store = parts::open_store(config).await?;
    let accounts = parts::open_accounts(config, Arc::clone(&store)).await?;
    let new = NewUser { username: name, password, is_admin: true, display_name: None };
    let device = NewDevice { device_id: None, initial_display_name: Some("myelin demo"), can_refresh: false };
    let session = async {
        accounts.create_user(new).await?;
        accounts.log_in_by_password(name, password, device).await
    }
    .await;
    accounts.close().await;
    store.close().await;
    let failed = |error| Failure::new(Exit::Software, anyhow::Error::new(error).context("make a user"));
    Ok(session.map_err(failed)?.access_token)
}

/// Starts this program again as a server. It ends when the pipe to it closes, so at the latest with this process, and
/// not by what is typed in this terminal.
fn spawn(place: &Place) -> anyhow::Result<Child> {
    let log = File::create(place.log())?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["demo", "--member"]).arg(place.config());
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MYELIN_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
    Ok(command.spawn()?)
}

/// Percent-encodes what is not a letter or a digit.
pub(super) fn encode(word: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    word.bytes().map(encode).collect()
}
