//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{edge::EdgeOptions, processes::NamedPid};

/// Loads a Matrix homeserver through the client-server API, and measures it.
#[derive(Debug, Parser)]
#[command(name = "myelin-load", version)]
pub(crate) struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How.
    #[command(flatten)]
    pub(crate) options: Options,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one scenario.
    #[command(flatten)]
    Scenario(Scenario),
    /// Run every scenario, one after the other, with the same accounts.
    All {
        /// Leave a scenario out; may be repeated.
        #[arg(long, value_name = "SCENARIO")]
        skip: Vec<Scenario>,
    },
    /// Run every scenario of rooms shared with other servers, which needs --authority.
    Federation,
    /// Make the certificate authority of the other servers: root.pem, which the measured server must trust,
    /// certificate.pem and key.pem.
    Authority {
        /// Where to.
        folder: PathBuf,
    },
    /// Measure front doors, all with the same server behind them: TLS, and handing requests on. Writes a Markdown table.
    Edge(EdgeOptions),
    /// The server behind the front doors.
    EdgeUpstream {
        /// Where it listens.
        address: SocketAddr,
    },
    /// Write the JSON files of several runs as one Markdown table, with ratios to the first.
    Table {
        /// Files written by --json.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand, ValueEnum)]
pub(crate) enum Scenario {
    /// Concurrent senders, each into a room of its own.
    SendManyRooms,
    /// Concurrent senders, all into one room.
    SendOneRoom,
    /// Pages of history, newest first.
    Messages,
    /// One sender, and many members who wait in /sync: the delay from sending to receipt.
    FanOut,
    /// Messages, typing, receipts, joins, leaves, names and state by users who all sync.
    Mixed,
    /// The first /sync of a new device of an account with many rooms.
    InitialSync,
    /// The first sliding sync of a new device of that account with 20 rooms visible, and one with nothing new.
    SlidingSync,
    /// The list of members of a large room.
    Members,
    /// Joins to a large room.
    Join,
    /// Long polls that nothing happens to.
    Idle,
    /// The device keys of all members of a large room.
    KeyQuery,
    /// Messages from device to device, and their receipt.
    ToDevice,
    /// The join of a large room that another server holds.
    RemoteJoin,
    /// Transactions of another server.
    RemoteReceive,
    /// Messages that many other servers are sent.
    RemoteSend,
}

impl Scenario {
    /// Every scenario, in the order in which they disturb each other least: a server lets presence of those who
    /// polled run out for half a minute, and so long polls come late.
    pub(crate) const ALL: [Self; 12] = [
        Self::SendManyRooms,
        Self::SendOneRoom,
        Self::Messages,
        Self::InitialSync,
        Self::SlidingSync,
        Self::Members,
        Self::Join,
        Self::KeyQuery,
        Self::ToDevice,
        Self::Idle,
        Self::FanOut,
        Self::Mixed,
    ];

    /// Every scenario of rooms shared with other servers.
    pub(crate) const FEDERATION: [Self; 3] = [Self::RemoteJoin, Self::RemoteReceive, Self::RemoteSend];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SendManyRooms => "send-many-rooms",
            Self::SendOneRoom => "send-one-room",
            Self::Messages => "messages",
            Self::FanOut => "fan-out",
            Self::Mixed => "mixed",
            Self::InitialSync => "initial-sync",
            Self::SlidingSync => "sliding-sync",
            Self::Members => "members",
            Self::Join => "join",
            Self::Idle => "idle",
            Self::KeyQuery => "key-query",
            Self::ToDevice => "to-device",
            Self::RemoteJoin => "remote-join",
            Self::RemoteReceive => "remote-receive",
            Self::RemoteSend => "remote-send",
        }
    }
}

/// Options of every scenario.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The homeserver, for example http://127.0.0.1:8008 (plain HTTP only).
    #[arg(long, global = true, default_value = "http://127.0.0.1:8008")]
    pub(crate) url: String,
    /// What to call the server in tables.
    #[arg(long, global = true, default_value = "server")]
    pub(crate) name: String,
    /// Write the whole result as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Register accounts by the operators' interface with the secret in this file.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Accounts")]
    pub(crate) shared_secret_file: Option<PathBuf>,
    /// Register accounts by the operators' interface with this secret.
    #[arg(
        long,
        global = true,
        value_name = "SECRET",
        help_heading = "Accounts",
        conflicts_with = "shared_secret_file"
    )]
    pub(crate) shared_secret: Option<String>,
    /// Register accounts as clients do, with this registration token. Without secret and token, registration must
    /// be open.
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Accounts")]
    pub(crate) registration_token: Option<String>,
    /// Part of all user names; by default the time, so that runs on one server do not meet.
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Accounts")]
    pub(crate) run: Option<String>,

    /// A process of the server; may be repeated. The name splits the figures.
    #[arg(long, global = true, value_name = "[NAME=]PID", help_heading = "Server's processes")]
    pub(crate) pid: Vec<NamedPid>,
    /// A process with all its children, exited ones included (PostgreSQL's postmaster); may be repeated.
    #[arg(long, global = true, value_name = "[NAME=]PID", help_heading = "Server's processes")]
    pub(crate) process_tree: Vec<NamedPid>,

    /// Seconds for one answer, besides the time that a poll may wait.
    #[arg(long, global = true, default_value_t = 120, help_heading = "Bounds")]
    request_seconds: u64,
    /// Seconds for one scenario with its preparation.
    #[arg(long, global = true, default_value_t = 900, help_heading = "Bounds")]
    scenario_seconds: u64,
    /// Seconds to wait for what was sent to arrive.
    #[arg(long, global = true, default_value_t = 60, help_heading = "Bounds")]
    delivery_seconds: u64,
    /// Seconds to wait for the server to become quiet, before and after each measurement.
    #[arg(long, global = true, default_value_t = 60, help_heading = "Bounds")]
    settle_seconds: u64,
    /// Requests under way at once while accounts and rooms are prepared.
    #[arg(long, global = true, default_value_t = 8, help_heading = "Bounds", value_parser = positive)]
    pub(crate) prepare_concurrency: usize,

    /// The seed of all chance.
    #[arg(long, global = true, default_value_t = 1, help_heading = "Sizes")]
    pub(crate) seed: u64,
    /// Messages of send-many-rooms, of send-one-room and of to-device.
    #[arg(long, global = true, default_value_t = 1_000, help_heading = "Sizes", value_parser = positive)]
    pub(crate) messages: usize,
    /// Concurrent senders of send-many-rooms, of send-one-room and of to-device.
    #[arg(long, global = true, default_value_t = 16, help_heading = "Sizes", value_parser = positive)]
    pub(crate) senders: usize,
    /// Pages that messages reads, of 100 events each.
    #[arg(long, global = true, default_value_t = 500, help_heading = "Sizes", value_parser = positive)]
    pub(crate) pages: usize,
    /// Waiting members of fan-out.
    #[arg(long, global = true, default_value_t = 50, help_heading = "Sizes", value_parser = positive)]
    pub(crate) receivers: usize,
    /// Messages of fan-out.
    #[arg(long, global = true, default_value_t = 20, help_heading = "Sizes", value_parser = positive)]
    pub(crate) broadcasts: usize,
    /// Milliseconds of rest in fan-out between the last receipt of a message and the next message.
    #[arg(long, global = true, default_value_t = 250, help_heading = "Sizes")]
    broadcast_rest_ms: u64,
    /// Syncing users of mixed.
    #[arg(long, global = true, default_value_t = 40, help_heading = "Sizes", value_parser = positive)]
    pub(crate) users: usize,
    /// Actions of mixed.
    #[arg(long, global = true, default_value_t = 1_000, help_heading = "Sizes", value_parser = positive)]
    pub(crate) actions: usize,
    /// Long polls of idle that are held at once.
    #[arg(long, global = true, default_value_t = 1_000, help_heading = "Sizes", value_parser = positive)]
    pub(crate) polls: usize,
    /// Rounds of each long poll of idle.
    #[arg(long, global = true, default_value_t = 2, help_heading = "Sizes", value_parser = positive)]
    pub(crate) rounds: usize,
    /// The shortest timeout of a poll of idle, in milliseconds.
    #[arg(long, global = true, default_value_t = 1_000, help_heading = "Sizes")]
    poll_ms_min: u64,
    /// The longest timeout of a poll of idle, in milliseconds.
    #[arg(long, global = true, default_value_t = 30_000, help_heading = "Sizes")]
    poll_ms_max: u64,
    /// Rooms of initial-sync.
    #[arg(long, global = true, default_value_t = 200, help_heading = "Sizes", value_parser = positive)]
    pub(crate) rooms: usize,
    /// Messages in each room of initial-sync.
    #[arg(long, global = true, default_value_t = 3, help_heading = "Sizes", value_parser = positive)]
    pub(crate) room_messages: usize,
    /// Initial syncs, each of a new device.
    #[arg(long, global = true, default_value_t = 10, help_heading = "Sizes", value_parser = positive)]
    pub(crate) devices: usize,
    /// Members of the large room of members, join, key-query and idle.
    #[arg(long, global = true, default_value_t = 1_000, help_heading = "Sizes", value_parser = positive)]
    pub(crate) members: usize,
    /// Times that members asks for the list.
    #[arg(long, global = true, default_value_t = 200, help_heading = "Sizes", value_parser = positive)]
    pub(crate) member_lists: usize,
    /// Times that key-query asks for the keys of all members of the large room.
    #[arg(long, global = true, default_value_t = 50, help_heading = "Sizes", value_parser = positive)]
    pub(crate) key_queries: usize,
    /// Joins to the large room, one after the other.
    #[arg(long, global = true, default_value_t = 50, help_heading = "Sizes", value_parser = positive)]
    pub(crate) joins: usize,

    /// The folder that `authority` filled.
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Other servers")]
    pub(crate) authority: Option<PathBuf>,
    /// Where the measured server's database lies, to see how it grows.
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Other servers")]
    pub(crate) database_folder: Option<PathBuf>,
    /// Members of the room that remote-join joins.
    #[arg(long, global = true, default_value_t = 5_000, help_heading = "Other servers", value_parser = positive)]
    pub(crate) remote_members: usize,
    /// Events of that room.
    #[arg(long, global = true, default_value_t = 20_000, help_heading = "Other servers", value_parser = positive)]
    pub(crate) remote_events: usize,
    /// Transactions of remote-receive, of 50 events each.
    #[arg(long, global = true, default_value_t = 100, help_heading = "Other servers", value_parser = positive)]
    pub(crate) transactions: usize,
    /// Servers that remote-send sends to.
    #[arg(long, global = true, default_value_t = 200, help_heading = "Other servers", value_parser = positive)]
    pub(crate) destinations: usize,
    /// Messages of remote-send.
    #[arg(long, global = true, default_value_t = 20, help_heading = "Other servers", value_parser = positive)]
    pub(crate) remote_messages: usize,
}

impl Options {
    /// How long one answer may take.
    pub(crate) fn request_time_max(&self) -> Duration {
        Duration::from_secs(self.request_seconds)
    }

    /// How long a scenario may take.
    pub(crate) fn scenario_time_max(&self) -> Duration {
        Duration::from_secs(self.scenario_seconds)
    }

    /// How long to wait for deliveries.
    pub(crate) fn delivery_time_max(&self) -> Duration {
        Duration::from_secs(self.delivery_seconds)
    }

    /// How long to wait for quiet.
    pub(crate) fn settle_time_max(&self) -> Duration {
        Duration::from_secs(self.settle_seconds)
    }

    /// The rest between broadcasts.
    pub(crate) fn broadcast_rest(&self) -> Duration {
        Duration::from_millis(self.broadcast_rest_ms)
    }

    /// The shortest and the longest idle poll, in milliseconds.
    pub(crate) fn poll_ms(&self) -> std::ops::RangeInclusive<u64> {
        self.poll_ms_min.min(self.poll_ms_max)..=self.poll_ms_max
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// The definition holds together, and every scenario is a subcommand of its name.
    #[test]
    fn every_scenario_is_a_subcommand() {
        CommandLine::command().debug_assert();
        for scenario in Scenario::ALL.into_iter().chain(Scenario::FEDERATION) {
            let line = CommandLine::try_parse_from(["myelin-load", scenario.name(), "--pid", "server=7"]).unwrap();
            assert!(matches!(line.command, Command::Scenario(parsed) if parsed == scenario));
            assert_eq!(line.options.pid.len(), 1);
            let skip = ["myelin-load", "all", "--skip", scenario.name()];
            let line = CommandLine::try_parse_from(skip).unwrap();
            assert!(matches!(line.command, Command::All { skip } if skip == [scenario]));
        }
    }

    /// A load of nothing is a mistake.
    #[test]
    fn sizes_are_positive() {
        assert!(CommandLine::try_parse_from(["myelin-load", "all", "--messages", "0"]).is_err());
        assert!(CommandLine::try_parse_from(["myelin-load", "all", "--pid", "server"]).is_err());
    }
}
