//! `myelin demo`
//!
//! The servers are processes of this same program, on configurations that it writes. They end with it, however it ends:
//! each reads its standard input, which the operating system closes.

mod api;
mod member;
mod place;

use std::{fmt::Write as _, io::Read as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use futures_util::future::select_all;
use myelin_process::shutdown::Signals;

use self::{
    member::{Member, encode},
    place::Site,
};
use super::{ConfigFiles, print, serve::Serve};
use crate::exit::{Exit, Failure};

/// How long the servers have to start, on a slow machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Run three homeservers on this machine that share a room, to try federation out.
///
/// They have a certificate authority of their own and reach nobody else. Ctrl+C ends them and removes all that they
/// wrote.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// The first of the six ports to listen on, of 127.0.0.1. Ports that are taken are passed over.
    #[arg(long, value_name = "PORT", default_value_t = 8101)]
    first_port: u16,
    /// Run one of the servers, until the standard input is closed.
    #[arg(long, value_name = "FILE", hide = true)]
    member: Option<PathBuf>,
}

impl Demo {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if let Some(file) = self.member {
            return run_member(file);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::System, anyhow::Error::new(error).context("start a runtime")))?;
        runtime.block_on(run(self.first_port))
    }
}

/// Serves until whoever started it is gone. What the servers keep is removed then, so they need not end in order.
fn run_member(file: PathBuf) -> Result<(), Failure> {
    let watch = || {
        // Whatever ends the input, an error too, means that nobody is there.
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        #[expect(clippy::disallowed_methods, reason = "nothing of it is to be kept")]
        std::process::exit(0);
    };
    std::thread::Builder::new()
        .name("demo".to_owned())
        .spawn(watch)
        .map_err(|error| Failure::new(Exit::System, anyhow::Error::new(error).context("start a thread")))?;
    Serve { files: ConfigFiles { paths: vec![file] } }.run()
}

async fn run(first_port: u16) -> Result<(), Failure> {
    // Before anything is started, so that no signal leaves something behind.
    let mut signals =
        Signals::listen().context("listen for signals").map_err(|error| Failure::new(Exit::System, error))?;
    let site = Site::new(first_port)?;
    let mut members = Vec::with_capacity(site.places.len());
    let ended = tokio::select! {
        ended = show(&site, &mut members) => ended,
        _ = signals.next() => Ok(()),
    };
    for member in members {
        member.stop().await;
    }
    ended?;
    print("\nThe servers are stopped, and what they wrote is removed.\n")
}

/// Starts the servers, lets their people meet, says how to join them, and waits until a server ends.
async fn show(site: &Site, members: &mut Vec<Member>) -> Result<(), Failure> {
    print("Starting three homeservers...\n")?;
    for place in &site.places {
        members.push(Member::start(site, place).await?);
    }
    let met = tokio::time::timeout(START_TIMEOUT, async {
        for member in members.iter_mut() {
            member.ready().await?;
        }
        meet(members).await
    });
    let met = met.await.unwrap_or_else(|_| Err(anyhow!("the servers did not start within {START_TIMEOUT:?}")));
    let room = met.map_err(|error| {
        site.show_logs();
        Failure::new(Exit::Unavailable, error)
    })?;
    print(&told(site, members, &room))?;
    let (ended, _, _) = select_all(members.iter_mut().map(|member| Box::pin(member.ended()))).await;
    site.show_logs();
    Err(ended)
}

/// The first of them makes a room, the others join it from their servers, and everybody says something.
async fn meet(members: &[Member]) -> anyhow::Result<String> {
    let (host, guests) = members.split_first().context("there are members")?;
    let room = host.create_room().await?;
    for guest in guests {
        guest.join(&alias(host)).await?;
    }
    for member in members {
        member.say(&room, &format!("Hello from {}!", member.place.server_name())).await?;
    }
    Ok(room)
}

fn alias(host: &Member) -> String {
    format!("#demo:{}", host.place.server_name())
}

/// What a newcomer needs to know.
fn told(site: &Site, members: &[Member], room: &str) -> String {
    let mut text = "\nThree homeservers are running, in a federation of their own:\n".to_owned();
    for member in members {
        let place = &member.place;
        text.push_str(&format!("\n  {}\n", place.server_name()));
        let mut line = |name, value: &str| {
            writeln!(text, "    {name:<16}{value}").expect("a String takes every write");
        };
        line("for clients", &place.baseurl());
        line("user name", place.name);
        line("password", &site.password);
        line("access token", member.token());
    }
    let ([first, .., last], room) = (members, encode(room)) else { return text };
    let shown = format!(
        "\nAll three are in the room {alias}. Databases and logs are in {folder}.\n\n\
         Next: connect a client of your choice to {first_url} as {first_name}, another one to {last_url} as {last_name},\n\
         and talk. Without a client, this says something on the last server and reads it on the first:\n\n  \
         curl -X PUT '{last_url}/_matrix/client/v3/rooms/{room}/send/m.room.message/1' \\\n       \
         -H 'Authorization: Bearer {last_token}' -d '{{\"msgtype\":\"m.text\",\"body\":\"Hello!\"}}'\n  \
         curl '{first_url}/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1' \\\n       \
         -H 'Authorization: Bearer {first_token}'\n\n\
         Ctrl+C stops the servers and removes all of it.\n\n",
        alias = alias(first),
        folder = site.folder().display(),
        first_url = first.place.baseurl(),
        first_name = first.place.name,
        first_token = first.token(),
        last_url = last.place.baseurl(),
        last_name = last.place.name,
        last_token = last.token(),
    );
    text + &shown
}
